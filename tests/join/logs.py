"""Logs on disk for tests of the joiner and of what reads its output."""

from pathlib import Path
from typing import Any

from infra.config import LogConfig
from infra.eventlog import EventLog, create_topics, open_log
from stream.events import RecordMeta, encode_events, encode_meta
from stream.join import core
from stream.join.worker import JoinWorker
from tests.join import scenes

PARTITIONS = 2


def open_here(folder: Path) -> EventLog:
    log = open_log(folder, LogConfig(partitions=PARTITIONS))
    create_topics(log, PARTITIONS)
    return log


def with_events(folder: Path, seed: int = 1, seconds: int = 40) -> EventLog:
    """A log whose partitions hold random scenes of one stretch of time, each with an end."""
    log = open_here(folder)
    writer = log.writer("events")
    for p in range(PARTITIONS):
        records = scenes.random_log(seed * 10 + p, seconds=seconds)
        for at, rows in enumerate(records):
            end = at == len(records) - 1
            if end:
                rows = [*rows, scenes.Row(2, 1_000_000 + seconds * 1_000 + 20_000, 0)]
            meta = encode_meta(RecordMeta(source=at, end=end))
            value = encode_events(scenes.columns(rows))
            writer.append(p, value, timestamp_ms=max(row.ingested_ms for row in rows), meta=meta)
    writer.close()
    return log


def worker(log: EventLog, **options: Any) -> JoinWorker:
    return JoinWorker(log, scenes.settings(core), **options)


def join_all(log: EventLog) -> None:
    joiner = worker(log)
    while joiner.step():
        pass
    assert joiner.ended
    joiner.close()


def contents(log: EventLog, topic: str = "examples") -> list[tuple[int, bytes, bytes, bytes, int]]:
    """Every record of a topic."""
    found = []
    for p in range(log.partitions(topic)):
        at = log.start_offset(topic, p)
        while records := log.read(topic, p, at, 100):
            found += [(p, r.key, r.meta, bytes(r.value), r.timestamp_ms) for r in records]
            at = records[-1].offset + 1
    return found
