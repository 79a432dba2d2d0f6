"""JSON and msgpack records become events, each checked for form; what cannot be read becomes a fault with its path.

msgspec decodes and says what is wrong; `scan` sees what it does not say. A record of many events is decoded in one go;
where that fails, event by event, so that one bad event does not take the others along. A record that is no JSON (or
msgpack) from end to end is one fault: where its events begin is not known then.
"""

import json
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from infra.config import WireConfig
from stream.wire import scan
from stream.wire.dead import Fault, Reason
from stream.wire.formats import Form, is_batch
from stream.wire.limits import DEEPEST
from stream.wire.schema import CatalogueRow, Event

T = TypeVar("T")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_TIMES = frozenset({"time", "time_ms", "ingested_ms", "published", "published_ms"})


class Parsed(NamedTuple, Generic[T]):
    """The events of one record, in its order; a fault where one is dead, a single fault where the record is."""

    events: Sequence[T | Fault]
    whole: bool  # the record is one event, or is dead as one


class Parser(Generic[T]):
    """Decoders of one topic's schema in one format."""

    def __init__(self, one: Any, form: Form) -> None:
        codec: Any = msgspec.json if form is Form.JSON else msgspec.msgpack
        self._form = form
        self._one, self._many = codec.Decoder(one), codec.Decoder(list[one])
        self._raws = codec.Decoder(list[msgspec.Raw])
        self._scan = scan.scan_json if form is Form.JSON else scan.scan_msgpack

    def records(self, values: Sequence[bytes], limits: WireConfig) -> list[Parsed[T]]:
        """The events of each record."""
        flags = self._flags(values, limits.max_depth)
        return [self._record(value, flag, limits) for value, flag in zip(values, flags, strict=True)]

    def raws(self, value: bytes) -> list[bytes]:
        """The bytes of each event of a batch that `records` has read."""
        return [bytes(raw) for raw in self._raws.decode(value)]

    def _flags(self, values: Sequence[bytes], max_depth: int) -> list[int]:
        data, bounds = scan.as_bytes(values)
        flags: list[int] = self._scan(data, bounds, max_depth).tolist()
        if self._form is Form.JSON and not _is_utf8(data.data):
            return [flag | (0 if _is_utf8(value) else scan.NOT_UTF8) for flag, value in zip(flags, values, strict=True)]
        return flags

    def _record(self, value: bytes, flags: int, limits: WireConfig) -> Parsed[T]:
        if not is_batch(value, self._form):
            return Parsed([self._event(value, flags)], True)
        try:
            if not flags:
                return self._checked(self._many.decode(value), limits)
        except _UNREADABLE:
            pass  # which of its events, and why, is found below
        if fault := _fault_of(self._flags([value], DEEPEST)[0] & (scan.BROKEN | scan.DEEP)):
            return Parsed([fault], True)  # nothing is decoded that announces more than is there
        try:
            raws = self.raws(value)
        except _UNREADABLE as error:
            return Parsed([_fault(error)], True)
        flagged = zip(raws, self._flags(raws, limits.max_depth), strict=True)
        return self._checked([self._event(raw, flag) for raw, flag in flagged], limits)

    def _checked(self, events: list[T | Fault], limits: WireConfig) -> Parsed[T]:
        if len(events) > limits.max_batch_events:
            detail = f"{len(events)} events in a record; at most {limits.max_batch_events} (wire.max_batch_events)"
            return Parsed([Fault(Reason.TOO_LARGE, detail)], True)
        return Parsed(events, False)

    def _event(self, value: bytes, flags: int) -> T | Fault:
        if fault := _fault_of(flags & (scan.DEEP | scan.BROKEN | scan.NOT_UTF8)):
            return fault
        try:
            event: T = self._one.decode(value)
        except _UNREADABLE as error:
            return _fault(error)
        if flags & scan.ESCAPED and _repeats_a_field(value):
            flags |= scan.DUPLICATE
        return _fault_of(flags) or event


def _is_utf8(data: bytes | memoryview) -> bool:
    try:
        str(data, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _fault_of(flags: int) -> Fault | None:
    if flags & scan.DEEP:
        return Fault(Reason.NESTING, "lists and objects lie too deep in each other (wire.max_depth)")
    if flags & scan.BROKEN:
        return Fault(Reason.SYNTAX, "not one whole msgpack value: truncated, or bytes follow it")
    if flags & scan.NOT_UTF8:
        return Fault(Reason.NOT_UTF8, "JSON is UTF-8, and this is not")
    if flags & scan.DUPLICATE:
        return Fault(Reason.DUPLICATE_FIELD, "a field is there twice")
    if flags & scan.MANY:
        return Fault(Reason.VALUE, f"more than {scan.MAX_FIELDS} fields")
    return None


def _fault(error: Exception) -> Fault:
    """The reason that msgspec's message tells; its path stays in the detail."""
    text = str(error)
    if isinstance(error, UnicodeDecodeError):
        return Fault(Reason.NOT_UTF8, text)
    if isinstance(error, RecursionError):
        return Fault(Reason.NESTING, text)
    if not isinstance(error, msgspec.ValidationError):
        return Fault(Reason.SYNTAX, text)
    field = text.rpartition("$.")[2].rstrip("`") if "$." in text else ""
    if "missing required field" in text:
        return Fault(Reason.MISSING, text)
    if field in _TIMES:
        return Fault(Reason.TIME, text)
    if field == "v":
        return Fault(Reason.VERSION, text)
    if text.startswith("Invalid") or "<=" in text or ">=" in text or "out of range" in text:
        return Fault(Reason.VALUE, text)
    return Fault(Reason.TYPE, text)


def _repeats_a_field(value: bytes) -> bool:
    """Whether a JSON event names a field twice once the escapes in the names are read. Slow, and rarely asked."""
    pairs = json.loads(value, object_pairs_hook=list, parse_int=str, parse_float=str)
    return len({name for name, _ in pairs}) != len(pairs)


EVENT_PARSERS: dict[Form, Parser[Event]] = {form: Parser(Event, form) for form in (Form.JSON, Form.MSGPACK)}
ITEM_PARSERS: dict[Form, Parser[CatalogueRow]] = {
    form: Parser(CatalogueRow, form) for form in (Form.JSON, Form.MSGPACK)
}
