"""The arms of the collision experiment, and how large each is at a budget of `rows` rows a field.

Budgets are in floats of weights: `rows` · dim a field. Modulo takes them all; the quotient-remainder trick and hash
embeddings share them out so that they hold no more. Optimizer state (one float a row) is not counted.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trainer.nn import (
    Embedding,
    ModuloEmbedding,
    MultiHashEmbedding,
    QuotientRemainderEmbedding,
    RowwiseAdagrad,
    SparseEmbedding,
)
from trainer.nn.buckets import md5_mod

Kind = Literal["collisionless", "modulo", "quotient-remainder", "multi-hash"]
HASHES = 2  # hash functions of the multi-hash arm, the paper's choice
ACCUMULATOR = 0.01  # of a new row in row-wise Adagrad
MONOLITH = 1_000_000  # the modulus of Monolith's figure


@dataclass(frozen=True)
class Arm:
    """One way to hold a field's embeddings; `rows` is its budget, 0 for as many as there are ids."""

    kind: Kind
    rows: int = 0

    @property
    def name(self) -> str:
        return self.kind if not self.rows else f"{self.kind} {self.rows}"

    def fits(self, ids: int) -> bool:
        """Whether a field of so many ids can be held: m + ⌈ids / m⌉ ≤ rows needs rows ≥ 2√ids."""
        return self.kind != "quotient-remainder" or sum(_parts(self.rows, ids)) <= self.rows

    def build(self, dim: int, ids: int, *, lr: float, init_scale: float, seed: int) -> SparseEmbedding:
        """The embedding of a field with `ids` distinct ids."""
        options = {"rule": RowwiseAdagrad(lr=lr, accumulator_init=ACCUMULATOR), "init_scale": init_scale, "seed": seed}
        if self.kind == "collisionless":
            return Embedding(dim, **options)
        if self.kind == "modulo":
            return ModuloEmbedding(dim, self.rows, **options)
        if self.kind == "quotient-remainder":
            return QuotientRemainderEmbedding(dim, _parts(self.rows, ids)[0], ids, **options)
        components = self.rows - math.ceil(self.rows * HASHES / dim)
        return MultiHashEmbedding(dim, max(1, components), self.rows, HASHES, **options)


def _parts(rows: int, ids: int) -> tuple[int, int]:
    """Remainders m and quotients ⌈ids / m⌉: the largest m whose sum is at most `rows`, else the least sum there is."""
    m = max(rows - 1, 1)
    while m + -(-ids // m) > rows and m * m > ids:
        m -= 1
    return m, -(-ids // m)


def default_moduli(largest: int) -> list[int]:
    """Monolith's modulus and the powers of ten below it, down to the larger field; from there five steps 1, 3, 10."""
    steps = [k * 10**e for e in range(8) for k in (1, 3)]
    top = next(i for i, step in enumerate(steps) if step >= largest)
    wide = {10**e for e in range(4, 7) if 10**e > largest}
    return sorted({MONOLITH} | wide | set(steps[max(0, top - 4) : top + 1]), reverse=True)


def plan_arms(moduli: list[int], ids: tuple[int, int]) -> tuple[list[Arm], list[Arm]]:
    """Arms to run and arms that no size of theirs fits, for fields of so many ids."""
    sharing: list[Kind] = ["modulo", "quotient-remainder", "multi-hash"]
    small = [m for m in moduli if m < max(ids)]  # where modulo must collide: there the rivals of modulo matter
    arms = [Arm("collisionless"), *(Arm("modulo", m) for m in moduli)]
    arms += [Arm(kind, m) for kind in sharing[1:] for m in small]
    return [a for a in arms if all(map(a.fits, ids))], [a for a in arms if not all(map(a.fits, ids))]


def sharing_share(ids: NDArray[np.int64], modulus: int) -> float:
    """Share of distinct ids that share their bucket with another one."""
    buckets = md5_mod(ids, modulus)
    _, place, counts = np.unique(buckets, return_inverse=True, return_counts=True)
    return float((counts[place] > 1).mean())
