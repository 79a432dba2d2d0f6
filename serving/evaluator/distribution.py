"""Latencies in short: percentiles, and a histogram to draw."""

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 32
SHORTEST_S = 1e-4


def distribution(values: Sequence[float], *, measured_by: str) -> dict[str, Any]:
    """Percentiles, and a histogram in even steps of the logarithm."""
    if not values:
        return {}
    x = np.maximum(np.array(values), SHORTEST_S)
    low, high = float(x.min()), float(x.max())
    edges = np.geomspace(low * 0.98, max(high * 1.02, low * 1.1), BINS + 1)
    counts, _ = np.histogram(x, edges)
    return {
        "p50": float(np.percentile(x, 50)),
        "p99": float(np.percentile(x, 99)),
        "edges": [float(f"{e:.4g}") for e in edges],
        "counts": counts.tolist(),
        "measured_by": measured_by,
    }
