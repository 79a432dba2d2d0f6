"""Says what will become of posted events, as far as this server can know, by the rules of the join.

The join decides later, and from the log alone. The server knows the time, what was posted to it, and how far it moved
the watermark itself. So a drop that it names is certain; `accepted` means that nothing speaks against the event;
`unknown_impression` that its impression was not posted here: to another replica, before a restart, too long ago for
this memory, or never. The memory is bounded by impressions and by shown items; the oldest are forgotten first.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import numpy as np

from infra.ticks import Timeline
from stream.columns import I64, U8
from stream.events import EventColumns, EventKind
from stream.examples import DropReason

LATE_MS = 3_600_000  # as `join.late_s` where nothing else is said
IMPRESSIONS = 100_000  # remembered at most: about 30 MB
SHOWN_ITEMS = 1_000_000  # ... and of all of them together: 9 MB
LONG_AGO = -(2**62)


class Expected(StrEnum):
    """What may come of an event that is not certain to be dropped."""

    ACCEPTED = "accepted"
    UNKNOWN = "unknown_impression"


Fate: TypeAlias = Expected | DropReason


@dataclass(slots=True)
class _Seen:
    """A posted impression."""

    shown_ms: int
    end_ms: int  # of its close tick
    known_ms: int  # the watermark up to which its id is known
    items: I64
    joined: U8  # (items,) a bit for each kind of engagement


class Fates:
    """`of(rows, homes, now_ms)` for each post in the order of the log; for one thread."""

    def __init__(
        self, timeline: Timeline, late_ms: int = LATE_MS, most: int = IMPRESSIONS, most_items: int = SHOWN_ITEMS
    ) -> None:
        self._timeline, self._late_ms = timeline, late_ms
        self._most, self._most_items, self._items = most, most_items, 0
        self._seen: OrderedDict[tuple[int, int], _Seen] = OrderedDict()
        self._floor: dict[int, int] = {}  # at least how far the watermark of a partition is
        self._all = LONG_AGO  # ... and of every one

    def __len__(self) -> int:
        return len(self._seen)

    def heartbeat(self, ingested_ms: int) -> None:
        """A row of every partition was written at this time."""
        self._all = max(self._all, ingested_ms - self._timeline.disorder_bound_ms)

    def of(self, rows: EventColumns, homes: I64, now_ms: int) -> list[Fate]:
        """What becomes of each row, ingested at `now_ms` into partition `homes` (n,).

        Impressions first: an engagement that stands before its impression in a post waits for it in the join.
        """
        fates: list[Fate] = [Expected.ACCEPTED] * len(rows)
        reached_ms, floors = now_ms - self._timeline.disorder_bound_ms, []
        for home in homes.tolist():  # the watermark before each row: it moves behind the first one of a partition
            floors.append(max(self._all, self._floor.get(home, LONG_AGO)))
            self._floor[home] = max(reached_ms, floors[-1])
        for kind, judge in ((EventKind.IMPRESSION, self._impression), (EventKind.ENGAGEMENT, self._engagement)):
            for row in np.flatnonzero(rows.kind == kind).tolist():
                if rows.time_ms[row] > now_ms + self._timeline.skew_ms:
                    fates[row] = DropReason.FUTURE
                else:
                    fates[row] = judge(rows, row, floors[row], reached_ms)
        return fates

    def _known(self, key: tuple[int, int], reached_ms: int) -> _Seen | None:
        """The impression of this id, if it is still known wherever the watermark has got to."""
        seen = self._seen.get(key)
        return seen if seen is not None and seen.known_ms > reached_ms else None

    def _impression(self, rows: EventColumns, row: int, floor_ms: int, reached_ms: int) -> Fate:
        key, shown_ms = (int(rows.impression[row]), int(rows.user[row])), int(rows.time_ms[row])
        end_ms = self._timeline.end_ms(self._timeline.close_tick(self._timeline.tick_of(shown_ms)))
        if end_ms <= floor_ms:
            return DropReason.LATE_IMPRESSION
        if (seen := self._known(key, reached_ms)) is not None:
            seen.known_ms = max(seen.known_ms, end_ms + self._late_ms)
            return DropReason.DUPLICATE_IMPRESSION
        items = rows.items[row].copy()
        self._forget(key)
        self._seen[key] = _Seen(shown_ms, end_ms, end_ms + self._late_ms, items, np.zeros(len(items), np.uint8))
        self._items += len(items)
        while len(self._seen) > self._most or self._items > self._most_items:
            self._forget(next(iter(self._seen)))
        return Expected.ACCEPTED

    def _forget(self, key: tuple[int, int]) -> None:
        if (seen := self._seen.pop(key, None)) is not None:
            self._items -= len(seen.items)

    def _engagement(self, rows: EventColumns, row: int, floor_ms: int, reached_ms: int) -> Fate:
        seen = self._known((int(rows.impression[row]), int(rows.user[row])), reached_ms)
        if seen is None:
            return Expected.UNKNOWN
        if seen.end_ms <= floor_ms:
            return DropReason.LATE
        at = np.flatnonzero(seen.items == rows.item[row])
        if not len(at):
            return DropReason.UNKNOWN_ITEM
        if rows.time_ms[row] > seen.shown_ms + self._timeline.attribution_ticks * self._timeline.tick_ms:
            return DropReason.LATE
        bit = np.uint8(1 << int(rows.action[row]))
        if seen.joined[at[0]] & bit:
            return DropReason.DUPLICATE_ENGAGEMENT
        seen.joined[at[0]] |= bit
        return Expected.ACCEPTED


def explain(fate: Fate, time_ms: int, now_ms: int, skew_ms: int) -> str:
    """The fate in a sentence, and what to do; "" where all is well."""
    if fate is DropReason.FUTURE:
        return (
            f"will be dropped: its time {time_ms} is {time_ms - now_ms} ms ahead of the run's time {now_ms}, at most "
            f"{skew_ms} are taken (time.skew_s); leave time_ms out, and it happens now"
        )
    return _SAYS[fate]


_SAYS: dict[Fate, str] = {
    Expected.ACCEPTED: "",
    Expected.UNKNOWN: "its impression is not known to this server: where no replica has it, the event will be dropped "
    "as orphan; post the impression first, for the same user",
    DropReason.LATE_IMPRESSION: "will be dropped: the tick that it closes in is closed",
    DropReason.DUPLICATE_IMPRESSION: "will be dropped: this user has an impression of this id; give each one its own",
    DropReason.LATE: "will be dropped: it comes after the attribution window of its impression (time.attribution_s)",
    DropReason.DUPLICATE_ENGAGEMENT: "will be dropped: this engagement with this item is already there",
    DropReason.UNKNOWN_ITEM: "will be dropped: its impression did not show this item",
}
