"""When generations open: B and the midnights M, in ticks; each candidate is due at its tick + H.

    first tick with an impression, floored to the hour ──▶ first
    B = first + bootstrap                generation 0 is due at B + H
    every midnight M > B                 the next generation is due at M + H

A pure function of the first tick and the configuration: trainer, retrain and evaluator agree without asking.
"""

import math
from dataclasses import dataclass

from infra.config import Config
from infra.errors import ConfigError
from infra.ticks import Timeline


@dataclass(frozen=True, slots=True)
class Schedule:
    """The nightly chain of one run."""

    first: int  # first tick of the log, floored to the hour (a close tick is never before it)
    bootstrap: int  # B
    delay: int  # H, ticks
    day: int  # ticks a day

    @staticmethod
    def of(first_shown_tick: int, config: Config, timeline: Timeline) -> "Schedule":
        """Raises ConfigError where hours or H are no whole numbers of ticks, or H or the bootstrap make no chain."""
        if 3_600_000 % timeline.tick_ms:
            raise ConfigError(
                f"time.tick_s is {timeline.tick_ms // 1000}; the nightly chain needs whole ticks in an hour: "
                "take a divisor of 3600"
            )
        hours = config.train.bootstrap_hours
        bootstrap = round(hours * timeline.ticks_per_hour) if math.isfinite(hours) else 0
        if bootstrap < 1 or abs(bootstrap - hours * timeline.ticks_per_hour) > 1e-6:
            raise ConfigError(
                f"train.bootstrap_hours is {hours}; it must be a whole number of ticks of {timeline.tick_ms // 1000} s "
                "(time.tick_s), 1 or more"
            )
        delay_ms = config.train.promotion_delay_s * 1000
        if delay_ms <= 0 or delay_ms % timeline.tick_ms or delay_ms >= timeline.ticks_per_day * timeline.tick_ms:
            raise ConfigError(
                f"train.promotion_delay_s is {config.train.promotion_delay_s}; it must be a whole number of ticks of "
                f"{timeline.tick_ms // 1000} s, and less than a day"
            )
        first = first_shown_tick // timeline.ticks_per_hour * timeline.ticks_per_hour
        return Schedule(first, first + bootstrap, delay_ms // timeline.tick_ms, timeline.ticks_per_day)

    def cut_after(self, cut: int | None) -> int:
        """The cut (B or a midnight) that follows `cut`; None asks for B. A retrain takes what closes before its cut."""
        if cut is None:
            return self.bootstrap
        return (cut // self.day + 1) * self.day

    def due(self, cut: int) -> int:
        """The tick at whose end the candidate of a cut takes effect."""
        return cut + self.delay

    def cut_due_after(self, tick: int) -> int:
        """The first cut whose candidate is due after `tick`."""
        cut = self.cut_after(None)
        while self.due(cut) <= tick:
            cut = self.cut_after(cut)
        return cut

    def trained_on(self, cut: int) -> tuple[int, int]:
        """First and last close tick that the retrain of a cut learns: what was before, or its own day.

        The bootstrap, and the first midnight (which replaces it, from scratch), take everything before them.
        """
        first = self.first if self.from_scratch(cut) else cut - self.day
        return first, cut - 1

    def from_scratch(self, cut: int) -> bool:
        """Whether the retrain of this cut starts anew and does not continue the one before."""
        return cut <= self.cut_after(self.bootstrap)


def nightly_name(cut: int) -> str:
    """Snapshot of what the retrain of a cut made."""
    return f"nightly-{cut:010d}"


def candidate_name(due: int) -> str:
    """Snapshot of a candidate: the retrain and every tick since, through `due`."""
    return f"candidate-{due:010d}"
