"""The same events in an embedded log, joined by the own engine, and on Kafka, waiting for Faust."""

from pathlib import Path

from infra.config import LogConfig, WireConfig
from infra.eventlog import EventLog, create_topics, open_log
from stream.examples import decode_example_meta
from tests.join import logs
from tests.wire.test_wire_join import join_all, poisoned

Contents = list[tuple[int, bytes, bytes, bytes, int]]


def on_kafka(url: str, source: EventLog) -> EventLog:
    """A log at `url` whose `events` are those of `source`, offset for offset."""
    log = open_log(url, LogConfig(partitions=logs.PARTITIONS))
    create_topics(log, logs.PARTITIONS)
    writer = log.writer("events")
    for p, key, meta, value, when in logs.contents(source, "events"):
        writer.append(p, value, timestamp_ms=when, key=key, meta=meta)
    writer.close()
    return log


def joined_here(folder: Path) -> EventLog:
    """A tenth of its events malformed, in every way and format; joined by the own engine."""
    log, _ = poisoned(folder)
    join_all(log, WireConfig())
    return log


def accepted(records: Contents) -> Contents:
    """What a reader of `examples` keeps: the next sequence number; a repeat is the same bytes, or the test fails."""
    kept: dict[tuple[int, int], tuple[int, bytes, bytes, bytes, int]] = {}
    following: dict[int, int] = {}
    for record in records:
        p, seq = record[0], decode_example_meta(record[2]).seq
        assert seq <= following.get(p, 0), f"a gap before {p}:{seq}"
        assert kept.setdefault((p, seq), record) == record, f"{p}:{seq} was written twice, and differs"
        following[p] = max(following.get(p, 0), seq + 1)
    return list(kept.values())
