"""The evaluator's books: sums per arm and event hour, from which days and the whole follow.

An impression belongs to the hour and the day (UTC) in which it was shown; impressions arrive in order of shown tick, so
an hour is closed when the next one begins. Histograms for the pooled AUC are kept for the open hour, the open day, the
whole and the days after the first; a closed scope keeps its one number. The books are data: what `save` returns,
`restore` continues from, to the bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.evaluator.metrics import (
    BINS,
    CLICKS,
    COLUMNS,
    IMPRESSIONS,
    RANKED,
    ROWS,
    UNSCORED,
    add_scores,
    figures,
    pooled_auc,
)

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
HOURS_A_DAY = 24
# Histograms, by scope. "later": days after the first, when every arm has had a night.
OPEN_HOUR, OPEN_DAY, WHOLE, LATER = range(4)

Entry = dict[str, Any]


class Ledger:
    """Sums and pooled AUC of every arm, per hour, per day, over the whole and over the days after the first."""

    def __init__(self, arms: Sequence[str], *, first_ms: int) -> None:
        self.arms = tuple(arms)
        self._first_day = first_ms // DAY_MS
        self._hours: dict[int, NDArray[np.float64]] = {}
        self._hour_auc: dict[int, list[float]] = {}
        self._day_auc: dict[int, list[float]] = {}
        self._histograms = np.zeros((4, len(arms), 2, BINS), np.int64)

    def add(
        self,
        shown_ms: int,
        offsets: NDArray[np.int64],
        labels: NDArray[np.uint8],
        f: NDArray[np.float32],
        logit: NDArray[np.float32],
    ) -> None:
        """Count the impressions of one shown tick; f and logit are (arms, rows). ValueError if it goes back in time."""
        hour = shown_ms // HOUR_MS
        last = next(reversed(self._hours), None)
        if last is not None and hour < last:
            raise ValueError(f"impressions of hour {hour} after hour {last} was closed")
        if hour not in self._hours:
            if last is not None:
                self._close_hour(last, next_hour=hour)
            self._hours[hour] = np.zeros((len(self.arms), COLUMNS))
        add_scores(offsets, labels, f, logit, self._hours[hour], self._histograms[OPEN_HOUR])

    def _close_hour(self, hour: int, *, next_hour: int) -> None:
        h = self._histograms
        self._hour_auc[hour] = [pooled_auc(x) for x in h[OPEN_HOUR]]
        h[OPEN_DAY] += h[OPEN_HOUR]
        h[OPEN_HOUR] = 0
        day = hour // HOURS_A_DAY
        if next_hour // HOURS_A_DAY != day:
            self._day_auc[day] = [pooled_auc(x) for x in h[OPEN_DAY]]
            h[WHOLE] += h[OPEN_DAY]
            if day > self._first_day:
                h[LATER] += h[OPEN_DAY]
            h[OPEN_DAY] = 0

    def last_hour(self, arm: str) -> Entry | None:
        """Figures of the open hour, for the live display; pooled AUC left out."""
        if not self._hours:
            return None
        hour = next(reversed(self._hours))
        return _entry(self._hours[hour][self.arms.index(arm)], float("nan"), start_ms=hour * HOUR_MS)

    def report(self) -> dict[str, Entry]:
        """Per arm: figures over all scored rows, `later`, `by_day` and `by_hour`. Changes nothing."""
        h = self._histograms
        last = next(reversed(self._hours), None)
        open_day = h[OPEN_DAY] + h[OPEN_HOUR]
        later = h[LATER] + (open_day if last is not None and last // HOURS_A_DAY > self._first_day else 0)
        hour_auc, day_auc = dict(self._hour_auc), dict(self._day_auc)
        if last is not None:
            hour_auc[last] = [pooled_auc(x) for x in h[OPEN_HOUR]]
            day_auc[last // HOURS_A_DAY] = [pooled_auc(x) for x in open_day]
        days = self._days()
        out: dict[str, Entry] = {}
        for a, arm in enumerate(self.arms):
            total = sum((s[a] for s in days.values()), np.zeros(COLUMNS))
            after = sum((s[a] for d, s in days.items() if d > self._first_day), np.zeros(COLUMNS))
            out[arm] = _entry(total, pooled_auc(h[WHOLE][a] + open_day[a]))
            out[arm]["later"] = _entry(after, pooled_auc(later[a]))
            out[arm]["by_day"] = [_entry(s[a], day_auc[d][a], start_ms=d * DAY_MS) for d, s in days.items()]
            out[arm]["by_hour"] = [_entry(s[a], hour_auc[i][a], start_ms=i * HOUR_MS) for i, s in self._hours.items()]
        return out

    def _days(self) -> dict[int, NDArray[np.float64]]:
        days: dict[int, NDArray[np.float64]] = {}
        for hour, sums in self._hours.items():
            day = hour // HOURS_A_DAY
            days[day] = days[day] + sums if day in days else sums.copy()
        return days

    def save(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays that later additions do not reach."""
        arms = len(self.arms)
        return {
            "first_day": np.array(self._first_day, np.int64),
            "hours": np.array(list(self._hours), np.int64),
            "sums": np.array(list(self._hours.values())).reshape(-1, arms, COLUMNS),
            "hour_auc_of": np.array(list(self._hour_auc), np.int64),
            "hour_auc": np.array(list(self._hour_auc.values())).reshape(-1, arms),
            "day_auc_of": np.array(list(self._day_auc), np.int64),
            "day_auc": np.array(list(self._day_auc.values())).reshape(-1, arms),
            "histograms": self._histograms.copy(),
        }

    @classmethod
    def restore(cls, arms: Sequence[str], saved: Mapping[str, NDArray[Any]]) -> "Ledger":
        """The books as `save` left them."""
        ledger = cls(arms, first_ms=int(saved["first_day"]) * DAY_MS)
        ledger._hours = {int(h): s.copy() for h, s in zip(saved["hours"], saved["sums"], strict=True)}
        for name in ("hour_auc", "day_auc"):
            rows = zip(saved[f"{name}_of"], saved[name], strict=True)
            setattr(ledger, f"_{name}", {int(i): [float(x) for x in row] for i, row in rows})
        ledger._histograms = saved["histograms"].copy()
        return ledger


def _entry(sums: NDArray[np.float64], auc: float, *, start_ms: int | None = None) -> Entry:
    head: Entry = {} if start_ms is None else {"start_ms": start_ms}
    counts = {
        "impressions": int(sums[IMPRESSIONS]),
        "ranked": int(sums[RANKED]),
        "shown_items": int(sums[ROWS]),
        "clicks": int(sums[CLICKS]),
        "unscored": int(sums[UNSCORED]),
    }
    return {**head, **figures(sums, auc)._asdict(), **counts}
