"""When generations open: a pure function of the first tick and the configuration."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.config import Config, load_config
from infra.errors import ConfigError
from trainer.schedule import Schedule, candidate_name, nightly_name

TICKS_S = (1, 2, 5, 10, 15, 30, 60, 90, 120, 300, 3600)


def config(tick_s: int, bootstrap_hours: int, delay_ticks: int) -> Config:
    return load_config(
        env={},
        overrides=[
            f"time.tick_s={tick_s}",
            f"time.attribution_s={2 * tick_s}",
            f"train.bootstrap_hours={bootstrap_hours}",
            f"train.promotion_delay_s={delay_ticks * tick_s}",
        ],
    )


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, int, Config]:
    tick_s = draw(st.sampled_from(TICKS_S))
    delay = draw(st.integers(1, 86_400 // tick_s - 1))
    made = config(tick_s, draw(st.integers(1, 60)), delay)
    first = draw(st.integers(1_573_000_000, 1_573_300_000)) // tick_s
    return Schedule.of(first, made, made.time.build()), first, made


@settings(max_examples=100, deadline=None)
@given(schedules())
def test_the_bootstrap_is_whole_hours_from_the_hour_of_the_first_tick(drawn: tuple[Schedule, int, Config]) -> None:
    schedule, first, made = drawn
    hour = made.time.build().ticks_per_hour
    assert schedule.first % hour == 0
    assert schedule.first <= first < schedule.first + hour
    assert schedule.bootstrap == schedule.first + made.train.bootstrap_hours * hour


@settings(max_examples=100, deadline=None)
@given(schedules())
def test_cuts_after_the_bootstrap_are_every_midnight(drawn: tuple[Schedule, int, Config]) -> None:
    schedule, _, made = drawn
    cuts = [schedule.cut_after(None)]
    for _ in range(4):
        cuts.append(schedule.cut_after(cuts[-1]))
    assert cuts[0] == schedule.bootstrap
    assert all(made.time.build().start_ms(cut) % 86_400_000 == 0 for cut in cuts[1:])
    assert 0 < cuts[1] - cuts[0] <= schedule.day
    assert [b - a for a, b in pairwise(cuts[1:])] == [schedule.day] * 3


@settings(max_examples=100, deadline=None)
@given(schedules(), st.integers(-10, 300))
def test_the_cut_due_after_a_tick_is_the_first_whose_candidate_is_not_due_by_then(
    drawn: tuple[Schedule, int, Config], ahead_17ths: int
) -> None:
    schedule, first, _ = drawn
    tick, cut, due = first + ahead_17ths * schedule.day // 17, None, []
    for _ in range(40):
        cut = schedule.cut_after(cut)
        due.append(cut)
        if schedule.due(cut) > tick:
            break
    assert schedule.cut_due_after(tick) == due[-1]
    assert all(schedule.due(c) <= tick for c in due[:-1])


@settings(max_examples=100, deadline=None)
@given(schedules())
def test_every_closed_tick_is_retrained_exactly_once_after_the_first_midnight(
    drawn: tuple[Schedule, int, Config],
) -> None:
    schedule, _, _ = drawn
    bootstrap = schedule.bootstrap
    assert schedule.trained_on(bootstrap) == (schedule.first, bootstrap - 1)
    cut = schedule.cut_after(bootstrap)
    first, last = schedule.trained_on(cut)
    assert (first, last) == (schedule.first, cut - 1)  # replaces the bootstrap
    assert schedule.from_scratch(cut)
    for _ in range(3):
        cut, before = schedule.cut_after(cut), last
        first, last = schedule.trained_on(cut)
        assert (first, last) == (before + 1, cut - 1)
        assert not schedule.from_scratch(cut)


@settings(max_examples=100, deadline=None)
@given(schedules())
def test_names_sort_as_the_ticks_do(drawn: tuple[Schedule, int, Config]) -> None:
    schedule, first, _ = drawn
    for name in (nightly_name, candidate_name):
        assert name(first) < name(first + 1) < name(schedule.bootstrap + schedule.day)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("train.promotion_delay_s=90", "whole number of ticks"),
        ("train.promotion_delay_s=0", "whole number of ticks"),
        ("train.promotion_delay_s=86400", "less than a day"),
        ("train.bootstrap_hours=0.51", "whole number of ticks"),
    ],
)
def test_what_makes_no_chain_is_refused(wrong: str, says: str) -> None:
    made = load_config(env={}, overrides=[wrong])
    with pytest.raises(ConfigError, match=says):
        Schedule.of(0, made, made.time.build())


def test_the_bootstrap_of_a_short_log_is_whole_ticks() -> None:
    made = load_config(env={}, overrides=[f"train.bootstrap_hours={44 / 60}"])
    assert Schedule.of(60, made, made.time.build()).bootstrap == 60 + 44


def test_a_tick_that_does_not_divide_the_hour_is_refused() -> None:
    made = load_config(env={}, overrides=["time.tick_s=7", "time.attribution_s=14", "train.promotion_delay_s=700"])
    with pytest.raises(ConfigError, match="divisor of 3600"):
        Schedule.of(0, made, made.time.build())
