"""The law of every event log: what is seen is durable, ordered, and the same for everyone."""

import itertools
import random
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.config import KafkaConfig
from infra.errors import ConfigError
from infra.eventlog import TOPICS, create_topics, wait_for_readers


def put(log, values, partition=0, topic="t", timestamp_ms=1):
    writer = log.writer(topic)
    for value in values:
        writer.append(partition, value, timestamp_ms=timestamp_ms)
    writer.close()


def drain(reader, max_records=256):
    out = []
    while polled := reader.poll(max_records):
        out += polled
    return out


def test_a_record_comes_back_whole(log):
    writer = log.writer("t")
    writer.append(1, b"value", timestamp_ms=-5, key=b"key", meta=b"meta")
    writer.append(1, memoryview(b"xvieww")[1:5], timestamp_ms=(1 << 62))
    writer.append(1, b"", timestamp_ms=0)
    writer.flush()
    records = log.read("t", 1, 0)
    assert [(r.offset, r.timestamp_ms, r.key, r.meta, bytes(r.value)) for r in records] == [
        (0, -5, b"key", b"meta", b"value"),
        (1, 1 << 62, b"", b"", b"view"),
        (2, 0, b"", b"", b""),
    ]


def test_the_buffer_owns_its_bytes(log):
    value = bytearray(b"before")
    writer = log.writer("t")
    writer.append(0, memoryview(value), timestamp_ms=1)
    value[:] = b"after!"
    writer.flush()
    assert bytes(log.read("t", 0, 0)[0].value) == b"before"


def test_nothing_is_visible_before_the_flush_and_everything_after(log):
    writer = log.writer("t")
    reader = log.reader("t", "r")
    writer.append(0, b"a", timestamp_ms=1)
    assert reader.poll() == []
    assert log.end_offset("t", 0) == 0
    assert writer.pending_bytes > 0
    writer.flush()
    assert [record.offset for _, record in reader.poll()] == [0]
    assert log.end_offset("t", 0) == 1
    assert writer.pending_bytes == 0


def test_a_full_buffer_flushes_itself(opened):
    log = opened(flush_bytes=1_000)
    log.create_topic("t", 1)
    writer = log.writer("t")
    for _ in range(100):
        writer.append(0, bytes(100), timestamp_ms=1)
        assert writer.pending_bytes < 1_200
    assert log.end_offset("t", 0) > 80


def test_an_old_buffer_is_due(opened):
    log = opened(flush_s=0.01)
    log.create_topic("t", 1)
    writer = log.writer("t")
    assert not writer.flush_if_due()
    writer.append(0, b"a", timestamp_ms=1)
    time.sleep(0.02)
    assert writer.flush_if_due()
    assert log.end_offset("t", 0) == 1


def test_closing_a_writer_flushes(opened, log):
    put(log, [b"a"])
    assert opened().end_offset("t", 0) == 1


@pytest.mark.parametrize("segment_bytes", [1, 400, 1 << 20])
def test_readers_get_every_record_in_order_whatever_the_polls(opened, segment_bytes):
    log = opened(segment_bytes=segment_bytes)
    log.create_topic("t", 3)
    rng = random.Random(7)
    written = {0: [], 1: [], 2: []}
    reader = log.reader("t", "r")
    writer = log.writer("t")
    got = {0: [], 1: [], 2: []}
    for _ in range(60):
        for _ in range(rng.randrange(5)):
            partition, value = rng.randrange(3), rng.randbytes(rng.choice([0, 3, 50, 700]))
            writer.append(partition, value, timestamp_ms=1)
            written[partition].append(value)
        writer.flush()
        for partition, record in reader.poll(rng.randrange(1, 6)):
            got[partition].append(record)
    for partition, record in drain(reader, 3):
        got[partition].append(record)
    for partition in written:
        assert [bytes(record.value) for record in got[partition]] == written[partition]
        assert [record.offset for record in got[partition]] == list(range(len(written[partition])))
        assert reader.position(partition) == len(written[partition])


