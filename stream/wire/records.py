"""Records of other producers become rows, many records at a time; what is dead comes with its bytes and its reason."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from infra.eventlog import Record
from stream.columns import I64, MalformedRecordError
from stream.columns import offsets_of as bounds_of
from stream.events import EventColumns
from stream.wire.dead import DeadRow, Fault, Reason
from stream.wire.formats import CONTENT_TYPES, Form, UnknownVersionError, decode_wire_meta, form_of
from stream.wire.limits import Rules
from stream.wire.parse import EVENT_PARSERS, Parsed, Parser
from stream.wire.rows import Stamped, event_rows

T = TypeVar("T")
BURIED = Fault(Reason.ROW, "buried")  # known by its identity: the event has its dead letter


class Incoming(NamedTuple):
    """A record that is not in our own columnar format."""

    offset: int
    timestamp_ms: int
    value: bytes
    form: Form | None  # None: nothing says it
    origin_ms: int | None = None  # timestamp of the record that this one repeats
    buried: frozenset[int] | None = None  # rows of it that have a dead letter; -1: the record


class Rows(NamedTuple):
    """The rows of records: record i has rows bounds[i]:bounds[i + 1]."""

    events: EventColumns
    bounds: I64
    dead: list[DeadRow]


def read_events(records: Sequence[Incoming], rules: Rules) -> Rows:
    """Rows of JSON and msgpack records of `events`; `dead` leaves out what is buried already."""
    parsed = parse_records(records, EVENT_PARSERS, rules)
    stamped, counts = [], []
    for record, (events, _) in zip(records, parsed, strict=True):
        stamp = record.timestamp_ms
        default = stamp if record.origin_ms is None else record.origin_ms
        buried = record.buried or ()
        counts.append(len(events))
        stamped += [Stamped(BURIED if row in buried else one, stamp, default) for row, one in enumerate(events)]
    rows, faults = event_rows(stamped, rules)
    bounds = bounds_of(np.array(counts, dtype=np.int64))
    return Rows(rows, bounds, list(dead_rows(records, parsed, bounds, faults, EVENT_PARSERS)))


def parse_records(records: Sequence[Incoming], parsers: Mapping[Form, Parser[T]], rules: Rules) -> list[Parsed[T]]:
    """The events of each record."""
    found: list[Parsed[T] | None] = [_refused(record, rules) for record in records]
    for form, parser in parsers.items():
        which = [i for i, record in enumerate(records) if found[i] is None and record.form is form]
        for i, one in zip(which, parser.records([records[i].value for i in which], rules.wire), strict=True):
            found[i] = one
    return [one for one in found if one is not None]


def dead_rows(
    records: Sequence[Incoming],
    parsed: Sequence[Parsed[Any]],
    bounds: I64,
    faults: Mapping[int, Fault],
    parsers: Mapping[Form, Parser[Any]],
) -> Iterator[DeadRow]:
    """The dead events that are not buried yet, in order."""
    raws: tuple[int, list[bytes]] = (-1, [])
    for at, fault in sorted(faults.items()):
        if fault is BURIED:
            continue
        i = int(np.searchsorted(bounds, at, side="right")) - 1
        record, row = records[i], at - int(bounds[i])
        form = record.form.value if record.form else ""
        if parsed[i].whole or record.form is None:
            yield DeadRow(record.offset, -1, fault, record.value, form)
            continue
        if raws[0] != i:
            raws = (i, parsers[record.form].raws(record.value))
        yield DeadRow(record.offset, row, fault, raws[1][row], form)


def unreadable(record: Record, error: MalformedRecordError) -> DeadRow:
    """What is dead of a record whose columns, or whose meta, cannot be read."""
    try:
        decode_wire_meta(record.meta)
        meta = b""
    except MalformedRecordError:
        meta = record.meta
    reason = Reason.VERSION if isinstance(error, UnknownVersionError) else Reason.SYNTAX
    form = form_of(record.value)
    name = form.value if form else ""
    return DeadRow(record.offset, -1, Fault(reason, str(error)), bytes(record.value), name, meta=meta)


def _refused(record: Incoming, rules: Rules) -> Parsed[Any] | None:
    """What is dead before anything is decoded."""
    fault = None
    if record.buried and -1 in record.buried:
        fault = BURIED
    elif record.form is None:
        known = ", ".join(sorted({kind.value for kind in CONTENT_TYPES.values()}))
        fault = Fault(Reason.FORMAT, f"neither content-type nor first byte {record.value[:1]!r} is one of {known}")
    elif len(record.value) > rules.wire.max_record_bytes:
        most = rules.wire.max_record_bytes
        fault = Fault(Reason.TOO_LARGE, f"{len(record.value)} bytes; at most {most} (wire.max_record_bytes)")
    return None if fault is None else Parsed([fault], True)
