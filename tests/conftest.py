"""What tests of every room may ask for."""

from collections.abc import Iterator

import pytest

from infra.errors import OuzelError
from infra.supervisor.broker import Broker, free_ports
from tests.brokers import or_skip, shared_address, shared_folder

LOGIN = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_ouzel="right";'


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
    """A broker of the module's own, to be stopped, killed and paused; it has a listener that asks for a password."""
    settings = {
        "broker.session.timeout.ms": "1500",
        "broker.heartbeat.interval.ms": "500",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": LOGIN,
    }
    try:
        (port,) = free_ports(1)
        broker = Broker(tmp_path_factory.mktemp("broker"), settings=settings, listeners={"SASL": port})
    except OuzelError as error:
        or_skip(error)
        raise
    with broker:
        yield broker
