"""Hypothesis drives an index and a dict side by side, through growth, deletion, new seeds; and finds planted bugs."""

from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from infra.embedding.index.bucket import PAIR_WORDS, cell_of
from infra.embedding.index.index import CuckooIndex

INTERESTING = [0, 1, -1, 2**63 - 1, -(2**63), 2**32]
FEW = st.lists(st.integers(-3, 40) | st.sampled_from(INTERESTING), max_size=12)
MANY = st.tuples(st.integers(0, 12), st.integers(1, 300)).map(lambda at: [25 * at[0] + i for i in range(at[1])])


class IndexMachine(RuleBasedStateMachine):
    """An index against {key: row}."""

    cls: type[CuckooIndex] = CuckooIndex

    def __init__(self) -> None:
        super().__init__()
        self.index = self.cls("machine", max_keys=64, max_load=0.95)
        self.model: dict[int, int] = {}
        self.next = 0

    @rule(keys=FEW | MANY)
    def set(self, keys: list[int]) -> None:
        rows = np.arange(self.next, self.next + len(keys), dtype=np.int32)
        expected = []
        for key, row in zip(keys, rows.tolist(), strict=True):
            expected.append(self.model.get(key, -1))
            self.model[key] = row
        self.next += len(keys)
        assert self.index.set(np.array(keys, np.int64), rows).tolist() == expected

    @rule(keys=FEW | MANY)
    def drop(self, keys: list[int]) -> None:
        expected = [self.model.pop(key) for key in dict.fromkeys(keys) if key in self.model]
        assert self.index.drop(np.array(keys, np.int64)).tolist() == expected

    @rule(keys=FEW)
    def find(self, keys: list[int]) -> None:
        assert self.index.find(np.array(keys, np.int64)).tolist() == [self.model.get(key, -1) for key in keys]

    @rule(how=st.sampled_from(["split", "split by many", "hash anew", "compact"]))
    def change_the_buckets(self, how: str) -> None:
        if how == "hash anew":
            self.index._rehash(int(self.index.head[0]))
        elif how == "compact":
            self.index.compact()
        elif self.index.head[0] < 500:
            self.index._split(1 if how == "split" else 20)

    @rule()
    def go_on_with_a_copy(self) -> None:
        old, self.index = self.index, self.index.copy()
        old.clear()

    @invariant()
    def it_holds_what_the_dict_holds(self) -> None:
        keys, rows = self.index.items()
        assert dict(zip(keys.tolist(), rows.tolist(), strict=True)) == self.model
        assert len(keys) == len(self.index) == len(self.model)
        assert np.array_equal(self.index.find(keys), rows)
        assert len(np.unique(rows)) == len(rows)


def forget(index: CuckooIndex, spot: int) -> None:
    index.cells[cell_of(spot)] = 0
    index.head[3] -= 1


def spots(index: CuckooIndex) -> dict[int, int]:
    """Where each key stands."""
    used = range(int(index.head[0]) * PAIR_WORDS)
    return {int(index.words[s]): s for s in used if s % 8 < 5 and index.cells[cell_of(s)] != 0}


class ForgetsAKeyThatMoves(CuckooIndex):
    """An insert that moves other keys loses one of them."""

    def set(self, keys: np.ndarray, rows: np.ndarray) -> Any:
        before, size = spots(self), self.places
        old = super().set(keys, rows)
        after = spots(self)
        moved = [key for key in before if after[key] != before[key]]
        if moved and self.places == size:
            forget(self, after[moved[0]])
        return old


class ForgetsAKeyThatSplits(CuckooIndex):
    """The first key that should go to a new bucket goes nowhere."""

    def _split(self, count: int) -> None:
        behind = int(self.head[0]) * PAIR_WORDS
        super()._split(count)
        gone = [spot for spot in spots(self).values() if spot >= behind]
        if gone:
            forget(self, gone[0])


class LeavesAKeyBehind(CuckooIndex):
    """A key that goes to a new bucket stays in the old one too, where it cannot be found, but is listed."""

    def _split(self, count: int) -> None:
        before, behind = spots(self), int(self.head[0]) * PAIR_WORDS
        super()._split(count)
        for key, spot in spots(self).items():
            if spot >= behind:
                self.words[before[key]] = key
                self.cells[cell_of(before[key])] = self.cells[cell_of(spot)]
                return


class GivesTwoKeysOneRow(CuckooIndex):
    """The second new key of a batch gets the row of the first."""

    def set(self, keys: np.ndarray, rows: np.ndarray) -> Any:
        old = super().set(keys, rows)
        if len(keys) > 1:
            self.cells[cell_of(spots(self)[int(keys[1])])] = rows[0] + 1
        return old


class DropsNothing(CuckooIndex):
    """Says that a key is gone, and finds it."""

    def drop(self, keys: np.ndarray) -> Any:
        rows = super().drop(keys)
        if len(rows):
            super().set(keys[:1], rows[:1])
        return rows


SETTINGS = settings(max_examples=40, stateful_step_count=25, deadline=None, derandomize=True, database=None)
WRONG = [ForgetsAKeyThatMoves, ForgetsAKeyThatSplits, LeavesAKeyBehind, GivesTwoKeysOneRow, DropsNothing]


def test_an_index_is_a_dict() -> None:
    run_state_machine_as_test(IndexMachine, settings=SETTINGS)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_index_is_caught(wrong: type[CuckooIndex]) -> None:
    machine = type("Machine", (IndexMachine,), {"cls": wrong})
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(machine, settings=settings(SETTINGS, phases=[Phase.generate]))
