"""Batches against a slow reading of the examples, and the equality of online, retrain and serving."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.columns import Lists
from stream.features.batch import SLOTS, build_batch, request
from stream.features.context import FEATURE_NAMES, item_context
from stream.features.counters import LaggedCounters
from stream.features.day import attach_context
from stream.sampling import Sampling

SEEDS = st.integers(0, 2**32)
few = settings(max_examples=25, deadline=None, derandomize=True)


def online(world, examples, sampling=None):
    """[(close tick, examples, batch)] as the minute loop makes them."""
    lagged, out = LaggedCounters.build(world.model, world.timeline), []
    for close, part in world.by_close_tick(examples):
        live = world.timeline.live_at_close(close)
        known = lagged.as_shown(close)
        batch = build_batch(part, known, world.catalogue, live, world.model, sampling=sampling or Sampling())
        out.append((close, part, batch))
        lagged.learn(close, part.items.values, part.labels.values, world.catalogue)
    return out, lagged


def rows_of(batch):
    """Every row as plain numbers: what a net can see of it, whatever the layout."""
    keys = batch.keys
    out = []
    for r in range(batch.n_rows):
        i, v = batch.imp_of_row[r], batch.item_of_row[r]
        history = batch.history[batch.history_offsets[i] : batch.history_offsets[i + 1]]
        words = batch.words[batch.word_offsets[v] : batch.word_offsets[v + 1]]
        known = [int(keys[s][x]) if x >= 0 else None for s, x in (
            ("user", batch.user[i]), ("hour", batch.hour[i]), ("item", batch.item[v]),
            ("category", batch.category[v]), ("subcategory", batch.subcategory[v]),
        )]  # fmt: skip
        read = batch.read[batch.history_offsets[i] : batch.history_offsets[i + 1]]
        lists = keys["history"][history].tolist(), keys["words"][words].tolist(), [content(batch, x) for x in read]
        ctx = batch.ctx[batch.ctx_of_row[r]].tobytes()
        out.append((*known, *lists, int(batch.position[r]), float(batch.label[r]), ctx))
    return out


def content(batch, x):
    """Subcategory and title of the x-th distinct catalogue row that was read; None where nothing is known."""
    if x < 0:
        return None
    shelf = batch.read_subcategory[x]
    words = batch.read_words[batch.read_word_offsets[x] : batch.read_word_offsets[x + 1]]
    return int(batch.keys["read_subcategory"][shelf]) if shelf >= 0 else None, batch.keys["words"][words].tolist()


@given(seed=SEEDS)
@few
def test_a_batch_says_what_the_examples_say(world, seed):
    for _, part, batch in online(world, world.examples(seed))[0]:
        rows = iter(rows_of(batch))
        for i in range(len(part)):
            for position, (item, label) in enumerate(zip(part.items[i], part.labels[i], strict=True)):
                user, hour, key, category, _, history, words, read, at, clicked, _ = next(rows)
                assert (user, key, clicked, at) == (part.user[i], item, label & 1, min(position, 3))
                assert hour == part.shown_ms[i] // 3_600_000 % 24
                assert history == part.history[i][-5:].tolist()
                assert category == (world.category_of.get(int(item), 0) or None)
                assert words == world.words_of.get(int(item), [])[:4]
                assert [x and x[1] for x in read] == [
                    world.words_of[int(k)][:4] if int(k) in world.words_of else None for k in part.history[i][-5:]
                ]
        assert next(rows, None) is None
        assert all(len(np.unique(batch.keys[s])) == len(batch.keys[s]) for s in SLOTS)
        assert batch.row_offsets.tolist() == part.items.offsets.tolist()


@given(seed=SEEDS)
@few
def test_the_features_of_a_tick_do_not_depend_on_labels_that_nobody_had_when_it_was_shown(world, seed):
    examples = world.examples(seed, ticks=9)
    honest, _ = online(world, examples)
    for close, _, batch in honest[len(honest) // 2 :]:
        unseen = examples.shown_ms // 60_000 + world.timeline.attribution_ticks > world.timeline.live_at_close(close)
        flip = np.repeat(unseen, examples.labels.lengths)
        labels = np.where(flip, examples.labels.values ^ 1, examples.labels.values)
        changed = type(examples)(
            *(getattr(examples, f) for f in examples.__slots__ if f != "labels"), Lists(examples.labels.offsets, labels)
        )
        again = next(b for c, _, b in online(world, changed)[0] if c == close)
        assert np.array_equal(again.ctx, batch.ctx)
        assert np.array_equal(again.label, 1 - batch.label)


@given(seed=SEEDS)
@few
def test_shuffled_batches_of_a_day_see_bit_for_bit_what_the_minute_loop_saw(world, seed):
    examples = world.examples(seed, ticks=9)
    by_tick, lagged = online(world, examples)
    counters = LaggedCounters.build(world.model, world.timeline)
    day = attach_context(examples, counters, world.catalogue, world.timeline)
    want = dict(enumerate(rows for _, part, b in by_tick for rows in split(b)))
    order = np.random.default_rng(seed).permutation(len(examples))
    for select in np.array_split(order, 4):
        got = split(day.batch(select, world.model))
        assert got == [want[int(i)] for i in select]
    assert counters.newest.digest() == lagged.newest.digest()
    assert counters.lagged.digest() == lagged.lagged.digest()


def split(batch):
    rows = rows_of(batch)
    return [rows[a:b] for a, b in zip(batch.row_offsets, batch.row_offsets[1:], strict=False)]


def test_a_day_out_of_order_is_refused(world):
    examples = world.examples(3)
    backwards = examples.take(np.arange(len(examples))[::-1].copy())
    with pytest.raises(ValueError, match=r"cannot go back|counted already"):
        attach_context(backwards, LaggedCounters.build(world.model, world.timeline), world.catalogue, world.timeline)


def test_an_empty_day_has_no_context(world):
    empty = world.examples(3).slice(0, 0)
    day = attach_context(empty, LaggedCounters.build(world.model, world.timeline), world.catalogue, world.timeline)
    assert day.ctx.shape == (0, len(FEATURE_NAMES))
    assert day.batch(np.empty(0, np.int64), world.model).n_rows == 0


@given(seed=SEEDS)
@few
def test_a_request_pinned_to_the_live_version_has_the_features_the_trainer_had(world, seed):
    examples = world.examples(seed, ticks=6)
    batches, _ = online(world, examples)
    lagged = LaggedCounters.build(world.model, world.timeline)
    for close, part, batch in batches:
        replica, live = lagged.as_shown(close), world.timeline.live_at_close(close)
        for i, rows in enumerate(split(batch)):
            asked = request(
                user=int(part.user[i]), time_ms=int(part.shown_ms[i]), history=part.history[i], items=part.items[i]
            )
            served = rows_of(build_batch(asked, replica, world.catalogue, live, world.model))
            assert [(*r[:9], r[10]) for r in served] == [(*r[:9], r[10]) for r in rows]  # all but the label
        lagged.learn(close, part.items.values, part.labels.values, world.catalogue)


@given(seed=SEEDS)
@few
def test_features_of_an_item_do_not_depend_on_what_else_is_asked(world, seed):
    examples = world.examples(seed)
    counters = online(world, examples)[1].newest
    keys = np.random.default_rng(seed).choice(np.concatenate([world.items, [7, 999]]), 50)
    together = item_context(keys, counters, world.catalogue, counters.tick + 3)
    alone = [item_context(keys[i : i + 1], counters, world.catalogue, counters.tick + 3)[0] for i in range(50)]
    assert np.array_equal(together, np.array(alone))
    read_only = keys.copy()
    read_only.flags.writeable = False
    assert np.array_equal(together, item_context(read_only, counters, world.catalogue, counters.tick + 3))


def test_features_are_the_formulas_they_are_named_after(world):
    examples = world.examples(11, unlisted=False)
    counters = online(world, examples)[1].newest
    tick = counters.tick + 5
    ctx = item_context(world.items, counters, world.catalogue, tick)
    values, first = counters.read("item", world.items, tick)
    facts = world.catalogue.facts[world.catalogue.rows(world.items, tick)]
    for row, (shown, clicked, *_), seen, published in zip(ctx, values, first, facts[:, 2], strict=True):
        by_name = dict(zip(FEATURE_NAMES, row.tolist(), strict=True))
        assert by_name["item_shown_fast"] == pytest.approx(math.log1p(shown), rel=1e-6)
        odds = (clicked + 1) / (max(shown - clicked, 0) + 24)
        assert by_name["item_ctr_fast"] == pytest.approx(math.log(odds * 24), rel=1e-5, abs=1e-6)
        since = (tick + 1) * 60_000 - published if published >= 0 else (tick - seen) * 60_000 if seen >= 0 else 0
        assert by_name["age"] == pytest.approx(math.log1p(since / 3_600_000), rel=1e-6)
        assert (by_name["unseen"], by_name["unlisted"]) == (float(seen < 0), 0.0)
    nothing = item_context(np.array([12345]), counters, world.catalogue, tick)[0]
    assert nothing.tolist() == [0.0] * 9 + [1.0, 1.0]


def test_sampled_batches_keep_every_click_and_index_only_what_they_kept(world):
    examples = world.examples(4, ticks=1, impressions=200)
    (_, part, full), = online(world, examples)[0]  # fmt: skip
    (_, _, kept), = online(world, examples, Sampling(0.4, seed=5))[0]  # fmt: skip
    assert kept.label.sum() == full.label.sum()
    assert kept.n_rows < 0.7 * full.n_rows
    assert kept.log_odds_offset == pytest.approx(-math.log(0.4))
    mask = Sampling(0.4, seed=5).keep(
        np.repeat(part.impression, part.items.lengths), part.items.values, part.clicks.astype(bool)
    )
    assert rows_of(kept) == [row for row, keep in zip(rows_of(full), mask, strict=True) if keep]


def test_an_item_that_changed_during_the_day_is_told_apart_by_tick(world, make_item_rows):
    examples = world.examples(6, ticks=9, unlisted=False)
    middle = int(examples.shown_ms[len(examples) // 2] // 60_000)
    catalogue = world.catalogue.copy()
    catalogue.add(make_item_rows(world.timeline, world.items, seed=77, known_tick=middle))
    lagged = LaggedCounters.build(world.model, world.timeline)
    day = attach_context(examples, lagged, catalogue, world.timeline)
    batch = day.batch(np.arange(len(examples)), world.model)
    ticks = examples.shown_ms // 60_000 - 1 - world.timeline.publish_ticks
    for r in range(batch.n_rows):
        tick, v = int(ticks[batch.imp_of_row[r]]), batch.item_of_row[r]
        want = catalogue.categories(batch.keys["item"][batch.item[v : v + 1]], tick)[0]
        assert (int(batch.keys["category"][batch.category[v]]) if batch.category[v] >= 0 else 0) == want
        i = batch.imp_of_row[r]
        read = batch.read[batch.history_offsets[i] : batch.history_offsets[i + 1]]
        rows = catalogue.rows(examples.history[i][-5:], tick)
        assert [content(batch, x)[0] or 0 for x in read] == catalogue.facts[rows, 1].tolist()
