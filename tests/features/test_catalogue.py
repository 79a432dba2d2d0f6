"""The catalogue as of a tick, against a plain list of records."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.features.catalogue import CATEGORY, Catalogue, ItemRows

few = settings(max_examples=40, deadline=None, derandomize=True)
# (item, category, subcategory, known_tick, words)
RECORD = st.tuples(
    st.integers(1, 6), st.integers(0, 3), st.integers(0, 3), st.integers(0, 9), st.lists(st.integers(1, 5), max_size=3)
)


def rows(records):
    keys, category, subcategory, known, words = zip(*records, strict=True) if records else ((),) * 5
    offsets = np.cumsum([0, *map(len, words)]).astype(np.int64)
    columns = (keys, category, subcategory, [-1] * len(keys), known, offsets, [w for row in words for w in row])
    return ItemRows(*(np.array(c, np.int64) for c in columns))


def build(records, batch=3):
    catalogue = Catalogue()
    for i in range(0, len(records), batch):
        catalogue.add(rows(records[i : i + batch]))
    return catalogue


def read(catalogue, tick):
    """item -> (category, words) as of a tick."""
    wanted = np.arange(1, 8)
    out = {}
    for key, row in zip(wanted.tolist(), catalogue.rows(wanted, tick).tolist(), strict=True):
        if row >= 0:
            at, end = catalogue.facts[row, 5], catalogue.facts[row, 6]
            out[key] = (int(catalogue.facts[row, CATEGORY]), catalogue.words[at:end].tolist())
    return out


def expected(records, tick):
    out, known = {}, {}
    for key, category, _, at, words in records:
        if at <= tick and at >= known.get(key, -1):
            out[key], known[key] = (category, words), at
    return out


@given(records=st.lists(RECORD, max_size=20), tick=st.integers(0, 10))
@few
def test_an_item_reads_as_its_newest_record_that_the_tick_may_know(records, tick):
    assert read(build(records), tick) == expected(records, tick)


@given(records=st.lists(RECORD, max_size=20), tick=st.integers(0, 10))
@few
def test_adding_twice_equals_adding_once_and_the_order_of_ticks_does_not_matter(records, tick):
    once = build(records)
    twice = build(records)
    for i in range(0, len(records), 3):  # what was overwritten within one tick is overwritten again
        twice.add(rows(records[i : i + 3]))
    by_tick = build(sorted(records, key=lambda r: -r[3]))
    assert once.digest() == twice.digest() == by_tick.digest()
    assert read(by_tick, tick) == read(once, tick)


@given(records=st.lists(RECORD, max_size=20), cuts=st.lists(st.integers(-1, 10), max_size=3))
@few
def test_sections_carry_the_whole_catalogue(records, cuts):
    source, replica = build(records), Catalogue()
    edges = [-1, *sorted(cuts), 10]
    for after, through in pairwise(edges):
        section = source.section(after, through)
        assert ((section.known_tick > after) & (section.known_tick <= through)).all()
        replica.add(ItemRows.from_tensors(section.tensors()))
    assert replica.digest() == source.digest()
    assert Catalogue.restore(source.export()).digest() == source.digest()


def test_a_missing_section_is_empty_and_a_read_never_inserts():
    catalogue = Catalogue()
    catalogue.add(ItemRows.from_tensors({}))
    assert catalogue.categories(np.array([1, 2]), 5).tolist() == [0, 0]
    assert len(catalogue) == 0


def test_an_item_counts_from_the_tick_in_which_it_was_ingested(world, make_item_rows):
    catalogue = Catalogue()
    catalogue.add(make_item_rows(world.timeline, world.items, seed=3, known_tick=7))
    assert (catalogue.rows(world.items, 6) == -1).all()
    assert (catalogue.rows(world.items, 7) >= 0).all()


def test_growth_keeps_every_item(world, make_item_rows):
    items = np.random.default_rng(1).integers(-(2**62), 2**62, 5_000)
    catalogue = Catalogue()
    parts = [make_item_rows(world.timeline, part, seed=i) for i, part in enumerate(np.array_split(items, 50))]
    for part in parts:
        catalogue.add(part)
    want = np.concatenate([part.category for part in parts])
    assert np.array_equal(catalogue.categories(items, 0), want)
    twin = catalogue.copy()
    twin.add(make_item_rows(world.timeline, np.array([3]), seed=0))
    assert (len(twin), len(catalogue)) == (5_001, 5_000)


@pytest.mark.parametrize("bug", ["newest record always", "known a tick early"])
def test_a_catalogue_that_reads_ahead_is_caught(bug):
    records = [(1, 1, 0, 3, []), (1, 2, 0, 5, [4])]
    catalogue = build(records)
    ahead = 1_000 if bug == "newest record always" else 1
    assert any(read(catalogue, tick + ahead) != expected(records, tick) for tick in range(7))
