"""What tests of every room may ask for."""

from collections.abc import Iterator

import pytest

from infra.errors import OuzelError
from infra.supervisor.broker import Broker
from tests.brokers import or_skip, shared_address, shared_folder


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> str:
    """host:port of a real broker, shared by the whole run: keep apart by prefix."""
    try:
        return shared_address(shared_folder(tmp_path_factory.getbasetemp()))
    except OuzelError as error:
        or_skip(error)
        raise


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker of the module's own, to be stopped, killed and paused."""
    settings = {"broker.session.timeout.ms": "1500", "broker.heartbeat.interval.ms": "500"}
    try:
        broker = Broker(tmp_path_factory.mktemp("broker"), settings=settings)
    except OuzelError as error:
        or_skip(error)
        raise
    with broker:
        yield broker
