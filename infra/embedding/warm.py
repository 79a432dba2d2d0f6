"""Compiles what the tables use, once, before anyone waits for it: `warm(console.print)`, or
`python -m infra.embedding.warm` where an image is built.

It goes through the tables' public face with a handful of keys, so that a kernel which is added there is warmed too. On
a machine where they are cached nothing is compiled and nothing said; loading them takes a fraction of a second.
"""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from infra.compiling import Compiling, announced, to_stderr
from infra.embedding.cuckoo import EmbeddingTable
from infra.embedding.gather import group_sum, unique_inverse
from infra.embedding.layout import Segment
from infra.embedding.life.policy import Policy
from infra.embedding.segments import SegmentedTable
from infra.embedding.served.serving import ServingTable
from infra.embedding.served.stores import PRECISIONS

KEYS = 100  # more than the smallest index holds: growth is compiled as well


def warm(say: Callable[[str], None] = to_stderr) -> Compiling:
    """Load every kernel of the tables, compiling those that are in no cache, and say so only then."""
    with announced(say) as compiling:
        keys = np.arange(KEYS, dtype=np.int64)
        _train(keys)
        _lose(keys)
        _serve(keys)
    return compiling


def _train(keys: NDArray[np.int64]) -> None:
    table = EmbeddingTable(slot="warm", dim=2, init_scale=0.1, capacity_hint=0, max_rows=4 * KEYS)
    unique, inverse = unique_inverse(keys)
    group_sum(np.ones((len(keys), 2), np.float32), inverse, len(unique))
    rows = table.assign(unique, tick=0)
    table.lookup_or_insert(unique, tick=0)
    table.gather(rows)
    table.lookup(table.find(keys).astype(np.int64))
    table.remove(keys[:1])
    twin = table.copy()
    twin.clear()
    twin.put(*table.export())
    segments = (Segment("bias", 1, 0.0, 0, ()), Segment("vector", 2, 0.1, 0, (), admit_after=2))
    SegmentedTable(slot="warm", segments=segments, max_rows=4 * KEYS).assign(keys, tick=0)


def _lose(keys: NDArray[np.int64]) -> None:
    """Counting, drawing, expiry, and eviction of each kind."""
    budget = 40 * KEYS  # less than the keys need
    for policy in (
        Policy(admit_after=2, admit_window_ticks=1, expiry_ticks=1, sketch_bytes=256),
        Policy(admit_probability=0.9, byte_budget=budget, evict="least-recent"),
        Policy(byte_budget=budget, evict="least-frequent"),
        Policy(byte_budget=budget, evict="smallest-norm"),
    ):
        table = EmbeddingTable(slot="warm", dim=2, init_scale=0.1, max_rows=4 * KEYS, policy=policy)
        for tick in range(3):
            table.assign(keys[: KEYS // 2] + tick * KEYS, tick, np.full(KEYS // 2, 2, np.int64))
        table.lookup(keys[: len(table)])
        table.advance(9)
        table.take_tombstones()
        table.sweep()
        table.compact()
        table.export()


def _serve(keys: NDArray[np.int64]) -> None:
    for precision in PRECISIONS:
        table = ServingTable(dim=2, dtype=precision, max_rows=4 * KEYS)
        table.apply(keys, np.ones((len(keys), 2), np.float32), keys[:1])
        table.view().gather(keys)


if __name__ == "__main__":
    started = time.monotonic()
    found = warm()
    print(f"{len(found.kernels)} compiled, all loaded in {time.monotonic() - started:.2f} s")
