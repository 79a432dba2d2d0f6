"""Features of a whole day for the retrain: counters attached in one ordered pass, then sliced by shuffled batches.

The pass uses the online trainer's own steps (read as shown, then learn), so a day's context rows are bit-equal to what
the minute loop saw. A batch of any examples in any order only slices.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.config import ModelConfig
from infra.ticks import Timeline
from stream.features.batch import Batch, Impressions, assemble, row_columns
from stream.features.catalogue import Catalogue
from stream.features.context import N_FEATURES, context_and_rows
from stream.features.counters import LaggedCounters
from stream.features.keys import distinct, distinct_into, own
from stream.sampling import KEEP_ALL, Sampling

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@njit(cache=True, nogil=True)
def _entries(ids: Ints, items: Ints, facts_of: Ints, ctx: Floats, ctx_of_row: Ints) -> Any:
    """Context rows → distinct (item, catalogue row), and the rows' way there."""
    n = len(ids)
    codes = np.empty(n, np.int64)
    unique = np.empty(n, np.int64)
    index = np.empty(n, np.int64)
    out_ctx = np.empty((n, ctx.shape[1]), np.float32)
    for i in range(n):
        codes[i] = items[ids[i]]
        for j in range(ctx.shape[1]):
            out_ctx[i, j] = ctx[ids[i], j]
    distinct_into(codes, np.bool_(False), unique, index)
    for i in range(n):  # a row of the catalogue names its item; unlisted items go by a negative number
        row = facts_of[ids[i]]
        codes[i] = row if row >= 0 else -1 - index[i]
    m = distinct_into(codes, np.bool_(False), unique, index)
    out_items = np.empty(m, np.int64)
    out_facts = np.empty(m, np.int64)
    for i in range(n):
        out_items[index[i]] = items[ids[i]]
        out_facts[index[i]] = facts_of[ids[i]]
    item_of_row = np.empty(len(ctx_of_row), np.int64)
    for r in range(len(ctx_of_row)):
        item_of_row[r] = index[ctx_of_row[r]]
    return out_items, out_facts, out_ctx, item_of_row


@dataclass(frozen=True, slots=True)
class DayContext:
    """Context rows of a day, one per (item, tick), made in tick order: what shuffled batches slice.

    Everything is index-aligned with the examples that were given to `attach_context`.
    """

    examples: Impressions
    catalogue: Catalogue
    ctx: Floats  # (C, N_FEATURES)
    item: Ints  # (C,) item key
    facts_of: Ints  # (C,) row of the catalogue as of the read tick, -1 unlisted
    ctx_of_value: Ints  # (shown items,) context row of each
    facts_of_history: Ints  # (history items,) row of the catalogue as of the read tick, -1 unlisted

    def batch(self, select: Ints, model: ModelConfig, *, sampling: Sampling = KEEP_ALL) -> Batch:
        """The batch of these examples (indices), whatever their ticks: equal to what each tick's batch says of them."""
        rows = row_columns(self.examples, self.ctx_of_value, own(select), model, sampling)
        entries = _entries(rows[1], self.item, self.facts_of, self.ctx, rows[2])
        items, facts_of, ctx, item_of_row = entries
        return assemble(
            self.examples, own(select), self.catalogue, model, sampling, rows, items, facts_of, self.facts_of_history,
            ctx, item_of_row,
        )  # fmt: skip


def attach_context(
    examples: Impressions, counters: LaggedCounters, catalogue: Catalogue, timeline: Timeline
) -> DayContext:
    """One ordered pass: for each close tick, read what was known when shown, then count what closed.

    `examples` are in tick order (shown_ms ascending by tick); `counters` hold all before them and are left holding
    them too. Raises ValueError where the order is broken.
    """
    offsets, items = own(examples.items.offsets), own(examples.items.values)
    labels = own(examples.labels.values, np.uint8)
    close = examples.shown_ms // timeline.tick_ms + timeline.attribution_ticks
    edges = np.flatnonzero(np.diff(close, prepend=-1, append=-1)).tolist()
    parts: list[tuple[Floats, Ints, Ints]] = [(np.empty((0, N_FEATURES), np.float32), items[:0], items[:0])]
    ctx_of_value = np.empty(len(items), np.int64)
    history = own(examples.history.values)
    facts_of_history = np.empty(len(history), np.int64)
    base = 0
    for lo, hi in pairwise(edges):
        tick, a, b = int(close[lo]), int(offsets[lo]), int(offsets[hi])
        unique, index = distinct(items[a:b], False)
        known = counters.as_shown(tick)
        parts.append((*context_and_rows(unique, known, catalogue, timeline.live_at_close(tick)), unique))
        ctx_of_value[a:b] = index + base
        x, y = int(examples.history.offsets[lo]), int(examples.history.offsets[hi])
        facts_of_history[x:y] = catalogue.rows(history[x:y], timeline.live_at_close(tick))
        base += len(unique)
        counters.learn(tick, items[a:b], labels[a:b], catalogue)
    ctx, facts_of, keys = (np.concatenate([p[i] for p in parts]) for i in range(3))
    return DayContext(examples, catalogue, ctx, keys, facts_of, ctx_of_value, facts_of_history)
