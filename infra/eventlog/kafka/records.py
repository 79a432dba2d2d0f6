"""A record of the log as a Kafka message, and back.

    key                       the key; null for an empty one
    value                     the value
    timestamp (CreateTime)    `timestamp_ms`; the wall clock where that is over an hour old, at most the year 9999
    header `ouzel-meta`       `meta`, where it is not empty; it carries the schema version
    header `ouzel-timestamp`  `timestamp_ms` in decimal, only where the message's timestamp is another

A replay's times of years ago must not reach the broker: it forgets a producer whose newest batch carries a time older
than `producer.id.expiration.ms` (a day), at a restart or within minutes, and then takes a batch that is sent again for
a new one: records were doubled so. A cluster's retention would drop them, too. A message is never older than its
record, which `KafkaLog.offset_at` uses.

Other producers' messages read the same way: no headers is an empty `meta`; a header `content-type` without one of ours
becomes a `meta` that says so, for whoever decodes the value. In a topic with LogAppendTime the broker's
time is the record's, whatever its writer said.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME

from infra.eventlog.base import Record

META = "ouzel-meta"
CONTENT_TYPE = "content-type"
TIMESTAMP = "ouzel-timestamp"
OLD_MS = 3_600_000
MAX_TYPE_BYTES = 128
MAX_TIME_MS = 253_402_300_799_999  # the end of year 9999
# What a batch of one record adds to its bytes: 61 bytes of batch, 70 at most of lengths, our header names.
FRAME_BYTES = 256


def wire_time(timestamp_ms: int, now_ms: int) -> int:
    """The timestamp that the broker sees, ms."""
    return now_ms if timestamp_ms < now_ms - OLD_MS else min(timestamp_ms, MAX_TIME_MS)


def headers_of(timestamp_ms: int, wire_ms: int, meta: bytes) -> list[tuple[str, bytes]] | None:
    """Headers of a record whose message has the timestamp `wire_ms`; None for none."""
    if wire_ms == timestamp_ms:
        return [(META, meta)] if meta else None
    exact = (TIMESTAMP, str(timestamp_ms).encode())
    return [(META, meta), exact] if meta else [exact]


def record_of(message: Any) -> Record:
    """The record that a confluent_kafka.Message carries."""
    kind, timestamp_ms = message.timestamp()
    appended = kind == TIMESTAMP_LOG_APPEND_TIME
    return record_from(
        message.offset(), timestamp_ms, message.key(), message.headers(), message.value(), appended=appended
    )


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
        elif name == TIMESTAMP and not appended and text and len(text) <= 20:
            timestamp_ms = _number(text, timestamp_ms)
    return Record(offset, timestamp_ms, key or b"", meta or _said(content_type), value or b"")


def _said(content_type: bytes) -> bytes:
    """The meta of a message that says what its value is; nothing where it says nothing, or no text."""
    if not content_type or len(content_type) > MAX_TYPE_BYTES:
        return b""
    return msgspec.msgpack.encode({"content_type": content_type.decode("ascii", "replace")})


def _number(text: bytes, otherwise: int) -> int:
    """Anyone may write a header of our name: what is no number is ignored."""
    try:
        return int(text)
    except ValueError:
        return otherwise
