"""Three brokers, and the one that leads is killed: the others go on, and so does everybody."""

import uuid

import pytest

from infra.config import KafkaConfig, LogConfig
from infra.errors import OuzelError
from infra.eventlog import open_log
from infra.supervisor.broker import Broker
from tests.brokers import or_skip
from tests.eventlog.test_kafka_faults import Traffic


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    settings = {"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "500"}
    try:
        broker = Broker(tmp_path_factory.mktemp("three"), nodes=3, settings=settings)
    except OuzelError as error:
        or_skip(error)
        raise
    with broker:
        yield broker


def leader(log):
    """Number of the node that leads partition 0."""
    found = log._cluster.admin.list_topics(log.address.topic("t"), timeout=10)
    return found.topics[log.address.topic("t")].partitions[0].leader


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_leader_loses_and_doubles_nothing(three, capfd):
    url = f"kafka://{three.address}/l{uuid.uuid4().hex}"
    config = LogConfig(kafka=KafkaConfig(replication=3))
    log = open_log(url, config)
    log.create_topic("t", 1)
    traffic = Traffic(url, config)
    for _ in range(2):
        traffic.grows(60)
        killed = leader(log)
        three.kill(killed)
        traffic.grows(60)
        assert leader(log) != killed
        three.start()
        three.wait_ready()
    traffic.grows(60)
    traffic.finish()
    log.close()
    assert capfd.readouterr().err.count("no answer") <= 12  # said, and not said again and again
