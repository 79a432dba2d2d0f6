"""What the records of a partition hold, in whatever format, fed to its joiner; and what of it is dead.

Our own columnar records go straight through. Records of other producers are read many at a time; a stretch of them
that hold one event each is one call of the joiner, as if each had come alone. A row that has a dead letter stays
dead. What lies up to R was read before, perhaps under other limits: there the letters alone say what was dead.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np

from infra.eventlog import Record
from stream.columns import I64, MalformedRecordError
from stream.deadletters import Buried
from stream.events import EventColumns, decode_events, encode_events
from stream.join.core import Output, PartitionJoiner
from stream.join.state import malformed_rows
from stream.wire.dead import DeadRow, Fault, Reason
from stream.wire.formats import Form, WireMeta, decode_wire_meta, form_of
from stream.wire.limits import Rules
from stream.wire.records import Incoming, read_events, unreadable
from stream.wire.rows import DEAD_KIND

ROW_FAULTS = (
    "an unknown kind or action, no items, no time, ingested after its record, or longer than a record of examples "
    "(join.bytes_per_record)"
)
TOGETHER_BYTES = 1 << 18  # of other producers' records that are read together: what they become stays in the cache


class Dead(NamedTuple):
    """A letter to write: dead rows of the record at `dead.offset`."""

    dead: DeadRow
    timestamp_ms: int  # of the record


class Intake:
    """One partition's way into its joiner. `feed` takes records in order; one that was fed before is skipped."""

    def __init__(self, joiner: PartitionJoiner, rules: Rules, buried: Buried, bury: Callable[[Dead], None]) -> None:
        self.joiner = joiner
        self._rules, self._relaxed = rules, rules.relaxed()
        self._buried, self._bury = buried, bury
        self._read_through = joiner.rebuild_end  # R's record, for as long as this joiner lives

    def feed(self, records: Sequence[Record]) -> list[Output]:
        """Apply the records; the output they lead to. Dead letters are handed on before it returns."""
        outputs: list[Output] = []
        others: list[tuple[Incoming, bool]] = []
        waiting_bytes = 0
        for record in records:
            if record.offset < self.joiner.next_offset:
                continue
            about = _about(record)
            if not isinstance(about, MalformedRecordError):
                meta, form = about
                if form is not Form.ARROW:
                    others.append((self._incoming(record, form, meta), meta.end))
                    waiting_bytes += len(record.value)
                    if waiting_bytes < TOGETHER_BYTES:
                        continue
            outputs += self._feed_others(others)
            others, waiting_bytes = [], 0
            if isinstance(about, MalformedRecordError) or about[1] is Form.ARROW:
                outputs += self._feed_columns(record, about)
        return outputs + self._feed_others(others)

    def _incoming(self, record: Record, form: Form | None, meta: WireMeta) -> Incoming:
        buried = self._buried_rows(record.offset)
        return Incoming(record.offset, record.timestamp_ms, bytes(record.value), form, meta.origin_ms, buried)

    def _buried_rows(self, offset: int) -> frozenset[int] | None:
        return self._buried.rows("events", self.joiner.partition, offset)

    def _feed_columns(self, record: Record, about: "_About") -> list[Output]:
        """A columnar record, or one that nobody can read."""
        buried, joiner = self._buried_rows(record.offset), self.joiner
        try:
            if isinstance(about, MalformedRecordError):
                raise about
            if buried and -1 in buried:
                raise MalformedRecordError("it has a dead letter")
            events = decode_events(record.value)
        except MalformedRecordError as error:
            joiner.push_malformed(record.offset)
            if buried is None and record.offset > self._read_through:
                self._bury(Dead(unreadable(record, error), record.timestamp_ms))
            return []
        alive = self._without_dead(events, record, buried)
        before = joiner.malformed
        outputs = joiner.push(record.offset, alive, end=about[0].end)
        if joiner.malformed != before and buried is None and record.offset > self._read_through:
            rows = malformed_rows(alive)
            value = encode_events(events.take(rows))
            fault = Fault(Reason.ROW, ROW_FAULTS)
            dead = DeadRow(record.offset, -1, fault, value, Form.ARROW.value, rows=tuple(rows.tolist()))
            self._bury(Dead(dead, record.timestamp_ms))
        return outputs

    def _without_dead(self, events: EventColumns, record: Record, buried: frozenset[int] | None) -> EventColumns:
        """Rows that have a letter, those ingested after their record and those too long for one, as rows of no kind."""
        if buried:
            rows = np.array([row for row in buried if row < len(events)], dtype=np.int64)
        elif record.offset <= self._read_through:
            return events
        else:
            late = events.ingested_ms > record.timestamp_ms + self._rules.skew_ms
            rows = np.flatnonzero(late | (list_bytes(events) > self._rules.list_bytes))
        if not len(rows):
            return events
        kind = events.kind.copy()
        kind[rows] = DEAD_KIND
        return replace(events, kind=kind)

    def _feed_others(self, others: Sequence[tuple[Incoming, bool]]) -> list[Output]:
        """Records of other producers, those up to R by what was said of them then."""
        outputs: list[Output] = []
        old = sum(record.offset <= self._read_through for record, _ in others)
        for part, rules in ((others[:old], self._relaxed), (others[old:], self._rules)):
            if not part:
                continue
            records = [record for record, _ in part]
            rows = read_events(records, rules)
            for at, end in _runs(part, rows.bounds.tolist(), self.joiner.rebuild_end):
                lo, hi = int(rows.bounds[at.start]), int(rows.bounds[at.stop])
                outputs += self._push(records[at.start].offset, rows.events.slice(lo, hi), len(at), end)
            if rules is self._rules:
                stamps = {record.offset: record.timestamp_ms for record in records}
                for dead in rows.dead:
                    self._bury(Dead(dead, stamps[dead.offset]))
        return outputs

    def _push(self, offset: int, events: EventColumns, records: int, end: bool) -> list[Output]:
        if records > 1:
            return self.joiner.push_run(offset, events)
        return self.joiner.push(offset, events, end=end)


_About: TypeAlias = tuple[WireMeta, Form | None] | MalformedRecordError


def list_bytes(events: EventColumns) -> I64:
    """What the lists of each row (n,) take in `examples`: 8 an item of the history, 9 a shown one and its label."""
    found: I64 = 8 * events.history.lengths + 9 * events.items.lengths
    return found


def _about(record: Record) -> _About:
    """Meta and format of a record, or why its meta cannot be read."""
    try:
        meta = decode_wire_meta(record.meta)
    except MalformedRecordError as error:
        return error
    return meta, form_of(record.value, meta.content_type)


def _runs(part: Sequence[tuple[Incoming, bool]], bounds: Sequence[int], alone: int) -> Iterator[tuple[range, bool]]:
    """Stretches of records that are one push, and whether it ends a replay: single events without a gap, or one record.

    The record at offset `alone` (R's) is a stretch of its own.
    """
    sizes = [hi - lo for lo, hi in pairwise(bounds)]
    start = 0
    for i in range(1, len(part) + 1):
        if i < len(part):
            (before, end_before), (record, end) = part[i - 1], part[i]
            plain = sizes[i - 1] == sizes[i] == 1 and not end and not end_before
            if plain and record.offset == before.offset + 1 and alone not in (before.offset, record.offset):
                continue
        yield range(start, i), part[i - 1][1] and i - start == 1
        start = i
