"""The join, row by row, in numba: the only place where an event meets its impression.

Laws. A row is applied with the watermark before it; then W advances. Whether an id is known hangs on impression rows
alone, each for `late_ms` after its close, never on what was accepted; so a state is a function of a bounded stretch of
the log (see `stream.join.core`). Sizes and sweeps decide nothing: what is expired is tested, not what was removed.

An id is the pair (impression, user): an engagement of another user finds nothing, in whatever partition he lies.

    table    (slots,)       record number or -1; linear probing, at most half full, nothing removed but by `purge`
    records  (n, R_*)       impression, user, known until (W, ms), pending number or -1, first and last waiting or -1
    pending  (n, P_*)       impressions that have not left, in input order; lists lie in three arenas, in the same order
    waiting  (ring, W_*)    engagements before their impression, by running number & (ring - 1), deadlines ascending
    scalars  (S_*,)         watermarks and fill levels; a secret that the table hashes with, for clients choose ids
"""

import numpy as np
from numba import njit

R_IMPRESSION, R_USER, R_EXPIRY, R_PENDING, R_HEAD, R_TAIL, R_WIDTH = 0, 1, 2, 3, 4, 5, 6
P_IMPRESSION, P_USER, P_SHOWN, P_OFFSET, P_ROW, P_FIRST, P_CLOSE, P_RECORD = 0, 1, 2, 3, 4, 5, 6, 7
P_HISTORY, P_HISTORY_N, P_ITEMS, P_ITEMS_N, P_WIDTH = 8, 9, 10, 11, 12
W_DEADLINE, W_OPEN, W_RECORD, W_NEXT, W_ITEM, W_ACTION, W_TIME, W_WIDTH = 0, 1, 2, 3, 4, 5, 6, 7
S_W, S_W_BEFORE, S_RECORDS, S_PENDING, S_HISTORY, S_ITEMS, S_WAIT_LO, S_WAIT_HI, S_SECRET = 0, 1, 2, 3, 4, 5, 6, 7, 8
S_WIDTH = 9
C_EVENTS, C_IMPRESSIONS, C_ENGAGEMENTS, C_JOINED_IMPRESSIONS, C_JOINED_ENGAGEMENTS = 0, 1, 2, 3, 4
C_FUTURE, C_LATE_IMPRESSION, C_DUPLICATE_IMPRESSION, C_LATE, C_ORPHAN, C_DUPLICATE_ENGAGEMENT = 5, 6, 7, 8, 9, 10
C_UNKNOWN_ITEM, C_MALFORMED, C_OVER_USER_CAP, C_OVER_ITEM_CAP, C_WIDTH = 11, 12, 13, 14, 15
T_TICK, T_ATTRIBUTION, T_BOUND, T_SKEW, T_LATE = 0, 1, 2, 3, 4  # timing (5,), ms; attribution in ticks
NO_WATERMARK = -(2**62)
TIME_LIMIT = 2**52  # ms: times beyond ± 142,000 years are no times


@njit(cache=True, nogil=True)
def _find(table, records, secret, impression, user):  # type: ignore[no-untyped-def]
    """Slot of the id, or of the free place where it belongs."""
    mask = len(table) - 1
    h = (np.uint64(impression) ^ np.uint64(secret)) * np.uint64(0x9E3779B97F4A7C15)
    h ^= h >> np.uint64(32)  # before the user comes in: else pairs of the two cancel each other whatever the secret
    h *= np.uint64(0xD6E8FEB86659FD93)
    h ^= h >> np.uint64(32) ^ np.uint64(user)
    h *= np.uint64(0x9E3779B97F4A7C15)
    h ^= h >> np.uint64(32)
    h *= np.uint64(0xD6E8FEB86659FD93)
    h ^= h >> np.uint64(32)
    slot = np.int64(h & np.uint64(mask))
    while table[slot] >= 0:
        record = table[slot]
        if records[record, R_IMPRESSION] == impression and records[record, R_USER] == user:
            break
        slot = (slot + 1) & mask
    return slot