def test_large_records_pass(log):
    value = random.Random(1).randbytes(3_000_000)
    put(log, [b"small", value, b"small again"])
    assert [bytes(r.value) for r in log.read("t", 0, 0)] == [b"small", value, b"small again"]
    assert bytes(drain(log.reader("t", "r"))[1][1].value) == value


def test_polling_is_fair_over_partitions(log):
    put(log, [b"a"] * 100, partition=0)
    put(log, [b"b"] * 4, partition=1)
    reader = log.reader("t", "r")
    first = [partition for partition, _ in reader.poll(8)]
    assert sorted(first) == [0] * 4 + [1] * 4
    assert len(reader.poll(50)) == 50


def test_poll_waits_for_a_flush_and_not_much_longer(log):
    reader = log.reader("t", "r")
    started = time.monotonic()
    assert reader.poll(timeout_s=0.05) == []
    assert time.monotonic() - started > 0.04
    timer = threading.Timer(0.05, lambda: put(log, [b"a"]))
    timer.start()
    started = time.monotonic()
    assert len(reader.poll(timeout_s=120.0)) == 1
    assert time.monotonic() - started < 60.0  # a slow machine may take its time, but not the poll all of it
    timer.join()


def test_a_reader_starts_again_where_it_committed(opened, log):
    put(log, [b"0", b"1", b"2", b"3"])
    reader = log.reader("t", "r")
    reader.poll(2)
    reader.commit()
    reader.poll(1)
    again = opened().reader("t", "r")
    assert again.position(0) == 2
    assert [bytes(record.value) for _, record in drain(again)] == [b"2", b"3"]


def test_a_reader_that_never_committed_starts_at_the_start(opened, log):
    put(log, [b"0", b"1"])
    log.reader("t", "r").poll()
    assert opened().reader("t", "r").position(0) == 0


def test_commit_takes_given_positions_and_may_go_back(opened, log):
    put(log, [b"0", b"1", b"2", b"3"])
    reader = log.reader("t", "r")
    reader.commit({0: 3})
    assert opened().reader("t", "r").position(0) == 3
    reader.commit({0: 1})
    assert opened().reader("t", "r").position(0) == 1


def test_seek_moves_and_checks(log):
    put(log, [b"0", b"1", b"2"])
    reader = log.reader("t", "r")
    drain(reader)
    reader.seek(0, 1)
    assert [bytes(record.value) for _, record in drain(reader)] == [b"1", b"2"]
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match="the log holds 0 to 3"):
            reader.seek(0, wrong)
        with pytest.raises(ValueError, match="the log holds 0 to 3"):
            reader.commit({0: wrong})


def test_a_reader_of_some_partitions_sees_only_those(log):
    put(log, [b"a"], partition=0)
    put(log, [b"b"], partition=1)
    reader = log.reader("t", "r", partitions=[1])
    assert [partition for partition, _ in drain(reader)] == [1]
    assert log.reader_lag("t") == {"r": 0}
    with pytest.raises(ValueError, match="this reader reads"):
        reader.position(0)


def test_two_workers_may_share_a_name(opened, log):
    put(log, [b"a", b"b"], partition=0)
    put(log, [b"c"], partition=1)
    one, two = opened().reader("t", "r", [0]), opened().reader("t", "r", [1])
    drain(one)
    assert log.reader_lag("t") == {"r": 1}
    drain(two)
    assert log.reader_lag("t") == {"r": 0}
    one.commit()
    two.commit()
    both = opened().reader("t", "r")
    assert (both.position(0), both.position(1)) == (2, 1)


def test_lag_counts_what_was_not_read_whatever_was_committed(log):
    put(log, [b"a"] * 10)
    slow, _fast = log.reader("t", "slow"), drain(log.reader("t", "fast"))
    slow.poll(3)
    assert log.reader_lag("t") == {"fast": 0, "slow": 7}


def test_back_pressure_waits_for_the_slowest_reader_and_no_longer(log):
    put(log, [b"a"] * 10)
    reader = log.reader("t", "r")
    released = threading.Event()

    def wait():
        wait_for_readers(log, "t", 4, stop=lambda: False)
        released.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    reader.poll(5)
    assert not released.wait(0.05)
    reader.poll(1)
    assert released.wait(60)
    waiting.join()


