"""A batch of impressions as the net sees it: distinct keys per slot, and integers that point into them.

Everything of an impression is stored once per impression, everything of an item once per distinct item, and what a tick
knows of an item (`ctx`) once per item and tick. A slot's embedding is looked up once per distinct key: `keys[slot]`
holds the keys, in the order in which they first appear, and an index says who uses which.

    row (shown item) ──▶ imp_of_row ──▶ impression ──▶ user, hour, history
                    ├──▶ item_of_row ─▶ item ────────▶ item, category, subcategory, words
                    ├──▶ ctx_of_row ──▶ ctx
                    └──▶ position

Labels are read into `label` and nowhere else: the features of a row do not depend on them, except through sampling.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.config import ModelConfig
from stream.columns import Lists
from stream.features.catalogue import CATEGORY, SUBCATEGORY, WORD_AT, WORD_END, Catalogue
from stream.features.context import HOUR_MS, context_and_rows
from stream.features.counters import CounterState
from stream.features.keys import UNKNOWN, distinct, own
from stream.sampling import KEEP_ALL, Sampling, draw

SLOTS_USER = ("user", "history", "hour")
SLOTS_ITEM = ("item", "category", "subcategory", "words")
POSITION = "position"
SLOTS = (*SLOTS_USER, *SLOTS_ITEM, POSITION)

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Impressions(Protocol):
    """The columns that features are made of: `stream.examples.ExampleColumns`, or a request."""

    @property
    def impression(self) -> Ints: ...
    @property
    def user(self) -> Ints: ...
    @property
    def shown_ms(self) -> Ints: ...
    @property
    def history(self) -> Lists: ...
    @property
    def items(self) -> Lists: ...
    @property
    def labels(self) -> Lists: ...


class Request(NamedTuple):
    """Impressions that nobody has answered yet, from serving: all labels 0."""

    impression: Ints
    user: Ints
    shown_ms: Ints
    history: Lists
    items: Lists
    labels: Lists


def request(*, user: int, time_ms: int, history: Ints, items: Ints) -> Request:
    """One impression to be ranked: keys of the user, of the history (oldest first) and of the candidates."""
    ends = np.array([0, len(items)], np.int64)
    return Request(
        np.zeros(1, np.int64),
        np.array([user], np.int64),
        np.array([time_ms], np.int64),
        Lists(np.array([0, len(history)], np.int64), own(history)),
        Lists(ends, own(items)),
        Lists(ends, np.zeros(len(items), np.uint8)),
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """Shapes: I impressions, V items, C context rows, R rows; index -1: unknown, reads as zeros and learns nothing."""

    keys: Mapping[str, Ints]  # slot → distinct keys
    user: Ints  # (I,) into keys["user"]
    hour: Ints  # (I,)
    history_offsets: Ints  # (I + 1,)
    history: Ints  # (·,) into keys["history"], oldest first
    item: Ints  # (V,)
    category: Ints  # (V,)
    subcategory: Ints  # (V,)
    word_offsets: Ints  # (V + 1,)
    words: Ints  # (·,)
    ctx: Floats  # (C, N_FEATURES)
    imp_of_row: Ints  # (R,)
    item_of_row: Ints  # (R,)
    ctx_of_row: Ints  # (R,)
    position: Ints  # (R,) as shown, clipped; also the index into keys["position"]
    label: Floats  # (R,) 1 = clicked
    row_offsets: Ints  # (I + 1,) rows of each impression
    log_odds_offset: float  # what training adds to the logit for sampled negatives

    @property
    def n_impressions(self) -> int:
        return len(self.user)

    @property
    def n_items(self) -> int:
        return len(self.item)

    @property
    def n_rows(self) -> int:
        return len(self.label)


@njit(cache=True, nogil=True)
def _rows(
    select: Ints,
    impressions: Ints,
    offsets: Ints,
    items: Ints,
    codes: Ints,
    labels: NDArray[np.uint8],
    positions: int,
    seed: int,
    below: int,
) -> Any:
    n = np.int64(0)
    for i in select:
        n += offsets[i + 1] - offsets[i]
    imp_of_row = np.empty(n, np.int64)
    kept = np.empty(n, np.int64)
    position = np.empty(n, np.int64)
    label = np.empty(n, np.float32)
    row_offsets = np.zeros(len(select) + 1, np.int64)
    n = np.int64(0)
    deepest = np.int64(-1)
    for k in range(len(select)):
        lo, hi = offsets[select[k]], offsets[select[k] + 1]
        for at in range(lo, hi):
            clicked = labels[at] & 1
            if clicked == 0 and draw(impressions[select[k]], items[at], seed) >= below:
                continue
            imp_of_row[n] = k
            kept[n] = codes[at]
            position[n] = min(at - lo, positions - 1)
            deepest = max(deepest, position[n])
            label[n] = clicked
            n += 1
        row_offsets[k + 1] = n
    unique, index = distinct(kept[:n], np.bool_(False))
    used = np.arange(deepest + 1)
    return imp_of_row[:n].copy(), unique, index, position[:n].copy(), label[:n].copy(), row_offsets, used


@njit(cache=True, nogil=True)
def _user_side(select: Ints, users: Ints, shown_ms: Ints, offsets: Ints, history: Ints, history_length: int) -> Any:
    n = len(select)
    hours = np.empty(n, np.int64)
    chosen = np.empty(n, np.int64)
    out_offsets = np.zeros(n + 1, np.int64)
    for k in range(n):
        i = select[k]
        chosen[k] = users[i]
        hours[k] = shown_ms[i] // HOUR_MS % 24
        out_offsets[k + 1] = out_offsets[k] + min(offsets[i + 1] - offsets[i], history_length)
    read = np.empty(out_offsets[n], np.int64)
    for k in range(n):
        end = offsets[select[k] + 1]
        length = out_offsets[k + 1] - out_offsets[k]
        for j in range(length):
            read[out_offsets[k] + j] = history[end - length + j]
    user_keys, user = distinct(chosen, np.bool_(False))
    hour_keys, hour = distinct(hours, np.bool_(False))
    history_keys, index = distinct(read, np.bool_(False))
    return user_keys, user, hour_keys, hour, history_keys, index, out_offsets


@njit(cache=True, nogil=True)
def _item_side(items: Ints, facts_of: Ints, facts: NDArray[np.int64], words: Ints, title_words: int) -> Any:
    n = len(items)
    categories = np.full(n, UNKNOWN, np.int64)
    subcategories = np.full(n, UNKNOWN, np.int64)
    offsets = np.zeros(n + 1, np.int64)
    for i in range(n):
        row = facts_of[i]
        length = 0
        if row >= 0:
            categories[i] = facts[row, CATEGORY]
            subcategories[i] = facts[row, SUBCATEGORY]
            length = min(facts[row, WORD_END] - facts[row, WORD_AT], title_words)
        offsets[i + 1] = offsets[i] + length
    titles = np.empty(offsets[n], np.int64)
    for i in range(n):
        for j in range(offsets[i + 1] - offsets[i]):
            titles[offsets[i] + j] = words[facts[facts_of[i], WORD_AT] + j]
    item_keys, item = distinct(items, np.bool_(False))
    category_keys, category = distinct(categories, np.bool_(True))
    subcategory_keys, subcategory = distinct(subcategories, np.bool_(True))
    word_keys, word = distinct(titles, np.bool_(False))
    return item_keys, item, category_keys, category, subcategory_keys, subcategory, word_keys, word, offsets


def build_batch(
    examples: Impressions,
    counters: CounterState,
    catalogue: Catalogue,
    read_tick: int,
    model: ModelConfig,
    *,
    sampling: Sampling = KEEP_ALL,
    select: Ints | None = None,
) -> Batch:
    """The batch of examples that were all shown in one tick, with what was known at `read_tick` = live(that tick).

    `select`: which examples, in which order; all by default. Raises ValueError where the counters are ahead of
    `read_tick`.
    """
    select = np.arange(len(examples.user)) if select is None else own(select)
    rows = row_columns(examples, examples.items.values, select, model, sampling)
    items = rows[1]
    ctx, facts_of = context_and_rows(items, counters, catalogue, read_tick)
    return assemble(examples, select, catalogue, model, sampling, rows, items, facts_of, ctx, rows[2])


def row_columns(examples: Impressions, codes: Ints, select: Ints, model: ModelConfig, sampling: Sampling) -> Any:
    return _rows(
        select, own(examples.impression), own(examples.items.offsets), own(examples.items.values), own(codes),
        own(examples.labels.values, np.uint8), model.positions, sampling.seed, sampling.below,
    )  # fmt: skip


def assemble(
    examples: Impressions,
    select: Ints,
    catalogue: Catalogue,
    model: ModelConfig,
    sampling: Sampling,
    rows: Any,
    items: Ints,
    facts_of: Ints,
    ctx: Floats,
    item_of_row: Ints,
) -> Batch:
    imp_of_row, _, ctx_of_row, position, label, row_offsets, used = rows
    user_keys, user, hour_keys, hour, history_keys, history, history_offsets = _user_side(
        select,
        own(examples.user),
        own(examples.shown_ms),
        own(examples.history.offsets),
        own(examples.history.values),
        model.history_length,
    )
    item_keys, item, category_keys, category, subcategory_keys, subcategory, word_keys, words, word_offsets = (
        _item_side(items, facts_of, catalogue.facts, catalogue.words, model.title_words)
    )
    return Batch(
        keys={
            "user": user_keys, "history": history_keys, "hour": hour_keys, "item": item_keys,
            "category": category_keys, "subcategory": subcategory_keys, "words": word_keys, POSITION: used,
        },
        user=user, hour=hour, history_offsets=history_offsets, history=history,
        item=item, category=category, subcategory=subcategory, word_offsets=word_offsets, words=words,
        ctx=ctx, imp_of_row=imp_of_row, item_of_row=item_of_row, ctx_of_row=ctx_of_row,
        position=position, label=label, row_offsets=row_offsets, log_odds_offset=sampling.offset,
    )  # fmt: skip
