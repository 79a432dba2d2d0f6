"""Deltas fold into a state: upsert by key, last writer wins, tombstones remove.

A tensor group is a common prefix with a `keys` tensor; the tensors beside it are its columns:

    <group>/keys         int64 (n,)       one row a key
    <group>/<column>     (n, …)           row-aligned
    <group>/<c>/offsets  int64 (n+1,)     ragged columns: offsets …
    <group>/<c>/values   (m,)             … and values
    <group>/tombstones   int64 (k,)       keys removed (before the delta's own rows are put)

Everything else (dense weights, graphs) is replaced whole; `pending/…` is replaced as one set. The law that tests hold:
fold(snapshot(v), deltas(v → w)) = snapshot(w), and fold(a, merge(b, c)) = fold(fold(a, b), c).
A merged state is sorted by key, so that equal states have equal bytes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.paramstore.tensors import Tensors

KEYS = "/keys"
TOMBSTONES = "/tombstones"
PENDING = "pending/"
EMPTY_KEYS = np.empty(0, dtype=np.int64)


def fold(state: Tensors, deltas: Iterable[Mapping[str, NDArray[Any]]]) -> Tensors:
    """The state after the deltas, in order; it holds no tombstones. The input is left as it was."""
    return _drop_tombstones(merge([state, *deltas]))


def merge(deltas: Iterable[Mapping[str, NDArray[Any]]]) -> Tensors:
    """Many deltas as one delta: per key the last row, or a tombstone where the last word was a removal."""
    parts = list(deltas)
    merged: Tensors = {}
    for part in parts:
        if any(name.startswith(PENDING) for name in part):
            merged = {n: t for n, t in merged.items() if not n.startswith(PENDING)}
        merged |= {name: t for name, t in part.items() if _group_of(name, part) is None}
    groups = {g: None for part in parts for name in part if (g := _group_of(name, part)) is not None}
    for group in groups:
        merged |= _merge_group(group, [p for p in parts if group + KEYS in p or group + TOMBSTONES in p])
    return dict(sorted(merged.items()))


def _group_of(name: str, part: Mapping[str, NDArray[Any]]) -> str | None:
    """The group a tensor belongs to: the longest prefix with a `keys` or `tombstones` tensor."""
    if name.startswith(PENDING):
        return None
    prefix = name
    while "/" in prefix:
        prefix = prefix.rpartition("/")[0]
        if prefix + KEYS in part or prefix + TOMBSTONES in part:
            return prefix
    return None


def _merge_group(group: str, parts: list[Mapping[str, NDArray[Any]]]) -> Tensors:
    keys_of = [p.get(group + KEYS, EMPTY_KEYS) for p in parts]
    dead_of = [p.get(group + TOMBSTONES, EMPTY_KEYS) for p in parts]
    # One timeline of words about keys: in each part the tombstones come before the rows.
    words = np.concatenate([w for pair in zip(dead_of, keys_of, strict=True) for w in pair])
    alive = np.concatenate(
        [np.full(len(w), i, dtype=np.bool_) for pair in zip(dead_of, keys_of, strict=True) for i, w in enumerate(pair)]
    )
    row = np.cumsum(alive) - 1
    keys, last = _last_words(words)
    live = alive[last]
    rows = row[last[live]]
    out: Tensors = {group + KEYS: keys[live]}
    with_rows = [p for p in parts if len(p.get(group + KEYS, EMPTY_KEYS))] or parts[-1:]
    columns = {n for p in with_rows for n in p if n.startswith(group + "/")} - {group + KEYS, group + TOMBSTONES}
    for name in sorted(columns):
        if name.endswith("/offsets") and name[: -len("offsets")] + "values" in with_rows[0]:
            base = name[: -len("offsets")]
            out |= _take_ragged(base, with_rows, rows)
        elif not (name.endswith("/values") and name[: -len("values")] + "offsets" in with_rows[0]):
            out[name] = np.concatenate([_column(p, name) for p in with_rows])[rows]
    if any(group + TOMBSTONES in p for p in parts):
        out[group + TOMBSTONES] = keys[~live]
    return out


def _last_words(words: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Distinct keys, sorted, and the position of each one's last occurrence."""
    keys, first_from_end = np.unique(words[::-1], return_index=True)
    return keys, len(words) - 1 - first_from_end


def _column(part: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in part:
        raise ValueError(f"a delta with rows lacks the column {name} that another one has")
    return part[name]


def _take_ragged(base: str, parts: list[Mapping[str, NDArray[Any]]], rows: NDArray[np.intp]) -> Tensors:
    lengths = np.concatenate([np.diff(_column(p, base + "offsets")) for p in parts])
    values = np.concatenate([_column(p, base + "values") for p in parts])
    starts = np.concatenate(([0], np.cumsum(lengths)))[:-1][rows]
    lengths = lengths[rows]
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    index = np.repeat(starts - offsets[:-1], lengths) + np.arange(int(offsets[-1]))
    return {base + "offsets": offsets, base + "values": values[index]}


def _drop_tombstones(tensors: Tensors) -> Tensors:
    return {name: t for name, t in tensors.items() if not name.endswith(TOMBSTONES)}
