"""What the counters and the catalogue say of an item at a tick, as numbers for the net.

`item_context` is the one function that computes them: the online trainer, the retrain and serving call it with the same
state and the same tick, so their features are equal bit for bit, whatever else is in the batch.

Click rates are smoothed towards PRIOR_CTR with the weight of PRIOR_SHOWN impressions and enter as log-odds against
the prior: 0 for what was never shown. Counts enter as log(1 + n), age as log(1 + hours).
"""

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stream.features.catalogue import CATEGORY, PUBLISHED, Catalogue, row_as_of
from stream.features.counter_kernels import decayed
from stream.features.counters import CounterState
from stream.features.keys import UNKNOWN, own, row_of

FEATURE_NAMES = (
    "item_shown_fast",
    "item_ctr_fast",
    "item_shown_slow",
    "item_ctr_slow",
    "category_shown_fast",
    "category_ctr_fast",
    "category_shown_slow",
    "category_ctr_slow",
    "age",  # since published, or else since first counted; 0 where neither is known
    "unseen",  # 1: no impression of it was counted yet
    "unlisted",  # 1: not in the catalogue
)
N_FEATURES = len(FEATURE_NAMES)
PRIOR_CTR = 0.04  # the click rate of MIND's logs
PRIOR_SHOWN = 25.0  # = 1 / PRIOR_CTR: the prior weighs as much as one click
_PRIOR_CLICKS = PRIOR_CTR * PRIOR_SHOWN
_PRIOR_SKIPS = PRIOR_SHOWN - _PRIOR_CLICKS
_PRIOR_LOG_ODDS = math.log(_PRIOR_CLICKS / _PRIOR_SKIPS)
HOUR_MS = 3_600_000


@njit(cache=True, nogil=True)
def _log_odds(shown: float, clicked: float) -> float:
    skipped = max(shown - clicked, 0.0)
    return math.log((clicked + _PRIOR_CLICKS) / (skipped + _PRIOR_SKIPS)) - _PRIOR_LOG_ODDS


@njit(cache=True, nogil=True)
def _rates(out: NDArray[np.float32], at: int | np.int64, counts: Any) -> None:
    for half in range(2):
        shown, clicked = np.float64(counts[2 * half]), np.float64(counts[2 * half + 1])
        out[at + 2 * half] = math.log1p(shown)
        out[at + 2 * half + 1] = _log_odds(shown, clicked)


@njit(cache=True, nogil=True)
def _context(
    items: NDArray[np.int64],
    tick: int,
    tick_ms: int,
    powers: NDArray[np.float64],
    item: Any,
    category: Any,
    catalogue: Any,
) -> tuple[Any, Any]:
    slots, keys, values, last_tick, first_tick = item
    c_slots, c_keys, c_values, c_last_tick, _ = category
    slots_of_item, item_keys, newest, facts = catalogue
    out = np.empty((len(items), N_FEATURES), np.float32)
    rows = np.empty(len(items), np.int64)
    for i in range(len(items)):
        row = row_of(items[i], slots, keys)
        fact = row_as_of(items[i], tick, slots_of_item, item_keys, newest, facts)
        key = facts[fact, CATEGORY] if fact >= 0 else UNKNOWN
        c_row = row_of(key, c_slots, c_keys) if key != UNKNOWN else -1
        _rates(out[i], np.int64(0), decayed(values, last_tick, row, tick, powers))
        _rates(out[i], np.int64(4), decayed(c_values, c_last_tick, c_row, tick, powers))
        age_ms = 0
        if fact >= 0 and facts[fact, PUBLISHED] >= 0:
            age_ms = (tick + 1) * tick_ms - facts[fact, PUBLISHED]
        elif row >= 0:
            age_ms = (tick - first_tick[row]) * tick_ms
        out[i, 8] = math.log1p(max(age_ms / HOUR_MS, 0.0))
        out[i, 9] = 1.0 if row < 0 else 0.0
        out[i, 10] = 1.0 if fact < 0 else 0.0
        rows[i] = fact
    return out, rows


def context_and_rows(
    keys: NDArray[np.int64], counters: CounterState, catalogue: Catalogue, read_tick: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`item_context`, and the catalogue's row (n,) of each item as of `read_tick`."""
    counters.check(read_tick)
    tables = counters.item.columns, counters.category.columns, catalogue.columns
    ctx, rows = _context(own(keys), read_tick, counters.tick_ms, counters.powers, *tables)
    return ctx, rows


def item_context(
    keys: NDArray[np.int64], counters: CounterState, catalogue: Catalogue, read_tick: int
) -> NDArray[np.float32]:
    """Features (n, N_FEATURES) of items as of `read_tick`, in the order of FEATURE_NAMES.

    Raises ValueError where the counters are ahead of `read_tick`.
    """
    return context_and_rows(keys, counters, catalogue, read_tick)[0]
