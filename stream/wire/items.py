"""Catalogue items of other producers become rows of `items`; one rule for every reader of the topic."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.eventlog import Record
from infra.hashing import key_of, keys_of
from stream.columns import I64, Lists, MalformedRecordError, offsets_of
from stream.events import ItemColumns, ItemKind, decode_items, encode_items
from stream.mind.news import title_words
from stream.wire.dead import DeadRow, Fault, Reason
from stream.wire.formats import Form, decode_wire_meta, form_of
from stream.wire.limits import Rules, beat_ms, check_ingested, check_item, check_time, moment_ms
from stream.wire.parse import ITEM_PARSERS
from stream.wire.records import BURIED, Incoming, dead_rows, parse_records, unreadable
from stream.wire.schema import TIME_LIMIT, CatalogueRow, Heartbeat, Item

UNKNOWN_MS = -1  # `published_ms` of an item that does not say


class ItemRecord(NamedTuple):
    """The usable rows of a record of `items`, and what of it is dead."""

    items: ItemColumns
    dead: list[DeadRow]


class _Row(NamedTuple):
    kind: int
    ingested_ms: int
    key: int
    published_ms: int
    item: Item


_NO_ITEM = Item("")


def read_items(record: Record, rules: Rules, buried: frozenset[int] | None = None) -> ItemRecord:
    """Read a record of `items` in any format; never raises for what it holds. `buried`: rows that have a letter."""
    form: Form | None = None
    try:
        about = decode_wire_meta(record.meta)
        form = form_of(record.value, about.content_type)
        if form is Form.ARROW and not (buried and -1 in buried):
            return _read_columns(record, rules, buried)
    except MalformedRecordError as error:
        return ItemRecord(_columns([]), [] if buried else [unreadable(record, error)])
    stamp_ms = record.timestamp_ms
    incoming = Incoming(record.offset, stamp_ms, bytes(record.value), form, buried=buried)
    parsed = parse_records([incoming], ITEM_PARSERS, rules)
    rows: list[_Row] = []
    faults: dict[int, Fault] = {}
    for at, event in enumerate(parsed[0].events):
        known = BURIED if buried and at in buried else event
        row = known if isinstance(known, Fault) else _row(known, stamp_ms, rules)
        if isinstance(row, Fault):
            faults[at] = row
        else:
            rows.append(row)
    bounds = offsets_of(np.array([len(parsed[0].events)], dtype=np.int64))
    return ItemRecord(_columns(rows), list(dead_rows([incoming], parsed, bounds, faults, ITEM_PARSERS)))


def _read_columns(record: Record, rules: Rules, buried: frozenset[int] | None) -> ItemRecord:
    """The usable rows of a columnar record. Raises MalformedRecordError."""
    items = decode_items(record.value)
    dead = unusable_items(items, record.timestamp_ms + rules.skew_ms)
    if buried:
        dead = np.isin(np.arange(len(items)), list(buried))
    if not dead.any():
        return ItemRecord(items, [])
    alive, rows = items.take(np.flatnonzero(~dead)), np.flatnonzero(dead)
    if buried:
        return ItemRecord(alive, [])
    fault = Fault(Reason.ROW, "an unknown kind, no time, or ingested after its record")
    value = encode_items(items.take(rows))
    return ItemRecord(alive, [DeadRow(record.offset, -1, fault, value, Form.ARROW.value, rows=tuple(rows.tolist()))])


def unusable_items(items: ItemColumns, latest_ms: int) -> NDArray[np.bool_]:
    """Rows (n,) that no reader can use; `latest_ms`: when a row can have been ingested at the latest."""
    known = (items.kind == ItemKind.ITEM) | (items.kind == ItemKind.HEARTBEAT)
    ingested, published = items.ingested_ms, items.published_ms
    timely = (ingested >= 0) & (ingested <= min(latest_ms, TIME_LIMIT))
    alive: NDArray[np.bool_] = known & timely & (published >= -TIME_LIMIT) & (published <= TIME_LIMIT)
    return ~alive


def _row(event: CatalogueRow, stamp_ms: int, rules: Rules) -> _Row | Fault:
    if isinstance(event, Heartbeat):
        beat = beat_ms(event, stamp_ms)
        if isinstance(beat, Fault):
            return beat
        return check_ingested(beat, stamp_ms, rules) or _Row(ItemKind.HEARTBEAT, beat, 0, UNKNOWN_MS, _NO_ITEM)
    published = moment_ms(event.published_ms, event.published, UNKNOWN_MS)
    if isinstance(published, Fault):
        return published
    if published != UNKNOWN_MS and (fault := check_time(published, rules)):
        return fault
    ingested = stamp_ms if event.ingested_ms is None else event.ingested_ms
    if fault := check_ingested(ingested, stamp_ms, rules) or check_item(event, rules):
        return fault
    return _Row(ItemKind.ITEM, ingested, key_of(event.id), published, event)


def _columns(rows: Sequence[_Row]) -> ItemColumns:
    def ints(values: list[int]) -> I64:
        return np.array(values, dtype=np.int64)

    words = [title_words(row.item.title) for row in rows]
    categories = [row.item.category for row in rows]
    subcategories = [row.item.subcategory for row in rows]
    item = np.array([row.kind == ItemKind.ITEM for row in rows], dtype=np.int64)
    return ItemColumns(
        kind=np.array([row.kind for row in rows], dtype=np.uint8),
        ingested_ms=ints([row.ingested_ms for row in rows]),
        item=ints([row.key for row in rows]),
        category=keys_of(categories) * item,
        subcategory=keys_of(subcategories) * item,
        published_ms=ints([row.published_ms for row in rows]),
        words=Lists(offsets_of(ints([len(w) for w in words])), keys_of([word for line in words for word in line])),
        item_id=[str(row.item.id) for row in rows],
        category_name=categories,
        subcategory_name=subcategories,
        title=[row.item.title for row in rows],
    )
