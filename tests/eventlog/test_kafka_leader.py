"""Three brokers, and the one that leads is killed: the others go on, and so does everybody."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra.config import KafkaConfig, LogConfig
from infra.errors import OuzelError
from infra.eventlog import TOPICS, create_topics, open_log
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


@pytest.mark.slow
def test_processes_that_start_at_once_find_the_topics_that_one_of_them_makes(three):
    """A broker may be asked for a topic that another has just made, and not know it yet."""
    for _ in range(5):
        url = f"kafka://{three.address}/s{uuid.uuid4().hex}"
        logs = [open_log(url, LogConfig(partitions=4)) for _ in range(6)]
        with ThreadPoolExecutor(len(logs)) as threads:
            list(threads.map(use_new_topics, logs))
        for log in logs:
            log.close()


def use_new_topics(log):
    create_topics(log, 4)
    assert [log.partitions(topic) for topic in TOPICS] == [4, 1, 4, 1, 1, 1]
    assert [log.end_offset("examples", n) for n in range(4)] == [0] * 4
    assert log.last_record("versions", 0) is None
    assert log.reader("control", "r").poll() == []
    log.writer("items").close()


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
