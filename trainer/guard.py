"""Says whether what was learned is fit to be served, before it is published.

The trainer asks about the rows of each tick and about the tick's predictions; the retrain asks about each night and
each candidate. Not fit is what no sound run shows: NaN or Inf, an embedding row longer than `train.max_row_norm`, or
predicted clicks that are more than `train.max_calibration` times the observed ones, or less than that part of them.
The answer depends on logs and configuration alone, so a rerun comes to the same one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.config import TrainConfig


@dataclass(slots=True)
class Forecast:
    """What was predicted of the rows that were learned, each before its own step, and what came."""

    predicted: float = 0.0  # clicks: the sum of probabilities
    clicked: float = 0.0

    def add(self, logits: NDArray[np.float32], labels: NDArray[np.float32]) -> None:
        """Rows of a batch: logits (n,), labels (n,) 0 or 1."""
        with np.errstate(invalid="ignore"):  # NaN is found later
            self.predicted += float((0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float64))).sum())
        self.clicked += float(labels.sum())

    def plus(self, other: "Forecast") -> "Forecast":
        """Both together."""
        return Forecast(self.predicted + other.predicted, self.clicked + other.clicked)


def unfit(tensors: Mapping[str, NDArray[Any]], forecast: Forecast, bounds: TrainConfig) -> str:
    """Why a tick's delta, or a whole state's tensors, must not be served; "" where nothing speaks against it."""
    return _rows(tensors, bounds.max_row_norm) or _calibration(forecast, bounds)


def _rows(tensors: Mapping[str, NDArray[Any]], longest: float) -> str:
    for name, tensor in tensors.items():
        if tensor.dtype.kind != "f" or not tensor.size:
            continue
        if not np.isfinite(tensor).all():
            return f"{name} holds NaN or Inf"
        if not name.startswith("slot/") or not name.endswith("/values"):
            continue
        norm = float(np.sqrt(np.square(tensor, dtype=np.float64).sum(axis=-1).max()))
        if norm > longest:
            return f"{name} has a row of norm {norm:.4g}, train.max_row_norm is {longest:g}"
    return ""


def _calibration(forecast: Forecast, bounds: TrainConfig) -> str:
    if not np.isfinite(forecast.predicted):
        return "predictions are NaN or Inf"
    low, high = sorted((forecast.predicted, forecast.clicked))
    if high < bounds.calibration_clicks or high <= bounds.max_calibration * low:
        return ""
    return (
        f"{forecast.predicted:.4g} clicks were predicted and {forecast.clicked:.0f} came, "
        f"train.max_calibration is {bounds.max_calibration:g}"
    )