@njit(cache=True, nogil=True)
def _record(table, records, scalars, impression, user):  # type: ignore[no-untyped-def]
    """Number of the id's record; a new one is unknown and has nothing waiting."""
    slot = _find(table, records, scalars[S_SECRET], impression, user)
    if table[slot] >= 0:
        return table[slot]
    record = scalars[S_RECORDS]
    scalars[S_RECORDS] = record + 1
    table[slot] = record
    records[record, R_IMPRESSION] = impression
    records[record, R_USER] = user
    records[record, R_EXPIRY] = NO_WATERMARK
    records[record, R_PENDING] = -1
    records[record, R_HEAD] = -1
    records[record, R_TAIL] = -1
    return record


@njit(cache=True, nogil=True)
def _join(pending, p, items, labels, timing, item, action, time_ms):  # type: ignore[no-untyped-def]
    """Set the engagement's bit in pending impression p; the counter of the outcome, -1 where it joined."""
    start = pending[p, P_ITEMS]
    at = -1
    for i in range(start, start + pending[p, P_ITEMS_N]):
        if items[i] == item:
            at = i
            break
    if at < 0:
        return C_UNKNOWN_ITEM
    if time_ms > pending[p, P_SHOWN] + timing[T_ATTRIBUTION] * timing[T_TICK]:
        return C_LATE
    bit = np.uint8(1 << action)
    if labels[at] & bit:
        return C_DUPLICATE_ENGAGEMENT
    labels[at] |= bit
    if pending[p, P_FIRST] < 0:
        pending[p, P_FIRST] = max(time_ms, 0)
    return -1


@njit(cache=True, nogil=True)
def _expire_waiting(records, waiting, scalars, counts):  # type: ignore[no-untyped-def]
    """Engagements that have waited one disorder bound of W are orphans."""
    mask = len(waiting) - 1
    while scalars[S_WAIT_LO] < scalars[S_WAIT_HI]:
        w = scalars[S_WAIT_LO] & mask
        if waiting[w, W_OPEN]:
            if waiting[w, W_DEADLINE] > scalars[S_W]:
                break
            counts[C_ORPHAN] += 1
            record = waiting[w, W_RECORD]
            records[record, R_HEAD] = waiting[w, W_NEXT]
            if waiting[w, W_NEXT] < 0:
                records[record, R_TAIL] = -1
        scalars[S_WAIT_LO] += 1


@njit(cache=True, nogil=True)
def _wait(records, waiting, scalars, record, deadline, item, action, time_ms):  # type: ignore[no-untyped-def]
    number = scalars[S_WAIT_HI]
    scalars[S_WAIT_HI] = number + 1
    mask = len(waiting) - 1
    w = number & mask
    waiting[w, W_DEADLINE] = deadline
    waiting[w, W_OPEN] = 1
    waiting[w, W_RECORD] = record
    waiting[w, W_NEXT] = -1
    waiting[w, W_ITEM] = item
    waiting[w, W_ACTION] = action
    waiting[w, W_TIME] = time_ms
    if records[record, R_TAIL] >= 0:
        waiting[records[record, R_TAIL] & mask, W_NEXT] = number
    else:
        records[record, R_HEAD] = number
    records[record, R_TAIL] = number


@njit(cache=True, nogil=True)
def _take_waiting(records, record, waiting, pending, p, items, labels, timing, counts):  # type: ignore[no-untyped-def]
    """The impression is here: what waited for it joins, in input order."""
    mask = len(waiting) - 1
    number = records[record, R_HEAD]
    while number >= 0:
        w = number & mask
        outcome = _join(
            pending,
            p,
            items,
            labels,
            timing,
            waiting[w, W_ITEM],
            waiting[w, W_ACTION],
            waiting[w, W_TIME],
        )
        if outcome >= 0:
            counts[outcome] += 1
        waiting[w, W_OPEN] = 0
        number = waiting[w, W_NEXT]
    records[record, R_HEAD] = -1
    records[record, R_TAIL] = -1


@njit(cache=True, nogil=True)
def _malformed(kind, ingested_ms, time_ms, action, n_items):  # type: ignore[no-untyped-def]
    if kind > 2 or ingested_ms < 0 or ingested_ms > TIME_LIMIT or time_ms > TIME_LIMIT or time_ms < -TIME_LIMIT:
        return True
    return (kind == 1 and action > 7) or (kind == 0 and n_items == 0)


