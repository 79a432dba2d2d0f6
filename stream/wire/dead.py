"""Why a record or an event is dead, and what a decoder says of one."""

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Why. The first rule that an event breaks names it; `infra/docs/events.md` lists them."""

    FORMAT = "unknown_format"  # neither header nor first byte say what the bytes are
    TOO_LARGE = "too_large"  # the record: wire.max_record_bytes, wire.max_batch_events
    NESTING = "nesting"  # wire.max_depth
    SYNTAX = "syntax"  # no JSON, no msgpack, no Arrow record of this schema
    NOT_UTF8 = "not_utf8"
    DUPLICATE_FIELD = "duplicate_field"
    VERSION = "unknown_version"
    MISSING = "missing_field"
    TYPE = "wrong_type"
    VALUE = "wrong_value"  # right type, no such value: an unknown `type` or `kind`, a repeated item, an empty list
    TIME = "bad_time"
    ID_LENGTH = "id_too_long"
    EMPTY_ID = "empty_id"
    LIST_LENGTH = "list_too_long"
    TEXT_LENGTH = "text_too_long"
    PARTITION = "wrong_partition"
    ROW = "unusable_row"  # of a columnar record: an unknown kind or action, no items, no time, or one in the future


class Fault(NamedTuple):
    """What is wrong, and where in the event."""

    reason: Reason
    detail: str


class DeadRow(NamedTuple):
    """An event of a record that is dead; `row` is -1 where the whole record is, or more than one event of it."""

    offset: int
    row: int
    fault: Fault
    raw: bytes  # the event's own bytes, or the record's
    form: str  # `formats.Form` of `raw`
    rows: tuple[int, ...] = ()  # of a columnar record, whose dead rows share a letter
    meta: bytes = b""  # of the record, where that is what cannot be read

    @property
    def events(self) -> tuple[int, ...]:
        """Which events of the record are dead; none: all of it, as one."""
        return self.rows or ((self.row,) if self.row >= 0 else ())
