"""Events become rows of `events`: dead ones too, as rows of a kind that the join counts as `malformed`.

So a position (offset, row) always counts from the record's first event, whatever died, and the join's own counter
holds every event of every format. Times and lists are looked at event by event, ids for all of them at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from stream.columns import I64, U8, Lists
from stream.events import LIVE, ActionKind, EventColumns, EventKind
from stream.features.keys import slot_of
from stream.wire.dead import Fault, Reason
from stream.wire.keys import Ids
from stream.wire.limits import Rules, beat_ms, check_id, check_impression, check_ingested, check_time, moment_ms
from stream.wire.schema import Engagement, Event, Heartbeat, Id, Impression

DEAD_KIND = 255  # of a row whose event is dead: no kind, so that the join drops it as malformed
ACTIONS = {kind.name.lower(): int(kind) for kind in ActionKind}


class Stamped(NamedTuple):
    """An event, the timestamp of its record, and the time that it has where it does not say."""

    event: Event | Fault
    stamp_ms: int
    default_ms: int


class _Numbers:
    """What rows are made of, in Python lists."""

    def __init__(self) -> None:
        self.kind: list[int] = []
        self.ingested: list[int] = []
        self.time: list[int] = []
        self.action: list[int] = []
        self.history: list[int] = []  # lengths
        self.items: list[int] = []
        self.ids: list[Id] = []

    def add(self, kind: int, ingested: int, time: int, action: int = 0, history: int = 0, items: int = 0) -> None:
        self.kind.append(kind)
        self.ingested.append(ingested)
        self.time.append(time)
        self.action.append(action)
        self.history.append(history)
        self.items.append(items)


def event_rows(stamped: Sequence[Stamped], rules: Rules) -> tuple[EventColumns, dict[int, Fault]]:
    """One row an event (n,), and the faults of the dead rows."""
    numbers, faults = _Numbers(), {}
    for row, one in enumerate(stamped):
        fault = one.event if isinstance(one.event, Fault) else _add(numbers, one.event, one, rules)
        if fault is not None:
            faults[row] = fault
            numbers.add(DEAD_KIND, 0, 0)
    ids = Ids(numbers.ids)
    kind = np.array(numbers.kind, dtype=np.uint8)
    history, items = np.array(numbers.history, dtype=np.int64), np.array(numbers.items, dtype=np.int64)
    firsts = _firsts(kind, history, items)
    if bad := _bad_ids(kind, firsts, items, ids, rules) | _repeats(firsts, items, ids):
        again = [Stamped(bad.get(row, one.event), one.stamp_ms, one.default_ms) for row, one in enumerate(stamped)]
        rows, others = event_rows(again, rules)
        return rows, others
    impression, user, item, h_offsets, h_values, i_offsets, i_values = _lay_out(kind, firsts, history, items, ids.keys)
    columns = EventColumns(
        kind=kind,
        ingested_ms=np.array(numbers.ingested, dtype=np.int64),
        time_ms=np.array(numbers.time, dtype=np.int64),
        impression=impression,
        user=user,
        item=item,
        action=np.array(numbers.action, dtype=np.uint8),
        source=np.full(len(kind), LIVE, dtype=np.int64),
        history=Lists(h_offsets, h_values),
        items=Lists(i_offsets, i_values),
    )
    return columns, faults


def _add(numbers: _Numbers, event: Event, one: Stamped, rules: Rules) -> Fault | None:
    """Add an event's numbers, or say what is wrong with it and add nothing."""
    if isinstance(event, Heartbeat):
        ingested = beat_ms(event, one.stamp_ms)
        if isinstance(ingested, Fault):
            return ingested
        if fault := check_ingested(ingested, one.stamp_ms, rules):
            return fault
        numbers.add(EventKind.HEARTBEAT, ingested, ingested)
        return None
    ingested = one.stamp_ms if event.ingested_ms is None else event.ingested_ms
    time = moment_ms(event.time_ms, event.time, one.default_ms)
    if isinstance(time, Fault):
        return time
    if fault := check_ingested(ingested, one.stamp_ms, rules):
        return fault
    if fault := check_time(time, rules):
        return _at_time(fault, event)
    if isinstance(event, Impression):
        if fault := check_impression(event, rules):
            return fault
        numbers.add(EventKind.IMPRESSION, ingested, time, history=len(event.history), items=len(event.items))
        numbers.ids += (event.id, event.user)
        numbers.ids += event.items
        numbers.ids += event.history
        return None
    numbers.add(EventKind.ENGAGEMENT, ingested, time, ACTIONS[event.kind])
    numbers.ids += (event.impression, event.user, event.item)
    return None


def _at_time(fault: Fault, event: Impression | Engagement) -> Fault:
    """With the field that says the time, where one does."""
    if event.time_ms is None and event.time is None:
        return fault
    name = "time" if event.time_ms is None else "time_ms"
    return Fault(fault.reason, f"{fault.detail} - at `$.{name}`")


