"""What msgspec does not say about a record: how deep it nests, and whether an event names a field twice.

One pass over the bytes of many records, in numba. For JSON the scan is lenient (the decoder says what is no JSON); for
msgpack it also says whether the record is whole, so that the decoder never makes room for what is announced and not
there. Field names are compared by their FNV-1a hash: two names of one event that collide (2⁻⁶⁴ a pair) would be
taken for a repeat, and the event is a dead letter, not a loss.
"""

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.hashing import hash64_range

# Flags of a record. ESCAPED: a backslash in a field's name. NOT_UTF8 is set by `parse`, for JSON.
DUPLICATE, ESCAPED, MANY, BROKEN, DEEP, NOT_UTF8 = 1, 2, 4, 8, 16, 32
MAX_FIELDS = 64  # of an event: repeats are looked for among so many


@njit(cache=True, nogil=True)
def scan_json(data, bounds, max_depth):  # type: ignore[no-untyped-def]
    """Flags of the JSON records data[bounds[i]:bounds[i + 1]] (n,) uint8."""
    flags = np.zeros(len(bounds) - 1, dtype=np.uint8)
    names = np.empty(MAX_FIELDS, dtype=np.int64)
    for r in range(len(flags)):
        depth, level, fields, at, end = 0, 0, 0, bounds[r], bounds[r + 1]
        is_event = name_next = False
        while at < end:
            c = data[at]
            at += 1
            if c == 0x22:  # "
                start, escaped = at, False
                while at < end and data[at] != 0x22:
                    if data[at] == 0x5C:
                        escaped = True
                        at += 1
                    at += 1
                if depth == level and is_event and name_next:
                    name_next = False
                    flags[r] |= ESCAPED if escaped else _seen(data, start, min(at, end), names, fields)
                    fields += 1
                at += 1
            elif c == 0x7B or c == 0x5B:  # { [
                depth += 1
                if depth == 1:
                    level = 1 if c == 0x7B else 2
                if depth > max_depth:
                    flags[r] |= DEEP
                    break
                if depth == level:
                    is_event = name_next = c == 0x7B
                    fields = 0
            elif c == 0x7D or c == 0x5D:  # } ]
                depth -= 1
            elif c == 0x2C and depth == level:  # ,
                name_next = True
    return flags


@njit(cache=True, nogil=True)
def scan_msgpack(data, bounds, max_depth):  # type: ignore[no-untyped-def]
    """Flags of the msgpack records data[bounds[i]:bounds[i + 1]] (n,) uint8."""
    flags = np.zeros(len(bounds) - 1, dtype=np.uint8)
    names = np.empty(MAX_FIELDS, dtype=np.int64)
    left = np.zeros(max_depth + 2, dtype=np.int64)  # values still to come, by depth
    for r in range(len(flags)):
        depth, level, fields, at, end = 0, 0, 0, bounds[r], bounds[r + 1]
        is_event = False
        while True:
            if at >= end:
                flags[r] |= BROKEN
                break
            is_name = depth == level and is_event and depth > 0 and left[depth] % 2 == 0
            kind, size, count, head = _msgpack_head(data, at, end)
            if kind < 0 or at + head + size > end or count > end - at:
                flags[r] |= BROKEN
                break
            if is_name:
                flags[r] |= _seen(data, at + head, at + head + size, names, fields)
                fields += 1
            at += head + size
            if depth:
                left[depth] -= 1
            if kind:
                if depth == max_depth:
                    flags[r] |= DEEP
                    break
                depth += 1
                left[depth] = count
                if depth == 1:
                    level = 1 if kind == 2 else 2
                if depth == level:
                    is_event, fields = kind == 2, 0
            while depth and left[depth] == 0:
                depth -= 1
            if depth == 0:
                if at != end:
                    flags[r] |= BROKEN
                break
    return flags


@njit(cache=True, nogil=True)
def _msgpack_head(data, at, end):  # type: ignore[no-untyped-def]
    """(0 scalar, 1 array, 2 map, -1 none; body bytes; values that follow; head bytes) of the value at `at`."""
    c = data[at]
    if c <= 0x7F or c >= 0xE0 or c == 0xC0 or c == 0xC2 or c == 0xC3:
        return 0, 0, 0, 1
    if c <= 0x8F:
        return 2, 0, 2 * np.int64(c & 0x0F), 1
    if c <= 0x9F:
        return 1, 0, np.int64(c & 0x0F), 1
    if c <= 0xBF:
        return 0, np.int64(c & 0x1F), 0, 1
    if c == 0xC1:
        return -1, 0, 0, 1
    if c <= 0xC6:  # bin 8, 16, 32
        width = 1 << (c - 0xC4)
        return 0, _big(data, at + 1, width, end), 0, 1 + width
    if c <= 0xC9:  # ext 8, 16, 32
        width = 1 << (c - 0xC7)
        return 0, _big(data, at + 1, width, end), 0, 2 + width
    if c <= 0xCB:  # float 32, 64
        return 0, 4 << (c - 0xCA), 0, 1
    if c <= 0xD3:  # unsigned and signed of 1, 2, 4, 8 bytes
        return 0, 1 << ((c - 0xCC) % 4), 0, 1
    if c <= 0xD8:  # fixext 1 to 16
        return 0, 1 + (1 << (c - 0xD4)), 0, 1
    if c <= 0xDB:  # str 8, 16, 32
        width = 1 << (c - 0xD9)
        return 0, _big(data, at + 1, width, end), 0, 1 + width
    width = 2 + 2 * ((c - 0xDC) % 2)  # array 16, 32; map 16, 32
    count = _big(data, at + 1, width, end)
    if c <= 0xDD:
        return 1, 0, count, 1 + width
    return 2, 0, 2 * count, 1 + width


@njit(cache=True, nogil=True)
def _big(data, at, width, end):  # type: ignore[no-untyped-def]
    """Big-endian number of `width` bytes; more than can be there where the bytes end before."""
    if at + width > end:
        return np.int64(1) << 40
    value = np.int64(0)
    for i in range(width):
        value = value << 8 | np.int64(data[at + i])
    return value


@njit(cache=True, nogil=True)
def _seen(data, lo, hi, names, fields):  # type: ignore[no-untyped-def]
    """DUPLICATE where a field of the event before this one has its name; MANY where there are too many to say."""
    if fields >= MAX_FIELDS:
        return MANY
    name = hash64_range(data, lo, hi)
    for i in range(fields):
        if names[i] == name:
            return DUPLICATE
    names[fields] = name
    return 0


def as_bytes(records: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All records behind each other, and where each begins and ends (n + 1,)."""
    bounds = np.zeros(len(records) + 1, dtype=np.int64)
    np.cumsum([len(record) for record in records], out=bounds[1:])
    data = bytearray(b"".join(records))  # writable: kernels are compiled for one kind of array
    return np.frombuffer(data, dtype=np.uint8) if data else np.empty(0, dtype=np.uint8), bounds
