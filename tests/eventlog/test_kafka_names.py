"""Addresses, settings and errors of a Kafka log: no broker is needed to refuse them."""

import pytest

from infra.config import KafkaConfig, LogConfig
from infra.errors import ConfigError, RetryableError
from infra.eventlog import open_log
from infra.eventlog.kafka import log as kafka_log
from infra.eventlog.kafka.address import Address, parse_address
from infra.eventlog.kafka.link import SAY_AFTER_S, Link
from infra.supervisor.broker import free_ports


def test_an_address_names_brokers_and_prefix():
    address = parse_address("kafka://a.example:9092,[::1]:9093/run-1")
    assert address == Address("a.example:9092,[::1]:9093", "run-1")
    assert (address.topic("events"), address.group("events", "joiner")) == ("run-1.events", "run-1.events/joiner")
    assert str(address) == "kafka://a.example:9092,[::1]:9093/run-1"


def test_without_a_prefix_topics_carry_their_own_names():
    assert parse_address("kafka://h:1").topic("events") == "events"


@pytest.mark.parametrize(
    "text",
    [
        "kafka://",
        "kafka://host",
        "kafka://host:0",
        "kafka://host:70000",
        "kafka://a:1,b",
        "kafka://h:1/A",
        "kafka://h:1/a.b",
    ],
)
def test_a_wrong_address_is_refused(text):
    with pytest.raises(ConfigError, match="kafka://"):
        parse_address(text)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (KafkaConfig(client={"acks": "1"}), "sets this itself"),
        (KafkaConfig(client={"enable.idempotence": False}), "sets this itself"),
        (KafkaConfig(client={"no.such.setting": 1}), "no.such.setting"),
        (KafkaConfig(client={"security.protocol": "TLS"}), "security.protocol"),
        (KafkaConfig(max_record_bytes=10), "max_record_bytes"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_asked(config, says):
    with pytest.raises(ConfigError, match=says):
        open_log("kafka://127.0.0.1:1", LogConfig(kafka=config))


def test_nobody_at_the_address_is_said(monkeypatch):
    monkeypatch.setattr(kafka_log, "CONNECT_S", 0.5)
    (port,) = free_ports(1)
    with pytest.raises(RetryableError, match=f"127.0.0.1:{port}.*address is right"):
        open_log(f"kafka://127.0.0.1:{port}", LogConfig())


def test_an_outage_is_said_once_at_each_end_and_counted():
    said, now = [], [100.0]
    link = Link("kafka://h:1", said.append, lambda: now[0])
    assert link.waiting_s == 0
    link.lost("connection refused", for_s=2.0)
    link.lost("connection refused")
    now[0] = 110.0
    assert link.waiting_s == 12.0
    link.answered()
    link.answered()
    assert (link.waiting_s, link.outages) == (0, 1)
    assert [("no answer" in text, "after 12.0 s" in text) for text in said] == [(True, False), (False, True)]


def test_what_a_client_reports_late_of_an_outage_that_is_over_starts_no_second_one():
    said, now = [], [100.0]
    link = Link("kafka://h:1", said.append, lambda: now[0])
    link.reported("all brokers down")
    assert link.outages == 1
    now[0] = 130.0
    link.answered()
    now[0] += SAY_AFTER_S / 2
    link.reported("all brokers down")
    assert (link.waiting_s, link.outages, len(said)) == (0, 1, 2)
    now[0] += SAY_AFTER_S
    link.reported("all brokers down")
    assert link.outages == 2
