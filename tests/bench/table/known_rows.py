"""The floor under any look-up: `torch.index_select` with row numbers that are known already. It finds no key.

`_huge` reads the same floats from memory that was advised to come in huge pages, as our slabs are; torch asks for none.
"""

from typing import Any

import numpy as np
import torch

from infra.embedding.slab import reserve
from tests.bench.table.contender import Answer, Contender, at_once, timed, touch_output


class KnownRows(Contender):
    """A float32 tensor (keys, dim)."""

    def fill(self) -> None:
        torch.set_num_threads(1)
        self.values = torch.empty(self.inputs.keys, self.dim).uniform_(-0.05, 0.05)

    def _rows(self, distribution: str, batch: int, part: int, ids: int) -> list[torch.Tensor]:
        return [torch.from_numpy(rows) for rows in self.inputs.batches(distribution, part, ids, batch)]

    def lookup(self, **what: Any) -> Answer:
        """To new tensors."""
        batches = self._rows(**what)
        touch_output(what["batch"], self.dim)
        return timed(lambda rows: torch.index_select(self.values, 0, rows), batches)

    def lookup_out(self, **what: Any) -> Answer:
        """Into a tensor that is there already."""
        return self._out(self.values, **what)

    def lookup_out_huge(self, **what: Any) -> Answer:
        """The same, from huge pages."""
        if not hasattr(self, "_huge"):
            self._huge = torch.from_numpy(reserve((self.inputs.keys, self.dim), np.float32))
            self._huge.copy_(self.values)
        return self._out(self._huge, **what)

    def two_threads(self, **what: Any) -> Answer:
        """`lookup_out` by two threads at once: what the memory of this machine gives a second thread."""
        outs = [torch.ones(what["batch"], self.dim) for _ in range(2)]
        return at_once(
            lambda me, rows: torch.index_select(self.values, 0, rows, out=outs[me][: len(rows)]), self._rows(**what)
        )

    def _out(self, values: torch.Tensor, **what: Any) -> Answer:
        out = torch.ones(what["batch"], self.dim)
        batches = [(rows, out[: len(rows)]) for rows in self._rows(**what)]
        return timed(lambda pair: torch.index_select(values, 0, pair[0], out=pair[1]), batches)


CONTENDER = KnownRows
