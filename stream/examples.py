"""Examples: an impression once, with its shown items and their labels as lists, and the records of `examples`.

A record holds impressions of one close tick and one partition; its meta says how far the join has come, so that the
joiner needs no other commit and readers can tell a repeat (sequence number they have) from a gap. A record without
impressions is a marker: "closed through tick t".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.errors import CorruptStateError
from stream.columns import I64, Codec, Lists, MalformedRecordError

SCHEMA_VERSION = 1
MARKER_OFFSET = 2**63 - 1  # the last-key offset of a marker: after every impression of its tick


class DropReason(StrEnum):
    """Why an event became no part of an example. Every event ends in one of these or in an example."""

    FUTURE = "future"
    LATE_IMPRESSION = "late_impression"
    DUPLICATE_IMPRESSION = "duplicate_impression"
    LATE = "late"
    ORPHAN = "orphan"
    DUPLICATE_ENGAGEMENT = "duplicate_engagement"
    UNKNOWN_ITEM = "unknown_item"
    MALFORMED = "malformed"
    OVER_USER_CAP = "over_user_cap"
    OVER_ITEM_CAP = "over_item_cap"


class ExampleMeta(msgspec.Struct, frozen=True, kw_only=True):
    """Meta of a record of `examples`. Positions are of `events`, (offset, row); unknown fields are ignored."""

    v: int = SCHEMA_VERSION
    partition: int
    seq: int  # 0, 1, 2 …
    tick: int  # close tick of the impressions; of a marker, the tick it closes
    closed_through: int  # every tick up to this one is complete in this partition, this record included
    read_offset: int  # R: the next row to read
    read_row: int
    last_tick: int  # last output key
    last_offset: int
    last_row: int
    low_offset: int  # L: where a rebuild starts, and the watermark before that row
    low_row: int
    low_watermark_ms: int
    watermark_ms: int  # W after R
    counts: dict[str, int]  # since the start of the partition
    end: bool = False  # the last record of a replay in this partition

    @property
    def is_marker(self) -> bool:
        """Whether the record holds no impressions and only says how far its partition is closed."""
        return self.last_offset == MARKER_OFFSET


@dataclass(frozen=True, slots=True)
class ExampleColumns:
    """n impressions with their labels."""

    impression: I64
    user: I64
    shown_ms: I64
    offset: I64  # input position
    row: NDArray[np.int32]
    first_engaged_ms: I64  # time of the first engagement that joined, -1 without one
    history: Lists  # int64
    items: Lists  # int64, in shown order: index = position
    labels: Lists  # uint8, aligned with items: bit 1 << ActionKind

    def __len__(self) -> int:
        return len(self.impression)

    @property
    def clicks(self) -> NDArray[np.uint8]:
        """1 where a shown item was clicked, flat over all shown items (len(items.values),)."""
        bits: NDArray[np.uint8] = self.labels.values & np.uint8(1)
        return bits

    def slice(self, lo: int, hi: int) -> "ExampleColumns":
        """Impressions lo:hi, as views."""
        plain: dict[str, Any] = {name: getattr(self, name)[lo:hi] for name in _PLAIN}
        items = self.items.slice(lo, hi)
        labels = Lists(items.offsets, self.labels.values[self.labels.offsets[lo] : self.labels.offsets[hi]])
        return ExampleColumns(**plain, history=self.history.slice(lo, hi), items=items, labels=labels)

    def take(self, rows: I64) -> "ExampleColumns":
        """The given impressions, in that order."""
        plain: dict[str, Any] = {name: getattr(self, name)[rows] for name in _PLAIN}
        lists = {name: getattr(self, name).take(rows) for name in ("history", "items", "labels")}
        return ExampleColumns(**plain, **lists)

    def order(self) -> I64:
        """Rows sorted by (shown, impression id, position); positions tell only repeats of an id apart."""
        return np.lexsort((self.row, self.offset, self.impression, self.shown_ms))

    @classmethod
    def concat(cls, parts: Sequence["ExampleColumns"]) -> "ExampleColumns":
        """All impressions of all parts, in order."""
        if not parts:
            return EMPTY
        if len(parts) == 1:
            return parts[0]
        plain: dict[str, Any] = {n: np.concatenate([getattr(part, n) for part in parts]) for n in _PLAIN}
        items = Lists.concat([part.items for part in parts])
        labels = Lists(items.offsets, np.concatenate([part.labels.values for part in parts]))
        history = Lists.concat([part.history for part in parts])
        return cls(**plain, history=history, items=items, labels=labels)


_PLAIN = ("impression", "user", "shown_ms", "offset", "row", "first_engaged_ms")  # the columns that are no lists


def _empty() -> ExampleColumns:
    none = np.empty(0, dtype=np.int64)
    rows = np.empty(0, dtype=np.int32)
    return ExampleColumns(none, none, none, none, rows, none, Lists.empty(0), Lists.empty(0), Lists.empty(0, np.uint8))


EMPTY = _empty()
_INT, _INTS = pa.int64(), pa.list_(pa.int64())
EXAMPLE_CODEC = Codec(
    {
        "impression": _INT,
        "user": _INT,
        "shown_ms": _INT,
        "offset": _INT,
        "row": pa.int32(),
        "first_engaged_ms": _INT,
        "history": _INTS,
        "items": _INTS,
        "labels": pa.list_(pa.uint8()),
    }
)


def example_columns(examples: ExampleColumns) -> dict[str, Any]:
    """Columns by name, as the codec and the archive take them."""
    return {name: getattr(examples, name) for name in (*_PLAIN, "history", "items", "labels")}


def encode_examples(examples: ExampleColumns) -> bytes:
    """The value of an `examples` record."""
    return EXAMPLE_CODEC.encode(example_columns(examples))


def decode_examples(value: bytes | memoryview) -> ExampleColumns:
    """Impressions of an `examples` record; a marker has no bytes. Raises CorruptStateError."""
    if not len(value):
        return EMPTY
    try:
        examples = ExampleColumns(**EXAMPLE_CODEC.decode(value))
    except MalformedRecordError as error:
        raise CorruptStateError(f"a record of examples cannot be read: {error}; {ANEW}") from error
    if not np.array_equal(examples.items.offsets, examples.labels.offsets):
        raise CorruptStateError(f"a record of examples: labels do not align with the shown items; {ANEW}")
    return examples


ANEW = "`examples` is derived: stop the run, delete its folder in the log, and start the joiner again"


def follows(meta: ExampleMeta, last: int | None, offset: int) -> bool:
    """Whether a record is the next of its partition; False for a repeat, which its reader drops.

    `last` is the sequence number that the reader accepted last, None for the first. Raises CorruptStateError on a gap.
    """
    if last is None or meta.seq == last + 1:
        return True
    if meta.seq <= last:
        return False
    raise CorruptStateError(
        f"examples/{meta.partition}, offset {offset}: record {meta.seq} follows {last}; records are missing. {ANEW}"
    )


_META_ENCODER = msgspec.msgpack.Encoder()
_META_DECODER = msgspec.msgpack.Decoder(ExampleMeta)


def encode_example_meta(meta: ExampleMeta) -> bytes:
    """Meta as msgpack."""
    return _META_ENCODER.encode(meta)


def decode_example_meta(meta: bytes) -> ExampleMeta:
    """Meta of an `examples` record. Raises CorruptStateError."""
    try:
        return _META_DECODER.decode(meta)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptStateError(f"the meta of a record of examples cannot be read: {error}; {ANEW}") from error
