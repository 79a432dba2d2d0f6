"""Whose clock counts in the topics that ouzel makes, with producers whose own is wrong, over a real broker."""

import json
import time
import uuid
from collections.abc import Iterator

import kafka as other
import pytest
from kafka.admin import KafkaAdminClient, NewTopic

from infra.config import Config, KafkaConfig, LogConfig, load_config
from infra.errors import ConfigError
from infra.eventlog import EventLog, create_topics, open_log
from infra.eventlog.kafka.topics import DAY_MS
from stream.examples import DropReason
from stream.join.core import JoinSettings
from stream.join.worker import JoinWorker

AHEAD_MS = 600_000
BEFORE = 1_500_000_000_000  # a replay's time
CREATE_TIME = {"message.timestamp.type": "CreateTime"}


@pytest.fixture
def prefix() -> str:
    return f"clocks-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def log(kafka: str, prefix: str) -> Iterator[EventLog]:
    log = open_log(f"kafka://{kafka}/{prefix}", LogConfig(partitions=1))
    yield log
    log.close()


def send(kafka: str, prefix: str) -> None:
    """Ten impressions, one of a producer whose clock is ten minutes fast, twenty more."""
    producer = other.KafkaProducer(bootstrap_servers=kafka)
    for i in range(31):
        body = {"type": "impression", "id": f"made-up-{i}", "user": f"person{i}", "items": ["x1", "x2"]}
        ahead = {"timestamp_ms": int(time.time() * 1000) + AHEAD_MS} if i == 10 else {}
        producer.send(f"{prefix}.events", key=f"person{i}".encode(), value=json.dumps(body).encode(), **ahead).get(10)
    producer.close()


def dropped(log: EventLog) -> tuple[int, int]:
    """Events read and dropped by a joiner, in this process."""
    worker = JoinWorker(log, JoinSettings.of(Config(log=LogConfig(partitions=1))))
    while worker.step():
        pass
    counts = worker.counts()
    worker.close()
    return counts["events_in"], sum(counts[reason.value] for reason in DropReason)


def test_a_producer_ten_minutes_fast_drops_nobodys_events(kafka: str, prefix: str, log: EventLog) -> None:
    create_topics(log, 1)
    send(kafka, prefix)
    assert dropped(log) == (31, 0)


def test_over_topics_with_producers_times_a_start_says_what_mends_them_and_it_does(
    kafka: str, prefix: str, log: EventLog, capfd: pytest.CaptureFixture[str]
) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    short = {"retention.ms": str(DAY_MS)}
    admin.create_topics([NewTopic(f"{prefix}.events", 1, 1, topic_configs={**CREATE_TIME, **short})])
    create_topics(log, 1)
    said = capfd.readouterr().err
    name = f"--alter --entity-type topics --entity-name {prefix}.events --add-config"
    assert f"`kafka-configs.sh --bootstrap-server {kafka} {name} message.timestamp.type=LogAppendTime`" in said
    assert f"keeps records for 1.0 days (retention.ms={DAY_MS})" in said
    assert f"{name} retention.ms={90 * DAY_MS}`" in said
    assert said.count("\n") == 2  # the topics that were made just now need no advice
    send(kafka, prefix)
    assert dropped(log) == (31, 20)  # what is advised against
    mended = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1"}
    admin.alter_configs([other.admin.ConfigResource("TOPIC", f"{prefix}.events", mended)])
    admin.close()
    capfd.readouterr()
    create_topics(log, 1)
    assert capfd.readouterr().err == ""


def test_a_replays_times_pass_and_none_is_ahead_of_the_brokers(kafka: str, prefix: str, log: EventLog) -> None:
    create_topics(log, 1)
    now_ms = int(time.time() * 1000)
    stated = [BEFORE, now_ms - 1_800_000, now_ms + AHEAD_MS]  # the second needs no header by its age alone
    for topic in ("events", "items"):
        writer = log.writer(topic)
        for when in stated:
            writer.append(0, b"x", timestamp_ms=when)
        writer.close()
        old, recent, ahead = (record.timestamp_ms for record in log.read(topic, 0, 0))
        assert (old, recent) == (BEFORE, now_ms - 1_800_000)
        assert now_ms - 60_000 < ahead < now_ms + AHEAD_MS // 2
        assert log.offset_at(topic, 0, BEFORE + 1) == 1
    simulated = open_log(f"kafka://{kafka}/{prefix}-s", LogConfig(partitions=1, kafka=KafkaConfig(append_time=False)))
    create_topics(simulated, 1)
    writer = simulated.writer("events")
    writer.append(0, b"x", timestamp_ms=now_ms + AHEAD_MS)
    writer.close()
    assert [record.timestamp_ms for record in simulated.read("events", 0, 0)] == [now_ms + AHEAD_MS]
    simulated.close()


def test_topics_are_kept_as_configured_and_never_shorter_than_a_restart_needs(kafka: str, prefix: str) -> None:
    config = load_config(env={}, overrides=["log.kafka.events_days=7", "log.kafka.derived_days=0"])
    log = open_log(f"kafka://{kafka}/{prefix}", config.log)
    create_topics(log, config.log.partitions)
    log.close()
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    kept = {}
    for topic in ("events", "items", "examples"):
        (found,) = admin.describe_configs([other.admin.ConfigResource("TOPIC", f"{prefix}.{topic}")]).values()
        kept[topic] = found[f"{prefix}.{topic}"]["retention.ms"]["value"]
    admin.close()
    assert kept == {"events": str(7 * DAY_MS), "items": "-1", "examples": "-1"}
    with pytest.raises(ConfigError, match=r"a restart needs 3\.0 days or more"):
        load_config(env={}, overrides=["log.kafka.events_days=1"])
    with pytest.raises(ConfigError, match=r"log.kafka.events_days is 5.0; .* needs 9.0 days or more"):
        load_config(env={}, overrides=["log.kafka.events_days=5", "join.late_s=604800"])
