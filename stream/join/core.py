"""Joins impressions with engagements into training examples: a pure state machine per partition.

An impression shown in tick s waits until W closes tick c = s + a; then it leaves as one example, with a bit for each
kind of engagement that arrived. Nothing here reads a clock or touches a file: rows go in, output records come out,
ordered by (tick, input position) and cut by tick and by a fixed number of impressions and of bytes, never by how rows
were polled.

The only commit is the output. A record says R (the next row to read), its own last key, and L, from where a rebuild
with output suppressed leads to the same state:

1. Rows p whose fate is open at a closing row r (pending, due, known) have W after p > W before r − H, where
   H = bound + skew + (a + 1)·T + late: an impression row that is not `future` cannot close or be known longer.
2. Whether an engagement waited for such a p hangs on rows up to one bound before it.
3. Whether an id was known at those hangs on impression rows up to another H before.

So L = back(H, back(bound, back(H, r))), where back(x, p) is the last closing row whose W after is ≤ W before p − x.
Session windows and a snapshot of the state in the record were decided against: both make the commit grow with traffic.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.config import Config
from infra.errors import CorruptStateError
from infra.ticks import Timeline
from stream.columns import I64
from stream.events import EventColumns
from stream.examples import EMPTY, MARKER_OFFSET, DropReason, ExampleColumns, ExampleMeta
from stream.join import kernels as k
from stream.join.caps import NO_CAPS, Caps, beyond
from stream.join.state import JoinState

FIXED_BYTES = 64  # of an impression, beside its lists: five 8-byte columns, one of 4, three list offsets of 4, and room
COUNT_NAMES = (
    "events_in",
    "impressions",
    "engagements",
    "joined_impressions",
    "joined_engagements",
    *(reason.value for reason in DropReason),
)
assert len(COUNT_NAMES) == k.C_WIDTH


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """What the join hangs on besides its rows."""

    timeline: Timeline
    late_ms: int
    impressions_per_record: int
    bytes_per_record: int = 1 << 40
    caps: Caps = NO_CAPS

    @classmethod
    def of(cls, config: Config) -> "JoinSettings":
        """From the configuration. Raises ConfigError where attribution is no whole number of ticks."""
        join = config.join
        caps = Caps(join.user_impressions, join.user_item_impressions)
        return cls(config.time.build(), join.late_s * 1000, join.impressions_per_record, join.bytes_per_record, caps)

    def timing(self) -> I64:
        """As the kernels take it."""
        t = self.timeline
        numbers = [t.tick_ms, t.attribution_ticks, t.disorder_bound_ms, t.skew_ms, self.late_ms]
        return np.array(numbers, dtype=np.int64)

    @property
    def horizon_ms(self) -> int:
        """H: how far W moves, at most, between an impression row and the end of its being known."""
        t = self.timeline
        return t.disorder_bound_ms + t.skew_ms + (t.attribution_ticks + 1) * t.tick_ms + self.late_ms


class Output(NamedTuple):
    """One record of `examples`."""

    meta: ExampleMeta
    examples: ExampleColumns


class _Mark(NamedTuple):
    """A row that closed a tick, and W before and after it."""

    offset: int
    row: int
    before_ms: int
    after_ms: int


class PartitionJoiner:
    """Feed it the records of one partition from `next_offset` on, each exactly once and in order."""

    def __init__(
        self, partition: int, settings: JoinSettings, *, start_offset: int = 0, last: ExampleMeta | None = None
    ) -> None:
        """A fresh joiner at `start_offset`, or one that goes on after its own last output record."""
        self.partition = partition
        self.settings = settings
        self._state = JoinState(settings.timing())
        self._rebuild_to = last
        self._seq = 0 if last is None else last.seq + 1
        start = _Mark(start_offset, 0, k.NO_WATERMARK, k.NO_WATERMARK)
        if last is not None:
            start = _Mark(last.low_offset, last.low_row, last.low_watermark_ms, last.low_watermark_ms)
        self._state.watermark_ms = start.before_ms
        self._marks = [start]
        self.next_offset, self._next_row = start.offset, start.row

    @property
    def next_seq(self) -> int:
        """Sequence number of the next output record."""
        return self._seq

    @property
    def watermark_ms(self) -> int:
        """W: what closes before it is closed."""
        return self._state.watermark_ms

    @property
    def rebuilding(self) -> bool:
        """Whether rows below R are still to be fed."""
        return self._rebuild_to is not None

    @property
    def rebuild_end(self) -> int:
        """Offset of the record that R lies in or behind; below every record where nothing is rebuilt."""
        return -1 if self._rebuild_to is None else self._rebuild_to.read_offset

    @property
    def malformed(self) -> int:
        """Rows and records dropped as `malformed`; while rebuilding, a number without meaning."""
        return int(self._state.counts[k.C_MALFORMED])

    def counts(self) -> dict[str, int]:
        """Cumulative counters since the start of the partition."""
        return dict(zip(COUNT_NAMES, self._state.counts.tolist(), strict=True))

    def waiting(self) -> dict[str, int]:
        """Events whose fate is open: impressions in their window with what joined them, engagements before theirs."""
        return self._state.waiting()

    def push(self, offset: int, events: EventColumns, *, end: bool = False) -> list[Output]:
        """Apply a record's rows; the output records they lead to. `end`: the record is a replay's last.

        Raises CorruptStateError where the log contradicts the output that this joiner goes on from.
        """
        row, n = self._next_row, len(events)
        assert offset >= self.next_offset, "a record was fed twice"
        self.next_offset, self._next_row = offset + 1, 0
        self._state.reserve(events)
        outputs: list[Output] = []
        if self._rebuild_to is not None:
            row, outputs = self._rebuild(self._rebuild_to, offset, events, row, end)
        while row < n:
            row = self._state.apply(offset, events, row, n)
            if self._closed_now() or (end and row == n):
                outputs += self._outputs(offset, row, end=end and row == n)
        return outputs

    def push_run(self, offset: int, events: EventColumns) -> list[Output]:
        """Apply records of one row each, from `offset` on without a gap: the same as `push` of one after the other.

        While rebuilding, a run ends below R (`rebuild_end`). Raises as `push`.
        """
        n, row = len(events), 0
        assert offset >= self.next_offset, "a record was fed twice"
        assert self._rebuild_to is None or offset + n <= self._rebuild_to.read_offset
        self.next_offset, self._next_row = offset + n, 0
        self._state.reserve(events)
        outputs: list[Output] = []
        while row < n:
            row = self._state.apply(offset, events, row, n, apart=True)
            if not self._closed_now():
                continue
            if self._rebuild_to is None:
                outputs += self._outputs(offset + row - 1, 1, end=False)
            else:
                self._mark(offset + row - 1, 1)
                self._state.drop_closed(self._closed_through())
        return outputs

    def push_malformed(self, offset: int) -> None:
        """A record that no codec reads: one event, dropped as `malformed`; its dead letter is the caller's."""
        self.next_offset, self._next_row = offset + 1, 0
        self._state.counts[[k.C_EVENTS, k.C_MALFORMED]] += 1

    def _rebuild(
        self, last: ExampleMeta, offset: int, events: EventColumns, row: int, end: bool
    ) -> tuple[int, list[Output]]:
        """Apply what lies below R with output suppressed; the row to go on from, and what was due but not written."""
        assert offset <= last.read_offset
        stop = len(events) if offset < last.read_offset else last.read_row - 1
        while row < stop:
            row = self._state.apply(offset, events, row, stop)
            if self._closed_now():
                self._mark(offset, row)
                self._state.drop_closed(self._closed_through())
        if offset < last.read_offset:
            return row, []
        row = self._state.apply(offset, events, row, last.read_row)
        if self.watermark_ms != last.watermark_ms:
            raise CorruptStateError(
                f"events/{self.partition} leads to W = {self.watermark_ms} at {offset}:{row}, but the last record of "
                f"examples/{self.partition} says {last.watermark_ms}: they are not of one run, or `events` lost rows; "
                "stop the run, delete the topic `examples` and what was made from it, and start the joiner again"
            )
        self._rebuild_to = None
        self._state.counts[:] = [last.counts.get(name, 0) for name in COUNT_NAMES]
        written = (last.last_tick, last.last_offset, last.last_row)
        if not self._closed_now() and not (end and row == len(events)):
            return row, []
        return row, self._outputs(offset, row, end=end and row == len(events), written=written)

    def _closed_now(self) -> bool:
        """Whether the row applied last closed a tick."""
        t = self.settings.timeline
        return t.closed_through(self.watermark_ms) != t.closed_through(self._state.before_ms)

    def _closed_through(self) -> int:
        return self.settings.timeline.closed_through(self.watermark_ms)

    def _outputs(
        self, offset: int, row: int, *, end: bool, written: tuple[int, int, int] | None = None
    ) -> list[Output]:
        """Everything due after the row before `row`, in order; what has a key up to `written` is not made again."""
        closed = self._closed_through()
        if self._closed_now():
            self._mark(offset, row)
        low = self._low()
        ticks, due = self._state.due(closed)
        over = beyond(ticks, due, self.settings.caps)
        kept = ~(over[0] | over[1])
        cuts = self._cuts(ticks[kept], due if kept.all() else due.take(np.flatnonzero(kept)), closed)
        self._state.drop_closed(closed)
        outputs, counted = [], k.NO_WATERMARK
        for at, (tick, complete, examples) in enumerate(cuts):
            key = (tick, MARKER_OFFSET, -1)
            if len(examples):
                key = (tick, int(examples.offset[-1]), int(examples.row[-1]))
            mine, counted = (ticks > counted) & (ticks <= tick), tick if complete else counted
            if written is not None and key <= written:
                continue
            if complete:  # so a restart in the middle of a tick counts what the caps dropped of it once
                for reason, dropped in zip((k.C_OVER_USER_CAP, k.C_OVER_ITEM_CAP), over, strict=True):
                    self._state.counts[reason] += _events_in(due, mine & dropped)
            self._state.counts[k.C_JOINED_IMPRESSIONS] += len(examples)
            self._state.counts[k.C_JOINED_ENGAGEMENTS] += int(np.bitwise_count(examples.labels.values).sum())
            meta = ExampleMeta(
                partition=self.partition,
                seq=self._seq,
                tick=tick,
                closed_through=tick if complete else tick - 1,
                read_offset=offset,
                read_row=row,
                last_tick=key[0],
                last_offset=key[1],
                last_row=key[2],
                low_offset=low.offset,
                low_row=low.row,
                low_watermark_ms=low.before_ms,
                watermark_ms=self.watermark_ms,
                counts=self.counts(),
                end=end and at == len(cuts) - 1,
            )
            self._seq += 1
            outputs.append(Output(meta, examples))
        return outputs

    def _cuts(self, ticks: I64, due: ExampleColumns, closed: int) -> list[tuple[int, bool, ExampleColumns]]:
        """(tick, whether it is complete with this cut, impressions): by tick, number and bytes; then a marker."""
        cuts = []
        size, most = self.settings.impressions_per_record, self.settings.bytes_per_record
        ends = np.cumsum(8 * np.diff(due.history.offsets) + 9 * np.diff(due.items.offsets) + FIXED_BYTES)
        bounds = [0, *(np.flatnonzero(np.diff(ticks)) + 1).tolist(), len(ticks)] if len(ticks) else [0]
        for lo, hi in pairwise(bounds):
            start = lo
            while start < hi:
                full = int(np.searchsorted(ends, (ends[start - 1] if start else 0) + most, side="right"))
                stop = min(start + size, max(full, start + 1), hi)
                cuts.append((int(ticks[lo]), stop == hi, due.slice(start, stop)))
                start = stop
        if not cuts or cuts[-1][0] < closed:
            cuts.append((closed, True, EMPTY))
        return cuts

    def _mark(self, offset: int, row: int) -> None:
        self._marks.append(_Mark(offset, row - 1, self._state.before_ms, self.watermark_ms))

    def _low(self) -> _Mark:
        """L for what the row applied last closes; marks before it are not needed again."""
        h, bound = self.settings.horizon_ms, self.settings.timeline.disorder_bound_ms
        at, before = 0, self._state.before_ms
        for back_ms in (h, bound, h):
            at = max(bisect_right(self._marks, before - back_ms, key=lambda mark: mark.after_ms) - 1, 0)
            before = self._marks[at].before_ms
        del self._marks[:at]
        return self._marks[0]


def _events_in(examples: ExampleColumns, these: NDArray[np.bool_]) -> int:
    """Events in these of n impressions: themselves, and the engagements that joined them."""
    engaged = np.bitwise_count(examples.labels.values[np.repeat(these, examples.labels.lengths)])
    return int(these.sum()) + int(engaged.sum())
