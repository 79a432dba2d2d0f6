"""Hypothesis drives a table and a dict side by side; it also finds the planted bugs of a wrong table by itself."""

from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from infra.embedding import DictTable, EmbeddingTable, Policy, initial_vectors

INTERESTING = [0, 1, -1, 2**63 - 1, -(2**63), 2**32, 2**31, -(2**31)]
KEYS = st.lists(st.integers(-3, 40) | st.sampled_from(INTERESTING) | st.integers(-(2**63), 2**63 - 1), max_size=60).map(
    lambda keys: np.array(keys, np.int64)
)


class TableMachine(RuleBasedStateMachine):
    """A table against {key: [vector, last seen]}."""

    cls: type = EmbeddingTable
    policy = Policy(expiry_ticks=1_000)  # nothing expires here, but rows keep when they were last seen

    def __init__(self) -> None:
        super().__init__()
        self.table = self.cls(slot="s", dim=2, init_scale=1.0, capacity_hint=0, max_rows=4096, policy=self.policy)
        self.model: dict[int, tuple[list[float], int]] = {}

    @rule(keys=KEYS, tick=st.integers(0, 5))
    def assign(self, keys: np.ndarray, tick: int) -> None:
        self.table.assign(keys, tick)
        self._assigned(keys, tick)

    @rule(keys=KEYS, tick=st.integers(0, 5))
    def look_up_or_insert(self, keys: np.ndarray, tick: int) -> None:
        values, rows = self.table.lookup_or_insert(keys, tick)
        self._assigned(keys, tick)
        assert rows.tolist() == self.table.find(keys).tolist()
        assert values.tolist() == [self.model[key][0] for key in keys.tolist()]

    def _assigned(self, keys: np.ndarray, tick: int) -> None:
        for key, first in zip(keys.tolist(), initial_vectors(keys, "s", 0, 2, 1.0).tolist(), strict=True):
            values, seen = self.model.get(key, (first, tick))
            self.model[key] = (values, max(seen, tick))

    @rule(keys=KEYS, value=st.integers(0, 100))
    def put(self, keys: np.ndarray, value: int) -> None:
        n = len(keys)
        values = (value + np.arange(2 * n)).reshape(n, 2)
        self.table.put(keys, values, np.zeros((n, 1)), np.full(n, value))
        self.model.update({q: (v, value) for q, v in zip(keys.tolist(), values.tolist(), strict=True)})

    @rule(keys=KEYS)
    def remove(self, keys: np.ndarray) -> None:
        present = self.model.keys() & set(keys.tolist())
        assert self.table.remove(keys) == len(present)
        for key in present:
            del self.model[key]

    @rule(keys=KEYS)
    def look_up(self, keys: np.ndarray) -> None:
        values, found = self.table.lookup(keys)
        assert found.tolist() == [key in self.model for key in keys.tolist()]
        assert values.tolist() == [self.model.get(key, ([0.0, 0.0], 0))[0] for key in keys.tolist()]

    @rule()
    def go_on_with_a_copy(self) -> None:
        self.table = self.table.copy()

    @invariant()
    def it_holds_what_the_dict_holds(self) -> None:
        got = self.table.export()
        assert got.keys.tolist() == sorted(self.model)
        assert got.values.tolist() == [self.model[q][0] for q in sorted(self.model)]
        assert got.last_seen.tolist() == [self.model[q][1] for q in sorted(self.model) if self.policy.loses_rows]
        assert len(set(self.table.find(got.keys).tolist())) == len(self.model) == len(self.table)


class LosesADisplacedKey(EmbeddingTable):
    """Once in a while an insert drops another key."""

    def assign(self, keys: np.ndarray, tick: int) -> Any:
        rows = super().assign(keys, tick)
        if len(self) > 25:
            self._index.drop(self._index.items()[0][-1:])
        return rows


SETTINGS = settings(max_examples=40, stateful_step_count=25, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("policy", [TableMachine.policy, Policy()], ids=["remembers", "plain"])
@pytest.mark.parametrize("cls", [DictTable, EmbeddingTable])
def test_a_table_is_a_dict(cls: type, policy: Policy) -> None:
    run_state_machine_as_test(type("Machine", (TableMachine,), {"cls": cls, "policy": policy}), settings=SETTINGS)


def test_the_machine_finds_a_lost_key() -> None:
    unshrunk = settings(SETTINGS, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(type("Machine", (TableMachine,), {"cls": LosesADisplacedKey}), settings=unshrunk)
