"""Blocks against NumPy in float64, and gradients against the transpose of the gather."""

import numpy as np
import pytest

from stream.features.batch import FIELDS_ITEM, FIELDS_USER, SLOTS, build_batch
from stream.features.blocks import gather_blocks, scatter_gradients
from stream.features.counters import CounterState

DIM = 3


@pytest.fixture(scope="module")
def batch(world):
    examples = world.examples(1, ticks=1, impressions=60)
    state = CounterState.build(world.model, world.timeline)
    return build_batch(examples, state, world.catalogue, 10**8, world.model)


def tables(batch, seed=0):
    rng = np.random.default_rng(seed)
    widths = {s: 1 if s == "position" else DIM for s in SLOTS}
    return {s: rng.normal(size=(len(batch.keys[s]), widths[s])).astype(np.float32) for s in SLOTS}


def gather(batch, rows):
    return gather_blocks(batch, {s: lambda keys, s=s: rows[s] for s in SLOTS})


def means(n, rows, index, offsets=None):
    """(n, rows): the matrix that takes each one's row, or the mean over its list; -1 takes nothing."""
    m = np.zeros((n, rows))
    for i in range(n):
        mine = index[i : i + 1] if offsets is None else index[offsets[i] : offsets[i + 1]]
        for row in mine[mine >= 0]:
            m[i, row] += 1 / len(mine)
    return m


def matrices(batch):
    """field → (slot, (n, keys)): the linear map from a slot's rows to the field's columns of a block."""
    lists = {"history": batch.history_offsets, "words": batch.word_offsets}
    out = {}
    for field in ("user", "history", "hour", *FIELDS_ITEM):
        n = batch.n_impressions if field in FIELDS_USER else batch.n_items
        out[field] = field, means(n, len(batch.keys[field]), getattr(batch, field), lists.get(field))
    distinct = len(batch.read_subcategory)
    read = means(batch.n_impressions, distinct, batch.read, batch.history_offsets)
    for field, slot, offsets in (
        ("read_subcategory", "read_subcategory", None), ("read_words", "words", batch.read_word_offsets)
    ):  # fmt: skip
        out[field] = slot, read @ means(distinct, len(batch.keys[slot]), getattr(batch, field), offsets)
    return out


def test_blocks_are_rows_and_means_of_rows(batch):
    rows = tables(batch)
    blocks = gather(batch, rows)
    by_field = {f: m @ rows[slot].astype(float) for f, (slot, m) in matrices(batch).items()}
    np.testing.assert_allclose(blocks.user, np.hstack([by_field[f] for f in FIELDS_USER]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(blocks.item, np.hstack([by_field[f] for f in FIELDS_ITEM]), rtol=1e-5, atol=1e-6)
    assert np.array_equal(blocks.position_bias, rows["position"][batch.position, 0])
    assert blocks.ctx is batch.ctx


def test_gradients_are_the_transpose_of_the_gather(batch):
    rng = np.random.default_rng(3)
    d_user = rng.normal(size=(batch.n_impressions, len(FIELDS_USER) * DIM)).astype(np.float32)
    d_item = rng.normal(size=(batch.n_items, len(FIELDS_ITEM) * DIM)).astype(np.float32)
    d_position = rng.normal(size=batch.n_rows).astype(np.float32)
    got = scatter_gradients(batch, d_user, d_item, d_position)
    want = {s: np.zeros(got[s].shape) for s in SLOTS}
    for field, (slot, m) in matrices(batch).items():
        side, d = (FIELDS_USER, d_user) if field in FIELDS_USER else (FIELDS_ITEM, d_item)
        at = side.index(field) * DIM
        want[slot] += m.T @ d[:, at : at + DIM].astype(float)
    for slot in SLOTS[:-1]:
        np.testing.assert_allclose(got[slot], want[slot], rtol=1e-4, atol=1e-5)
    want = np.bincount(batch.position, d_position, minlength=len(batch.keys["position"]))
    np.testing.assert_allclose(got["position"][:, 0], want, rtol=1e-4, atol=1e-5)
    some = scatter_gradients(batch, d_user, d_item, d_position, ("item", "user"))
    assert list(some) == ["item", "user"]
    assert np.array_equal(some["item"], got["item"])


def test_the_world_tries_unknown_categories_empty_titles_and_empty_histories(batch):
    assert (batch.category < 0).any()
    assert (np.diff(batch.word_offsets) == 0).any()
    assert (np.diff(batch.history_offsets) == 0).any()
    assert (batch.read < 0).any()
    assert (batch.read_subcategory < 0).any()
    assert (np.diff(batch.read_word_offsets) == 0).any()


def test_same_batch_same_bits(batch):
    one, two = gather(batch, tables(batch)), gather(batch, tables(batch))
    assert one.user.tobytes() == two.user.tobytes()
    assert one.item.tobytes() == two.item.tobytes()


def test_slots_of_different_widths_are_refused(batch):
    rows = tables(batch)
    rows["hour"] = np.zeros((len(batch.keys["hour"]), DIM + 1), np.float32)
    with pytest.raises(ValueError, match="different widths"):
        gather(batch, rows)
