"""Event time in ticks, and the three numbers that every room must agree on.

A tick t is the event time [t·T, (t+1)·T), counted from the epoch. An impression shown in tick s closes in
tick c = s + a, and whatever needs a value "as it was when shown" reads version live(s) = s − 1 − k: the newest
version that every replica is certain to hold throughout tick s, from configuration, never from observation.
"""

from dataclasses import dataclass

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Timeline:
    """The clockwork of a run: T, a and k. Built by `TimeConfig.build()`."""

    tick_ms: int
    attribution_ticks: int  # a
    publish_ticks: int  # k = ceil((disorder bound + publish allowance) / T)
    disorder_bound_ms: int
    skew_ms: int

    def tick_of(self, time_ms: int) -> int:
        """The tick that holds this event time (ms since the epoch)."""
        return time_ms // self.tick_ms

    def start_ms(self, tick: int) -> int:
        """First millisecond of a tick."""
        return tick * self.tick_ms

    def end_ms(self, tick: int) -> int:
        """First millisecond after a tick."""
        return (tick + 1) * self.tick_ms

    def close_tick(self, shown_tick: int) -> int:
        """c = s + a: the tick in which an impression shown in tick s closes and is learned."""
        return shown_tick + self.attribution_ticks

    def live(self, shown_tick: int) -> int:
        """live(s) = s − 1 − k."""
        return shown_tick - 1 - self.publish_ticks

    def live_at_close(self, close_tick: int) -> int:
        """live(c − a): the version that scored what closes in tick c."""
        return self.live(close_tick - self.attribution_ticks)

    @property
    def lag_ticks(self) -> int:
        """a + k: how many deltas the lagging counters keep pending while tick c is learned."""
        return self.attribution_ticks + self.publish_ticks

    @property
    def ticks_per_day(self) -> int:
        return DAY_S * 1000 // self.tick_ms

    @property
    def ticks_per_hour(self) -> int:
        return 3600 * 1000 // self.tick_ms

    def closed_through(self, watermark_ms: int) -> int:
        """The newest tick that watermark W closes: the largest t with (t+1)·T ≤ W."""
        return watermark_ms // self.tick_ms - 1

    def replay_end_ms(self, last_event_tick: int) -> int:
        """`ingested_at` of the heartbeat that ends a replay, so that its last tick closes."""
        return (last_event_tick + self.attribution_ticks + 1) * self.tick_ms + self.disorder_bound_ms
