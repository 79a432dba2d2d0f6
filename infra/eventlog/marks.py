"""Small shared numbers that other processes read while they are written: the high-water mark and the tail.

A *word* is one aligned 8-byte number that carries its own check, offset | CRC-16 << 48, so that one store publishes
it and no reader can mistake a damaged or empty word for an offset. The file `highwater` of a partition, mapped by
everyone:

    0   8  word: next offset. What readers poll: everything below it is durable
    8   8  base offset of the newest segment
    16  8  bytes used in it
    24  8  byte position of its last frame (0: none)
    32  8  next offset
    40  8  CRC-32 of the four above

The tail (8 … 48) tells writers where to go on, without a scan. Neither is ever synced on the way: after a power loss
they may be old or torn, and opening the partition rebuilds them from the segments, which are the truth. The word is
written durably once, as 0: an empty or damaged one is no power loss, and opening then trusts the segments less.
"""

import binascii
import struct
import zlib
from mmap import mmap
from typing import NamedTuple

from infra.errors import CorruptStateError

HIGHWATER_BYTES = 64
MAX_OFFSET = (1 << 48) - 1
_U48 = struct.Struct("<Q")
_TAIL = struct.Struct("<QQQQ")


def pack_word(offset: int) -> int:
    return offset | binascii.crc_hqx(_U48.pack(offset)[:6], 0xFFFF) << 48


def unpack_word(word: int) -> int | None:
    """The offset, or None where the word is empty or damaged."""
    offset = word & MAX_OFFSET
    return offset if pack_word(offset) == word else None


EMPTY_MARK = _U48.pack(pack_word(0)).ljust(HIGHWATER_BYTES, b"\0")  # nothing is durable yet, and that is known


class Tail(NamedTuple):
    """Where the newest segment ends; `last` is the byte position of its last frame, 0 where it has none."""

    base: int
    end: int
    last: int
    next_offset: int


class HighWater:
    """The mapped `highwater` file of one partition."""

    def __init__(self, mapped: mmap, path: str) -> None:
        self._map = mapped
        self._bytes = memoryview(mapped)
        self._words = self._bytes.cast("Q")
        self._path = path
        self._seen_word = 0
        self._seen = 0

    def next_offset(self) -> int:
        """The next offset: everything before it is durable."""
        word = self._words[0]
        if word != self._seen_word:
            offset = unpack_word(word)
            if offset is None:
                raise CorruptStateError(
                    f"{self._path}: the high-water mark {word:016x} is damaged; stop the processes of this run and "
                    "start them again: opening the log rebuilds it from the segments"
                )
            self._seen_word, self._seen = word, offset
        return self._seen

    def stored_offset(self) -> int | None:
        """The next offset as stored, None where it is empty or damaged: for repair."""
        return unpack_word(self._words[0])

    def tail(self) -> Tail | None:
        """The tail, None where it is empty, damaged or being written."""
        raw = bytes(self._bytes[8:48])
        base, end, last, next_offset = _TAIL.unpack_from(raw)
        if zlib.crc32(raw[:32]) != _U48.unpack_from(raw, 32)[0] or end == 0:
            return None
        return Tail(base, end, last, next_offset)

    def publish(self, tail: Tail) -> None:
        """Show everything before `tail.next_offset` to readers: call it only once that is durable."""
        raw = _TAIL.pack(tail.base, tail.end, tail.last, tail.next_offset)
        self._bytes[8:48] = raw + _U48.pack(zlib.crc32(raw))
        self._words[0] = pack_word(tail.next_offset)

    def close(self) -> None:
        self._words.release()
        self._bytes.release()
        self._map.close()
