"""What the memory of this machine gives: random cache lines, two to a row as a table's vectors are, and nothing else.

Nobody's look-up can have more lines a second than this. It tells apart a table whose threads are in each other's way
from one that has all the memory there is.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.machine import prefetch
from infra.embedding.slab import reserve
from tests.bench.table.contender import Answer, Contender, at_once, timed

LINE = 8  # int64 in a cache line
AHEAD = 32  # lines between a prefetch and its use; 16 and 64 were no faster


@njit(cache=True, nogil=True)
def _sum_lines(memory: NDArray[np.int64], starts: NDArray[np.int64]) -> int:
    total = 0
    for i in range(len(starts)):
        if i + AHEAD < len(starts):
            prefetch(memory, starts[i + AHEAD])
        total += memory[starts[i]]
    return total


class Lines(Contender):
    """Rows of huge pages, read by number."""

    def fill(self) -> None:
        self.memory = reserve((self.inputs.keys * self.dim // 2,), np.int64)
        self.memory[:] = 1
        assert _sum_lines(self.memory, np.zeros(3, np.int64)) == 3

    def _starts(self, distribution: str, batch: int, part: int, ids: int) -> list[NDArray[np.int64]]:
        batches = self.inputs.batches(distribution, part, ids, batch)
        lines = np.arange(0, self.dim // 2, LINE)
        return [(rows[:, None] * (self.dim // 2) + lines).ravel() for rows in batches]

    def lookup(self, **what: Any) -> Answer:
        """Every line of every row, by one thread."""
        return timed(lambda starts: _sum_lines(self.memory, starts), self._starts(**what))

    def two_threads(self, **what: Any) -> Answer:
        """The same by two threads, each half of the batches."""
        return at_once(lambda me, starts: _sum_lines(self.memory, starts), self._starts(**what))


CONTENDER = Lines
