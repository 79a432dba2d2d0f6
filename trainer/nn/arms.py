"""The rivals: embeddings whose ids share rows, with the same face, the same update rules and a fixed size.

All of them hold every row from the start, as they do where they come from, so an id that was never seen reads what
others have learned. None can expire or admit: a row belongs to nobody.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from trainer.nn.buckets import md5_mod, mixed_mod
from trainer.nn.keys import Keys
from trainer.nn.modules import Occurrences, SparseEmbedding
from trainer.nn.store import Store


class _Sharing(SparseEmbedding):
    def __init__(self, dim: int, **options: Any) -> None:
        if options.get("policy") is not None:
            raise ValueError("a row that ids share belongs to none of them: there is no policy for it")
        super().__init__(dim, **options)

    def _add(self, name: str, rows: int, dim: int, center: float = 0.0) -> None:
        if not 0 < rows < 1 << 31:
            raise ValueError(f"{rows} rows for {name}; from 1 to 2^31 - 1")
        self.stores[name] = Store(name, dim, self.options)
        self.stores[name].fill(rows, center)


class ModuloEmbedding(_Sharing):
    """The hashing trick (Weinberger et al. 2009): id → row md5(id) mod `buckets`, as Monolith's comparison has it."""

    def __init__(self, dim: int, buckets: int, **options: Any) -> None:
        super().__init__(dim, **options)
        self.buckets = buckets
        self._add("rows", buckets, dim)

    def shape(self) -> Mapping[str, int]:
        return {"dim": self.dim, "buckets": self.buckets}

    def vectors(self, keys: Keys, occurrences: Occurrences) -> Tensor:
        return self.stores["rows"].read(md5_mod(keys, self.buckets), insert=False)


class QuotientRemainderEmbedding(_Sharing):
    """The quotient-remainder trick (Shi et al. 2020, arXiv 1909.02107, section 3, element-wise product).

    Ids in [0, universe) have a pair of rows of their own, i mod m and i div m, though each row is shared; other ids are
    folded into the universe first and may share a pair. Quotients begin at 1 + noise, so that a vector begins as its
    remainder's row: with both near zero the product, and with it every gradient, would nearly vanish.
    """

    def __init__(self, dim: int, remainders: int, universe: int, **options: Any) -> None:
        super().__init__(dim, **options)
        if universe < 1:
            raise ValueError(f"a universe of {universe} ids")
        self.remainders, self.universe = remainders, universe
        self._add("remainders", remainders, dim)
        self._add("quotients", -(-universe // remainders), dim, center=1.0)

    def shape(self) -> Mapping[str, int]:
        return {"dim": self.dim, "remainders": self.remainders, "universe": self.universe}

    def vectors(self, keys: Keys, occurrences: Occurrences) -> Tensor:
        quotient, remainder = np.divmod(keys % self.universe, self.remainders)
        return self.stores["remainders"].read(remainder, insert=False) * self.stores["quotients"].read(
            quotient, insert=False
        )


class MultiHashEmbedding(_Sharing):
    """Hash embeddings (Svenstrup et al. 2017, arXiv 1709.03933, section 2): a weighted sum of `hashes` shared rows.

    Vector of id i: Σⱼ p(i)ⱼ · E[hⱼ(i)], with `components` rows E (dim) and `importances` rows p (hashes), both learned.
    Importances begin at 1 + noise, as in the paper.
    """

    def __init__(self, dim: int, components: int, importances: int, hashes: int = 2, **options: Any) -> None:
        super().__init__(dim, **options)
        if hashes < 1:
            raise ValueError(f"{hashes} hash functions")
        self.components, self.importances, self.hashes = components, importances, hashes
        self._add("components", components, dim)
        self._add("importances", importances, hashes, center=1.0)

    def shape(self) -> Mapping[str, int]:
        sizes = {"components": self.components, "importances": self.importances, "hashes": self.hashes}
        return {"dim": self.dim} | sizes

    def vectors(self, keys: Keys, occurrences: Occurrences) -> Tensor:
        chosen = np.stack([mixed_mod(keys, self.components, j + 1) for j in range(self.hashes)], axis=1)
        rows = self.stores["components"].read(chosen.reshape(-1), insert=False).view(len(keys), self.hashes, self.dim)
        weights = self.stores["importances"].read(mixed_mod(keys, self.importances, 0), insert=False)
        return (rows * weights.unsqueeze(2)).sum(1)
