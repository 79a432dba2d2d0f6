"""The bytes of behaviors.tsv, checked and parsed in numba.

    impression id ⇥ user id ⇥ 11/12/2019 2:14:46 PM ⇥ N1 N2 … ⇥ N3-0 N4-1 …

`scan` looks at every byte once and decides each line: usable, or dead with a reason (0 is usable; k means
`dead.REASONS[k − 1]`; UNLABELLED is a line without any label, as in MIND's test split). `parse` reads usable lines
again, window by window, and cannot fail.
"""

import numpy as np
from numba import njit

from infra.hashing import hash64_range, partition_range
from stream.mind.fields import NO_TIME, is_utf8, parse_time

MAX_LINE_BYTES = 256 << 10  # MIND's longest is under 12 KB
MAX_ID_BYTES = 128

OK, TOO_LONG, NOT_UTF8, COLUMNS, EMPTY_ID, ID_TOO_LONG, BAD_TIME, NO_CANDIDATES, LABEL_MISSING, BAD_LABEL = range(10)
DUPLICATE, TIME_GAP, REPEATED_ITEM, UNLABELLED = 10, 11, 13, 14

_TAB, _NEWLINE, _RETURN, _SPACE, _DASH, _ZERO, _ONE = 9, 10, 13, 32, 45, 48, 49


@njit(cache=True, nogil=True)
def count_lines(data):  # type: ignore[no-untyped-def]
    """Lines of a file; the last may lack its newline."""
    n = 0
    for i in range(len(data)):
        n += data[i] == _NEWLINE
    return n + (data[-1] != _NEWLINE)


@njit(cache=True, nogil=True)
def _check_history(data, lo, hi):  # type: ignore[no-untyped-def]
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
def _check_label(data, lo, hi):  # type: ignore[no-untyped-def]
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
def _check_items(data, lo, hi):  # type: ignore[no-untyped-def]
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
    if worst == OK and _repeats(data, lo, hi, n):
        return REPEATED_ITEM, n
    return worst, n


@njit(cache=True, nogil=True)
def _repeats(data, lo, hi, n):  # type: ignore[no-untyped-def]
    """Whether an item is among the n sound shown items of a line twice: a label could not say which."""
    keys = np.empty(n, np.int64)
    labels = np.empty(n, np.uint8)
    _put_items(data, lo, hi, 0, keys, labels)
    keys.sort()
    return np.any(keys[1:] == keys[:-1])


@njit(cache=True, nogil=True)
def _tabs(data, lo, hi, tabs):  # type: ignore[no-untyped-def]
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
def _check_line(data, lo, hi, tabs):  # type: ignore[no-untyped-def]
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
def scan(data, reason, time_ms, offset, length, key, history, items):  # type: ignore[no-untyped-def]
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
def _put_ids(data, lo, hi, at, values):  # type: ignore[no-untyped-def]
    """Keys of the ids in data[lo:hi] to values[at:]."""
    start = lo
    for i in range(lo, hi + 1):
        if i == hi or data[i] == _SPACE:
            if i > start:
                values[at] = hash64_range(data, start, i)
                at += 1
            start = i + 1


@njit(cache=True, nogil=True)
def _put_items(data, lo, hi, at, values, labels):  # type: ignore[no-untyped-def]
    start = lo
    for i in range(lo, hi + 1):
        if i == hi or data[i] == _SPACE:
            if i > start:
                values[at] = hash64_range(data, start, i - 2)
                labels[at] = data[i - 1] - _ZERO
                at += 1
            start = i + 1


@njit(cache=True, nogil=True)
def parse(  # type: ignore[no-untyped-def]
    data, prefix, rows, offset, length, partitions, impression, user,
    partition, history_at, history, items_at, items, labels,
):  # fmt: skip
    """Parse usable lines. Line rows[k] (offset[rows[k]], length[rows[k]]) goes to output row rows[k].

    `prefix` is the folder's name and a slash; the impression key is the hash of prefix + id.
    """
    tabs = np.zeros(4, np.int64)
    name = np.empty(len(prefix) + MAX_ID_BYTES, np.uint8)
    for i in range(len(prefix)):
        name[i] = prefix[i]
    for r in rows:
        lo, hi = offset[r], offset[r] + length[r]
        _tabs(data, lo, hi, tabs)
        id_len = tabs[0] - lo
        for i in range(id_len):
            name[len(prefix) + i] = data[lo + i]
        impression[r] = hash64_range(name, 0, len(prefix) + id_len)
        user[r] = hash64_range(data, tabs[0] + 1, tabs[1])
        partition[r] = partition_range(data, tabs[0] + 1, tabs[1], partitions)
        _put_ids(data, tabs[2] + 1, tabs[3], history_at[r], history)
        _put_items(data, tabs[3] + 1, hi, items_at[r], items, labels)
