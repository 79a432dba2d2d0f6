"""Who gets a row: by count, in a bounded sketch that works for any threshold; or by chance, drawn by hash.

Count-min (Cormode and Muthukrishnan 2005) with conservative update (Estan and Varghese 2002), blocked: a key's four
cells lie in one cache line, one in each quarter of it. Cells are as wide as the threshold needs (1, 2 or 4 bytes), so
none saturates below it.

Only keys without a row are counted. An estimate is never below the count, so a key is never admitted late; it may be
admitted early. With N occurrences counted in B lines of w cells, another key's share of a given cell is N / B · 4 / w,
so the estimate exceeds the count by t or more with a chance of at most

    N · 4 / (B · w · t)            (Markov; the least of four cells and conservative update make it far less)

and with X other occurrences in the same line, at most (4 X / (w t))⁴, the quarters being hashed independently.

Counts age by a sliding window: the running window's cells and the last one's add up, each in its own generation of
the memory; which windows these are is a function of the tick. A generation is numbered by its window's parity, so
ageing clears one and moves nothing.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from infra.embedding.initial import mix64, stream_base
from infra.embedding.life.policy import NEVER, Policy
from infra.errors import ConfigError

Tensors = dict[str, NDArray[Any]]
QUARTERS = 4  # cells of a key, one in each quarter of its line
_LINE = 64  # bytes
_DIRTY = 8  # bytes a line: which of its cells changed
_U = np.uint64


def first_window(policy: Policy) -> int:
    """The window before every tick; 0, for ever, where counts never age."""
    return NEVER // policy.admit_window_ticks if policy.admit_window_ticks else 0


class Geometry(NamedTuple):
    """Shape of a sketch, from its policy: `generations` · `lines` lines of `width` cells of `kind`."""

    generations: int
    lines: int
    width: int
    kind: type[np.unsignedinteger[Any]]

    @staticmethod
    def of(policy: Policy) -> "Geometry":
        """What fits into `sketch_bytes`, with cells that can hold `admit_after`."""
        kind = np.uint8 if policy.admit_after < 2**8 else np.uint16 if policy.admit_after < 2**16 else np.uint32
        generations = 2 if policy.admit_window_ticks else 1
        lines = min(policy.sketch_bytes // generations // (_LINE + _DIRTY), 2**32 - 1)
        return Geometry(generations, lines, _LINE // np.dtype(kind).itemsize, kind)

    def header(self, window: int) -> NDArray[np.int64]:
        """What an export says of the sketch that made it."""
        return np.array([window, self.generations, self.lines, self.width], np.int64)

    def window_of(self, tensors: Mapping[str, NDArray[Any]]) -> int:
        """The window of an export. Raises ConfigError where it was made under other options."""
        header = np.asarray(tensors["sketch"]).tolist()
        if header[1:] != [self.generations, self.lines, self.width]:
            raise ConfigError(
                f"an admission sketch of shape {header[1:]} does not fit {self[:3]}: "
                "keep admit_after, admit_window_ticks and sketch_bytes, or begin without its counts"
            )
        return int(header[0])


class Sketch(Protocol):
    """Counts of keys that have no row yet: `AdmissionSketch`, and its reference in plain Python."""

    def admit(self, keys: NDArray[np.int64], occurrences: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Count distinct keys (n,), in order, and say which of them have been seen often enough."""

    def advance(self, tick: int) -> None:
        """Event time moves on: what is too old to count is forgotten."""

    def export(self) -> Tensors:
        """All cells that are not zero, sorted."""

    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Become what was exported. Raises ConfigError where it does not fit."""

    def take_delta(self) -> Tensors:
        """The cells that changed since the last call, as they are now; empty where none did."""

    def apply_delta(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Do what another sketch did before its `take_delta`."""


def sketch_base(slot: str, seed: int) -> int:
    """What names the hashes of a slot's sketch and of its draws."""
    return stream_base(f"admission/{slot}", seed)


