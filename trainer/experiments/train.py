"""One cell of the experiment: one arm, one seed, all epochs. A function of (ratings, settings, arm, seed)."""

import time
from collections.abc import Callable

import msgspec
import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from trainer.experiments.arms import Arm
from trainer.experiments.deepfm import DeepFM, auc
from trainer.experiments.movielens import Ratings, split
from trainer.nn import SparseOptimizer

SCORED_AT_ONCE = 1 << 16


class Settings(msgspec.Struct, frozen=True):
    """What every arm and seed share."""

    epochs: int = 10
    batch: int = 1024
    dim: int = 16  # of the factor; a row has one float more, the linear weight
    hidden: tuple[int, ...] = (64, 32)
    sparse_lr: float = 0.05
    dense_lr: float = 0.0003  # Adam's
    init_scale: float = 0.01
    test_share: float = 0.2


class Cell(msgspec.Struct, frozen=True):
    """What came out of an arm and a seed."""

    arm: str
    seed: int
    auc: list[float]  # of the test ratings, after each epoch
    train_loss: list[float]  # mean log-loss while learning, each epoch
    floats: list[int]  # weights held at the end: users, movies
    seconds: float


def run_cell(ratings: Ratings, settings: Settings, arm: Arm, seed: int, said: Callable[[int, float], None]) -> Cell:
    """Train and test; `said(epoch, auc)` after each epoch. One thread."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)  # the same net in every arm: the embeddings draw nothing from it
    started = time.perf_counter()
    if arm.kind == "quotient-remainder":  # made for numbered ids: the dictionary that takes is not counted
        ratings = ratings.numbered()
    learn, test = (ratings.take(rows) for rows in split(len(ratings.labels), settings.test_share, seed))
    model = _model(ratings, settings, arm, seed)
    sparse = SparseOptimizer(model)
    dense = torch.optim.Adam(model.parameters(), lr=settings.dense_lr, fused=True)
    order = np.random.default_rng([seed, 1])
    aucs, losses = [], []
    for epoch in range(settings.epochs):
        losses.append(_epoch(model, sparse, dense, learn, order.permutation(len(learn.labels)), settings.batch))
        aucs.append(auc(test.labels, _scores(model, test)))
        said(epoch, aucs[-1])
    floats = [model.users.floats, model.movies.floats]
    return Cell(arm.name, seed, aucs, losses, floats, time.perf_counter() - started)


def _model(ratings: Ratings, settings: Settings, arm: Arm, seed: int) -> DeepFM:
    users, movies = (
        arm.build(
            1 + settings.dim, int(column.max()) + 1, lr=settings.sparse_lr, init_scale=settings.init_scale, seed=number
        )
        for column, number in ((ratings.users, 2 * seed), (ratings.movies, 2 * seed + 1))
    )
    return DeepFM(users, movies, settings.hidden)


def _epoch(
    model: DeepFM,
    sparse: SparseOptimizer,
    dense: torch.optim.Optimizer,
    learn: Ratings,
    order: np.ndarray[tuple[int], np.dtype[np.int64]],
    batch: int,
) -> float:
    model.train()
    shuffled = [torch.from_numpy(column) for column in learn.take(order)]
    total = 0.0
    for user, movie, label in zip(*(torch.split(column, batch) for column in shuffled), strict=True):
        loss = binary_cross_entropy_with_logits(model(user, movie), label, reduction="sum")
        sparse.zero_grad()
        dense.zero_grad()
        torch.autograd.backward(loss)
        sparse.step()
        dense.step()
        total += loss.item()
    return total / len(order)


def _scores(model: DeepFM, test: Ratings) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    model.eval()
    with torch.no_grad():
        user, movie = torch.from_numpy(test.users), torch.from_numpy(test.movies)
        parts = [
            model(user[lo : lo + SCORED_AT_ONCE], movie[lo : lo + SCORED_AT_ONCE])
            for lo in range(0, len(user), SCORED_AT_ONCE)
        ]
    return torch.cat(parts).numpy()
