"""Ticks, the attribution window and the live version: the sums of the design, spelled out."""

from hypothesis import given
from hypothesis import strategies as st

from infra.config import TimeConfig


def test_with_the_defaults_a_tick_two_back_is_the_version_surely_held() -> None:
    timeline = TimeConfig().build()
    assert (timeline.attribution_ticks, timeline.publish_ticks) == (2, 1)
    assert timeline.close_tick(100) == 102
    assert timeline.live(100) == 98
    assert timeline.live_at_close(102) == 98
    assert timeline.ticks_per_day == 1440


@given(watermark_ms=st.integers(0, 10**13), tick_s=st.integers(1, 120))
def test_a_tick_is_closed_exactly_when_the_watermark_reached_its_end(watermark_ms: int, tick_s: int) -> None:
    timeline = TimeConfig(tick_s=tick_s, attribution_s=tick_s * 2).build()
    closed = timeline.closed_through(watermark_ms)
    assert timeline.end_ms(closed) <= watermark_ms < timeline.end_ms(closed + 1)


@given(last=st.integers(0, 10**8), tick_s=st.integers(1, 120), a=st.integers(1, 10), bound=st.floats(0, 60))
def test_the_heartbeat_that_ends_a_replay_closes_its_last_tick(last: int, tick_s: int, a: int, bound: float) -> None:
    timeline = TimeConfig(tick_s=tick_s, attribution_s=a * tick_s, disorder_bound_s=bound).build()
    watermark = timeline.replay_end_ms(last) - timeline.disorder_bound_ms
    assert timeline.closed_through(watermark) == timeline.close_tick(last)


@given(tick_s=st.integers(1, 120), bound=st.integers(0, 100), allowance=st.integers(0, 300))
def test_the_live_version_was_due_before_the_tick_began(tick_s: int, bound: int, allowance: int) -> None:
    timeline = TimeConfig(
        tick_s=tick_s, attribution_s=tick_s, disorder_bound_s=float(bound), publish_allowance_s=float(allowance)
    ).build()
    shown = 1_000
    due_ms = timeline.end_ms(timeline.live(shown)) + (bound + allowance) * 1000
    assert due_ms <= timeline.start_ms(shown)
