"""The minute loop's core: learn what closed in a tick, and say what changed. No clock, no file, no socket.

Order within a tick, which everything else relies on:

1. Features are read as they were when shown: counters and catalogue as of live(c - a).
2. Examples, sorted by (shown, impression id, position), are cut into batches of `batch_impressions`; each batch is one
   step: gather, step graph, one update for each distinct key with its summed gradient.
3. Only then the tick is counted.
4. The delta is what the touched rows are now, the counter rows, and the items that this tick made known.

Dense weights stay frozen. Slots with `online = false` are looked up and never inserted or changed.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.embedding import EmbeddingTable, unique_inverse
from stream.examples import ExampleColumns
from stream.features.batch import SLOTS, Batch, build_batch
from stream.features.blocks import gather_blocks, scatter_gradients
from stream.sampling import Sampling
from trainer.rules import rowwise_adagrad
from trainer.state import ModelState, Tensors
from trainer.stepper import Floats

Keys = NDArray[np.int64]
Touched = dict[str, list[Keys]]


def learn_tick(state: ModelState, tick: int, examples: ExampleColumns) -> Tensors:
    """Learn the examples that close in `tick` and advance the state to it; the delta's tensors, none if empty.

    Before the first generation ticks are counted and nothing is learned. Raises ValueError for a tick that is not
    later than the state's.
    """
    if tick <= state.tick:
        raise ValueError(f"the state is at tick {state.tick} and cannot learn tick {tick}")
    delta: Tensors = {}
    if len(examples):
        if state.generation >= 0:
            delta |= changed_rows(state, _learn_examples(state, tick, examples))
        values = (examples.items.values, examples.labels.values)
        delta |= state.counters.learn(tick, *values, state.catalogue).tensors()
    fresh = state.catalogue.section(state.tick, tick)
    if len(fresh.keys):
        delta |= fresh.tensors()
    state.tick = tick
    return delta


def _learn_examples(state: ModelState, tick: int, examples: ExampleColumns) -> Touched:
    counters = state.counters.as_shown(tick)
    read_tick = state.timeline.live_at_close(tick)
    sampling = Sampling(state.train.negative_rate, state.model.seed)
    touched: Touched = {slot: [] for slot in SLOTS if state.model.slots[slot].online}
    for select in _cuts(len(examples), state.train.batch_impressions):
        batch = build_batch(
            examples, counters, state.catalogue, read_tick, state.model, sampling=sampling, select=select
        )
        for slot in learn_batch(state, batch, tick):
            touched[slot].append(batch.keys[slot])
    return touched


def _cuts(n: int, size: int) -> Iterator[Keys]:
    for lo in range(0, n, size):
        yield np.arange(lo, min(lo + size, n), dtype=np.int64)


def learn_batch(state: ModelState, batch: Batch, tick: int) -> list[str]:
    """One step with frozen dense weights; the slots that learned."""
    if batch.n_rows == 0:
        return []
    options = state.model.slots
    learning = [slot for slot in SLOTS if options[slot].online]
    rows = rows_of(state, batch, tick, learning)
    blocks = gather_blocks(batch, {slot: partial(_rows, state.tables[slot], rows[slot]) for slot in SLOTS})
    offset = blocks.position_bias
    if batch.log_odds_offset:
        offset = offset + np.float32(batch.log_odds_offset)
    out = state.net.run(
        user=blocks.user,
        item=blocks.item,
        ctx=blocks.ctx,
        imp_of_row=blocks.imp_of_row,
        item_of_row=blocks.item_of_row,
        ctx_of_row=blocks.ctx_of_row,
        offset=offset,
        label=batch.label,
        weight=np.ones(batch.n_rows, np.float32),
    )
    grads = scatter_gradients(batch, out.d_user, out.d_item, out.d_row, learning)
    for slot in learning:
        table = state.tables[slot]
        rowwise_adagrad(table.values, table.state, rows[slot], grads[slot], options[slot].lr)
    return learning


def rows_of(state: ModelState, batch: Batch, tick: int, learning: list[str]) -> dict[str, NDArray[np.int32]]:
    """Row numbers of each slot's distinct keys: made where the slot learns, else -1 where absent."""
    return {
        slot: state.tables[slot].assign(batch.keys[slot], tick)
        if slot in learning
        else state.tables[slot].find(batch.keys[slot])
        for slot in SLOTS
    }


def _rows(table: EmbeddingTable, rows: NDArray[np.int32], keys: Keys) -> Floats:
    return table.gather(rows)


def changed_rows(state: ModelState, touched: Touched) -> Tensors:
    """The rows of the touched keys as they are now, each once, in the order in which they were first touched."""
    out: dict[str, NDArray[Any]] = {}
    for slot, parts in touched.items():
        if not parts:
            continue
        keys = parts[0] if len(parts) == 1 else unique_inverse(np.concatenate(parts))[0]
        if not len(keys):
            continue
        table = state.tables[slot]
        rows = table.find(keys)
        out[f"slot/{slot}/keys"] = keys
        out[f"slot/{slot}/values"] = table.gather(rows)
        out[f"slot/{slot}/state"] = table.state[rows]
        out[f"slot/{slot}/last_seen"] = table.last_seen[rows]
    return out
