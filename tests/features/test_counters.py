"""Counters against a recomputation over the whole history, and the laws that restarts and replicas lean on."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.features.counter_kernels import decay_factor, powers
from stream.features.counters import NAMESPACES, CounterDelta, CounterState, LaggedCounters

SEEDS = st.integers(0, 2**32)
few = settings(max_examples=25, deadline=None, derandomize=True)
HALF_LIVES_TICKS = (30.0, 360.0)


def straight(world, examples, through):
    """A state that learned every tick up to `through`, and nothing else."""
    state = CounterState.build(world.model, world.timeline)
    for close, part in world.by_close_tick(examples):
        if close <= through:
            state.learn(close, part.items.values, part.labels.values, world.catalogue)
    return state


def brute_force(world, examples, namespace, keys, through, tick):
    """(n, 4) float64: every shown item of every tick up to `through`, weighted by 2^(-age / half-life)."""
    out = np.zeros((len(keys), 4))
    place = {int(k): i for i, k in enumerate(keys)}
    for close, part in world.by_close_tick(examples):
        if close > through:
            continue
        for item, label in zip(part.items.values.tolist(), part.labels.values.tolist(), strict=True):
            key = item if namespace == "item" else world.category_of.get(item, 0)
            if key in place and (namespace == "item" or key != 0):
                for half, half_life in enumerate(HALF_LIVES_TICKS):
                    weight = 2.0 ** (-(tick - close) / half_life)
                    out[place[key], 2 * half] += weight
                    out[place[key], 2 * half + 1] += weight * (label & 1)
    return out


def keys_of(world, namespace):
    return np.array([*world.items, 7, 8, 9, 10, 11]) if namespace == "item" else np.arange(5)


@given(ticks=st.integers(0, 100_000), more=st.integers(0, 100_000))
@few
def test_decay_is_the_power_of_two_it_says_and_composes(ticks, more):
    table = powers((1_800_000, 21_600_000), 60_000)[1]
    exact = 2.0 ** (-ticks / 360)
    assert decay_factor(ticks, table) == pytest.approx(exact if exact >= 2.0**-60 else 0.0, rel=1e-12)
    both = decay_factor(ticks, table) * decay_factor(more, table)
    assert decay_factor(ticks + more, table) == pytest.approx(both if both >= 2.0**-60 else 0.0, rel=1e-12)


@pytest.mark.parametrize("namespace", NAMESPACES)
@given(seed=SEEDS)
@few
def test_counters_equal_a_recomputation_over_the_whole_history(world, namespace, seed):
    examples = world.examples(seed, ticks=200, impressions=60)
    through = int(examples.shown_ms[40] // 60_000)
    keys = keys_of(world, namespace)
    values, _ = straight(world, examples, through).read(namespace, keys, through + 17)
    want = brute_force(world, examples, namespace, keys, through, through + 17)
    np.testing.assert_allclose(values, want, rtol=2e-6, atol=1e-6)


@given(seed=SEEDS)
@few
def test_the_order_of_examples_within_a_tick_changes_nothing(world, seed):
    examples = world.examples(seed, ticks=3)
    shuffled = examples.take(np.random.default_rng(seed).permutation(len(examples)))
    end = int(examples.shown_ms[-1] // 60_000) + 2
    assert straight(world, examples, end).digest() == straight(world, shuffled, end).digest()


# How to read counters "as shown" for close tick c: (lagged, live tick, c) -> (state, tick to decay to).
Reader = Callable[[LaggedCounters, int, int], tuple[CounterState, int]]


def check_as_shown(world, seed, timeline, reader: Reader, learn_first=False):
    """The law: what tick c reads is bit-equal to a straight state stopped at live(c - a) and decayed to it."""
    examples = world.examples(seed, ticks=9, impressions=60)
    lagged = LaggedCounters.build(world.model, timeline)
    for close, part in world.by_close_tick(examples):
        live = world.timeline.live_at_close(close)
        if learn_first:
            lagged.learn(close, part.items.values, part.labels.values, world.catalogue)
        state, tick = reader(lagged, live, close)
        for namespace in NAMESPACES:
            keys = keys_of(world, namespace)
            got, got_first = state.read(namespace, keys, tick)
            want, want_first = straight(world, examples, live).read(namespace, keys, live)
            assert np.array_equal(got, want)
            assert np.array_equal(got_first, want_first)
        if not learn_first:
            lagged.learn(close, part.items.values, part.labels.values, world.catalogue)
        assert len(lagged.pending) <= world.timeline.lag_ticks


def as_shown(lagged, live, close):
    return lagged.as_shown(close), live


@given(seed=SEEDS)
@few
def test_lagging_counters_are_bit_equal_to_a_state_stopped_at_the_live_tick(world, seed):
    check_as_shown(world, seed, world.timeline, as_shown)


@pytest.mark.parametrize(
    ("bug", "longer", "learn_first"),
    [
        pytest.param(as_shown, -1, False, id="ring one too short"),
        pytest.param(as_shown, +1, False, id="ring one too long"),
        pytest.param(lambda lagged, live, close: (lagged.newest, live), 0, False, id="newest state, live tick"),
        pytest.param(lambda lagged, live, close: (lagged.newest, close - 1), 0, False, id="read at close time"),
        pytest.param(lambda lagged, live, close: (lagged.newest, close), 0, True, id="own click in own features"),
        pytest.param(lambda lagged, live, close: (lagged.as_shown(close), close - 2), 0, False, id="decayed to shown"),
        pytest.param(lambda lagged, live, close: (lagged.as_shown(close), close), 0, False, id="decayed to now"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_wrong_reading_of_counters_breaks_the_law(world, with_timeline, seed, bug, longer, learn_first):
    timeline = with_timeline(world.timeline, publish_ticks=world.timeline.publish_ticks + longer)
    with pytest.raises((AssertionError, ValueError)):
        check_as_shown(world, seed, timeline, bug, learn_first)


def test_a_state_refuses_to_answer_for_a_tick_before_its_newest_update(world):
    examples = world.examples(1)
    end = int(examples.shown_ms[-1] // 60_000) + 2
    state = straight(world, examples, end)
    with pytest.raises(ValueError, match="would leak labels"):
        state.read("item", world.items, end - 1)


def test_lagging_counters_never_go_back_nor_count_a_tick_twice(world):
    lagged = LaggedCounters.build(world.model, world.timeline)
    (close, part), *_ = world.by_close_tick(world.examples(2))
    lagged.learn(close, part.items.values, part.labels.values, world.catalogue)
    with pytest.raises(ValueError, match="counted already"):
        lagged.learn(close, part.items.values, part.labels.values, world.catalogue)
    with pytest.raises(ValueError, match="cannot go back"):
        lagged.as_shown(close)


@given(seed=SEEDS, repeats=st.integers(1, 3))
@few
def test_deltas_rebuild_the_state_however_often_they_are_applied(world, seed, repeats):
    examples = world.examples(seed, ticks=6)
    source, replica = (CounterState.build(world.model, world.timeline) for _ in range(2))
    for close, part in world.by_close_tick(examples):
        delta = source.learn(close, part.items.values, part.labels.values, world.catalogue)
        for _ in range(repeats):
            replica.apply(CounterDelta.from_tensors(delta.tensors()))
        assert replica.digest() == source.digest()
        assert replica.tick == source.tick


@given(seed=SEEDS, cut=st.integers(0, 8))
@few
def test_a_restored_snapshot_continues_bit_equal(world, seed, cut):
    examples = world.examples(seed, ticks=8)
    going = LaggedCounters.build(world.model, world.timeline)
    for i, (close, part) in enumerate(world.by_close_tick(examples)):
        if i == cut:
            going_on = LaggedCounters.restore(going.export(), world.model, world.timeline)
            assert [d.tick for d in going_on.pending] == [d.tick for d in going.pending]
        for pair in (going, going_on) if i >= cut else (going,):
            pair.as_shown(close)
            delta = pair.learn(close, part.items.values, part.labels.values, world.catalogue)
            if pair is going:
                want = delta.tensors()
            else:
                assert all(np.array_equal(want[k], v) for k, v in delta.tensors().items())
                assert (pair.newest.digest(), pair.lagged.digest()) == (going.newest.digest(), going.lagged.digest())


def test_a_copy_is_independent(world):
    examples = world.examples(5)
    first, *_, last = world.by_close_tick(examples)
    lagged = LaggedCounters.build(world.model, world.timeline)
    lagged.learn(first[0], first[1].items.values, first[1].labels.values, world.catalogue)
    before, twin = lagged.newest.digest(), lagged.copy()
    twin.learn(last[0], last[1].items.values, last[1].labels.values, world.catalogue)
    assert lagged.newest.digest() == before != twin.newest.digest()


def test_growth_loses_no_row(world):
    state = CounterState.build(world.model, world.timeline)
    keys = np.random.default_rng(0).permutation(np.arange(-5_000, 5_000)).astype(np.int64)
    ones = np.ones(1_000, np.int64)
    for tick in range(10):
        state.update("item", tick, keys[tick * 1_000 : (tick + 1) * 1_000], ones, ones)
    _, first = state.read("item", keys, 10)
    assert np.array_equal(first, np.repeat(np.arange(10), 1_000))
    assert len(state.item) == 10_000
