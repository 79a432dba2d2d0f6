"""The embedded loop: reads `events`, feeds one core per partition, appends what comes out to `examples`.

Order of a flush, which is the whole commit protocol:
1. dead letters are durable (they may be repeated after a crash, under the same key; they are never lost);
2. a partition whose end moved has another writer: what is unwritten is dropped, the core built anew from the end;
3. append the output records and flush: they are the commit;
4. commit L as the reader's position: a hint for retention, nothing else.
A worker that lost a race between 2 and 3 has appended records that are equal to those already there, byte for byte;
readers drop repeats by their sequence number.
"""

import time
from collections.abc import Callable, Sequence

import msgspec

from infra.config import WireConfig
from infra.errors import CorruptStateError
from infra.eventlog import EventLog
from stream.deadletters import Buried, encode_letter_meta, letter_of
from stream.examples import ExampleMeta, decode_example_meta, encode_example_meta, encode_examples
from stream.join.core import JoinSettings, Output, PartitionJoiner
from stream.join.intake import Dead, Intake
from stream.retry import Retrier
from stream.wire.limits import Rules
from stream.wire.schema import TIME_LIMIT

POLL_RECORDS = 128
COMMIT_EVERY_S = 1.0
NEVER_WAITED_FOR = frozenset({"retrain"})  # readers of `examples` that may fall behind: hours, while they learn a day


class JoinWorker:
    """Joins some partitions of a log until told otherwise. For one thread.

    `while not stopping: worker.step()`, then `worker.close()`; between steps nothing is unwritten.
    """

    def __init__(
        self,
        log: EventLog,
        settings: JoinSettings,
        partitions: Sequence[int] | None = None,
        *,
        wire: WireConfig | None = None,
        name: str = "joiner",
        max_lag_records: int = 1 << 62,
        while_waiting: Callable[[], object] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._settings, self._wire = log, settings, wire or WireConfig()
        self._partitions = list(range(log.partitions("events")) if partitions is None else partitions)
        self._max_lag, self._while_waiting = max_lag_records, while_waiting
        self._stopping, self._sleep, self._clock = stopping, sleep, clock
        self._until_done = Retrier(stopping, sleep)
        self._reader = log.reader("events", name, self._partitions)
        self._examples, self._dead = log.writer("examples"), log.writer("dead-letters")
        self._outputs: list[tuple[int, Output]] = []  # made, not yet durable
        self._written: dict[int, int] = {}  # end of examples/p as this worker left it
        self._joiners: dict[int, PartitionJoiner] = {}
        self._intakes: dict[int, Intake] = {}
        self._buried = Buried(log)
        self.dead: dict[str, int] = {}  # dead events by reason, since this worker began
        self._last: dict[int, ExampleMeta | None] = {}  # last durable record
        self._next_commit = 0.0
        self.resyncs = 0
        for p in self._partitions:
            self._start(p)

    def step(self, timeout_s: float = 0.0) -> int:
        """Read what is there (waiting for the first record), join it, make it durable; the number of records read."""
        records = self._reader.poll(POLL_RECORDS, timeout_s)
        for p, intake in self._intakes.items():
            self._outputs += [(p, out) for out in intake.feed([record for q, record in records if q == p])]
        self.flush()
        if records:
            self._hold_back()
        return len(records)

    def flush(self) -> None:
        """Make every output durable, in the order above."""
        if self._dead.pending_bytes:
            self._until_done(self._dead.flush)
        if self._outputs:
            for p in self._partitions:
                if self._log.end_offset("examples", p) != self._written[p]:
                    self._outputs = [(q, out) for q, out in self._outputs if q != p]
                    self.resyncs += 1
                    self._start(p)
            for p, out in self._outputs:
                self._append(p, out)
            self._until_done(self._examples.flush)
            for p, out in self._outputs:
                self._last[p] = out.meta
                self._written[p] += 1
            self._outputs.clear()
        if self._clock() >= self._next_commit:
            self.commit()

    def commit(self) -> None:
        """Tell retention what a rebuild will never read again."""
        low = {p: last.low_offset for p, last in self._last.items() if last}
        if low:
            self._reader.commit(low)
        self._next_commit = self._clock() + COMMIT_EVERY_S

    @property
    def ended(self) -> bool:
        """Every partition's last record ends a replay, and nothing follows it in `events`."""
        return all(
            last is not None and last.end and self._reader.position(p) == self._log.end_offset("events", p)
            for p, last in self._last.items()
        )

    def last(self, partition: int) -> ExampleMeta | None:
        """Meta of the last durable record of a partition."""
        return self._last[partition]

    def counts(self) -> dict[str, int]:
        """Cumulative counters over all partitions, what is not yet written included."""
        total: dict[str, int] = {}
        for joiner in self._joiners.values():
            for name, n in joiner.counts().items():
                total[name] = total.get(name, 0) + n
        return total

    def watermark_ms(self) -> int:
        """The smallest W."""
        return min(joiner.watermark_ms for joiner in self._joiners.values())

    def close(self) -> None:
        """Flush, commit, let go."""
        self.flush()
        self.commit()
        for part in (self._reader, self._examples, self._dead):
            part.close()

    def _hold_back(self) -> None:
        """Back-pressure: wait while a reader of `examples` is too far behind, but for the retrain."""
        while self._lag() > self._max_lag and not self._stopping():
            self._while_waiting()
            self._sleep(0.002)

    def _lag(self) -> int:
        lags = self._log.reader_lag("examples").items()
        return max((lag for name, lag in lags if name not in NEVER_WAITED_FOR), default=0)

    def _start(self, p: int) -> None:
        """Build the core of a partition from its last output record, and read from where that needs."""
        end = self._log.end_offset("examples", p)
        record = self._log.last_record("examples", p)
        last = decode_example_meta(record.meta) if record else None
        first = self._log.start_offset("events", p)
        if last is not None and first > last.low_offset:
            raise CorruptStateError(
                f"events/{p} begins at {first}, but the join goes on from {last.low_offset}: rows it needs are gone. "
                "Stop the run, delete the topic `examples` and what was made from it, and start the joiner again"
            )
        joiner = PartitionJoiner(p, self._settings, start_offset=first, last=last)
        self._buried.update()
        self._buried.forget("events", p, joiner.next_offset)
        self._joiners[p] = joiner
        self._intakes[p] = Intake(joiner, self._rules(p), self._buried, lambda what: self._bury(p, what))
        self._reader.seek(p, self._joiners[p].next_offset)
        self._last[p], self._written[p] = last, end

    def _rules(self, p: int) -> Rules:
        partitions = 0 if self._wire.any_partition else self._log.partitions("events")
        return Rules(self._wire, self._settings.timeline.skew_ms, p, partitions)

    def _bury(self, p: int, what: Dead) -> None:
        """Buffer a dead letter; `flush` makes it durable before the output that follows it."""
        key, meta = letter_of(what.dead, "events", p, what.timestamp_ms)
        meta = msgspec.structs.replace(meta, rows=tuple(what.rows))
        self.dead[meta.reason] = self.dead.get(meta.reason, 0) + meta.events
        when, packed = min(max(what.timestamp_ms, 0), TIME_LIMIT), encode_letter_meta(meta)
        self._until_done(lambda: self._dead.append(0, what.dead.raw, timestamp_ms=when, key=key, meta=packed))

    def _append(self, p: int, out: Output) -> None:
        value = encode_examples(out.examples) if len(out.examples) else b""
        meta = encode_example_meta(out.meta)
        when = self._settings.timeline.end_ms(out.meta.tick)
        self._until_done(lambda: self._examples.append(p, value, timestamp_ms=when, meta=meta))
