"""Bytes of a segment: a header, then frames, each checked by its own CRC.

    segment header, 32 bytes            frame, a multiple of 8 bytes
    0   8  magic "OUZELLOG"             0   4  CRC-32 of the rest of the frame
    8   8  base offset                  4   4  frame bytes, this header and padding included
    16  4  format version               8   8  offset
    20  8  base offset of the segment   16  8  timestamp, ms
           before, plus 1; 0: none      24  4  value bytes
    28  4  CRC-32 of the above          28  4  key bytes
                                        32  4  meta bytes
                                        36  4  records of the same write before this one (28 bits), and four
                                               flags, all 0; a reader refuses what it does not know
                                        40     value, key, meta, zeros up to a multiple of 8

A write is synced as a whole before the next one begins. So a readable frame proves that everything before the first
record of its own write was durable; the records of its own write it does not prove: after a power loss, any part of an
unsynced write may be missing. Version 1 knew neither number: there, a frame counts as a write of its own.

The value comes first so that it lies at a multiple of 8 for Arrow. Lengths are covered by the CRC: a flipped length
reads as a broken frame, never as another record.
"""

import struct
import zlib
from typing import NamedTuple

import numpy as np

from infra.errors import ConfigError
from infra.eventlog.base import Record

MAGIC = b"OUZELLOG"
FORMAT_VERSION = 2
SEGMENT_HEADER_BYTES = 32
FRAME_HEADER_BYTES = 40
MAX_PLACE = (1 << 28) - 1  # of a record in its write
MAX_FRAME_BYTES = 1 << 30  # 1 GiB; larger values travel in parts

_SEGMENT = struct.Struct("<8sQIQ")
_FRAME = struct.Struct("<IIqqIIII")
_BODY = struct.Struct("<IqqIIII")  # a frame header without its CRC
_U32 = struct.Struct("<I")
_ZEROS = bytes(8)
checksum = zlib.crc32


class FrameError(Exception):
    """Bytes that are no frame: a torn tail beyond the high-water mark, corruption before it."""


def frame_bytes(value_bytes: int, key_bytes: int, meta_bytes: int) -> int:
    """Size of a frame with these contents."""
    return (FRAME_HEADER_BYTES + value_bytes + key_bytes + meta_bytes + 7) & ~7


def encode_segment_header(base: int, before: int | None) -> bytes:
    """`before`: the base offset of the segment that this one follows; None for the first of a log."""
    head = _SEGMENT.pack(MAGIC, base, FORMAT_VERSION, 0 if before is None else before + 1)
    return head + _U32.pack(checksum(head))


def check_segment_header(head: bytes, base: int) -> int | None:
    """The base offset of the segment before the one that starts at `base`; None where the header names none.

    Raises FrameError unless these are its first bytes, ConfigError where a newer release wrote them.
    """
    if len(head) >= SEGMENT_HEADER_BYTES:
        magic, found, version, before = _SEGMENT.unpack_from(head)
        whole = _U32.unpack_from(head, _SEGMENT.size)[0] == checksum(head[: _SEGMENT.size])
        if whole and magic == MAGIC and found == base:
            if version > FORMAT_VERSION:
                raise ConfigError(f"segment {base} of the log: format {version}, written by a newer release: upgrade")
            return before - 1 if before else None
    raise FrameError(f"its first {SEGMENT_HEADER_BYTES} bytes are no segment header of offset {base}")


def encode_frame(offset: int, record: Record, place: int) -> bytes:
    """The frame of a record at `offset` (the record's own offset is ignored); `place`: records of its write before."""
    _, timestamp_ms, key, meta, value = record
    size = frame_bytes(len(value), len(key), len(meta))
    body = _BODY.pack(size, offset, timestamp_ms, len(value), len(key), len(meta), min(place, MAX_PLACE))
    pad = size - FRAME_HEADER_BYTES - len(value) - len(key) - len(meta)
    tail = key + meta + _ZEROS[:pad]
    crc = checksum(tail, checksum(value, checksum(body)))
    return b"".join((_U32.pack(crc), body, value, tail))


def decode_frames(
    data: memoryview, position: int, offset: int, limit: int, out: list[tuple[int, Record]], partition: int
) -> int:
    """Append the records `offset` … `limit` − 1 that lie whole in `data` from `position` on; return where it stopped.

    Stops before a broken frame; raises FrameError where the first is broken.
    """
    start, end = position, len(data)
    unpack = _FRAME.unpack_from
    while offset < limit and position + FRAME_HEADER_BYTES <= end:
        crc, size, found, timestamp_ms, n_value, n_key, n_meta, flags = unpack(data, position)
        stop = position + size
        if stop > end and FRAME_HEADER_BYTES <= size <= MAX_FRAME_BYTES:
            break
        got = checksum(data[position + 4 : stop])
        if got != crc or found != offset or flags > MAX_PLACE or size != frame_bytes(n_value, n_key, n_meta):
            if position > start:
                break
            raise FrameError(
                f"record {offset}: checksum {got:08x}, its frame says {crc:08x}, offset {found}, {size} bytes, "
                f"flags {flags:#x}"
            )
        value_end = position + FRAME_HEADER_BYTES + n_value
        key_end = value_end + n_key
        out.append(
            (
                partition,
                Record(
                    offset,
                    timestamp_ms,
                    bytes(data[value_end:key_end]),
                    bytes(data[key_end : key_end + n_meta]),
                    data[position + FRAME_HEADER_BYTES : value_end],
                ),
            )
        )
        position = stop
        offset += 1
    return position


def peek(data: bytes | memoryview, position: int, offset: int) -> tuple[int, int]:
    """(frame bytes, timestamp) of the frame of record `offset`, from its header alone; FrameError where it is none."""
    if position + FRAME_HEADER_BYTES > len(data):
        raise FrameError(f"record {offset}: the file ends inside its frame")
    _, size, found, timestamp_ms, _, _, _, _ = _FRAME.unpack_from(data, position)
    if found != offset or size < FRAME_HEADER_BYTES or size > MAX_FRAME_BYTES or size & 7:
        raise FrameError(f"record {offset}: its frame says offset {found} and {size} bytes")
    return size, timestamp_ms


def is_frame_header(data: bytes, position: int, offset: int) -> bool:
    """Whether the frame header of record `offset` lies at `position`."""
    try:
        peek(data, position, offset)
    except FrameError:
        return False
    return True


class Readable(NamedTuple):
    """A whole frame that was found behind a broken one."""

    offset: int
    position: int
    durable_before: int  # every record below this offset was durable when it was written


def readable_after(data: bytes | memoryview, offset: int) -> Readable | None:
    """The whole frame in `data` that proves most, of a record after `offset`; None where there is none.

    `data` begins at a multiple of 8 in its segment, as every frame does.
    """
    words = np.frombuffer(data, np.int64, len(data) // 8)
    most = offset + len(data) // FRAME_HEADER_BYTES
    best: Readable | None = None
    for at in (np.flatnonzero((words > offset) & (words <= most)) * 8 - 8).tolist():
        if at < 0 or at + FRAME_HEADER_BYTES > len(data):
            continue
        crc, size, found, _, n_value, n_key, n_meta, flags = _FRAME.unpack_from(data, at)
        if size != frame_bytes(n_value, n_key, n_meta) or at + size > len(data) or flags > MAX_PLACE:
            continue
        if checksum(data[at + 4 : at + size]) == crc and (best is None or found - flags > best.durable_before):
            best = Readable(found, at, found - flags)
    return best
