"""DeepFM (Guo et al. 2017) of two fields, over any embedding with the face of `trainer.nn`.

logit = bias + w_user + w_movie + ⟨v_user, v_movie⟩ + MLP(v_user ⊕ v_movie). A row holds w at 0 and v behind it, so one
read per field serves all three parts.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.nn import SparseEmbedding

Floats = NDArray[np.float32]


class DeepFM(nn.Module):
    """Embeddings of dimension 1 + d come from outside; the net is made here, from torch's generator."""

    def __init__(self, users: SparseEmbedding, movies: SparseEmbedding, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.users, self.movies = users, movies
        self.bias = nn.Parameter(torch.zeros(()))
        layers: list[nn.Module] = []
        width = users.dim + movies.dim - 2
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU()]
            width = size
        self.deep = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, user: Tensor, movie: Tensor) -> Tensor:
        """Logits (n,) of ids (n,) and (n,)."""
        u, m = self.users(user), self.movies(movie)
        v, w = u[:, 1:], m[:, 1:]
        deep = self.deep(torch.cat([v, w], 1)).squeeze(1)
        return self.bias + u[:, 0] + m[:, 0] + (v * w).sum(1) + deep  # type: ignore[no-any-return]


def auc(labels: NDArray[np.float32], scores: NDArray[np.float32]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positive = float(labels.sum(dtype=np.float64))
    negative = len(labels) - positive
    above = float(ranks[labels > 0].sum()) - positive * (positive + 1) / 2
    return above / (positive * negative)
