"""Replay: appends the schedule of a MIND log to `events` and `items`, at a chosen speed, resumable without doubling.

Order: dead letters first, then the records of `stream.schedule` as they come; what is buffered is flushed when it is
due, before every wait, and at the end. On start, each partition's last record that a replay wrote says where to go on:
neither speed nor a crash changes a byte of what the topics hold. Wall time paces, and decides nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from infra.config import Config
from infra.errors import ConfigError
from infra.eventlog import EventLog
from infra.eventlog.pressure import Pressure
from infra.speed import replay_speed
from stream.events import LIVE, meta_or_live
from stream.mind.news import NewsTable
from stream.mind.reader import MindIndex
from stream.retry import Retrier
from stream.schedule import Schedule, Scheduled

DEAD_KEY = b"mind/"  # key of a dead letter: mind/<file>:<line>
_BACK = 256  # records looked at per step back
_TURN_S = 0.05  # a wait wakes up this often to see whether it should stop


@dataclass(slots=True)
class Done:
    """What a replay has appended in this life."""

    records: int = 0
    rows: int = 0
    dead: int = 0
    event_time_ms: int = 0
    waits: int = 0  # times that readers were too far behind
    finished: bool = False


class Replay:
    """One pass of a data set over a log: `run()` until finished or told to stop."""

    def __init__(
        self,
        log: EventLog,
        index: MindIndex,
        news: NewsTable,
        config: Config,
        *,
        stopping: Callable[[], bool] = lambda: False,
        watch: Callable[[Done], None] = lambda done: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._log, self._index, self._news, self._config = log, index, news, config
        self._stopping, self._watch, self._clock, self._sleep = stopping, watch, clock, sleep
        self._speed = replay_speed(config.replay.speed)
        self._partitions = log.partitions("events")
        self.schedule = Schedule(index, news, config.time.build(), config.replay, self._partitions)
        self._writers = {topic: log.writer(topic) for topic in ("dead-letters", "items", "events")}
        self._until_done = Retrier(stopping, sleep)
        self._pressure = Pressure(log, "events", config.log.max_lag_records)
        self._looked_at = 0  # records when readers were looked at
        self.done = Done(event_time_ms=self.schedule.first_ms)
        self._flushed_at = clock()

    def run(self) -> Done:
        """Append everything that is missing. Raises CorruptStateError or ConfigError from the log."""
        self._bury_dead()
        started: tuple[float, int] | None = None
        for record in self.schedule.records(self._resume()):
            if self._stopping():
                break
            if record.topic == "events" and self._speed is not None:
                started = started or (self._clock(), record.timestamp_ms)
                self._pace(started, record.timestamp_ms)
            self._append(record)
            if self._due():
                self._flush()
                self._hold_back()
        else:
            self.done.finished = True
        self._flush()
        return self.done

    def close(self) -> None:
        """Let go of the log."""
        for writer in self._writers.values():
            writer.close()

    def _resume(self) -> dict[tuple[str, int], int]:
        """Place in the schedule of the last record that a replay wrote, by (topic, partition)."""
        places = [("events", p) for p in range(self._partitions)] + [("items", 0)]
        return {(topic, p): self._last_source(topic, p) for topic, p in places}

    def _last_source(self, topic: str, p: int) -> int:
        first, end = self._log.start_offset(topic, p), self._log.end_offset(topic, p)
        while end > first:
            start = max(first, end - _BACK)
            for record in reversed(self._log.read(topic, p, start, end - start)):
                source = meta_or_live(record.meta).source
                if source != LIVE:
                    return source
            end = start
        return -1

    def _bury_dead(self) -> None:
        """Append a dead letter for each row that is dead and has none yet."""
        rows = [row for rows in (self._index.dead, self._news.dead) for row in rows]
        if not rows:
            return
        buried, at = set(), self._log.start_offset("dead-letters", 0)
        while records := self._log.read("dead-letters", 0, at, _BACK):
            buried |= {record.key for record in records}
            at = records[-1].offset + 1
        for row in rows:
            key = DEAD_KEY + f"{row.file}:{row.line}".encode()
            if key not in buried:
                meta = msgspec.msgpack.encode({"reason": row.reason.value, "file": str(row.file), "line": row.line})
                when = self.schedule.first_ms
                self._put("dead-letters", 0, row.raw, when, meta, key)
                self.done.dead += 1
        self._flush()

    def _append(self, record: Scheduled) -> None:
        self._check_size(record)
        self._put(record.topic, record.partition, record.value, record.timestamp_ms, record.meta, b"")
        self.done.records += 1
        if record.topic == "events":
            self.done.rows += record.rows
            self.done.event_time_ms = record.timestamp_ms

    def _check_size(self, record: Scheduled) -> None:
        """Raises ConfigError for a record that the log does not take: a batch of rows is cut by their number alone."""
        size, most = len(record.value) + len(record.meta), self._log.max_record_bytes
        if size <= most:
            return
        if record.topic == "events":
            rows = self._config.replay.rows_per_record
            fix = f"lower replay.rows_per_record ({rows}) to {max(1, rows * most // (2 * size))}, say, or raise"
        else:
            fix = "raise"
        raise ConfigError(
            f"a record of {record.topic} with {record.rows:,} rows takes {size:,} bytes, and the log takes {most:,}: "
            f"{fix} log.kafka.max_record_bytes and the topic's max.message.bytes"
        )

    def _put(self, topic: str, p: int, value: bytes, when: int, meta: bytes, key: bytes) -> None:
        append = self._writers[topic].append
        self._until_done(lambda: append(p, value, timestamp_ms=when, meta=meta, key=key))

    def _due(self) -> bool:
        log = self._config.log
        pending = sum(writer.pending_bytes for writer in self._writers.values())
        return pending >= log.flush_bytes or self._clock() - self._flushed_at >= log.flush_s

    def _flush(self) -> None:
        """Items before events: what is shown is known."""
        for writer in self._writers.values():
            self._until_done(writer.flush)
        self._flushed_at = self._clock()
        self._watch(self.done)

    def _hold_back(self) -> None:
        """Wait while a reader of `events` is too far behind; everything is flushed."""
        self._pressure.wrote(self.done.records - self._looked_at)
        self._looked_at = self.done.records
        if self._pressure.too_far():
            self.done.waits += 1
            while self._pressure.too_far() and not self._seen_stopping():
                self._pressure.nap(self._sleep)

    def _seen_stopping(self) -> bool:
        self._watch(self.done)
        return self._stopping()

    def _pace(self, started: tuple[float, int], event_ms: int) -> None:
        """Wait until the record's event time has come."""
        assert self._speed is not None
        due = started[0] + (event_ms - started[1]) / 1000 / self._speed
        if self._clock() < due:
            self._flush()
            self._hold_back()
        while (left := due - self._clock()) > 0 and not self._stopping():
            self._sleep(min(left, _TURN_S))
