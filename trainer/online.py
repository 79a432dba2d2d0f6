"""The minute loop's core: learn what closed in a tick, and say what changed. No clock, no file, no socket.

Order within a tick, which everything else relies on:

1. Features are read as they were when shown: counters and catalogue as of live(c - a).
2. Rows whose keys were not seen for their slot's expiry are gone.
3. Examples, sorted by (shown, impression id, position), are cut into batches of `batch_impressions`; each batch is one
   step: gather, step graph, one update for each distinct key with its summed gradient.
4. Only then the tick is counted.
5. The delta is what the touched rows are now, the keys that lost theirs (tombstones), the counter rows, and the items
   that this tick made known.

Dense weights stay frozen. Slots with `online = false` are looked up and never inserted or changed. A key that has no
row (not admitted, or no room) reads as zeros, and its gradient is dropped.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from infra.embedding import unique_inverse
from stream.examples import ExampleColumns
from stream.features.batch import SLOTS, Batch, build_batch
from stream.features.blocks import gather_blocks, scatter_gradients
from stream.outcomes import with_outcomes
from stream.sampling import Sampling
from trainer.guard import Forecast
from trainer.slots import Rows, Slot
from trainer.state import ModelState, Tensors
from trainer.stepper import Floats

Keys = NDArray[np.int64]
Touched = dict[str, list[Keys]]
NO_KEYS = np.empty(0, np.int64)


def learn_tick(state: ModelState, tick: int, examples: ExampleColumns, *, held: bool = False) -> Tensors:
    """Learn the examples that close in `tick` and advance the state to it; the delta's tensors, none if empty.

    A tick without examples only lets rows expire. Before the first generation ticks are counted and nothing is
    learned. `held`: no row learns; the rest is as always. Raises ValueError for a tick that is not later than the
    state's.
    """
    if tick <= state.tick:
        raise ValueError(f"the state is at tick {state.tick} and cannot learn tick {tick}")
    delta: Tensors = {}
    examples = with_outcomes(examples, state.train)
    state.forecast = Forecast()
    if state.generation >= 0:
        for slot in state.slots.values():
            slot.advance(tick)
        touched = _learn_examples(state, tick, examples) if len(examples) and not held else {}
        delta |= changes(state, touched)
    if len(examples):
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
    rows = {slot: _rows_of(state.slots[slot], batch, tick, learning) for slot in SLOTS}
    blocks = gather_blocks(batch, {slot: partial(gathered, state.slots[slot], rows[slot]) for slot in SLOTS})
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
    state.forecast.add(out.f + offset, batch.label)
    grads = scatter_gradients(batch, out.d_user, out.d_item, out.d_row, learning)
    for slot in learning:
        state.refused[slot] += state.slots[slot].learn(rows[slot], grads[slot], options[slot].lr)
    return learning


def _rows_of(slot: Slot, batch: Batch, tick: int, learning: list[str]) -> Rows:
    """Row numbers of a slot's distinct keys: made where the slot learns, else -1 where absent."""
    return slot.assign(batch, tick) if slot.name in learning else slot.find(batch)


def gathered(slot: Slot, rows: Rows, keys: Keys) -> Floats:
    """Vectors of row numbers that are known already; what `gather_blocks` takes for a look-up by `keys`."""
    return slot.table.gather(rows)


def changes(state: ModelState, touched: Touched) -> Tensors:
    """The rows of the touched keys as they are now, each once, in the order in which they were first touched; and
    what lost its row."""
    out: Tensors = {}
    for name, slot in state.slots.items():
        parts = touched.get(name, [])
        if not parts and not slot.options.has_policy:
            continue  # nothing touched it, and it loses nothing
        keys = parts[0] if len(parts) == 1 else unique_inverse(np.concatenate([NO_KEYS, *parts]))[0]
        out |= slot.changes(keys)
    return out
