"""`torch.optim.Adagrad` on an `nn.Embedding(sparse=True)` of the same size: rows known, one state float a weight.

A step begins with the gradient as the backward pass of such an embedding leaves it, one entry for each id, and torch
sums equal ones (`coalesce`); `adagrad_summed` begins with what was summed before the timer.
"""

from typing import Any

import numpy as np
import torch

from tests.bench.table.contender import Answer, Contender, timed
from tests.bench.table.inputs import LR, gradients

MOST = 262_144  # gradients of a batch


class TorchAdagrad(Contender):
    """Weights and their Adagrad sums."""

    def fill(self) -> None:
        torch.set_num_threads(1)
        self.embedding = torch.nn.Embedding(self.inputs.keys, self.dim, sparse=True)
        self.optimizer = torch.optim.Adagrad(self.embedding.parameters(), lr=LR, initial_accumulator_value=0.1)

    def adagrad(self, **what: Any) -> Answer:
        """From a gradient for each id."""
        return timed(self._step, [self._gradient(torch.from_numpy(rows)) for rows in self.inputs.batches(**what)])

    def adagrad_summed(self, **what: Any) -> Answer:
        """From a gradient for each distinct row."""
        batches = [torch.from_numpy(np.unique(rows)) for rows in self.inputs.batches(**what)]
        return timed(self._step, [self._gradient(rows).coalesce() for rows in batches])

    def _gradient(self, rows: torch.Tensor) -> torch.Tensor:
        grads = torch.from_numpy(gradients(MOST, self.dim)[: len(rows)])
        return torch.sparse_coo_tensor(rows[None], grads, self.embedding.weight.shape, check_invariants=False)

    def _step(self, gradient: torch.Tensor) -> None:
        self.embedding.weight.grad = gradient
        self.optimizer.step()


CONTENDER = TorchAdagrad
