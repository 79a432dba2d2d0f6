"""The implementations that the contract of the event log holds: a new one joins the list, with no tests of its own."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.config import LogConfig
from infra.eventlog import EventLog, open_log

Opener = Callable[[LogConfig], EventLog]


@dataclass(frozen=True)
class Backend:
    """`open(config)` opens the same log again and again, as separate processes would."""

    open: Opener


def _embedded(request: pytest.FixtureRequest, folder: Path) -> Opener:
    return lambda config: open_log(folder / "log", config)


def _kafka(request: pytest.FixtureRequest, folder: Path) -> Opener:
    url = f"kafka://{request.getfixturevalue('kafka')}/t{uuid.uuid4().hex}"
    return lambda config: open_log(url, config)


IMPLEMENTATIONS: dict[str, Callable[[pytest.FixtureRequest, Path], Opener]] = {"embedded": _embedded, "kafka": _kafka}


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., EventLog]]:
    """A function that opens the log of this test; everything it opened is closed at the end."""
    backend = Backend(IMPLEMENTATIONS[request.param](request, tmp_path))
    logs: list[EventLog] = []

    def open_again(**options: object) -> EventLog:
        logs.append(backend.open(LogConfig(**options)))
        return logs[-1]

    yield open_again
    for log in logs:
        log.close()


@pytest.fixture
def log(opened: Callable[..., EventLog]) -> EventLog:
    """An open log with a topic `t` of two partitions."""
    log = opened()
    log.create_topic("t", 2)
    return log
