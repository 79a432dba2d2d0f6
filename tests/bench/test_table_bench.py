"""The table's benchmark asks everyone the same, and its contenders do what they are timed for."""

import numpy as np
import pytest

from tests.bench.table.contender import Contender
from tests.bench.table.dictionary import Dictionary
from tests.bench.table.inputs import Inputs, keys_at
from tests.bench.table.ours import Ours
from tests.bench.table.plan import PLAN

KEYS, DIM = 3_000, 4


def test_keys_are_distinct_and_inputs_repeat_themselves() -> None:
    assert len(np.unique(keys_at(np.arange(100_000)))) == 100_000
    one, two = Inputs(KEYS), Inputs(KEYS)
    for distribution in ("uniform", "zipf"):
        rows = one.rows(distribution, 3, 50_000)
        assert np.array_equal(rows, two.rows(distribution, 3, 50_000))
        assert not np.array_equal(rows, one.rows(distribution, 4, 50_000))
        assert rows.min() >= 0
        assert rows.max() < KEYS
        assert [len(b) for b in one.batches(distribution, 3, 50_000, 20_000)] == [20_000, 20_000, 10_000]


def test_zipf_ids_follow_their_law_and_hot_rows_are_no_neighbours() -> None:
    rows = Inputs(KEYS).rows("zipf", 0, 400_000)
    counts = np.bincount(rows, minlength=KEYS)
    hot = np.argsort(-counts)[:10]
    weights = np.arange(1, KEYS + 1) ** -1.05
    assert np.allclose(counts[hot] / len(rows), weights[:10] / weights.sum(), rtol=0.05)
    assert np.abs(np.diff(np.sort(hot))).min() > 1


def test_one_in_a_hundred_keys_is_new_each_time() -> None:
    inputs = Inputs(KEYS)
    known = set(keys_at(np.arange(KEYS)).tolist())
    seen: set[int] = set()
    for nonce in (1, 2):
        for keys in inputs.with_fresh(inputs.batches("uniform", 0, 4_000, 1_000), nonce, 0.01):
            new = set(keys.tolist()) - known
            assert len(new) == 10
            assert not new & seen
            seen |= new


@pytest.mark.parametrize("kind", [Ours, Dictionary])
def test_a_contender_finds_what_it_was_filled_with_and_measures_each_of_its_cases(kind: type[Contender]) -> None:
    contender = kind(Inputs(KEYS), DIM)
    contender.fill()
    name = {Ours: "ours", Dictionary: "dict"}[kind]
    cases = {side.case for c in PLAN for side in (c.ours, c.rival) if side.contender == name and side.case}
    assert cases
    for case in cases:
        answer = getattr(contender, case)(distribution="zipf", batch=300, part=0, ids=1_000)
        assert answer["seconds"] > 0
    what = {"distribution": "uniform", "batch": 1_000, "part": 0, "ids": KEYS}
    assert contender.insert(**what)["inserted"] == KEYS  # type: ignore[attr-defined]


def test_both_tables_read_the_rows_that_were_asked_for() -> None:
    inputs = Inputs(KEYS)
    ours, plain = Ours(inputs, DIM), Dictionary(inputs, DIM)
    ours.fill()
    plain.fill()
    rows = inputs.rows("uniform", 0, 500)
    assert plain._find(keys_at(rows)).tolist() == rows.tolist()
    plain.values[:] = ours.table.values[:KEYS][ours.table.find(keys_at(np.arange(KEYS)))]
    assert np.array_equal(plain.values[plain._find(keys_at(rows))], ours.table.lookup(keys_at(rows))[0])
