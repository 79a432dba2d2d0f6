"""Which format a record is in: its header says so, or else its first byte does. No byte begins two formats.

    0xff                            Arrow IPC stream (the continuation mark of its schema message)
    { [ and JSON's white space      JSON: one event, or an array of events
    0x80-0x8f 0xde 0xdf             msgpack map: one event
    0x90-0x9f 0xdc 0xdd             msgpack array: events

Where a log has headers (Kafka), `content-type` reaches the record's meta and wins over the first byte. What begins
otherwise is dead: a byte-order mark, compressed bytes, Avro, Protobuf, a text.
"""

from enum import StrEnum

import msgspec

from infra.eventlog import UNREADABLE_META
from stream.columns import MalformedRecordError
from stream.events import SCHEMA_VERSION, RecordMeta


class Form(StrEnum):
    """How the bytes of a record are to be read."""

    ARROW = "arrow"
    JSON = "json"
    MSGPACK = "msgpack"


CONTENT_TYPES = {
    "application/json": Form.JSON,
    "application/msgpack": Form.MSGPACK,
    "application/x-msgpack": Form.MSGPACK,
    "application/vnd.msgpack": Form.MSGPACK,
    "application/vnd.apache.arrow.stream": Form.ARROW,
}
ARROW_MARK = 0xFF
JSON_SPACE = b" \t\r\n"
_JSON_FIRST = frozenset(b"{[" + JSON_SPACE)
_MSGPACK_ARRAY = frozenset([*range(0x90, 0xA0), 0xDC, 0xDD])
_MSGPACK_FIRST = _MSGPACK_ARRAY | frozenset([*range(0x80, 0x90), 0xDE, 0xDF])


class UnknownVersionError(MalformedRecordError):
    """A newer release of ouzel wrote the record."""


class WireMeta(RecordMeta, frozen=True):
    """Meta of a record as its reader sees it: with what only other producers and replays of dead letters say."""

    content_type: str = ""
    # Of a dead letter that was appended again: its key, and the timestamp of the record that it was.
    origin: str = ""
    origin_ms: int | None = None


_DECODER = msgspec.msgpack.Decoder(WireMeta)
_LIVE = WireMeta()


def decode_wire_meta(meta: bytes) -> WireMeta:
    """Meta of a record; a live record has none. Raises MalformedRecordError."""
    if not meta:
        return _LIVE
    if meta == UNREADABLE_META:
        raise MalformedRecordError("its headers cannot be read: the name of one is no UTF-8")
    try:
        found = _DECODER.decode(meta)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRecordError(f"meta is not msgpack of the known fields: {error}") from error
    if found.v > SCHEMA_VERSION:
        raise UnknownVersionError(f"its meta is of schema {found.v}; this build reads {SCHEMA_VERSION}")
    return found


def form_of(value: bytes | memoryview, content_type: str = "") -> Form | None:
    """The format of a record's value; None where nothing says it."""
    if content_type:
        return CONTENT_TYPES.get(content_type.partition(";")[0].strip().lower())
    if not len(value):
        return None
    first = value[0]
    if first == ARROW_MARK:
        return Form.ARROW
    if first in _JSON_FIRST:
        return Form.JSON
    return Form.MSGPACK if first in _MSGPACK_FIRST else None


def is_batch(value: bytes, form: Form) -> bool:
    """Whether a JSON or msgpack record holds an array of events."""
    if form is Form.JSON:
        return value.lstrip(JSON_SPACE)[:1] == b"["
    return value[:1] != b"" and value[0] in _MSGPACK_ARRAY
