"""The partitions that one worker holds: a core for each, built from its last output, and the one way out of them.

Order of a flush, which is the whole commit protocol:
1. dead letters are durable (they may be repeated after a crash, under the same key; they are never lost);
2. a partition whose end moved has another writer: what is unwritten is dropped, the core built anew from the end;
3. append the output records and flush: they are the commit.
A worker that lost a race between 2 and 3 has appended records that are equal to those already there, byte for byte;
readers drop repeats by their sequence number.

Whoever brings the records (a reader of the log, or Faust) keeps its own position: after `start` and after every
partition that `flush` names, it goes on from `next_offset`.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from infra.config import WireConfig
from infra.errors import CorruptStateError
from infra.eventlog import EventLog, Record
from stream.deadletters import Buried, letter_of
from stream.examples import ExampleMeta, decode_example_meta, encode_example_meta, encode_examples
from stream.join.core import FIXED_BYTES, JoinSettings, Output, PartitionJoiner
from stream.join.intake import Dead, Intake
from stream.retry import Retrier
from stream.wire.limits import Rules

NEVER_WAITED_FOR = frozenset(
    {"retrain", "archive-again"}
)  # readers of `examples` that may fall behind: hours, while they learn a day


def rules_of(log: EventLog, settings: JoinSettings, wire: WireConfig, partition: int) -> Rules:
    """The limits of what other producers send to a partition of `events`."""
    partitions = 0 if wire.any_partition else log.partitions("events")
    return Rules(wire, settings.timeline.skew_ms, partition, partitions, settings.bytes_per_record - FIXED_BYTES)


class HeldPartitions:
    """Cores, intakes and unwritten output of the partitions that a worker holds. For one thread."""

    def __init__(
        self,
        log: EventLog,
        settings: JoinSettings,
        wire: WireConfig,
        *,
        stopping: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._log, self._settings, self._wire = log, settings, wire
        self._until_done = Retrier(stopping, sleep)
        self.examples, self._dead = log.writer("examples"), log.writer("dead-letters")
        self.outputs: list[tuple[int, Output]] = []  # made, not yet durable
        self.written: dict[int, int] = {}  # end of examples/p as this worker left it
        self.joiners: dict[int, PartitionJoiner] = {}
        self.intakes: dict[int, Intake] = {}
        self._buried = Buried(log)
        self.last: dict[int, ExampleMeta | None] = {}  # last durable record
        self.dead: dict[str, int] = {}  # dead events by reason, since this worker began
        self.resyncs = 0

    def start(self, p: int) -> int:
        """Hold a partition from now on, its core built from its last output record; the offset to read on from.

        Raises CorruptStateError where `events` has lost rows that the core goes on from.
        """
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
        self.joiners[p] = joiner
        rules = rules_of(self._log, self._settings, self._wire, p)
        self.intakes[p] = Intake(joiner, rules, self._buried, lambda what: self._bury(p, what))
        self.last[p], self.written[p] = last, end
        return joiner.next_offset

    def drop(self, partitions: Iterable[int]) -> None:
        """Hold these no longer; what of theirs is unwritten is dropped, whoever holds them next makes it again."""
        gone = set(partitions)
        self.outputs = [(p, out) for p, out in self.outputs if p not in gone]
        for p in gone:
            for table in (self.joiners, self.intakes, self.last, self.written):
                table.pop(p, None)

    def moved(self, p: int) -> bool:
        """Whether another worker has written to the partition's output since this one did."""
        return self._log.end_offset("examples", p) != self.written[p]

    def feed(self, p: int, records: Sequence[Record]) -> None:
        """Join the next records of a partition; those that were fed before are skipped."""
        self.outputs += [(p, out) for out in self.intakes[p].feed(records)]

    def next_offset(self, p: int) -> int:
        """The next record of `events` that the core of a partition takes."""
        return self.joiners[p].next_offset

    def flush(self) -> list[int]:
        """Make every output durable, in the order above; the partitions whose core was built anew."""
        self.flush_letters()
        if not self.outputs:
            return []
        anew = [p for p in sorted({p for p, _ in self.outputs}) if self.moved(p)]
        self.outputs = [(p, out) for p, out in self.outputs if p not in anew]
        for p in anew:
            self.resyncs += 1
            self.start(p)
        for p, out in self.outputs:
            self._append(p, out)
        self._until_done(self.examples.flush)
        for p, out in self.outputs:
            self.last[p] = out.meta
            self.written[p] += 1
        self.outputs.clear()
        return anew

    def flush_letters(self) -> None:
        """Make the dead letters durable."""
        if self._dead.pending_bytes:
            self._until_done(self._dead.flush)

    def low(self) -> dict[int, int]:
        """What of `events` a rebuild will never read again lies before these offsets."""
        return {p: last.low_offset for p, last in self.last.items() if last}

    def ended(self, position: Callable[[int], int]) -> bool:
        """Every partition's last record ends a replay, and nothing follows `position(p)` in `events`."""
        return all(
            last is not None and last.end and position(p) == self._log.end_offset("events", p)
            for p, last in self.last.items()
        )

    def others_ended(self) -> bool:
        """Whether the last record of every partition that another worker joins ends a replay."""
        others = set(range(self._log.partitions("examples"))) - self.joiners.keys()
        found = [self._log.last_record("examples", p) for p in sorted(others)]
        return all(record is not None and decode_example_meta(record.meta).end for record in found)

    def counts(self) -> dict[str, int]:
        """Cumulative counters over all partitions, what is not yet written included."""
        total: dict[str, int] = {}
        for joiner in self.joiners.values():
            for name, n in joiner.counts().items():
                total[name] = total.get(name, 0) + n
        return total

    def watermark_ms(self) -> int:
        """The smallest W; 0 where nothing is held."""
        return min((joiner.watermark_ms for joiner in self.joiners.values()), default=0)

    def close(self) -> None:
        """Let go of the writers; the last flush is the caller's."""
        for part in (self.examples, self._dead):
            part.close()

    def _bury(self, p: int, what: Dead) -> None:
        """Buffer a dead letter; `flush` makes it durable before the output that follows it."""
        letter = letter_of(what.dead, "events", p, what.timestamp_ms, most_bytes=self._log.max_record_bytes)
        reason = letter.meta.reason
        self.dead[reason] = self.dead.get(reason, 0) + letter.meta.events
        self._until_done(lambda: letter.append_to(self._dead))

    def _append(self, p: int, out: Output) -> None:
        value = encode_examples(out.examples) if len(out.examples) else b""
        meta = encode_example_meta(out.meta)
        when = self._settings.timeline.end_ms(out.meta.tick)
        self._until_done(lambda: self.examples.append(p, value, timestamp_ms=when, meta=meta))
