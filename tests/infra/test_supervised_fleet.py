"""A fleet that starts its members again, with processes that die of every kind of death."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.config import SuperviseConfig
from infra.process import RunFolder
from infra.supervisor.broker import free_ports
from infra.supervisor.fleet import Fleet, Member, ProcessFailed

PATIENCE_S = 60.0
QUICK = SuperviseConfig(first_wait_s=0.05, longest_wait_s=0.1, max_failures=3, window_s=60.0)


def test_a_member_that_dies_too_often_stays_stopped_and_the_one_that_is_left_says_which(tmp_path: Path) -> None:
    """The wait doubles up to the longest; an error that a person must mend is not tried again."""
    folder, said = RunFolder(tmp_path), list[str]()
    folder.config_file.write_text("")
    ports = free_ports(2)
    members = [
        Member("replica", "serve", ("--follow", "--port", str(ports[0]))),
        Member("replica-2", "serve", ("--follow", "--number", "2", "--port", str(ports[1]))),
        Member("replay", "replay", ("--mind", "nowhere")),
    ]
    fleet = Fleet(folder, members, supervise=QUICK, needed="serve", endless=True, say=said.append)
    try:
        fleet.start_all()
        for lives in (1, 2, 3):
            fleet.kill("replica-2")
            until(lambda n=lives: fleet.standings()["replica-2"].restarts == n or gave_up(fleet, "replica-2"), fleet)
        until(lambda: gave_up(fleet, "replay") and answers(ports[0]), fleet)
        assert fleet.standings()["replica-2"].restarts == 2
        assert fleet.standings()["replay"].restarts == 0
        waits = [line for line in said if "is started again in" in line]
        assert [line.partition(" again in ")[2].split()[0] for line in waits] == ["0.05", "0.1"]
        degraded = readyz(ports[0])["degraded"]
        assert [sentence.split()[0] for sentence in degraded] == ["replica-2", "replay"]
        assert "end 3 of as many" in degraded[0]
        assert "nowhere: no such folder" in degraded[1]
        until(lambda: 'ouzel_member_up{member="replica-2"} 0.0' in metrics(ports[0]), fleet)
        assert 'ouzel_member_up{member="replica"} 1.0' in metrics(ports[0])
        assert 'ouzel_member_restarts{member="replica-2"} 2.0' in metrics(ports[0])
        assert "replica-2 was killed" in (folder.process_logs / "supervisor.log").read_text()
    finally:
        fleet.stop_all()


def test_a_finite_run_ends_with_the_error_of_a_member_that_another_start_does_not_mend(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config_file.write_text("")
    fleet = Fleet(folder, [Member("replay", "replay", ("--mind", "nowhere"))], supervise=QUICK)
    try:
        fleet.start_all()
        with pytest.raises(ProcessFailed, match="nowhere: no such folder"):
            until(lambda: False, fleet)
        assert fleet.standings()["replay"].restarts == 0
    finally:
        fleet.stop_all()


def until(true: Callable[[], bool], fleet: Fleet) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        fleet.check()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gave_up(fleet: Fleet, name: str) -> bool:
    return fleet.standings()[name].state == "stopped"


def answers(port: int) -> bool:
    try:
        return bool(readyz(port))
    except OSError:
        return False


def readyz(port: int) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            found = json.load(error)
    return found


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())