@njit(cache=True, nogil=True)
def _apply_impression(  # type: ignore[no-untyped-def]
    table, records, pending, history, items, labels, waiting, scalars, counts, timing,
    ingested_ms, time_ms, impression, user, history_list, items_list, offset, row,
):  # fmt: skip
    """An impression becomes pending, unless its time is wrong, its tick is closed, or its id is known."""
    watermark = scalars[S_W]
    close = time_ms // timing[T_TICK] + timing[T_ATTRIBUTION]
    end = (close + 1) * timing[T_TICK]
    if time_ms > ingested_ms + timing[T_SKEW]:
        counts[C_FUTURE] += 1
        return
    if end <= watermark:
        counts[C_LATE_IMPRESSION] += 1
        return
    record = _record(table, records, scalars, impression, user)
    known = records[record, R_EXPIRY] > watermark
    records[record, R_EXPIRY] = max(records[record, R_EXPIRY], end + timing[T_LATE])
    if known:
        counts[C_DUPLICATE_IMPRESSION] += 1
        return
    p, at_history, at_items = scalars[S_PENDING], scalars[S_HISTORY], scalars[S_ITEMS]
    records[record, R_PENDING] = p
    pending[p, P_IMPRESSION] = impression
    pending[p, P_USER] = user
    pending[p, P_SHOWN] = time_ms
    pending[p, P_OFFSET] = offset
    pending[p, P_ROW] = row
    pending[p, P_FIRST] = -1
    pending[p, P_CLOSE] = close
    pending[p, P_RECORD] = record
    pending[p, P_HISTORY] = at_history
    pending[p, P_HISTORY_N] = len(history_list)
    pending[p, P_ITEMS] = at_items
    pending[p, P_ITEMS_N] = len(items_list)
    for i in range(len(history_list)):
        history[at_history + i] = history_list[i]
    for i in range(len(items_list)):
        items[at_items + i] = items_list[i]
        labels[at_items + i] = 0
    scalars[S_PENDING] = p + 1
    scalars[S_HISTORY] = at_history + len(history_list)
    scalars[S_ITEMS] = at_items + len(items_list)
    _take_waiting(records, record, waiting, pending, p, items, labels, timing, counts)


@njit(cache=True, nogil=True)
def _apply_engagement(  # type: ignore[no-untyped-def]
    table, records, pending, items, labels, waiting, scalars, counts, timing,
    ingested_ms, time_ms, impression, user, item, action, after,
):  # fmt: skip
    """An engagement joins its pending impression, is late for one that left, or waits for one that is not known."""
    if time_ms > ingested_ms + timing[T_SKEW]:
        counts[C_FUTURE] += 1
        return
    record = _record(table, records, scalars, impression, user)
    if records[record, R_EXPIRY] <= scalars[S_W]:
        deadline = after + timing[T_BOUND]
        _wait(records, waiting, scalars, record, deadline, item, action, time_ms)
        return
    if records[record, R_PENDING] < 0:
        counts[C_LATE] += 1
        return
    outcome = _join(pending, records[record, R_PENDING], items, labels, timing, item, action, time_ms)
    if outcome >= 0:
        counts[outcome] += 1


@njit(cache=True, nogil=True)
def apply_rows(  # type: ignore[no-untyped-def]
    table, records, pending, history, items, labels, waiting, scalars, counts, timing,
    kind, ingested, time, impression, user, item, action,
    history_offsets, history_values, items_offsets, items_values, offset, apart, lo, hi,
):  # fmt: skip
    """Apply rows lo:hi of a record, up to and including the first one that closes a tick; return the next row.

    `apart` 1: row i is all of record offset + i, at (offset + i, 0). The caller has made room for all rows.
    """
    for row in range(lo, hi):
        watermark = scalars[S_W]
        scalars[S_W_BEFORE] = watermark
        n_items = items_offsets[row + 1] - items_offsets[row]
        if _malformed(kind[row], ingested[row], time[row], action[row], n_items):
            counts[C_EVENTS] += 1
            counts[C_MALFORMED] += 1
            continue
        after = max(watermark, ingested[row] - timing[T_BOUND])
        if kind[row] == 0:
            counts[C_EVENTS] += 1
            counts[C_IMPRESSIONS] += 1
            _apply_impression(
                table, records, pending, history, items, labels, waiting, scalars, counts, timing,
                ingested[row], time[row], impression[row], user[row],
                history_values[history_offsets[row] : history_offsets[row + 1]],
                items_values[items_offsets[row] : items_offsets[row + 1]],
                offset + apart * row, (1 - apart) * row,
            )  # fmt: skip
        elif kind[row] == 1:
            counts[C_EVENTS] += 1
            counts[C_ENGAGEMENTS] += 1
            _apply_engagement(
                table, records, pending, items, labels, waiting, scalars, counts, timing,
                ingested[row], time[row], impression[row], user[row], item[row], np.int64(action[row]), after,
            )  # fmt: skip
        scalars[S_W] = after
        _expire_waiting(records, waiting, scalars, counts)
        if after // timing[T_TICK] != watermark // timing[T_TICK]:
            return row + 1
    return hi


