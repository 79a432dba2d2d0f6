"""Monolith's collision experiment, with more arms, a sweep of the modulus, and spreads.

Monolith (arXiv 2209.07663, section 3.1) trains DeepFM on MovieLens-25M with user and movie id alone, label = rating ≥
3.5, for 10 epochs, with one row per id and with `md5(id) mod 10^6` per field. Here every arm sees the same split, the
same order and the same net for a seed, so arms differ in nothing but which ids share rows. Cells (an arm and a seed)
are independent, each on one thread, and run in `jobs` processes; what comes out does not depend on how many.
"""

import multiprocessing
import os
import platform
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from trainer.experiments.arms import Arm, Kind, default_moduli, plan_arms, sharing_share
from trainer.experiments.movielens import Ratings, read_ratings
from trainer.experiments.summary import summarize
from trainer.experiments.train import Cell, Settings, run_cell

POLL_S = 0.2
WARM_RATINGS = 64
Said = Callable[[str, int, int, float], None]  # arm, seed, epoch, test AUC

# A worker's own: the ratings, read once, and where it says how far it is.
_worker: dict[str, Any] = {}


class Plan(NamedTuple):
    """What is to be run."""

    folder: Path
    ratings: Ratings
    arms: list[Arm]
    left_out: list[Arm]  # no size of theirs fits its budget
    seeds: list[int]
    jobs: int

    @staticmethod
    def of(folder: Path, moduli: Sequence[int], seeds: Sequence[int], jobs: int) -> "Plan":
        """Read the ratings and choose the arms; no moduli: a sweep that fits. Raises InputError without ratings."""
        ratings = read_ratings(folder)
        ids = (len(np.unique(ratings.users)), len(np.unique(ratings.movies)))
        arms, left_out = plan_arms(sorted(set(moduli), reverse=True) or default_moduli(max(ids)), ids)
        return Plan(folder, ratings, arms, left_out, list(seeds), min(jobs, len(arms) * len(seeds)))

    @property
    def cells(self) -> list[tuple[Arm, int]]:
        """Every arm with every seed."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]


def run(plan: Plan, settings: Settings, said: Said) -> dict[str, Any]:
    """The whole report, of which `collisions.json` is the encoding."""
    started = time.perf_counter()
    cells = sorted(_run_all(plan, settings, said), key=lambda cell: cell.seed)
    order = [arm.name for arm in plan.arms]
    cells.sort(key=lambda cell: (cell.seed, order.index(cell.arm)))
    return _report(plan, settings, cells) | {"wall_s": time.perf_counter() - started}


def _run_all(plan: Plan, settings: Settings, said: Said) -> Iterator[Cell]:
    if plan.jobs == 1:
        for arm, seed in plan.cells:
            yield run_cell(plan.ratings, settings, arm, seed, _said_of(said, arm, seed))
        return
    _warm(settings)
    context = multiprocessing.get_context("spawn")
    news = context.Queue()
    with ProcessPoolExecutor(plan.jobs, mp_context=context, initializer=_begin, initargs=(plan.folder, news)) as pool:
        waiting: set[Future[Cell]] = {pool.submit(_run_one, settings, arm, seed) for arm, seed in plan.cells}
        while waiting:
            done, waiting = wait(waiting, timeout=POLL_S, return_when=FIRST_COMPLETED)
            _drain(news, said)
            yield from (future.result() for future in done)
    _drain(news, said)  # a result may overtake what was said before it; processes that have ended have said all


def _warm(settings: Settings) -> None:
    """Compile every kernel here, once, so that the processes find them in the cache."""
    ids = np.arange(WARM_RATINGS)
    ratings = Ratings(ids, ids, (ids % 2).astype(np.float32))
    kinds: tuple[Kind, ...] = ("collisionless", "modulo", "quotient-remainder", "multi-hash")
    for kind in kinds:
        run_cell(ratings, msgspec.structs.replace(settings, epochs=1), Arm(kind, 40), 0, lambda epoch, auc: None)


def _said_of(said: Said, arm: Arm, seed: int) -> Callable[[int, float], None]:
    return lambda epoch, auc: said(arm.name, seed, epoch, auc)


def _begin(folder: Path, news: Any) -> None:
    _worker["ratings"], _worker["news"] = read_ratings(folder), news


def _run_one(settings: Settings, arm: Arm, seed: int) -> Cell:
    return run_cell(_worker["ratings"], settings, arm, seed, _said_of(_tell, arm, seed))


def _tell(arm: str, seed: int, epoch: int, auc: float) -> None:
    _worker["news"].put((arm, seed, epoch, auc))


def _drain(news: Any, said: Said) -> None:
    while True:
        try:
            said(*news.get_nowait())
        except queue.Empty:
            return


def _report(plan: Plan, settings: Settings, cells: list[Cell]) -> dict[str, Any]:
    users, movies = np.unique(plan.ratings.users), np.unique(plan.ratings.movies)
    return {
        "data": {
            "folder": plan.folder.resolve().name,
            "ratings": len(plan.ratings.labels),
            "users": len(users),
            "movies": len(movies),
            "positive_share": float(plan.ratings.labels.mean()),
        },
        "split": f"at random by seed: {settings.test_share:.0%} of the ratings are the test",
        "settings": msgspec.to_builtins(settings),
        "seeds": plan.seeds,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "jobs": plan.jobs},
        "torch": str(torch.__version__),
        "arms": _by_arm(plan, cells, (users, movies)),
        "left_out": {arm.name: "no m has m + ceil(ids / m) rows within the budget" for arm in plan.left_out},
        "cells": [msgspec.to_builtins(cell) for cell in cells],
    }


def _by_arm(plan: Plan, cells: list[Cell], fields: Sequence[np.ndarray[Any, np.dtype[np.int64]]]) -> dict[str, Any]:
    summary = summarize(cells)
    out: dict[str, Any] = {}
    for arm in plan.arms:
        floats = np.mean([cell.floats for cell in cells if cell.arm == arm.name], axis=0)
        out[arm.name] = {
            "kind": arm.kind,
            "rows": arm.rows,
            "floats": floats.round().astype(int).tolist(),
            # of the distinct ids of users and of movies, those whose whole vector is another id's too
            "ids_sharing": [sharing_share(ids, arm.rows) for ids in fields] if arm.kind == "modulo" else None,
            **summary[arm.name],
        }
    return out
