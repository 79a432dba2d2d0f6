"""Limits what one user can teach: how many of a user's impressions of a tick leave as examples.

Without a limit one client that shows an item to itself all day decides what everybody gets. `join.user_impressions`
bounds a user's impressions in a tick; `join.user_item_impressions` those of them that show the same item. What is
beyond is dropped with the engagements that joined it, and counted by reason.

The joiner asks when a tick closes, for all impressions of the tick at once, so the answer is a function of the tick's
impressions in input order and a restart needs no other state. A user's events lie in one partition.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.columns import I64
from stream.examples import ExampleColumns

Kept = NDArray[np.bool_]


class Caps(NamedTuple):
    """Impressions of a user and tick; those of them that show the same item. 0: no limit."""

    impressions: int = 0
    same_item: int = 0


NO_CAPS = Caps()


def beyond(ticks: I64, due: ExampleColumns, caps: Caps) -> tuple[Kept, Kept]:
    """Which of n impressions, in (tick, input) order, are beyond the first cap, and which beyond the second alone."""
    over_user, over_item = np.zeros(len(due), np.bool_), np.zeros(len(due), np.bool_)
    if not len(due) or not any(caps):
        return over_user, over_item
    number, of_user = _numbered(ticks, due.user)
    if caps.impressions:
        over_user = number >= caps.impressions
    often = np.flatnonzero(of_user > caps.same_item)  # a user of few impressions cannot reach the cap
    if caps.same_item and len(often):
        shown = due.items.take(often)
        row, item = np.repeat(often, shown.lengths), shown.values
        once = _numbered(row, item)[0] == 0  # an item twice in one impression is one show
        row, item = row[once], item[once]
        number, _ = _numbered(ticks[row], due.user[row], item)
        over_item[row[number >= caps.same_item]] = True
    return over_user, over_item & ~over_user


def _numbered(*columns: I64) -> tuple[I64, I64]:
    """For each of n rows: its number among the rows that are equal to it, in order, and how many these are."""
    order = np.lexsort(columns)  # stable
    starts = np.zeros(len(order), np.bool_)
    starts[0] = True
    for column in columns:
        ordered = column[order]
        starts[1:] |= ordered[1:] != ordered[:-1]
    first = np.flatnonzero(starts)
    sizes = np.diff(np.append(first, len(order)))
    number, size = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    number[order] = np.arange(len(order)) - np.repeat(first, sizes)
    size[order] = np.repeat(sizes, sizes)
    return number, size
