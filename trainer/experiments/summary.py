"""What the experiment's cells say together: means, spreads, differences within a seed; as JSON and as a table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.experiments.train import Cell

Floats = NDArray[np.float64]
BASE = "collisionless"


def summarize(cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """By arm: mean and standard deviation of the test AUC per epoch, at the last and at each seed's best epoch.

    `over_collisionless` is the mean difference within a seed (same split, order and net), with its standard deviation:
    the split's luck cancels there.
    """
    runs: dict[str, Floats] = {}
    for arm in dict.fromkeys(cell.arm for cell in cells):
        runs[arm] = np.array([c.auc for c in sorted(cells, key=lambda c: c.seed) if c.arm == arm])
    return {arm: _arm(aucs, runs.get(BASE)) for arm, aucs in runs.items()}


def _arm(aucs: Floats, base: Floats | None) -> dict[str, Any]:
    """aucs and base: (seeds, epochs)."""
    out = {
        "auc_by_epoch": [_spread(column) for column in aucs.T],
        "auc_last": _spread(aucs[:, -1]),
        "auc_best": _spread(aucs.max(1)),
        "best_epoch": 1 + int(aucs.mean(0).argmax()),
    }
    if base is not None and base.shape == aucs.shape:
        out["over_collisionless_last"] = _spread(aucs[:, -1] - base[:, -1])
        out["over_collisionless_best"] = _spread(aucs.max(1) - base.max(1))
    return out


def _spread(values: Floats) -> dict[str, float]:
    sd = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return {"mean": float(values.mean()), "sd": sd if math.isfinite(sd) else 0.0}


def table(report: Mapping[str, Any]) -> str:
    """The result as a Markdown table, in points (100 × AUC)."""
    rows = [
        "| arm | weights, users + movies | ids that share: users, movies | best epoch | last epoch "
        "| best − collisionless |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, arm in report["arms"].items():
        rows.append(
            f"| {name} | {sum(arm['floats']):,} | {_shared(name, arm)} "
            f"| {_points(arm['auc_best'])} ({arm['best_epoch']}) | {_points(arm['auc_last'])} "
            f"| {_difference(name, arm)} |"
        )
    return "\n".join(rows)


def _shared(name: str, arm: Mapping[str, Any]) -> str:
    if name == BASE:
        return "none"
    if not arm["ids_sharing"]:
        return "parts of rows"
    return ", ".join(f"{100 * share:.3g} %" for share in arm["ids_sharing"])


def _points(spread: Mapping[str, float]) -> str:
    return f"{100 * spread['mean']:.2f} ± {100 * spread['sd']:.2f}"


def _difference(name: str, arm: Mapping[str, Any]) -> str:
    if name == BASE or "over_collisionless_best" not in arm:
        return ""
    spread = arm["over_collisionless_best"]
    return f"{100 * spread['mean']:+.2f} ± {100 * spread['sd']:.2f}"
