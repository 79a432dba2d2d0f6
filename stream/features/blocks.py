"""Embedding rows become the net's input blocks, and the blocks' gradients become gradients of rows.

    user block (I, 5·d):  user | mean of history | hour | mean of subcategories read | mean of titles read
    item block (V, 4·d):  item | category | subcategory | mean of words

A title is the mean of its words. Sums run in a fixed order, so the same batch gives the same bits. An absent row, or
an item of the history that is in no catalogue, counts as zeros in a mean; an empty list is zeros.
`scatter_gradients` is the transpose of `gather_blocks`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stream.features.batch import FIELDS_ITEM, FIELDS_USER, POSITION, SLOTS, Batch

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Lookup = Callable[[Ints], Floats]


@dataclass(frozen=True, slots=True)
class Blocks:
    """What the graphs take, by the names they take it under, and the position term."""

    user: Floats  # (I, 5·d)
    item: Floats  # (V, 4·d)
    ctx: Floats  # (C, F)
    imp_of_row: Ints  # (R,)
    item_of_row: Ints  # (R,)
    ctx_of_row: Ints  # (R,)
    position_bias: Floats  # (R,) b[position as shown], without the correction for sampling


@njit(cache=True, nogil=True)
def _copy(rows: Floats, index: Ints, at: int | np.int64, out: Floats) -> None:
    dim = rows.shape[1]
    for i in range(len(index)):
        row = index[i]
        for j in range(dim):
            out[i, at + j] = rows[row, j] if row >= 0 else np.float32(0.0)


@njit(cache=True, nogil=True)
def _pool(rows: Floats, offsets: Ints, index: Ints, at: int | np.int64, out: Floats) -> None:
    dim = rows.shape[1]
    for i in range(len(offsets) - 1):
        for j in range(dim):
            out[i, at + j] = np.float32(0.0)
        length = offsets[i + 1] - offsets[i]
        if length == 0:
            continue
        for k in range(offsets[i], offsets[i + 1]):
            row = index[k]
            if row >= 0:
                for j in range(dim):
                    out[i, at + j] += rows[row, j]
        scale = np.float32(1.0) / np.float32(length)
        for j in range(dim):
            out[i, at + j] *= scale


@njit(cache=True, nogil=True)
def _gather_user(
    users: Floats,
    history: Floats,
    hours: Floats,
    subcategories: Floats,
    words: Floats,
    user: Ints,
    offsets: Ints,
    index: Ints,
    hour: Ints,
    read: Ints,
    read_subcategory: Ints,
    word_offsets: Ints,
    read_words: Ints,
) -> Floats:
    dim = users.shape[1]
    out = np.empty((len(user), 5 * dim), np.float32)
    _copy(users, user, np.int64(0), out)
    _pool(history, offsets, index, dim, out)
    _copy(hours, hour, 2 * dim, out)
    content = np.empty((len(read_subcategory), 2 * dim), np.float32)
    _copy(subcategories, read_subcategory, np.int64(0), content)
    _pool(words, word_offsets, read_words, dim, content)
    _pool(content, offsets, read, 3 * dim, out)
    return out


@njit(cache=True, nogil=True)
def _gather_item(
    items: Floats,
    categories: Floats,
    subcategories: Floats,
    words: Floats,
    item: Ints,
    category: Ints,
    subcategory: Ints,
    offsets: Ints,
    index: Ints,
) -> Floats:
    dim = items.shape[1]
    out = np.empty((len(item), 4 * dim), np.float32)
    _copy(items, item, np.int64(0), out)
    _copy(categories, category, dim, out)
    _copy(subcategories, subcategory, 2 * dim, out)
    _pool(words, offsets, index, 3 * dim, out)
    return out


@njit(cache=True, nogil=True)
def _scatter(d_block: Floats, at: int, dim: int, index: Ints, n: int) -> Floats:
    out = np.zeros((n, dim), np.float32)
    for i in range(len(index)):
        row = index[i]
        if row >= 0:
            for j in range(dim):
                out[row, j] += d_block[i, at + j]
    return out


@njit(cache=True, nogil=True)
def _scatter_pooled(d_block: Floats, at: int, dim: int, offsets: Ints, index: Ints, n: int) -> Floats:
    out = np.zeros((n, dim), np.float32)
    g = np.empty(dim, np.float32)
    for i in range(len(offsets) - 1):
        length = offsets[i + 1] - offsets[i]
        if length == 0:
            continue
        scale = np.float32(1.0) / np.float32(length)
        for j in range(dim):
            g[j] = d_block[i, at + j] * scale
        for k in range(offsets[i], offsets[i + 1]):
            row = index[k]
            if row >= 0:
                for j in range(dim):
                    out[row, j] += g[j]
    return out


def gather_blocks(batch: Batch, lookup: Mapping[str, Lookup]) -> Blocks:
    """Look up each slot's distinct keys once and lay the blocks out.

    `lookup[slot](keys (n,))` gives float32 rows (n, d), absent keys as zeros; d is 1 for "position" and one number for
    all other slots. Raises ValueError where the widths differ.
    """
    rows = {slot: np.ascontiguousarray(lookup[slot](batch.keys[slot]), np.float32) for slot in SLOTS}
    widths = {rows[slot].shape[1] for slot in SLOTS if slot != POSITION}
    if len(widths) != 1:
        raise ValueError(f"slots have different widths: { ({s: r.shape[1] for s, r in rows.items()}) }")
    user = _gather_user(
        rows["user"], rows["history"], rows["hour"], rows["read_subcategory"], rows["words"],
        batch.user, batch.history_offsets, batch.history, batch.hour,
        batch.read, batch.read_subcategory, batch.read_word_offsets, batch.read_words,
    )  # fmt: skip
    item = _gather_item(
        rows["item"], rows["category"], rows["subcategory"], rows["words"],
        batch.item, batch.category, batch.subcategory, batch.word_offsets, batch.words,
    )  # fmt: skip
    bias = rows[POSITION].reshape(-1)[batch.position]
    return Blocks(user, item, batch.ctx, batch.imp_of_row, batch.item_of_row, batch.ctx_of_row, bias)


def scatter_gradients(
    batch: Batch, d_user: Floats, d_item: Floats, d_position: Floats, slots: Sequence[str] = SLOTS
) -> dict[str, Floats]:
    """Summed gradient of every distinct key: slot → (n, d), aligned with `batch.keys[slot]`.

    d_user (I, 5·d), d_item (V, 4·d), d_position (R,); `slots`: which to compute (those that learn).
    """
    d_user, d_item = np.ascontiguousarray(d_user), np.ascontiguousarray(d_item)
    d_read = _read_gradient(batch, d_user) if not {"read_subcategory", "words"}.isdisjoint(slots) else None
    return {slot: _slot_gradient(slot, batch, d_user, d_item, d_read, d_position) for slot in slots}


def _read_gradient(batch: Batch, d_user: Floats) -> Any:
    """(D, 2·d): what the distinct catalogue rows read are due, subcategory and title."""
    dim = d_user.shape[1] // len(FIELDS_USER)
    at = FIELDS_USER.index("read_subcategory") * dim
    return _scatter_pooled(d_user, at, 2 * dim, batch.history_offsets, batch.read, len(batch.read_subcategory))


def _slot_gradient(slot: str, batch: Batch, d_user: Floats, d_item: Floats, d_read: Any, d_position: Floats) -> Any:
    n = len(batch.keys[slot])
    if slot == POSITION:
        return _scatter(d_position.reshape(-1, 1), 0, 1, batch.position, n)
    side, block = (FIELDS_USER, d_user) if slot in FIELDS_USER else (FIELDS_ITEM, d_item)
    dim = block.shape[1] // len(side)
    at = side.index(slot) * dim
    if slot == "history":
        return _scatter_pooled(block, at, dim, batch.history_offsets, batch.history, n)
    if slot == "read_subcategory":
        return _scatter(d_read, 0, dim, batch.read_subcategory, n)
    if slot == "words":
        shown = _scatter_pooled(block, at, dim, batch.word_offsets, batch.words, n)
        return shown + _scatter_pooled(d_read, dim, dim, batch.read_word_offsets, batch.read_words, n)
    return _scatter(block, at, dim, getattr(batch, slot), n)
