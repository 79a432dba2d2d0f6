"""Anyone's client can feed ouzel and read it: checked against kafka-python and aiokafka, which share no code."""

import asyncio
import time
import uuid

import kafka as other
import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer
from kafka.admin import KafkaAdminClient, NewTopic

from infra.config import KafkaConfig, LogConfig
from infra.eventlog import UNREADABLE_META, open_log
from infra.hashing import partition_of
from stream.columns import MalformedRecordError
from stream.wire.formats import decode_wire_meta

KEYS = ["U1", "U81994", "élan", "a-long-key-of-some-thirty-letters", "x" * 257]


@pytest.fixture
def prefix():
    return f"i{uuid.uuid4().hex}"


@pytest.fixture
def log(kafka, prefix):
    log = open_log(f"kafka://{kafka}/{prefix}", LogConfig())
    log.create_topic("t", 4)
    yield log
    log.close()


def in_partitions(log):
    """(partition, key) of every record."""
    return {(p, record.key.decode()) for p in range(4) for record in log.read("t", p, 0)}


def test_records_of_kafka_python_are_read_and_lie_where_ours_would(kafka, prefix, log):
    producer = other.KafkaProducer(bootstrap_servers=kafka)
    for key in KEYS:
        producer.send(f"{prefix}.t", b"value", key=key.encode(), headers=[("a", b"b")], timestamp_ms=1_700_000_000_000)
    producer.close()
    assert in_partitions(log) == {(partition_of(key, 4), key) for key in KEYS}
    record = log.last_record("t", partition_of("U1", 4))
    assert (record.timestamp_ms, record.meta, bytes(record.value)) == (1_700_000_000_000, b"", b"value")


def test_what_a_producer_says_of_its_format_reaches_the_records_meta(kafka, prefix, log):
    producer = other.KafkaProducer(bootstrap_servers=kafka)
    for headers in ([("Content-Type", b"application/json; charset=utf-8")], [("content-type", b"x" * 999)], []):
        producer.send(f"{prefix}.t", b"{}", partition=1, headers=headers)
    producer.close()
    said = [decode_wire_meta(record.meta).content_type for record in log.read("t", 1, 0)]
    assert said == ["application/json; charset=utf-8", "", ""]


class NoText(str):
    """A header's name in bytes that are no UTF-8, as a Java or C client may write them."""

    def encode(self, *args, **kwargs):
        return b"\xff\xfe"


def test_headers_of_any_bytes_are_passed_over_or_make_the_meta_unreadable_and_never_end_the_reader(kafka, prefix, log):
    """Run hot: the client returns a broken list for a name that is no text, and CPython 3.11 died of it."""
    producer = other.KafkaProducer(bootstrap_servers=kafka)
    odd = [
        [("ouzel-timestamp", b"99999999999999999999")],
        [("ouzel-timestamp", b"-99999999999999999")],
        [("ouzel-timestamp", b"soon")],
        [("a", b"b"), (NoText("x"), b"y"), ("c", b"d")],
    ]
    for _ in range(100):
        for headers in odd:
            producer.send(f"{prefix}.t", b"{}", partition=1, headers=headers, timestamp_ms=1_700_000_000_000)
    producer.close()
    ours = Producer({"bootstrap.servers": kafka})
    for _ in range(100):
        ours.produce(f"{prefix}.t", b"{}", partition=1, headers=[("content-type", None), ("ouzel-meta", None)])
    assert not ours.flush(30)
    records = log.read("t", 1, 0, 1_000)
    assert len(records) == 500
    told = {(record.meta, record.timestamp_ms) for record in records[:400]}
    sent_at = 1_700_000_000_000
    assert told == {(b"", sent_at), (b"", -99_999_999_999_999_999), (UNREADABLE_META, sent_at)}
    assert [record.meta for record in records[400:]] == [b""] * 100
    with pytest.raises(MalformedRecordError, match="headers cannot be read"):
        decode_wire_meta(UNREADABLE_META)


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
def test_a_record_that_is_small_on_the_wire_and_large_unpacked_is_read(kafka, prefix, log, codec):
    """The broker takes it by its compressed size; nobody may take it for damaged, or pass over it."""
    settings = {"compression.type": codec, "message.max.bytes": 64 << 20}
    producer = Producer({"bootstrap.servers": kafka, **settings})
    for value in (b" " * (20 << 20), b"{}"):
        producer.produce(f"{prefix}.t", value, partition=1)
        assert not producer.flush(30)
    assert [len(record.value) for record in log.read("t", 1, 0)] == [20 << 20, 2]


