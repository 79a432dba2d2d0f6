"""What one writes without a library: a Python dict from key to row, and a NumPy array of rows."""

from collections import defaultdict
from itertools import count, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.table.contender import FILL, Answer, Contender, timed, touch_memory, touch_output
from tests.bench.table.inputs import cut, keys_at


class Dictionary(Contender):
    """`map` over the dict's own methods: no bytecode runs a key, which is as fast as a dict gets."""

    def fill(self) -> None:
        n = self.inputs.keys
        self.rows: dict[int, int] = {}
        self.values = np.empty((n, self.dim), np.float32)
        self.values.fill(0.05)
        for lo in range(0, n, FILL):
            numbers = range(lo, min(lo + FILL, n))
            self.rows.update(zip(keys_at(np.array(numbers)).tolist(), numbers, strict=True))

    def _keys(self, distribution: str, batch: int, part: int, ids: int) -> list[NDArray[np.int64]]:
        return [keys_at(rows) for rows in self.inputs.batches(distribution, part, ids, batch)]

    def _find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.fromiter(map(self.rows.get, keys.tolist(), repeat(-1)), np.int64, len(keys))

    def lookup(self, **what: Any) -> Answer:
        """Keys to new arrays of vectors; who is absent would read the last row, which no key here does."""
        batches = self._keys(**what)
        touch_output(what["batch"], self.dim)
        return timed(lambda keys: self.values[self._find(keys)], batches)

    def lookup_out(self, **what: Any) -> Answer:
        """Keys to vectors in an array that is there already."""
        out = np.ones((what["batch"], self.dim), np.float32)
        step = lambda keys: np.take(self.values, self._find(keys), 0, out[: len(keys)], "wrap")  # noqa: E731
        return timed(step, self._keys(**what))

    def insert(self, **what: Any) -> Answer:
        """An empty dict takes keys; each new one gets a random vector, in an array that was made large enough."""
        values, rng = np.empty((what["ids"], self.dim), np.float32), np.random.default_rng(1)

        def write(before: int, after: int) -> None:
            rng.random(out=values[before:after], dtype=np.float32)

        return self._insert(write, **what)

    def insert_alone(self, **what: Any) -> Answer:
        """The dict alone: no vectors."""
        return self._insert(lambda before, after: None, **what)

    def _insert(self, write: Any, *, distribution: str, batch: int, part: int, ids: int) -> Answer:
        numbers = np.arange(ids) if distribution == "uniform" else self.inputs.rows(distribution, part, ids)
        rows: defaultdict[int, int] = defaultdict(count().__next__)

        def step(keys: NDArray[np.int64]) -> NDArray[np.int64]:
            before = len(rows)
            found = np.fromiter(map(rows.__getitem__, keys.tolist()), np.int64, len(keys))
            write(before, len(rows))
            return found

        batches = cut(keys_at(numbers), batch)
        touch_memory(ids)
        return {**timed(step, batches), "inserted": len(rows)}


CONTENDER = Dictionary
