"""The collisionless table, through its public face."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.embedding import EmbeddingTable, Policy, group_sum, unique_inverse
from infra.embedding.warm import warm
from tests.bench.table.contender import (
    FILL,
    Answer,
    Contender,
    at_once,
    at_once_apart,
    timed,
    touch_memory,
    touch_output,
)
from tests.bench.table.inputs import LR, cut, gradients, keys_at
from trainer.rules import rowwise_adagrad


class Ours(Contender):
    """An `EmbeddingTable` with one optimizer float a row."""

    policy = Policy()

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        warm()
        self._nonce = 0

    def _new_table(self) -> EmbeddingTable:
        room = self.inputs.keys + self.inputs.keys // 4 + (1 << 20)
        return EmbeddingTable(
            slot="bench", dim=self.dim, state_dim=1, init_scale=0.05, state_init=0.1, max_rows=room, policy=self.policy
        )

    def fill(self) -> None:
        self.table = self._new_table()
        for lo in range(0, self.inputs.keys, FILL):
            self.table.assign(keys_at(np.arange(lo, min(lo + FILL, self.inputs.keys))), 0)
        probe = keys_at(np.array([0, self.inputs.keys - 1, self.inputs.keys]))
        assert (self.table.find(probe) >= 0).tolist() == [True, True, False]

    def account(self) -> Answer:
        memory = self.table.memory()
        return {"accounted_bytes": memory.total, "index_bytes": memory.index, "state_bytes": 4 * self.inputs.keys}

    def _keys(self, distribution: str, batch: int, part: int, ids: int) -> list[NDArray[np.int64]]:
        return [keys_at(rows) for rows in self.inputs.batches(distribution, part, ids, batch)]

    def lookup(self, **what: Any) -> Answer:
        """Keys to new arrays of vectors."""
        batches = self._keys(**what)
        touch_output(what["batch"], self.dim)
        return timed(self.table.lookup, batches)

    def lookup_out(self, **what: Any) -> Answer:
        """Keys to vectors in an array that is there already."""
        out = self._out(what["batch"])
        return timed(lambda keys: self._into(keys, out), self._keys(**what))

    def _out(self, batch: int) -> NDArray[np.float32]:
        return np.ones((batch, self.dim), np.float32)  # written, so that every page is there

    def _into(self, keys: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        self.table.lookup(keys, out[: len(keys)])

    def find(self, **what: Any) -> Answer:
        """Keys to row numbers."""
        return timed(self.table.find, self._keys(**what))

    def upsert(self, **what: Any) -> Answer:
        """Keys, 1 % of them new, to new arrays of vectors; the new ones get a row."""
        return self._upsert(None, **what)

    def upsert_out(self, **what: Any) -> Answer:
        """The same, to vectors in an array that is there already."""
        return self._upsert(self._out(what["batch"]), **what)

    def _upsert(self, out: NDArray[np.float32] | None, **what: Any) -> Answer:
        self._nonce += 1
        rows = self.inputs.batches(what["distribution"], what["part"], what["ids"], what["batch"])
        batches, before = self.inputs.with_fresh(rows, self._nonce, 0.01), len(self.table)
        self.table.values[before : before + what["ids"] // 50] = 0.0  # rows to come: see `touch_memory`
        if out is None:
            touch_output(what["batch"], self.dim)
        answer = timed(
            lambda keys: self.table.lookup_or_insert(keys, 1, out=None if out is None else out[: len(keys)]), batches
        )
        assert len(self.table) > before
        return answer

    def two_threads(self, **what: Any) -> Answer:
        """`lookup_out` by two threads at once, each half of the batches."""
        outs = [self._out(what["batch"]) for _ in range(2)]
        return at_once(lambda me, keys: self._into(keys, outs[me]), self._keys(**what))

    def two_processes(self, **what: Any) -> Answer:
        """The same by two processes over the same table, with an interpreter and its lock for each."""
        outs = [self._out(what["batch"]) for _ in range(2)]
        return at_once_apart(lambda me, keys: self._into(keys, outs[me]), self._keys(**what))

    def insert(self, *, distribution: str, batch: int, part: int, ids: int) -> Answer:
        """An empty table takes keys: each new one gets its vector and its state."""
        numbers = np.arange(ids) if distribution == "uniform" else self.inputs.rows(distribution, part, ids)
        batches, table = cut(keys_at(numbers), batch), self._new_table()
        touch_memory(ids)
        answer = timed(lambda keys: table.assign(keys, 0), batches)
        return {**answer, "inserted": len(table)}

    def adagrad(self, **what: Any) -> Answer:
        """A gradient for each id: equal keys are found and summed, rows looked up, one fused step."""
        grads = gradients(what["batch"], self.dim)

        def step(keys: NDArray[np.int64]) -> None:
            unique, inverse = unique_inverse(keys)
            summed = group_sum(grads[: len(keys)], inverse, len(unique))
            rowwise_adagrad(self.table.values, self.table.state, self.table.find(unique), summed, LR)

        return timed(step, self._keys(**what))

    def adagrad_summed(self, **what: Any) -> Answer:
        """The step alone: row numbers known, distinct, with summed gradients."""
        grads = gradients(what["batch"], self.dim)
        found = [self.table.find(keys_at(np.unique(rows))) for rows in self.inputs.batches(**what)]
        return timed(
            lambda rows: rowwise_adagrad(self.table.values, self.table.state, rows, grads[: len(rows)], LR), found
        )


CONTENDER = Ours