def test_back_pressure_ends_when_told_to_stop(log):
    put(log, [b"a"] * 10)
    log.reader("t", "r")
    wait_for_readers(log, "t", 4, stop=lambda: True)


def test_back_pressure_without_readers_never_waits(log):
    put(log, [b"a"] * 10)
    wait_for_readers(log, "t", 0, stop=lambda: False)


def test_a_forgotten_reader_holds_nobody(opened, log):
    put(log, [b"a"] * 10)
    log.reader("t", "r")
    assert log.reader_lag("t") == {"r": 10}
    opened().forget_reader("t", "r")
    log.forget_reader("t", "nobody")
    assert log.reader_lag("t") == {}
    drain(log.reader("t", "r"))
    assert log.reader_lag("t") == {"r": 0}


def test_the_last_record_is_found(opened):
    log = opened(segment_bytes=200)
    log.create_topic("t", 1)
    assert log.last_record("t", 0) is None
    for number in range(7):
        put(log, [b"%d" % number])
        assert bytes(log.last_record("t", 0).value) == b"%d" % number
        assert bytes(opened().last_record("t", 0).value) == b"%d" % number


def test_a_time_has_an_offset(opened):
    log = opened(segment_bytes=200)
    log.create_topic("t", 1)
    assert log.offset_at("t", 0, 5) == 0
    writer = log.writer("t")
    for timestamp_ms in (1_000, 2_000, 1_500, 4_000, 3_000):
        writer.append(0, bytes(90), timestamp_ms=timestamp_ms)
    writer.close()
    asked = (-1, 1_000, 1_001, 2_001, 4_000, 4_001)
    assert [log.offset_at("t", 0, timestamp_ms) for timestamp_ms in asked] == [0, 0, 1, 3, 3, 5]
    with pytest.raises(ValueError, match="partition 1"):
        log.offset_at("t", 1, 0)


def test_a_record_has_a_largest_size(opened):
    log = opened(kafka=KafkaConfig(max_record_bytes=100_000))
    log.create_topic("t", 1)
    writer = log.writer("t")
    if log.max_record_bytes < 1 << 20:
        writer.append(0, bytes(log.max_record_bytes - 5), key=b"key", meta=b"me", timestamp_ms=1)
        writer.flush()
        assert len(log.last_record("t", 0).value) == log.max_record_bytes - 5
    with pytest.raises(ValueError, match="cut it into parts"):
        writer.append(0, bytes(log.max_record_bytes + 1), timestamp_ms=1)
    assert writer.pending_bytes == 0


def test_a_log_that_works_waits_for_nobody(log):
    put(log, [b"a"])
    assert log.waiting_s == 0


def test_read_checks_its_offset_and_ends_at_the_end(log):
    put(log, [b"a", b"b", b"c"])
    assert [r.offset for r in log.read("t", 0, 1, max_records=1)] == [1]
    assert log.read("t", 0, 3) == []
    with pytest.raises(ValueError, match="the log holds 0 to 3"):
        log.read("t", 0, 4)


def test_writers_interleave_and_nobody_loses(opened, log):
    logs = [opened() for _ in range(3)]
    writers = [each.writer("t") for each in logs]
    for number in range(40):
        for index, writer in enumerate(writers):
            writer.append(0, b"%d-%d" % (index, number), timestamp_ms=1)
            if (number + index) % 3 == 0:
                writer.flush()
    for writer in writers:
        writer.close()
    values = [bytes(record.value) for _, record in drain(log.reader("t", "r"))]
    for index in range(3):
        assert [v for v in values if v.startswith(b"%d-" % index)] == [b"%d-%d" % (index, n) for n in range(40)]


