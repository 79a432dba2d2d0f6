"""100 M key operations on tables of every policy, mixed, and what must hold at the end: `make soak-table`.

Each round draws keys from a skewed, drifting stream and does what a trainer does with them: assign (with learning),
look up, remove, put, advance, sweep a little, take tombstones, compact now and then. At the end of each table's share:
every key is found at a row of its own, free and live rows are all that were given out, the budget is kept, what came
less what left is what is there, and a table made from the export, with other buckets and rows, has the same digest, and
the same again after both went on for a while.

    python -m tests.bench.soak_table --operations 100000000
"""

import argparse
import json
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.embedding import EmbeddingTable, Policy

BATCH = 16_384
DIM = 8
POLICIES = {
    "plain": Policy(),
    "count, expiry": Policy(admit_after=3, admit_window_ticks=20, expiry_ticks=40, sketch_bytes=1 << 22),
    "chance, least recent": Policy(admit_probability=0.3, byte_budget=40 << 20),
    "expiry, least frequent": Policy(expiry_ticks=60, byte_budget=24 << 20, evict="least-frequent"),
    "count, smallest norm": Policy(admit_after=40, byte_budget=16 << 20, evict="smallest-norm"),
}


def keys_of(rng: np.random.Generator, tick: int, n: int) -> NDArray[np.int64]:
    """Half from a Zipf distribution, half from a range of 400,000 that drifts."""
    hot = rng.zipf(1.1, n // 2) % (1 << 40)
    fresh = rng.integers(tick * 2_000, tick * 2_000 + 400_000, n - n // 2)
    return np.concatenate((hot, -fresh - 1)).astype(np.int64)


class Ledger:
    """What came and left other than by the table's own counts."""

    operations = put = removed = 0


def step(table: EmbeddingTable, seed: int, tick: int, ledger: Ledger) -> None:
    """One tick of mixed operations, a function of (seed, tick) and of the table's content. One key is one operation."""
    rng = np.random.default_rng([seed, tick])
    keys = keys_of(rng, tick, BATCH)
    rows = table.assign(keys, tick, rng.integers(1, 20, BATCH))
    rows = np.unique(rows[rows >= 0])
    table.values[rows] *= np.float32(0.99)
    table.state[rows] += np.float32(1)
    other = keys_of(rng, tick + 5, BATCH)
    found = table.lookup(other)[1]
    ledger.removed += table.remove(other[: BATCH // 64])
    few = np.unique(keys[: BATCH // 64])
    ledger.put += int((table.find(few) < 0).sum())
    table.put(few, np.ones((len(few), DIM)), np.ones((len(few), 1)), np.full(len(few), tick))
    assert found.shape == (BATCH,)
    ledger.operations += 2 * BATCH + BATCH // 64 + len(few)


def tidy(table: EmbeddingTable, tick: int) -> None:
    """What decides nothing, at odd times."""
    if tick % 3 == 0:
        table.sweep(1_000)
    if tick % 7 == 0:
        table.take_tombstones()
    if tick % 211 == 0:
        table.compact()


def check(table: EmbeddingTable, ledger: Ledger) -> dict[str, Any]:
    """Raise AssertionError unless the table is whole; what it holds."""
    memory = table.memory()
    table.sweep()
    export = table.export()
    rows = table.find(export.keys)
    assert len(export.keys) == len(table)
    assert rows.min(initial=0) >= 0, "a key is not found"
    assert len(np.unique(rows)) == len(rows), "two keys share a row"
    assert len(rows) + int(table._heap.head[1]) == table._heap.high, "a row is neither live nor free"
    assert len(np.unique(table._heap.free[: table._heap.head[1]])) == table._heap.head[1], "a row is free twice"
    assert (table.find(-export.keys[export.keys > 0] - (1 << 50)) == -1).all(), "a key that never came is found"
    if table.policy.byte_budget:
        assert len(table) <= table.row_limit
        assert memory.total <= table.policy.byte_budget, f"{memory} exceeds the budget"
    counts = {field: getattr(table.counts, field) for field in table.counts.__slots__}
    left = counts["expired"] + counts["evicted"] + ledger.removed
    assert len(table) == counts["inserted"] + ledger.put - left, "what came less what left is not what is there"
    return {"rows": len(table), "memory_mb": round(memory.total / 1e6, 1), **counts}


def restored(table: EmbeddingTable) -> EmbeddingTable:
    """A table made from the export: other buckets, rows in a shuffled order."""
    export = table.export()
    order = np.random.default_rng(7).permutation(len(export.keys))
    twin = EmbeddingTable(**table.options, index_seed=77, tombstones=False)
    twin.put(*(column[order] if len(column) else column for column in export))
    if table.admission is not None and twin.admission is not None:
        twin.admission.load(table.admission.export())
    twin.advance(table.tick)
    return twin


def soak(name: str, operations: int, seed: int) -> dict[str, Any]:
    """Run one policy's share and check it."""
    table = EmbeddingTable(slot=name, dim=DIM, init_scale=0.1, policy=POLICIES[name], capacity_hint=0, max_rows=1 << 24)
    ledger, started, tick = Ledger(), time.process_time(), 0
    while ledger.operations < operations:
        step(table, seed, tick, ledger)
        tidy(table, tick)
        tick += 1
    seconds = time.process_time() - started
    result = check(table, ledger)
    twin = restored(table)
    assert twin.digest() == table.digest(), "the export does not restore the table"
    for later in range(tick, tick + 20):
        step(table, seed, later, ledger)
        step(twin, seed, later, Ledger())
        tidy(table, later)
    assert twin.digest() == table.digest(), "a restored table goes on to something else"
    return {"policy": name, "operations": ledger.operations, "cpu_s": round(seconds, 1), **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--operations", type=int, default=100_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    started = time.monotonic()
    for name in POLICIES:
        print(json.dumps(soak(name, args.operations // len(POLICIES), args.seed)), flush=True)
    print(f"every invariant held; {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
