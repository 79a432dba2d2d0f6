"""Chunks of rows: heads, candidates, logits, clicks. A chunk is a pure function of (world, seed, row numbers)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.generate import kernels
from stream.generate.exposure import Exposure, build_exposure
from stream.generate.parameters import HOURS
from stream.generate.world import BIN_S, World

CHUNK = 32_768
_CALIBRATION_ROWS = 12_000


@dataclass(frozen=True, slots=True)
class Histories:
    offsets: NDArray[np.int64]  # (users + 1,)
    items: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Chunk:
    rows: NDArray[np.int64]  # row numbers, 0-based: impression id − 1
    user: NDArray[np.int32]
    time_s: NDArray[np.int64]  # since the start of the window
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    p: NDArray[np.float32]
    p_ref: NDArray[np.float32]
    click: NDArray[np.uint8]


class RowSource:
    """Draws any rows of the log. Built once a world; calibrates the intercept on the first rows."""

    def __init__(self, world: World, seed: int, rng: np.random.Generator) -> None:
        self.world = world
        self.seed = seed
        self.exposure: Exposure = build_exposure(world)
        days = np.repeat(np.arange(world.scale.days), world.scale.day_rows)
        self.day_of = rng.permutation(days)
        hours = np.asarray(HOURS, dtype=np.float64)
        self._hour_cdf = np.cumsum(hours) / hours.sum()
        self._active = np.diff(self.exposure.starts)
        self._mean = self._solve_count()
        self.intercept = 0.0
        self.intercept = self._solve_intercept()
        self.histories = self._draw_histories(rng)

    def chunks(self, n: int, size: int = CHUNK) -> Iterator[Chunk]:
        """The first n rows in order."""
        for lo in range(0, n, size):
            yield self.chunk(np.arange(lo, min(lo + size, n)))

    def chunk(self, rows: NDArray[np.int64]) -> Chunk:
        user, time_s, count = self._heads(rows)
        offsets = np.concatenate([[0], np.cumsum(count)])
        items, logit = self._candidates(rows, user, time_s, offsets)
        p, p_ref, click = kernels.click_rows(
            self.seed, rows, offsets, logit, self.intercept, self.world.parameters.position
        )
        return Chunk(rows, user, time_s, offsets, items, p, p_ref, click)

    def _heads(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        user, time_s, count = kernels.row_heads(
            self.seed, rows, self.day_of[rows], self._hour_cdf, self.world.users.activity, self._active,
            self._mean, int(BIN_S),
        )  # fmt: skip
        return user, time_s, count

    def _candidates(
        self,
        rows: NDArray[np.int64],
        user: NDArray[np.int32],
        time_s: NDArray[np.int64],
        offsets: NDArray[np.int64],
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        w, e, p = self.world, self.exposure, self.world.parameters
        items = kernels.draw_candidates(
            self.seed, rows, user, time_s, offsets, e.starts, e.items, e.cumulative, e.edges, w.users.topics,
            w.users.shift_s, p.personal, int(BIN_S),
        )  # fmt: skip
        logit = kernels.score_rows(
            user, time_s, offsets, items, int(BIN_S), w.users.community, w.moving.community, w.users.before,
            w.users.after, w.users.shift_s, w.users.style, w.users.temperature, w.users.bias, w.items.vector,
            w.items.style, w.items.quality, w.items.born_s, w.items.life_s, w.items.again_s, w.items.topic,
            w.moving.fashion, p.affinity, p.style_affinity, p.rise_s, p.stale, p.fresh, p.length, p.candidates_mean,
        )  # fmt: skip
        return items, logit

    def _sample(self) -> NDArray[np.int64]:
        n = self.world.scale.rows
        return np.arange(min(n, _CALIBRATION_ROWS))

    def _solve_count(self) -> float:
        """Mean of the exponential that gives `candidates_mean` after rounding and clipping."""
        want, low, high = self.world.parameters.candidates_mean, 1.0, 400.0
        for _ in range(30):
            self._mean = (low + high) / 2
            got = float(self._heads(self._sample())[2].mean())
            low, high = (self._mean, high) if got < want else (low, self._mean)
        return (low + high) / 2

    def _solve_intercept(self) -> float:
        """The α that gives `click_rate`, by bisection on the first rows."""
        rows = self._sample()
        user, time_s, count = self._heads(rows)
        offsets = np.concatenate([[0], np.cumsum(count)])
        _, logit = self._candidates(rows, user, time_s, offsets)
        low, high = -20.0, 10.0
        for _ in range(40):
            middle = (low + high) / 2
            p, _, _ = kernels.click_rows(self.seed, rows, offsets, logit, middle, self.world.parameters.position)
            mean = float(p.mean(dtype=np.float64))
            low, high = (middle, high) if mean < self.world.parameters.click_rate else (low, middle)
        return (low + high) / 2

    def _draw_histories(self, rng: np.random.Generator) -> Histories:
        w, p = self.world, self.world.parameters
        n = w.scale.users
        share = np.diff(w.users.activity, prepend=0.0)
        raw = np.exp(p.history_sigma * rng.standard_normal(n)) * (share * n) ** 0.25
        raw[rng.random(n) < p.history_empty] = 0.0
        raw *= p.history_mean / float(raw @ share)
        lengths = np.minimum(np.floor(raw + rng.random(n)), 600).astype(np.int64)
        lengths[raw == 0] = 0
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        old = np.flatnonzero(w.items.born_s < 0)
        old = old[np.argsort(w.items.topic[old], kind="stable")]
        edges = np.searchsorted(w.items.topic[old], np.arange(w.scale.topics + 1))
        cumulative = np.cumsum(np.exp(0.8 * w.items.exposure[old].astype(np.float64)))
        interest = w.moving.community[0, w.users.community] + w.users.before
        items = kernels.draw_histories(
            self.seed, lengths, offsets, w.users.topics, interest, old, edges, cumulative, w.items.vector
        )
        return Histories(offsets, items)
