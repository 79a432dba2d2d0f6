"""The bytes of behaviors.tsv, checked and parsed in numba.

    impression id ⇥ user id ⇥ 11/12/2019 2:14:46 PM ⇥ N1 N2 … ⇥ N3-0 N4-1 …

`scan` looks at every byte once and decides each line: usable, or dead with a reason (0 is usable; k means
`dead.REASONS[k − 1]`; UNLABELLED is a line without any label, as in MIND's test split). `parse` reads usable lines
again, window by window, and cannot fail.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.hashing import hash64_range, partition_range

MAX_LINE_BYTES = 256 << 10  # MIND's longest is under 12 KB
MAX_ID_BYTES = 128

OK, TOO_LONG, NOT_UTF8, COLUMNS, EMPTY_ID, ID_TOO_LONG, BAD_TIME, NO_CANDIDATES, LABEL_MISSING, BAD_LABEL = range(10)
DUPLICATE, TIME_GAP, UNLABELLED = 10, 11, 12

_TAB, _NEWLINE, _RETURN, _SPACE, _DASH, _SLASH, _COLON, _ZERO, _ONE = 9, 10, 13, 32, 45, 47, 58, 48, 49
NO_TIME = -1


@njit(cache=True, nogil=True)
def count_lines(data: NDArray[np.uint8]) -> int:
    """Lines of a file; the last may lack its newline."""
    n = 0
    for i in range(len(data)):
        n += data[i] == _NEWLINE
    return n + (data[-1] != _NEWLINE)


@njit(cache=True, nogil=True)
def is_utf8(data: NDArray[np.uint8], lo: int, hi: int) -> bool:
    """Well-formed UTF-8 by table 3-7 of the Unicode standard: no overlong forms, no surrogates."""
    i = lo
    while i < hi:
        b = data[i]
        i += 1
        if b < 0x80:
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= b <= 0xDF:
            more = 1
        elif 0xE0 <= b <= 0xEF:
            more = 2
            low = 0xA0 if b == 0xE0 else 0x80
            high = 0x9F if b == 0xED else 0xBF
        elif 0xF0 <= b <= 0xF4:
            more = 3
            low = 0x90 if b == 0xF0 else 0x80
            high = 0x8F if b == 0xF4 else 0xBF
        else:
            return False
        for _ in range(more):
            if i >= hi or data[i] < low or data[i] > high:
                return False
            low, high = 0x80, 0xBF
            i += 1
    return True


@njit(cache=True, nogil=True)
def _number(data, at, hi, least, most):
    """(value, end) of `least` to `most` digits at `at`; value −1 where there are none."""
    value = 0
    width = 0
    while at < hi and width < most and _ZERO <= data[at] <= 57:
        value = value * 10 + np.int64(data[at]) - _ZERO
        at += 1
        width += 1
    return (value if width >= least else -1), at


@njit(cache=True, nogil=True)
def days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 in the proleptic Gregorian calendar (H. Hinnant's algorithm)."""
    y = year - (1 if month <= 2 else 0)
    era = y // 400
    of_era = y - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


@njit(cache=True, nogil=True)
def parse_time(data: NDArray[np.uint8], lo: int, hi: int) -> int:
    """Milliseconds since the epoch of `11/12/2019 2:14:46 PM` read as UTC; NO_TIME where it is no such time.

    12 AM is midnight, 12 PM noon. Month, day and hour may be padded to two digits.
    """
    month, at = _number(data, lo, hi, 1, 2)
    if month < 1 or month > 12 or at >= hi or data[at] != _SLASH:
        return NO_TIME
    day, at = _number(data, at + 1, hi, 1, 2)
    if day < 1 or at >= hi or data[at] != _SLASH:
        return NO_TIME
    year, at = _number(data, at + 1, hi, 4, 4)
    if year < 1970 or at >= hi or data[at] != _SPACE:
        return NO_TIME
    first = days_from_civil(year, month, 1)
    after = days_from_civil(year, month + 1, 1) if month < 12 else days_from_civil(year + 1, 1, 1)
    if day > after - first:
        return NO_TIME
    hour, at = _number(data, at + 1, hi, 1, 2)
    if hour < 1 or hour > 12 or at >= hi or data[at] != _COLON:
        return NO_TIME
    minute, at = _number(data, at + 1, hi, 2, 2)
    if minute < 0 or minute > 59 or at >= hi or data[at] != _COLON:
        return NO_TIME
    second, at = _number(data, at + 1, hi, 2, 2)
    if second < 0 or second > 59 or at + 3 != hi or data[at] != _SPACE or data[at + 2] != 77:
        return NO_TIME
    half = data[at + 1]
    if half != 65 and half != 80:  # A, P
        return NO_TIME
    hour = hour % 12 + (12 if half == 80 else 0)
    return (((first + day - 1) * 24 + hour) * 60 + minute) * 60_000 + second * 1000


@njit(cache=True, nogil=True)
def _check_history(data, lo, hi):
    """(reason, ids) of a history; blanks only separate."""
    n = 0
    start = lo
    for i in range(lo, hi + 1):
        if i == hi or data[i] == _SPACE:
            if i - start > MAX_ID_BYTES:
                return ID_TOO_LONG, 0
            n += i > start
            start = i + 1
    return OK, n


