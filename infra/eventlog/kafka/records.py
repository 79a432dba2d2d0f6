"""A record of the log as a Kafka message, and back.

    key                       the key; null for an empty one
    value                     the value
    timestamp (CreateTime)    `timestamp_ms`; the wall clock where that is over an hour old, at most the year 9999
    header `ouzel-meta`       `meta`, where it is not empty; it carries the schema version
    header `ouzel-timestamp`  `timestamp_ms` in decimal, where the message's own is another or the broker writes it

A replay's times of years ago must not reach the broker: it forgets a producer whose newest batch carries a time older
than `producer.id.expiration.ms` (a day), at a restart or within minutes, and then takes a batch that is sent again for
a new one: records were doubled so. A cluster's retention would drop them, too. A message is never older than its
record, which `KafkaLog.offset_at` uses.

Other producers' messages read the same way: no headers is an empty `meta`; a header `content-type` without one of ours
becomes a `meta` that says so, for whoever decodes the value.

In a topic with LogAppendTime the broker writes the message's timestamp, and no record is newer than that: the header
counts where it states an earlier time, as a replay's does. One producer with a fast clock cannot move event time, and
one replay works in a topic of either kind. Headers of which a name is no UTF-8 cannot be read at all (the client
fails on them): the record gets a `meta` that nobody can read, and whoever decodes it makes it a dead letter.
"""

from collections.abc import Callable, Iterable
from operator import methodcaller
from typing import Any

import msgspec
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME

from infra.eventlog.base import UNREADABLE_META, Record

META = "ouzel-meta"
CONTENT_TYPE = "content-type"
TIMESTAMP = "ouzel-timestamp"
OLD_MS = 3_600_000
MAX_TYPE_BYTES = 128
MAX_TIME_MS = 253_402_300_799_999  # the end of year 9999
MAX_TIMESTAMP_MS = (1 << 63) - 1  # that a record may have at all
# What a batch of one record adds to its bytes: 61 bytes of batch, 70 at most of lengths, our header names.
FRAME_BYTES = 256
# Where a name is no UTF-8, confluent-kafka returns a broken list and raises at once. CPython notices that in a call
# through here; a call of the method by name is not checked once it is hot (3.11), and the process dies of it.
_headers_of: Callable[[Any], list[tuple[str, bytes | None]] | None] = methodcaller("headers")


def wire_time(timestamp_ms: int, now_ms: int) -> int:
    """The timestamp that the broker sees, ms."""
    return now_ms if timestamp_ms < now_ms - OLD_MS else min(timestamp_ms, MAX_TIME_MS)


def headers_of(
    timestamp_ms: int, wire_ms: int, meta: bytes, *, appended: bool = False
) -> list[tuple[str, bytes]] | None:
    """Headers of a record whose message has the timestamp `wire_ms`, unless it is `appended`; None for none."""
    if wire_ms == timestamp_ms and not appended:
        return [(META, meta)] if meta else None
    exact = (TIMESTAMP, str(timestamp_ms).encode())
    return [(META, meta), exact] if meta else [exact]


def record_of(message: Any) -> Record:
    """The record that a confluent_kafka.Message carries."""
    kind, timestamp_ms = message.timestamp()
    appended = kind == TIMESTAMP_LOG_APPEND_TIME
    try:
        headers = _headers_of(message)
    except SystemError:  # never asked again: the broken list stays in the message
        headers = [(META, UNREADABLE_META)]
    return record_from(message.offset(), timestamp_ms, message.key(), headers, message.value(), appended=appended)


def record_from(
    offset: int,
    timestamp_ms: int,
    key: bytes | None,
    headers: Iterable[tuple[str, bytes | None]] | None,
    value: bytes | None,
    *,
    appended: bool,
) -> Record:
    """The record that a message of any client carries; `appended`: its time is the broker's."""
    meta, content_type = b"", b""
    for name, text in headers or ():
        if name == META:
            meta = text or b""
        elif name.lower() == CONTENT_TYPE:
            content_type = text or b""
        elif name == TIMESTAMP and text and len(text) <= 20:
            stated_ms = _number(text, timestamp_ms)
            timestamp_ms = min(stated_ms, timestamp_ms) if appended else stated_ms
    return Record(offset, timestamp_ms, key or b"", meta or _said(content_type), value or b"")


def _said(content_type: bytes) -> bytes:
    """The meta of a message that says what its value is; nothing where it says nothing, or no text."""
    if not content_type or len(content_type) > MAX_TYPE_BYTES:
        return b""
    return msgspec.msgpack.encode({"content_type": content_type.decode("ascii", "replace")})


def _number(text: bytes, otherwise: int) -> int:
    """Anyone may write a header of our name: what is no 64-bit number is ignored."""
    try:
        number = int(text)
    except ValueError:
        return otherwise
    return number if abs(number) <= MAX_TIMESTAMP_MS else otherwise
