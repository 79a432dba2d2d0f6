"""A batch of impressions as the net sees it: distinct keys per slot, and integers that point into them.

Everything of an impression is stored once per impression, everything of an item once per distinct item, and what a tick
knows of an item (`ctx`) once per item and tick. A slot's embedding is looked up once per distinct key: `keys[slot]`
holds the keys, in the order in which they first appear, and an index says who uses which.

    row (shown item) ──▶ imp_of_row ──▶ impression ──▶ user, hour, history ─▶ read: subcategory, words
                    ├──▶ item_of_row ─▶ item ────────▶ item, category, subcategory, words
                    ├──▶ ctx_of_row ──▶ ctx
                    └──▶ position

An item of the history is known twice: by its key, and by what the catalogue says of it (`read`, as of the same tick as
the shown items). Its title is looked up in the same table as the titles shown, so that what clicks teach of a word on
one side serves the other; its subcategory has a table of its own.

Labels are outcomes here (`stream.outcomes`). They are read into `label` and nowhere else: the features of a row do not
depend on them, except through sampling. A shown item that is left out makes no row.
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
from stream.outcomes import LEFT_OUT, POSITIVE
from stream.sampling import KEEP_ALL, Sampling, draw

# Fields are what the net sees, slots the tables that they are looked up in.
FIELDS_USER = ("user", "history", "hour", "read_subcategory", "read_words")
FIELDS_ITEM = ("item", "category", "subcategory", "words")
POSITION = "position"
SLOTS = ("user", "history", "hour", "read_subcategory", *FIELDS_ITEM, POSITION)

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
    read: Ints  # (·,) like `history`, into the D distinct catalogue rows that were read; -1 unlisted
    read_subcategory: Ints  # (D,)
    read_word_offsets: Ints  # (D + 1,)
    read_words: Ints  # (·,) into keys["words"]
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
            if labels[at] & LEFT_OUT:
                continue
            clicked = labels[at] & POSITIVE
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
def _user_side(
    select: Ints, users: Ints, shown_ms: Ints, offsets: Ints, history: Ints, facts_of: Ints, history_length: int
) -> Any:
    n = len(select)
    hours = np.empty(n, np.int64)
    chosen = np.empty(n, np.int64)
    out_offsets = np.zeros(n + 1, np.int64)
    for k in range(n):
        i = select[k]
        chosen[k] = users[i]
        hours[k] = shown_ms[i] // HOUR_MS % 24
        out_offsets[k + 1] = out_offsets[k] + min(offsets[i + 1] - offsets[i], history_length)
    clicked = np.empty(out_offsets[n], np.int64)
    listed = np.empty(out_offsets[n], np.int64)
    for k in range(n):
        end = offsets[select[k] + 1]
        length = out_offsets[k + 1] - out_offsets[k]
        for j in range(length):
            clicked[out_offsets[k] + j] = history[end - length + j]
            listed[out_offsets[k] + j] = facts_of[end - length + j] + 1  # 0 = UNKNOWN
    user_keys, user = distinct(chosen, np.bool_(False))
    hour_keys, hour = distinct(hours, np.bool_(False))
    history_keys, index = distinct(clicked, np.bool_(False))
    read_rows, read = distinct(listed, np.bool_(True))
    return user_keys, user, hour_keys, hour, history_keys, index, out_offsets, read_rows - 1, read


@njit(cache=True, nogil=True)
def _title_offsets(facts_of: Ints, facts: NDArray[np.int64], title_words: int) -> Ints:
    offsets = np.zeros(len(facts_of) + 1, np.int64)
    for i in range(len(facts_of)):
        row = facts_of[i]
        length = min(facts[row, WORD_END] - facts[row, WORD_AT], title_words) if row >= 0 else 0
        offsets[i + 1] = offsets[i] + length
    return offsets


@njit(cache=True, nogil=True)
def _shelf(facts_of: Ints, facts: NDArray[np.int64], column: int) -> Any:
    keys = np.full(len(facts_of), UNKNOWN, np.int64)
    for i in range(len(facts_of)):
        if facts_of[i] >= 0:
            keys[i] = facts[facts_of[i], column]
    return distinct(keys, np.bool_(True))


@njit(cache=True, nogil=True)
def _content(shown: Ints, read: Ints, facts: NDArray[np.int64], words: Ints, title_words: int) -> Any:
    """Of the catalogue rows shown and read: shelves, and titles over one set of distinct words."""
    shown_offsets = _title_offsets(shown, facts, title_words)
    read_offsets = _title_offsets(read, facts, title_words)
    base = shown_offsets[-1]
    titles = np.empty(base + read_offsets[-1], np.int64)
    for i in range(len(shown)):
        for j in range(shown_offsets[i + 1] - shown_offsets[i]):
            titles[shown_offsets[i] + j] = words[facts[shown[i], WORD_AT] + j]
    for i in range(len(read)):
        for j in range(read_offsets[i + 1] - read_offsets[i]):
            titles[base + read_offsets[i] + j] = words[facts[read[i], WORD_AT] + j]
    category_keys, category = _shelf(shown, facts, CATEGORY)
    subcategory_keys, subcategory = _shelf(shown, facts, SUBCATEGORY)
    read_keys, read_subcategory = _shelf(read, facts, SUBCATEGORY)
    word_keys, word = distinct(titles, np.bool_(False))
    keys = category_keys, subcategory_keys, read_keys, word_keys
    shelves = category, subcategory, read_subcategory
    return keys, shelves, (shown_offsets, word[:base].copy()), (read_offsets, word[base:].copy())


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
    read = catalogue.rows(examples.history.values, read_tick)
    return assemble(examples, select, catalogue, model, sampling, rows, items, facts_of, read, ctx, rows[2])


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
    facts_of_history: Ints,
    ctx: Floats,
    item_of_row: Ints,
) -> Batch:
    imp_of_row, _, ctx_of_row, position, label, row_offsets, used = rows
    user_keys, user, hour_keys, hour, history_keys, history, history_offsets, read_rows, read = _user_side(
        select,
        own(examples.user),
        own(examples.shown_ms),
        own(examples.history.offsets),
        own(examples.history.values),
        facts_of_history,
        model.history_length,
    )
    item_keys, item = distinct(items, np.bool_(False))
    content_keys, (category, subcategory, read_subcategory), titles, read_titles = _content(
        facts_of, read_rows, catalogue.facts, catalogue.words, model.title_words
    )
    category_keys, subcategory_keys, read_subcategory_keys, word_keys = content_keys
    return Batch(
        keys={
            "user": user_keys, "history": history_keys, "hour": hour_keys, "item": item_keys,
            "category": category_keys, "subcategory": subcategory_keys, "read_subcategory": read_subcategory_keys,
            "words": word_keys, POSITION: used,
        },
        user=user, hour=hour, history_offsets=history_offsets, history=history, read=read,
        read_subcategory=read_subcategory, read_word_offsets=read_titles[0], read_words=read_titles[1],
        item=item, category=category, subcategory=subcategory, word_offsets=titles[0], words=titles[1],
        ctx=ctx, imp_of_row=imp_of_row, item_of_row=item_of_row, ctx_of_row=ctx_of_row,
        position=position, label=label, row_offsets=row_offsets, log_odds_offset=sampling.offset,
    )  # fmt: skip