def test_records_of_aiokafka_lie_where_ours_would(kafka, prefix, log):
    async def send():
        async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
            for key in KEYS:
                await producer.send_and_wait(f"{prefix}.t", b"value", key=key.encode())

    asyncio.run(send())
    assert in_partitions(log) == {(partition_of(key, 4), key) for key in KEYS}


@pytest.mark.parametrize("codec", ["none", "gzip"])
def test_our_records_are_read_by_kafka_python_without_an_extra(kafka, prefix, codec):
    log = open_log(f"kafka://{kafka}/{prefix}", LogConfig(kafka=KafkaConfig(compression=codec)))
    log.create_topic("t", 1)
    writer = log.writer("t")
    now_ms = int(time.time() * 1000)
    writer.append(0, b"value " * 1_000, timestamp_ms=now_ms, key=b"key", meta=b"meta")
    writer.append(0, b"", timestamp_ms=1_500_000_000_000)
    writer.close()
    log.close()
    consumer = other.KafkaConsumer(
        f"{prefix}.t", bootstrap_servers=kafka, auto_offset_reset="earliest", consumer_timeout_ms=60_000
    )
    first, second = (next(consumer) for _ in range(2))
    consumer.close()
    assert (first.timestamp, first.key, first.value) == (now_ms, b"key", b"value " * 1_000)
    assert first.headers == [("ouzel-meta", b"meta")]
    assert (second.key, second.value) == (None, b"")
    assert second.timestamp >= now_ms  # a past time goes in a header: brokers forget who writes such times
    assert second.headers == [("ouzel-timestamp", b"1500000000000")]


def test_committed_positions_are_a_group_that_any_tool_shows(kafka, prefix, log):
    writer = log.writer("t")
    for _ in range(5):
        writer.append(2, b"x", timestamp_ms=1)
    writer.flush()
    reader = log.reader("t", "r")
    reader.poll(3)
    reader.commit()
    assert len(reader.poll()) == 2
    assert reader.poll() == []  # whoever comes back with nothing has said what it has read
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    (found,) = admin.list_group_offsets([f"{prefix}.t/r"]).values()
    admin.close()
    at = found[other.TopicPartition(f"{prefix}.t", 2)]
    assert (at.offset, at.metadata.rstrip("\0")) == (3, '{"read":5}')


def test_in_a_topic_with_append_time_no_record_is_newer_than_the_brokers_clock(kafka, prefix, log):
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    settings = {"message.timestamp.type": "LogAppendTime"}
    admin.create_topics([NewTopic(f"{prefix}.live", 1, 1, topic_configs=settings)])
    admin.close()
    log.create_topic("live", 1)
    producer = other.KafkaProducer(bootstrap_servers=kafka)
    now_ms = int(time.time() * 1000)
    for headers in ([], [("ouzel-timestamp", b"9999999999999")], [("ouzel-timestamp", b"5")]):
        producer.send(f"{prefix}.live", b"x", headers=headers, timestamp_ms=9_999_999_999_999).get(30)
    producer.close()
    times = [record.timestamp_ms for record in log.read("live", 0, 0)]
    assert all(abs(when - now_ms) < 60_000 for when in times[:2])
    assert times[2] == 5  # an earlier time that is stated counts: a replay's
