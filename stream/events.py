"""Events and catalogue items: their columns, and the records of `events` and `items`.

An impression, an engagement and a heartbeat are rows of one topic, because their order within a partition is the truth
that the join needs. A record is a batch of rows in append order; a position is (offset, row). Every row carries
`ingested_ms`, stamped by whoever appends it. Unused columns of a kind hold 0, -1 or an empty list.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from stream.columns import I64, U8, Codec, Lists, MalformedRecordError

SCHEMA_VERSION = 1
LIVE = -1  # `source` of what no replay wrote


class EventKind(IntEnum):
    """What a row of `events` is."""

    IMPRESSION = 0
    ENGAGEMENT = 1
    HEARTBEAT = 2


class ItemKind(IntEnum):
    """What a row of `items` is."""

    ITEM = 0
    HEARTBEAT = 2


class ActionKind(IntEnum):
    """What a user did with a shown item; bit 1 << kind of a label. Up to 8 kinds fit."""

    CLICK = 0
    LIKE = 1
    SHARE = 2
    DWELL = 3


class RecordMeta(msgspec.Struct, frozen=True):
    """Meta of a record of `events` or `items`. Unknown fields are ignored by readers."""

    v: int = SCHEMA_VERSION
    # Position in a replay's schedule that this record completes, LIVE where no replay wrote it.
    source: int = LIVE
    # The last record of a replay in this partition.
    end: bool = False


@dataclass(frozen=True, slots=True)
class EventColumns:
    """n rows of `events`."""

    kind: U8
    ingested_ms: I64
    time_ms: I64
    impression: I64
    user: I64
    item: I64
    action: U8
    source: I64
    history: Lists
    items: Lists

    def __len__(self) -> int:
        return len(self.kind)

    def slice(self, lo: int, hi: int) -> "EventColumns":
        """Rows lo:hi, as views."""
        return EventColumns(*(_slice(getattr(self, f.name), lo, hi) for f in fields(self)))

    def take(self, rows: I64) -> "EventColumns":
        """The given rows, in that order."""
        return EventColumns(*(_take(getattr(self, f.name), rows) for f in fields(self)))

    @classmethod
    def concat(cls, parts: Sequence["EventColumns"]) -> "EventColumns":
        """All rows of all parts, in order; there is at least one part."""
        return cls(*(_concat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


@dataclass(frozen=True, slots=True)
class ItemColumns:
    """n rows of `items`; text columns are lists of str."""

    kind: U8
    ingested_ms: I64
    item: I64
    category: I64
    subcategory: I64
    published_ms: I64
    words: Lists
    item_id: list[str]
    category_name: list[str]
    subcategory_name: list[str]
    title: list[str]

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, rows: I64) -> "ItemColumns":
        """The given rows, in that order."""
        return ItemColumns(*(_take(getattr(self, f.name), rows) for f in fields(self)))


_INT, _BYTE, _INTS, _TEXT = pa.int64(), pa.uint8(), pa.list_(pa.int64()), pa.string()
EVENT_CODEC = Codec(
    {
        "kind": _BYTE,
        "ingested_ms": _INT,
        "time_ms": _INT,
        "impression": _INT,
        "user": _INT,
        "item": _INT,
        "action": _BYTE,
        "source": _INT,
        "history": _INTS,
        "items": _INTS,
    }
)
ITEM_CODEC = Codec(
    {
        "kind": _BYTE,
        "ingested_ms": _INT,
        "item": _INT,
        "category": _INT,
        "subcategory": _INT,
        "published_ms": _INT,
        "words": _INTS,
        "item_id": _TEXT,
        "category_name": _TEXT,
        "subcategory_name": _TEXT,
        "title": _TEXT,
    }
)


def encode_events(events: EventColumns) -> bytes:
    """The value of an `events` record."""
    return EVENT_CODEC.encode({f.name: getattr(events, f.name) for f in fields(events)})


def decode_events(value: bytes | memoryview) -> EventColumns:
    """Rows of an `events` record. Raises MalformedRecordError."""
    return EventColumns(**EVENT_CODEC.decode(value))


def encode_items(items: ItemColumns) -> bytes:
    """The value of an `items` record."""
    return ITEM_CODEC.encode({f.name: getattr(items, f.name) for f in fields(items)})


def decode_items(value: bytes | memoryview) -> ItemColumns:
    """Rows of an `items` record. Raises MalformedRecordError."""
    return ItemColumns(**ITEM_CODEC.decode(value))


_META_ENCODER = msgspec.msgpack.Encoder()
_META_DECODER = msgspec.msgpack.Decoder(RecordMeta)


def encode_meta(meta: RecordMeta) -> bytes:
    """Meta as msgpack."""
    return _META_ENCODER.encode(meta)


def decode_meta(meta: bytes) -> RecordMeta:
    """Meta of an `events` or `items` record; without one, a live record. Raises MalformedRecordError."""
    if not meta:
        return RecordMeta()
    try:
        return _META_DECODER.decode(meta)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRecordError(f"meta is not msgpack of the known fields: {error}") from error


def meta_or_live(meta: bytes) -> RecordMeta:
    """Meta of a record; one that cannot be read is no replay's."""
    try:
        return decode_meta(meta)
    except MalformedRecordError:
        return RecordMeta()


