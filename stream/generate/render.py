"""Rows as the bytes of behaviors.tsv, in numba."""

from numba import njit


@njit(cache=True, nogil=True)
def _put_int(buffer, at, value):  # type: ignore[no-untyped-def]
    width = 1
    limit = 10
    while value >= limit:
        width += 1
        limit *= 10
    for k in range(width - 1, -1, -1):
        buffer[at + k] = 48 + value % 10
        value //= 10
    return at + width


@njit(cache=True, nogil=True)
def _put_two(buffer, at, value):  # type: ignore[no-untyped-def]
    buffer[at] = 48 + value // 10
    buffer[at + 1] = 48 + value % 10
    return at + 2


@njit(cache=True, nogil=True)
def render_rows(  # type: ignore[no-untyped-def]
    buffer, rows, user, time_s, day_first, month, user_number, item_number, history_offsets, history, offsets, items,
    click,
):  # fmt: skip
    """Write rows as behaviors.tsv lines; returns the bytes written. `month`/`day_first`: the window's first day."""
    at = 0
    for i in range(len(rows)):
        at = _put_int(buffer, at, rows[i] + 1)
        buffer[at] = 9
        buffer[at + 1] = 85  # U
        at = _put_int(buffer, at + 2, user_number[user[i]])
        buffer[at] = 9
        day, second = time_s[i] // 86400, time_s[i] % 86400
        at = _put_int(buffer, at + 1, month)
        buffer[at] = 47
        at = _put_int(buffer, at + 1, day_first + day)
        for byte in (47, 50, 48, 49, 57, 32):  # /2019 and a blank
            buffer[at] = byte
            at += 1
        hour = second // 3600
        at = _put_int(buffer, at, (hour + 11) % 12 + 1)
        buffer[at] = 58
        at = _put_two(buffer, at + 1, second // 60 % 60)
        buffer[at] = 58
        at = _put_two(buffer, at + 1, second % 60)
        buffer[at] = 32
        buffer[at + 1] = 80 if hour >= 12 else 65
        buffer[at + 2] = 77
        buffer[at + 3] = 9
        at += 4
        lo, hi = history_offsets[user[i]], history_offsets[user[i] + 1]
        for j in range(lo, hi):
            if j > lo:
                buffer[at] = 32
                at += 1
            buffer[at] = 78  # N
            at = _put_int(buffer, at + 1, item_number[history[j]])
        buffer[at] = 9
        at += 1
        for j in range(offsets[i], offsets[i + 1]):
            if j > offsets[i]:
                buffer[at] = 32
                at += 1
            buffer[at] = 78
            at = _put_int(buffer, at + 1, item_number[items[j]])
            buffer[at] = 45
            buffer[at + 1] = 48 + click[j]
            at += 2
        buffer[at] = 10
        at += 1
    return at