@njit(cache=True, nogil=True)
def _place(key: np.int64, base: int, lines: int, width: int, at: NDArray[np.int64]) -> None:
    """at[0..3] = the four cells of a key within one generation."""
    h = mix64(_U(key) ^ _U(base))
    line = ((h & _U(0xFFFFFFFF)) * _U(lines)) >> _U(32)
    quarter = _U(width // QUARTERS)
    for i in range(QUARTERS):
        at[i] = np.int64(line * _U(width) + _U(i) * quarter + ((h >> _U(32 + 4 * i)) & (quarter - _U(1))))


@njit(cache=True, nogil=True)
def _count(
    cells: NDArray[Any],
    dirty: NDArray[np.uint64],
    now: int,
    width: int,
    base: int,
    threshold: int,
    keys: NDArray[np.int64],
    occurrences: NDArray[np.int64],
    admitted: NDArray[np.bool_],
) -> None:
    """cells (generations, lines · width); `now` is the running generation."""
    at = np.empty(QUARTERS, np.int64)
    lines = dirty.shape[1]
    for k in range(len(keys)):
        _place(keys[k], base, lines, width, at)
        count = np.int64(cells[now, at[0]])
        for i in range(1, QUARTERS):
            count = min(count, np.int64(cells[now, at[i]]))
        before: np.int64 = np.int64(0)
        if len(cells) > 1:
            before = np.int64(cells[1 - now, at[0]])
            for i in range(1, QUARTERS):
                before = min(before, np.int64(cells[1 - now, at[i]]))
        count = min(count + min(occurrences[k], np.int64(threshold)), np.int64(threshold))
        admitted[k] = count + before >= threshold
        for i in range(QUARTERS):
            if np.int64(cells[now, at[i]]) < count:
                cells[now, at[i]] = count
                dirty[now, at[i] // width] |= _U(1) << _U(at[i] % width)


class AdmissionSketch:
    """See the module. One writer, no lock."""

    def __init__(self, policy: Policy, slot: str, seed: int) -> None:
        self._policy, self._base, self._shape = policy, sketch_base(slot, seed), Geometry.of(policy)
        generations, lines, width, kind = self._shape
        self._cells = np.zeros((generations, lines * width), kind)
        self._dirty = np.zeros((generations, lines), np.uint64)
        self._window = first_window(policy)

    @property
    def nbytes(self) -> int:
        """Bytes held, at most `sketch_bytes`."""
        return self._cells.nbytes + self._dirty.nbytes

    def admit(self, keys: NDArray[np.int64], occurrences: NDArray[np.int64]) -> NDArray[np.bool_]:
        admitted = np.empty(len(keys), np.bool_)
        now = self._window & 1 if self._shape.generations > 1 else 0
        _count(
            self._cells, self._dirty, now, self._shape.width, self._base, self._policy.admit_after,
            keys, occurrences, admitted,
        )  # fmt: skip
        return admitted

    def advance(self, tick: int) -> None:
        if self._policy.admit_window_ticks:
            self._open(tick // self._policy.admit_window_ticks)

    def _open(self, window: int) -> None:
        """Make `window` the running one. It takes the memory of the one before the last."""
        if window == self._window + 1:
            self._cells[window & 1] = 0
            self._dirty[window & 1] = 0
        elif window > self._window:
            self._cells[:] = 0
            self._dirty[:] = 0
        self._window = max(window, self._window)

    def export(self) -> Tensors:
        return self._tensors(np.flatnonzero(self._cells))

    def load(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        window = self._shape.window_of(tensors)
        self._cells[:] = 0
        self._dirty[:] = 0
        self._window = window
        self._set(tensors)

    def take_delta(self) -> Tensors:
        lines = np.flatnonzero(self._dirty)
        if not len(lines):
            return {}
        touched = np.unpackbits(self._dirty.reshape(-1)[lines].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        at, cell = np.nonzero(touched)
        self._dirty[:] = 0
        return self._tensors(lines[at] * self._shape.width + cell)

    def apply_delta(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        if tensors:
            self._open(self._shape.window_of(tensors))
            self._set(tensors)

    def copy(self) -> "AdmissionSketch":
        """An independent sketch that counts on from here."""
        twin = AdmissionSketch.__new__(AdmissionSketch)
        twin.__dict__.update(self.__dict__)
        twin._cells, twin._dirty = self._cells.copy(), self._dirty.copy()
        return twin

    def clear(self) -> None:
        """Forget all counts."""
        self._cells[:] = 0
        self._dirty[:] = 0
        self._window = first_window(self._policy)

    def _tensors(self, at: NDArray[np.int64]) -> Tensors:
        counts = self._cells.reshape(-1)[at].astype(np.uint32)
        return {"sketch": self._shape.header(self._window), "cells": at.astype(np.int64), "counts": counts}

    def _set(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        self._cells.reshape(-1)[tensors["cells"]] = tensors["counts"]


@njit(cache=True, nogil=True)
def draw(
    keys: NDArray[np.int64],
    occurrences: NDArray[np.int64],
    base: int,
    tick: int,
    probability: float,
    admitted: NDArray[np.bool_],
) -> None:
    """admitted[i]: whether keys[i] (n,), distinct, gets a row at this tick; each occurrence has the same chance.

    One number a key and tick, a hash: u < 1 − (1 − p)^occurrences. So a replay draws the same, and a key that comes
    in several calls of one tick draws the same number again. The power is made of products in a fixed order, because
    `pow` may round differently elsewhere.
    """
    for i in range(len(keys)):
        h = mix64(mix64(_U(keys[i]) ^ _U(base)) + _U(tick))
        chance_not, factor, left = 1.0, 1.0 - probability, occurrences[i]
        while left > 0:
            if left & 1:
                chance_not *= factor
            factor *= factor
            left >>= 1
        admitted[i] = np.float64(h >> _U(11)) < (1.0 - chance_not) * 9007199254740992.0  # 2^53