def test_retention_drops_old_segments_that_every_reader_has_committed(opened):
    log = opened(segment_bytes=200)
    log.create_topic("t", 1)
    for number in range(10):
        put(log, [bytes(100)], timestamp_ms=number * 1_000)
    slow, fast = log.reader("t", "slow"), log.reader("t", "fast")
    drain(slow)
    drain(fast)
    fast.commit()
    assert log.retain("t", before_ms=1 << 60) == 0  # slow has read, not committed
    slow.commit({0: 6})
    assert log.retain("t", before_ms=4_000) > 0
    assert log.start_offset("t", 0) <= 4  # nothing as new as 4,000 ms went
    log.retain("t", before_ms=1 << 60)
    start = log.start_offset("t", 0)
    assert 4 < start <= 6  # nothing that slow may still need went
    assert log.end_offset("t", 0) == 10
    assert [r.offset for r in log.read("t", 0, start)] == list(range(start, 10))
    assert opened().reader("t", "new").position(0) == start
    with pytest.raises(ValueError, match="the log holds"):
        log.read("t", 0, start - 1)


def test_retention_keeps_the_newest_piece_and_the_next_offset(opened):
    """Of the embedded log a segment, which `segment_bytes=1` makes a record; on Kafka always a record."""
    log = opened(segment_bytes=1)
    log.create_topic("t", 1)
    put(log, [b"a", b"b", b"c"])
    assert log.retain("t", before_ms=1 << 60) == 2
    assert (log.start_offset("t", 0), log.end_offset("t", 0)) == (2, 3)
    put(log, [b"d"])
    assert [bytes(r.value) for r in log.read("t", 0, 2)] == [b"c", b"d"]


def test_topics_are_created_once(opened):
    log = opened()
    create_topics(log, 3)
    create_topics(opened(), 3)
    assert {topic: log.partitions(topic) for topic in TOPICS} == {
        "events": 3,
        "items": 1,
        "examples": 3,
        "versions": 1,
        "control": 1,
        "dead-letters": 1,
    }
    with pytest.raises(ConfigError, match=r"has 3 partitions.*log.partitions"):
        create_topics(log, 4)


def test_names_and_numbers_are_checked(log):
    for wrong in ("", "../x", "A", ".x", "a/b", "x" * 65):
        with pytest.raises(ValueError, match="lower-case"):
            log.create_topic(wrong, 1)
        with pytest.raises(ValueError, match="lower-case"):
            log.reader("t", wrong)
    with pytest.raises(ConfigError, match="no topic nosuch"):
        log.writer("nosuch")
    with pytest.raises(ConfigError, match="0 partitions"):
        log.create_topic("zero", 0)
    with pytest.raises(ValueError, match="partition 2"):
        log.writer("t").append(2, b"", timestamp_ms=1)
    with pytest.raises(ValueError, match="partition -1"):
        log.end_offset("t", -1)


def test_closed_things_refuse(log):
    writer, reader = log.writer("t"), log.reader("t", "r")
    writer.close()
    writer.close()
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        writer.append(0, b"", timestamp_ms=1)
    with pytest.raises(ValueError, match="closed"):
        reader.poll()


topic_names = (f"t{number}" for number in itertools.count())
records = st.lists(st.tuples(st.integers(0, 1), st.binary(max_size=300), st.binary(max_size=9)), max_size=12)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(records, max_size=5), segment_bytes=st.integers(1, 900))
def test_any_batches_read_back_after_reopening(opened, batches, segment_bytes):
    topic, want = next(topic_names), {0: [], 1: []}
    for batch in batches:
        log = opened(segment_bytes=segment_bytes)
        log.create_topic(topic, 2)
        writer = log.writer(topic)
        for partition, value, key in batch:
            want[partition].append((value, key))
            writer.append(partition, value, key=key, timestamp_ms=1)
        writer.close()
        log.close()
    log = opened()
    log.create_topic(topic, 2)
    for partition in (0, 1):
        got = log.read(topic, partition, 0)
        assert log.end_offset(topic, partition) == len(want[partition])
        assert [(bytes(r.value), r.key) for r in got] == want[partition]
    log.retain(topic, before_ms=1 << 60)
    for partition in (0, 1):
        log.read(topic, partition, log.start_offset(topic, partition))