@njit(cache=True, nogil=True)
def gather(pending, history, items, labels, rows):  # type: ignore[no-untyped-def]
    """Columns of the given pending impressions: offsets and values of history, items and labels."""
    n = len(rows)
    history_offsets = np.zeros(n + 1, dtype=np.int64)
    items_offsets = np.zeros(n + 1, dtype=np.int64)
    for i in range(n):
        history_offsets[i + 1] = history_offsets[i] + pending[rows[i], P_HISTORY_N]
        items_offsets[i + 1] = items_offsets[i] + pending[rows[i], P_ITEMS_N]
    out_history = np.empty(history_offsets[n], dtype=np.int64)
    out_items = np.empty(items_offsets[n], dtype=np.int64)
    out_labels = np.empty(items_offsets[n], dtype=np.uint8)
    for i in range(n):
        start = pending[rows[i], P_HISTORY]
        for j in range(pending[rows[i], P_HISTORY_N]):
            out_history[history_offsets[i] + j] = history[start + j]
        start = pending[rows[i], P_ITEMS]
        for j in range(pending[rows[i], P_ITEMS_N]):
            out_items[items_offsets[i] + j] = items[start + j]
            out_labels[items_offsets[i] + j] = labels[start + j]
    return history_offsets, out_history, items_offsets, out_items, out_labels


@njit(cache=True, nogil=True)
def drop_closed(records, pending, history, items, labels, scalars, closed):  # type: ignore[no-untyped-def]
    """Forget pending impressions that close in `closed` or before; the others move up, in order."""
    kept, history_at, items_at = 0, 0, 0
    for p in range(scalars[S_PENDING]):
        record = pending[p, P_RECORD]
        if pending[p, P_CLOSE] <= closed:
            records[record, R_PENDING] = -1
            continue
        start = pending[p, P_HISTORY]
        for j in range(pending[p, P_HISTORY_N]):
            history[history_at + j] = history[start + j]
        start = pending[p, P_ITEMS]
        for j in range(pending[p, P_ITEMS_N]):
            items[items_at + j] = items[start + j]
            labels[items_at + j] = labels[start + j]
        for j in range(P_WIDTH):
            pending[kept, j] = pending[p, j]
        pending[kept, P_HISTORY] = history_at
        pending[kept, P_ITEMS] = items_at
        records[record, R_PENDING] = kept
        history_at += pending[kept, P_HISTORY_N]
        items_at += pending[kept, P_ITEMS_N]
        kept += 1
    scalars[S_PENDING] = kept
    scalars[S_HISTORY] = history_at
    scalars[S_ITEMS] = items_at


@njit(cache=True, nogil=True)
def purge(table, records, pending, waiting, scalars, new_table, new_records):  # type: ignore[no-untyped-def]
    """Copy the records that still count into a new table (-1 everywhere) and record array."""
    moved = np.full(scalars[S_RECORDS], -1, dtype=np.int64)
    n = 0
    for r in range(scalars[S_RECORDS]):
        if records[r, R_EXPIRY] <= scalars[S_W] and records[r, R_PENDING] < 0 and records[r, R_HEAD] < 0:
            continue
        slot = _find(new_table, new_records, scalars[S_SECRET], records[r, R_IMPRESSION], records[r, R_USER])
        new_table[slot] = n
        for j in range(R_WIDTH):
            new_records[n, j] = records[r, j]
        moved[r] = n
        n += 1
    scalars[S_RECORDS] = n
    for p in range(scalars[S_PENDING]):
        pending[p, P_RECORD] = moved[pending[p, P_RECORD]]
    mask = len(waiting) - 1
    for number in range(scalars[S_WAIT_LO], scalars[S_WAIT_HI]):
        if waiting[number & mask, W_OPEN]:
            waiting[number & mask, W_RECORD] = moved[waiting[number & mask, W_RECORD]]