def _firsts(kind: U8, history: I64, items: I64) -> I64:
    """Number of the first id of each row, and behind the last (n + 1,)."""
    count = np.where(kind == EventKind.IMPRESSION, 2 + history + items, np.where(kind == EventKind.ENGAGEMENT, 3, 0))
    firsts = np.zeros(len(kind) + 1, dtype=np.int64)
    np.cumsum(count, out=firsts[1:])
    return firsts


def _bad_ids(kind: U8, firsts: I64, items: I64, ids: Ids, rules: Rules) -> dict[int, Fault]:
    """Rows with an id that is empty or too long, or a user who belongs elsewhere."""
    found: dict[int, Fault] = {}
    for at in np.flatnonzero((ids.sizes == 0) | (ids.sizes > rules.wire.max_id_bytes)).tolist():
        row = int(np.searchsorted(firsts, at, side="right")) - 1
        if fault := check_id(int(ids.sizes[at]), rules):
            where = _id_path(int(kind[row]), at - int(firsts[row]), int(items[row]))
            found.setdefault(row, Fault(fault.reason, f"{fault.detail} - at `$.{where}`"))
    if rules.partitions > 1:
        rows = np.flatnonzero(kind <= EventKind.ENGAGEMENT)
        homes = ids.partitions(firsts[rows] + 1, rules.partitions)
        away = np.flatnonzero(homes != rules.partition)
        for row, home in zip(rows[away].tolist(), homes[away].tolist(), strict=True):
            where = f"{home} of {rules.partitions}, not to {rules.partition}"
            detail = f"its user belongs to partition {where}: produce with the user id as key, by murmur2"
            found.setdefault(row, Fault(Reason.PARTITION, detail))
    return found


def _id_path(kind: int, number: int, items: int) -> str:
    """Where the n-th id of an event stands in it."""
    if kind == EventKind.ENGAGEMENT:
        return ("impression", "user", "item")[number]
    if number < 2:
        return ("id", "user")[number]
    return f"items[{number - 2}]" if number < 2 + items else f"history[{number - 2 - items}]"


def _repeats(firsts: I64, items: I64, ids: Ids) -> dict[int, Fault]:
    """Impressions that show an item twice: a label could not say which."""
    twice = _first_repeats(firsts, items, ids.keys)
    rows = np.flatnonzero(twice >= 0).tolist()
    return {row: _repeat(ids.keys[firsts[row] + 2 :], int(twice[row])) for row in rows}


def _repeat(keys: I64, at: int) -> Fault:
    first = int(np.flatnonzero(keys[:at] == keys[at])[0])
    return Fault(Reason.VALUE, f"an item is there twice: repeats $.items[{first}] - at `$.items[{at}]`")


@njit(cache=True, nogil=True)
def _first_repeats(firsts, items, keys):  # type: ignore[no-untyped-def]
    """Position of the first item of each row that an earlier one equals, or -1 (n,)."""
    size = 16
    while size < 2 * (items.max() if len(items) else 0):
        size *= 2
    owner = np.full(size, -1, np.int64)  # row that filled a slot of this one hash table, which all rows share
    held = np.empty(size, np.int64)
    found = np.full(len(items), -1, np.int64)
    secret = np.random.randint(1, 1 << 31)  # clients choose keys; no value depends on it
    for r in range(len(items)):
        for j in range(items[r]):
            key = keys[firsts[r] + 2 + j]
            slot = slot_of(key, size - 1, secret)
            while owner[slot] == r and held[slot] != key:
                slot = (slot + 1) & (size - 1)
            if owner[slot] == r:
                found[r] = j
                break
            owner[slot], held[slot] = r, key
    return found


@njit(cache=True, nogil=True)
def _lay_out(kind, firsts, history, items, keys):  # type: ignore[no-untyped-def]
    """Columns from keys that lie row by row: impression, user, then items and history, or the engaged item."""
    n = len(kind)
    impression, user, item = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n, np.int64)
    h_offsets, i_offsets = np.zeros(n + 1, np.int64), np.zeros(n + 1, np.int64)
    for r in range(n):
        h_offsets[r + 1] = h_offsets[r] + history[r]
        i_offsets[r + 1] = i_offsets[r] + items[r]
    h_values, i_values = np.empty(h_offsets[n], np.int64), np.empty(i_offsets[n], np.int64)
    for r in range(n):
        at = firsts[r]
        if kind[r] > 1:
            continue
        impression[r], user[r] = keys[at], keys[at + 1]
        if kind[r] == 1:
            item[r] = keys[at + 2]
            continue
        for j in range(items[r]):
            i_values[i_offsets[r] + j] = keys[at + 2 + j]
        for j in range(history[r]):
            h_values[h_offsets[r] + j] = keys[at + 2 + items[r] + j]
    return impression, user, item, h_offsets, h_values, i_offsets, i_values
