"""Reads `examples` tick by tick: what the trainer, the evaluator and the nightly chain stand on.

A tick is handed out when every partition has closed it, strictly in order, its impressions over all partitions sorted
by (shown, impression id, position). So the sequence of ticks with examples is a function of the log and of nothing
else: not of polls, partitions' relative progress, restarts or repeats. A stretch of empty ticks comes as one empty
`TickExamples` whose `tick` is the newest closed one; how a stretch is split depends on polling, and readers must do
nothing in it that hangs on the split.

Sequence numbers: a partition's next record is last + 1; what a second joiner repeated is dropped; a gap halts.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from infra.eventlog import EventLog, Reader, Record
from stream.examples import EMPTY, ExampleColumns, ExampleMeta, decode_example_meta, decode_examples, follows

NOTHING_CLOSED = -(2**62)  # before every tick


@dataclass(frozen=True, slots=True)
class TickExamples:
    """What closed in a tick, or that nothing closed up to it."""

    tick: int  # every tick up to this one is complete
    examples: ExampleColumns  # those that close in `tick`, sorted by (shown, impression id, position)
    positions: dict[int, int]  # partition -> next offset of `examples` to read after this tick
    end: bool  # a replay's last tick in every partition
    watermark_ms: int  # smallest W over the partitions when the tick was complete
    events_in: int  # events that had been read in all partitions when the tick was complete


@dataclass(slots=True)
class _Partition:
    """What was read of a partition and not yet handed out."""

    queue: deque[tuple[ExampleMeta, Record]] = field(default_factory=deque)
    seq: int | None = None  # the last one accepted
    closed: int = NOTHING_CLOSED
    done_offset: int = 0  # next offset after what was handed out
    last: ExampleMeta | None = None  # of what was handed out


class ExampleTicks:
    """A named reader of `examples`, merged over partitions.

    `seek` positions it for a restart; without one it starts where the named reader's committed positions are.
    """

    def __init__(
        self,
        log: EventLog,
        name: str,
        partitions: Sequence[int] | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        numbers = range(log.partitions("examples")) if partitions is None else partitions
        self._reader: Reader = log.reader("examples", name, list(numbers))
        self._parts = {p: _Partition(done_offset=self._reader.position(p)) for p in numbers}
        self._tick = NOTHING_CLOSED
        self._sleep, self._clock = sleep, clock

    def seek(self, positions: Mapping[int, int], tick: int) -> None:
        """Go on after `tick`, from the positions that its `TickExamples` gave; repeats of older ticks are dropped."""
        for p, part in self._parts.items():
            self._reader.seek(p, positions[p])
            part.queue.clear()
            part.closed, part.done_offset = tick, positions[p]
            before = positions[p] - 1
            kept = before >= self._log.start_offset("examples", p)
            part.last = decode_example_meta(self._log.read("examples", p, before, 1)[0].meta) if kept else None
            part.seq = part.last.seq if part.last else None
        self._tick = tick

    @property
    def ended(self) -> bool:
        """Whether what was handed out last was a replay's end in every partition."""
        return all(part.last is not None and part.last.end for part in self._parts.values())

    def next_tick(self, timeout_s: float = 0.0) -> TickExamples | None:
        """The next tick with examples, or the newest closed one if all before it are empty; None after `timeout_s`.

        Raises CorruptStateError on a gap in a partition's sequence numbers, and where a record cannot be read.
        """
        deadline = self._clock() + timeout_s
        while (tick := self._take()) is None:
            left = deadline - self._clock()
            if not self._poll(min(max(left, 0.0), 0.05)) and left <= 0:
                return None
        return tick

    def commit(self, positions: Mapping[int, int] | None = None) -> None:
        """Let retention pass what lies before these positions; None: what was handed out."""
        self._reader.commit(self.positions() if positions is None else positions)

    def positions(self) -> dict[int, int]:
        """Next offset to read after the last tick that was handed out, by partition."""
        return {p: part.done_offset for p, part in self._parts.items()}

    def counts(self) -> dict[str, int]:
        """The joiner's cumulative counters up to the last tick that was handed out, summed over partitions."""
        total: dict[str, int] = {}
        for part in self._parts.values():
            for name, n in (part.last.counts if part.last else {}).items():
                total[name] = total.get(name, 0) + n
        return total

    def close(self) -> None:
        """Leave the log; the name keeps its committed positions."""
        self._reader.close()

    def _poll(self, timeout_s: float) -> bool:
        records = self._reader.poll(256, timeout_s)
        for p, record in records:
            self._accept(p, self._parts[p], record)
        return bool(records)

    def _accept(self, p: int, part: _Partition, record: Record) -> None:
        meta = decode_example_meta(record.meta)
        if not follows(meta, part.seq, record.offset):
            return
        part.seq = meta.seq
        if meta.tick <= self._tick:
            return
        part.queue.append((meta, record))
        part.closed = max(part.closed, meta.closed_through)

    def _take(self) -> TickExamples | None:
        closed = min(part.closed for part in self._parts.values())
        if closed <= self._tick:
            return None
        tick, parts = closed, []
        for part in self._parts.values():
            for meta, _ in part.queue:
                if meta.tick > tick:
                    break
                if not meta.is_marker:
                    tick = meta.tick
                    break
        for part in self._parts.values():
            while part.queue and part.queue[0][0].tick <= tick:
                meta, record = part.queue.popleft()
                part.last, part.done_offset = meta, record.offset + 1
                if not meta.is_marker:
                    parts.append(decode_examples(record.value))
        self._tick = tick
        return self._tick_examples(tick, parts)

    def _tick_examples(self, tick: int, parts: list[ExampleColumns]) -> TickExamples:
        examples = ExampleColumns.concat(parts) if parts else EMPTY
        metas = [part.last for part in self._parts.values() if part.last]
        return TickExamples(
            tick=tick,
            examples=examples.take(examples.order()) if parts else EMPTY,
            positions=self.positions(),
            end=self.ended,
            watermark_ms=min((meta.watermark_ms for meta in metas), default=NOTHING_CLOSED),
            events_in=sum(meta.counts.get("events_in", 0) for meta in metas),
        )
