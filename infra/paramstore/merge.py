"""Deltas fold into a state: upsert by key, last writer wins, tombstones remove.

A tensor group is a common prefix with a `keys` tensor; the tensors beside it are its columns:

    <group>/keys         int64 (n,)       one row a key, or one a (key, known_tick) where that column is there
    <group>/<column>     (n, …)           row-aligned
    <group>/<c>_offsets  int64 (n+1,)     a ragged column: its offsets …
    <group>/<c>s         (m,)             … and its values
    <group>/tombstones   int64 (k,)       keys removed (before the delta's own rows are put)

Everything else (dense weights, graphs) is replaced whole. The sections in `PRIVATE` are the trainer's own bookkeeping
between ticks: a snapshot holds them, a delta makes them stale, so folding a delta drops them. The laws that tests hold:
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
KNOWN = "/known_tick"
OFFSETS = "_offsets"
PRIVATE = ("pending", "lagged")
NONE = np.empty(0, dtype=np.int64)

Part = Mapping[str, NDArray[Any]]


def fold(state: Part, deltas: Iterable[Part]) -> Tensors:
    """The state after the deltas, in order; it holds no tombstones. The input is left as it was."""
    parts = [state, *deltas]
    folded = {name: t for name, t in merge(parts).items() if not name.endswith(TOMBSTONES)}
    return folded if len(parts) > 1 else folded | _private(state)


def merge(deltas: Iterable[Part]) -> Tensors:
    """Many deltas as one delta: per key the last row, or a tombstone where the last word was a removal."""
    parts = [{n: t for n, t in part.items() if n.partition("/")[0] not in PRIVATE} for part in deltas]
    merged: Tensors = {}
    groups: dict[str, list[Part]] = {}
    for part in parts:
        here = _groups(part)
        for group in here:
            groups.setdefault(group, []).append(part)
        merged |= {name: t for name, t in part.items() if name.rpartition("/")[0] not in here}
    for group, members in groups.items():
        merged |= _merge_group(group, members)
    return dict(sorted(merged.items()))


def _private(state: Part) -> Tensors:
    return {name: t for name, t in state.items() if name.partition("/")[0] in PRIVATE}


def _groups(part: Part) -> set[str]:
    return {n.rpartition("/")[0] for n in part if n.endswith((KEYS, TOMBSTONES))}


def _merge_group(group: str, parts: list[Part]) -> Tensors:
    """One timeline of words about keys (in each part tombstones, then rows): the last word about each holds."""
    keys_of = [p.get(group + KEYS, NONE) for p in parts]
    dead_of = [p.get(group + TOMBSTONES, NONE) for p in parts]
    pairs = list(zip(dead_of, keys_of, strict=True))
    words = np.concatenate([w for pair in pairs for w in pair])
    alive = np.concatenate([np.full(len(w), i, dtype=np.bool_) for pair in pairs for i, w in enumerate(pair)])
    row_of_word = np.cumsum(alive) - 1
    with_rows = [p for p in parts if len(p.get(group + KEYS, NONE))] or [p for p in parts if group + KEYS in p][-1:]
    removes = any(group + TOMBSTONES in p for p in parts)
    if removes and any(group + KNOWN in p for p in with_rows):
        raise ValueError(f"{group}: records that are known from a tick are facts; they are not removed by key")
    ticks = [_column(p, group + KNOWN) for p in with_rows] if any(group + KNOWN in p for p in with_rows) else []
    last = _last_words(words, np.concatenate(ticks) if ticks else None)
    live = alive[last]
    rows = row_of_word[last[live]]
    out: Tensors = {group + KEYS: words[last[live]]} if with_rows else {}
    out |= _take_columns(group, with_rows, rows)
    if removes:
        out[group + TOMBSTONES] = words[last[~live]]
    return out


def _last_words(words: NDArray[np.int64], ticks: NDArray[Any] | None) -> NDArray[np.intp]:
    """Position of the last word about each key (and tick), sorted by key (and tick)."""
    n = len(words)
    order = np.lexsort((np.arange(n), words) if ticks is None else (np.arange(n), ticks, words))
    same = words[order][1:] == words[order][:-1]
    if ticks is not None:
        same &= ticks[order][1:] == ticks[order][:-1]
    return order[np.append(~same, True)] if n else order


def _take_columns(group: str, parts: list[Part], rows: NDArray[np.intp]) -> Tensors:
    names = {n for p in parts for n in p if n.rpartition("/")[0] == group and not n.endswith((KEYS, TOMBSTONES))}
    ragged = {n.removesuffix(OFFSETS) + "s": n for n in names if n.endswith(OFFSETS)}
    out: Tensors = {}
    for name in names - set(ragged.values()):
        if name in ragged:
            out |= _take_ragged(name, ragged[name], parts, rows)
        else:
            out[name] = np.concatenate([_column(p, name) for p in parts])[rows]
    return out


def _column(part: Part, name: str) -> NDArray[Any]:
    if name not in part:
        raise ValueError(f"a delta with rows lacks the column {name} that another one has")
    return part[name]


def _take_ragged(name: str, offsets_name: str, parts: list[Part], rows: NDArray[np.intp]) -> Tensors:
    lengths = np.concatenate([np.diff(_column(p, offsets_name)) for p in parts])
    values = np.concatenate([_column(p, name) for p in parts])
    starts = np.concatenate(([0], np.cumsum(lengths)))[:-1][rows]
    lengths = lengths[rows]
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    index = np.repeat(starts - offsets[:-1], lengths) + np.arange(int(offsets[-1]))
    return {offsets_name: offsets, name: values[index]}
