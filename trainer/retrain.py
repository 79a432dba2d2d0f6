"""The nightly retrain: a day of the archive, dense and sparse, shuffled, from the chain's own last generation.

The day's features are attached in one ordered pass through the counters, the same reads as the minute loop made;
then impressions are shuffled by a seed that is a function of (model seed, day, pass) and learned in fixed batches, with
negatives sampled by a hash and corrected for. Tables keep their Adagrad accumulators and the net its Adam moments:
a warm start. One thread, deterministic: the same archive gives the same bits.
"""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise

import numpy as np

from infra.config import ModelConfig
from stream.examples import ExampleColumns
from stream.features.batch import FIELDS_ITEM, FIELDS_USER, POSITION, SLOTS, Batch
from stream.features.blocks import gather_blocks, scatter_gradients
from stream.features.context import N_FEATURES, PRIOR_CTR
from stream.features.day import DayContext, attach_context
from stream.outcomes import with_outcomes
from stream.sampling import Sampling
from trainer.dense import DenseTrainer
from trainer.net import NetShape, initial_weights
from trainer.online import gathered
from trainer.slots import Rows
from trainer.state import ModelState
from trainer.stepper import Floats

NO_KEYS = np.empty(0, np.int64)


def shape_of(model: ModelConfig) -> NetShape:
    """The architecture that a configuration asks for. Raises ValueError where slots differ in dimension."""
    dims = {model.slots[slot].dim for slot in SLOTS if slot != POSITION}
    if len(dims) != 1:
        raise ValueError(f"model.slots: all but position share one dim, here {sorted(dims)}")
    return NetShape(dims.pop(), len(FIELDS_USER), len(FIELDS_ITEM), N_FEATURES, model.rank, model.hidden)


def retrain_day(
    state: ModelState,
    moments: Mapping[str, Floats] | None,
    examples: ExampleColumns,
    *,
    day: int,
    last_tick: int,
    epochs: int,
    graphs: Mapping[str, bytes],
) -> dict[str, Floats]:
    """Learn a day in place and advance counters and tick to `last_tick`; returns Adam's moments.

    `examples` are in tick order and close at or before `last_tick`; the state's counters hold all before them. With
    no net yet, weights start from the model seed.
    """
    context = attach_context(with_outcomes(examples, state.train), state.counters, state.catalogue, state.timeline)
    shape = shape_of(state.model)
    weights = dict(state.dense) or fresh_weights(shape, state.model, context)
    net = DenseTrainer(shape, weights, moments, state.train.dense_lr)
    sampling = Sampling(state.train.retrain_negative_rate, state.model.seed)
    make_rows(state, context, sampling)
    for epoch in range(epochs):
        order = np.random.default_rng([state.model.seed, day, epoch]).permutation(len(examples)).astype(np.int64)
        for lo in range(0, len(order), state.train.retrain_batch_impressions):
            select = order[lo : lo + state.train.retrain_batch_impressions]
            _learn(state, net, context.batch(select, state.model, sampling=sampling), last_tick)
    state.set_net(net.weights(), graphs)
    for slot in state.slots.values():
        slot.advance(last_tick)
        slot.changes(NO_KEYS)  # a night is published whole: what it lost is simply not in it
    state.counters.as_shown(last_tick + 1)
    state.tick = last_tick
    return net.moments()


def fresh_weights(shape: NetShape, model: ModelConfig, context: DayContext) -> dict[str, Floats]:
    """Initial weights, with the context's mean and spread as found in the day, and the prior's log-odds as bias."""
    bias = float(np.log(PRIOR_CTR / (1 - PRIOR_CTR)))
    weights: dict[str, Floats] = {k: v.numpy() for k, v in initial_weights(shape, model.seed, bias).items()}
    if len(context.ctx):
        shown = np.bincount(context.ctx_of_value, minlength=len(context.ctx)).astype(np.float64)
        mean = np.average(context.ctx, axis=0, weights=shown)
        spread = np.sqrt(np.average((context.ctx - mean) ** 2, axis=0, weights=shown))
        weights["ctx_shift"] = mean.astype(np.float32)
        weights["ctx_scale"] = (1.0 / np.maximum(spread, 0.05)).astype(np.float32)
    return weights


def make_rows(state: ModelState, context: DayContext, sampling: Sampling) -> None:
    """Let keys come and go in event order, as by day, in the slots where a key may be refused a row or lose it.

    The shuffled passes then find rows and make none there: admission, expiry and eviction go by event time, whatever
    the shuffle. Slots that keep every key make rows as they meet them.
    """
    slots = [slot for slot in state.slots.values() if slot.options.has_policy]
    if not slots:
        return
    timeline = state.timeline
    close = context.examples.shown_ms // timeline.tick_ms + timeline.attribution_ticks
    edges = np.flatnonzero(np.diff(close, prepend=-1, append=-1)).tolist()
    for lo, hi in pairwise(edges):
        batch = context.batch(np.arange(lo, hi), state.model, sampling=sampling)
        for slot in slots:
            slot.advance(int(close[lo]))
            slot.assign(batch, int(close[lo]))


def _learn(state: ModelState, net: DenseTrainer, batch: Batch, tick: int) -> None:
    if batch.n_rows == 0:
        return
    slots = state.slots
    rows: dict[str, Rows] = {
        name: slot.find(batch) if slot.options.has_policy else slot.assign(batch, tick) for name, slot in slots.items()
    }
    blocks = gather_blocks(batch, {name: partial(gathered, slot, rows[name]) for name, slot in slots.items()})
    out = net.step(
        user=blocks.user,
        item=blocks.item,
        ctx=blocks.ctx,
        imp_of_row=blocks.imp_of_row,
        item_of_row=blocks.item_of_row,
        ctx_of_row=blocks.ctx_of_row,
        offset=blocks.position_bias + np.float32(batch.log_odds_offset),
        label=batch.label,
    )
    grads = scatter_gradients(batch, out.d_user, out.d_item, out.d_row)
    for name, slot in slots.items():
        slot.learn(rows[name], grads[name], slot.options.retrain_lr)