@njit(cache=True, nogil=True)
def _check_label(data, lo, hi):
    """Reason of one shown item: its id ends at the last dash, one byte of label follows."""
    dash = hi - 1
    while dash >= lo and data[dash] != _DASH:
        dash -= 1
    if dash < lo or dash == hi - 1:
        return LABEL_MISSING
    if dash == lo:
        return EMPTY_ID
    if dash - lo > MAX_ID_BYTES:
        return ID_TOO_LONG
    if dash != hi - 2 or (data[hi - 1] != _ZERO and data[hi - 1] != _ONE):
        return BAD_LABEL
    return OK


@njit(cache=True, nogil=True)
def _check_items(data, lo, hi):
    """(reason, items) of the shown items; the first bad one decides."""
    n = 0
    unlabelled = 0
    worst = OK
    start = lo
    for i in range(lo, hi + 1):
        if i == hi or data[i] == _SPACE:
            if i > start:
                reason = _check_label(data, start, i)
                n += 1
                unlabelled += reason == LABEL_MISSING
                if worst == OK:
                    worst = reason
            start = i + 1
    if n == 0:
        return NO_CANDIDATES, 0
    if unlabelled == n:
        return UNLABELLED, n
    return worst, n


@njit(cache=True, nogil=True)
def _tabs(data, lo, hi, tabs):
    """(tabs found, all bytes ASCII) of a line; positions of the first four go to `tabs`."""
    n = 0
    seen = np.uint8(0)
    for i in range(lo, hi):
        b = data[i]
        seen |= b
        if b == _TAB:
            if n < 4:
                tabs[n] = i
            n += 1
    return n, seen < 0x80


@njit(cache=True, nogil=True)
def _check_line(data, lo, hi, tabs):
    """(reason, time_ms, history ids, shown items) of one line."""
    if hi - lo > MAX_LINE_BYTES:
        return TOO_LONG, 0, 0, 0
    n, ascii_only = _tabs(data, lo, hi, tabs)
    if not ascii_only and not is_utf8(data, lo, hi):
        return NOT_UTF8, 0, 0, 0
    if n != 4:
        return COLUMNS, 0, 0, 0
    id_len, user_len = tabs[0] - lo, tabs[1] - tabs[0] - 1
    if id_len == 0 or user_len == 0:
        return EMPTY_ID, 0, 0, 0
    if id_len > MAX_ID_BYTES or user_len > MAX_ID_BYTES:
        return ID_TOO_LONG, 0, 0, 0
    time_ms = parse_time(data, tabs[1] + 1, tabs[2])
    if time_ms == NO_TIME:
        return BAD_TIME, 0, 0, 0
    reason, history = _check_history(data, tabs[2] + 1, tabs[3])
    if reason != OK:
        return reason, 0, 0, 0
    reason, items = _check_items(data, tabs[3] + 1, hi)
    return reason, time_ms, history, items


@njit(cache=True, nogil=True)
def scan(data: NDArray[np.uint8], reason, time_ms, offset, length, key, history, items) -> None:
    """Fill one entry a line; `length` leaves out the line end, `key` is the hash of the impression id alone."""
    tabs = np.zeros(4, np.int64)
    lo = 0
    for k in range(len(reason)):
        end = lo
        while end < len(data) and data[end] != _NEWLINE:
            end += 1
        hi = end - 1 if end > lo and data[end - 1] == _RETURN else end
        why, when, n_history, n_items = _check_line(data, lo, hi, tabs)
        reason[k], time_ms[k], offset[k], length[k] = why, when, lo, hi - lo
        history[k], items[k] = n_history, n_items
        key[k] = hash64_range(data, lo, tabs[0]) if why == OK else 0
        lo = end + 1


@njit(cache=True, nogil=True)
def _put_ids(data, lo, hi, at, values):
    """Keys of the ids in data[lo:hi] to values[at:]."""
    start = lo
    for i in range(lo, hi + 1):
        if i == hi or data[i] == _SPACE:
            if i > start:
                values[at] = hash64_range(data, start, i)
                at += 1
            start = i + 1


@njit(cache=True, nogil=True)
def _put_items(data, lo, hi, at, values, labels):
    start = lo
    for i in range(lo, hi + 1):
        if i == hi or data[i] == _SPACE:
            if i > start:
                values[at] = hash64_range(data, start, i - 2)
                labels[at] = data[i - 1] - _ZERO
                at += 1
            start = i + 1


@njit(cache=True, nogil=True)
def parse(
    data: NDArray[np.uint8], prefix: NDArray[np.uint8], rows, offset, length, partitions: int, impression, user,
    partition, history_at, history, items_at, items, labels,
) -> None:  # fmt: skip
    """Parse usable lines. Line rows[k] (offset[rows[k]], length[rows[k]]) goes to output row rows[k].

    `prefix` is the folder's name and a slash; the impression key is the hash of prefix + id.
    """
    tabs = np.zeros(4, np.int64)
    name = np.empty(len(prefix) + MAX_ID_BYTES, np.uint8)
    name[: len(prefix)] = prefix
    for r in rows:
        lo, hi = offset[r], offset[r] + length[r]
        _tabs(data, lo, hi, tabs)
        id_len = tabs[0] - lo
        name[len(prefix) : len(prefix) + id_len] = data[lo : tabs[0]]
        impression[r] = hash64_range(name, 0, len(prefix) + id_len)
        user[r] = hash64_range(data, tabs[0] + 1, tabs[1])
        partition[r] = partition_range(data, tabs[0] + 1, tabs[1], partitions)
        _put_ids(data, tabs[2] + 1, tabs[3], history_at[r], history)
        _put_items(data, tabs[3] + 1, hi, items_at[r], items, labels)
