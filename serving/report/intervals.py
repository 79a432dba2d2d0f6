"""How sure a difference between two arms is: a paired bootstrap over hours (Efron 1979).

Every arm scores the same impressions, so hours are drawn once for all arms: what makes an hour hard for one makes it
hard for the others, and leaves their difference. Seeded; a report of the same run is the same report. Hours count as
independent of each other; where they are not, the true interval is wider.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
LEVEL = 0.95
SEED = 1
LEAST_HOURS = 8  # fewer say nothing about how hours differ
_AT_ONCE = 100

Floats = NDArray[np.float64]
Interval = tuple[float, float]


def later_hours(arm: Mapping[str, Any], day_ms: int = 86_400_000) -> list[Mapping[str, Any]]:
    """The hours that an arm's `later` figures are over: all but the first day's, where that was scored at all."""
    hours: list[Mapping[str, Any]] = list(arm.get("by_hour", ()))
    after = [hour for hour in hours if hour["start_ms"] // day_ms > hours[0]["start_ms"] // day_ms]
    same = sum(hour["impressions"] for hour in after) == arm.get("later", {}).get("impressions")
    return after if same else hours


def resampled(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[dict[str, Floats], int]:
    """Mean impression AUC of each arm in RESAMPLES draws of the hours (RESAMPLES,), and how many hours there are.

    `arms`: entries by hour, of the same hours. Hours in which an arm ranked nothing are left out; no draws where fewer
    than LEAST_HOURS are left.
    """
    names = list(arms)
    by_start = [{h["start_ms"]: h for h in arms[name] if h["ranked"]} for name in names]
    starts = sorted(set.intersection(*(set(hours) for hours in by_start))) if names else []
    if len(starts) < LEAST_HOURS:
        return {}, len(starts)
    ranked = np.array([[hours[at]["ranked"] for hours in by_start] for at in starts], dtype=np.float64)
    sums = ranked * np.array([[hours[at]["auc_impression"] for hours in by_start] for at in starts])
    rng, n = np.random.default_rng(SEED), len(starts)
    means = []
    for _ in range(RESAMPLES // _AT_ONCE):
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=_AT_ONCE).astype(np.float64)
        means.append((drawn @ sums) / (drawn @ ranked))
    return dict(zip(names, np.concatenate(means).T, strict=True)), n


def interval(draws: Floats) -> Interval:
    """The middle LEVEL of some draws."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
