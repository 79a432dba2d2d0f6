"""What this machine gives: random cache lines, as many to a row as a table's vectors are; or arithmetic alone.

Nobody's look-up can have more lines a second than this, nor a second thread more than arithmetic gets from it, where
the two processors are halves of one core or a host lends them to others. So it tells apart a table whose threads are
in each other's way from one that has all the machine there is.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.machine import prefetch
from infra.embedding.slab import reserve
from tests.bench.table.contender import Answer, Contender, at_once, timed

LINE = 8  # int64 in a cache line
STEPS = 160  # of four multiplications: about the time of a look-up
AHEAD = 128  # lines between a prefetch and its use; 64 took 4 ns a line, 128 and 256 take 3


@njit(cache=True, nogil=True)
def _sum_lines(memory: NDArray[np.int64], starts: NDArray[np.int64]) -> int:
    total = 0
    for i in range(len(starts)):
        if i + AHEAD < len(starts):
            prefetch(memory, starts[i + AHEAD])
        total += memory[starts[i]]
    return total


@njit(cache=True, nogil=True)
def _multiply(steps: int) -> np.uint64:
    """Four chains of multiplications, in registers alone."""
    a, b, c, d = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    odd = np.uint64(0x5851F42D4C957F2D)
    for _ in range(steps):
        a, b, c, d = a * odd + np.uint64(1), b * odd + np.uint64(3), c * odd + np.uint64(5), d * odd + np.uint64(7)
    return a ^ b ^ c ^ d


class Lines(Contender):
    """Rows of huge pages, read by number."""

    def fill(self) -> None:
        self.memory = reserve((self.inputs.keys * self.dim // 2,), np.int64)
        self.memory[:] = 1
        assert _sum_lines(self.memory, np.zeros(3, np.int64)) == 3
        _multiply(1)

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

    def arithmetic(self, *, ids: int, batch: int, **_: Any) -> Answer:
        """STEPS multiplications an id, by one thread."""
        return timed(_multiply, [STEPS * batch] * (ids // batch))

    def arithmetic_of_two(self, *, ids: int, batch: int, **_: Any) -> Answer:
        """The same by two threads, each half of them."""
        return at_once(lambda me, steps: _multiply(steps), [STEPS * batch] * (ids // batch))


CONTENDER = Lines