def impressions(
    *,
    ingested_ms: I64,
    time_ms: I64,
    impression: I64,
    user: I64,
    history: Lists,
    items: Lists,
    source: I64 | None = None,
) -> EventColumns:
    """Impression rows."""
    return _rows(
        EventKind.IMPRESSION,
        ingested_ms,
        time_ms=time_ms,
        impression=impression,
        user=user,
        history=history,
        items=items,
        source=source,
    )


def engagements(
    *, ingested_ms: I64, time_ms: I64, impression: I64, user: I64, item: I64, action: U8, source: I64 | None = None
) -> EventColumns:
    """Engagement rows."""
    return _rows(
        EventKind.ENGAGEMENT,
        ingested_ms,
        time_ms=time_ms,
        impression=impression,
        user=user,
        item=item,
        action=action,
        source=source,
    )


def heartbeats(ingested_ms: I64) -> EventColumns:
    """Heartbeat rows: they move the watermark where nothing else does."""
    return _rows(EventKind.HEARTBEAT, ingested_ms, time_ms=ingested_ms.copy())


def item_heartbeats(ingested_ms: I64) -> ItemColumns:
    """Heartbeat rows of `items`."""
    n = len(ingested_ms)
    zeros, blank = np.zeros(n, dtype=np.int64), [""] * n
    kind = np.full(n, ItemKind.HEARTBEAT, dtype=np.uint8)
    unknown = np.full(n, -1, dtype=np.int64)
    return ItemColumns(kind, ingested_ms, zeros, zeros, zeros, unknown, Lists.empty(n), blank, blank, blank, blank)


def _rows(kind: EventKind, ingested_ms: I64, **given: Any) -> EventColumns:
    n = len(ingested_ms)
    columns: dict[str, Any] = {
        "kind": np.full(n, kind, dtype=np.uint8),
        "ingested_ms": ingested_ms,
        "action": np.zeros(n, dtype=np.uint8),
        "source": np.full(n, LIVE, dtype=np.int64),
        "history": Lists.empty(n),
        "items": Lists.empty(n),
    }
    for name in ("impression", "user", "item"):
        columns[name] = np.zeros(n, dtype=np.int64)
    columns.update({name: value for name, value in given.items() if value is not None})
    return EventColumns(**columns)


def _slice(column: Any, lo: int, hi: int) -> Any:
    return column.slice(lo, hi) if isinstance(column, Lists) else column[lo:hi]


def _take(column: Any, rows: I64) -> Any:
    if isinstance(column, list):
        return [column[row] for row in rows.tolist()]
    return column.take(rows) if isinstance(column, Lists) else column[rows]


def _concat(parts: list[Any]) -> Any:
    return Lists.concat(parts) if isinstance(parts[0], Lists) else np.concatenate(parts)
