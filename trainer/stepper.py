"""Runs the `step` graph: the online trainer's forward and backward pass, without torch.

One thread, no memory pattern, fixed batch cuts: the same inputs give the same bits. Weights are fed as inputs; a
generation is loaded by handing over another dict.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Gradients(NamedTuple):
    """What a step returns: f (n_row,) without position, d_row (n_row,), d_user (n_imp, ·), d_item (n_item, ·)."""

    f: Floats
    d_row: Floats
    d_user: Floats
    d_item: Floats


def session(graph: bytes) -> onnxruntime.InferenceSession:
    """An onnxruntime session that computes in one thread, in a fixed order."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # sizes change every tick
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class StepNet:
    """The step graph of one architecture, filled with one generation's weights."""

    def __init__(self, graph: bytes, weights: Mapping[str, Floats]) -> None:
        self._session = session(graph)
        self._wanted = {i.name for i in self._session.get_inputs()}
        self.load(weights)

    def load(self, weights: Mapping[str, Floats]) -> None:
        """Take another generation's weights. Raises ValueError where a weight of the graph is missing."""
        self._weights = {k: np.ascontiguousarray(v, np.float32) for k, v in weights.items() if k in self._wanted}

    def run(
        self,
        *,
        user: Floats,
        item: Floats,
        ctx: Floats,
        imp_of_row: NDArray[np.int64],
        item_of_row: NDArray[np.int64],
        ctx_of_row: NDArray[np.int64],
        offset: Floats,
        label: Floats,
        weight: Floats,
    ) -> Gradients:
        """One forward and backward pass; see `trainer.net.step` for shapes. `offset` is the position term
        plus any correction for sampled negatives."""
        feed = {
            "user": user, "item": item, "ctx": ctx, "imp_of_row": imp_of_row, "item_of_row": item_of_row,
            "ctx_of_row": ctx_of_row, "offset": offset, "label": label, "weight": weight, **self._weights,
        }  # fmt: skip
        return Gradients(*self._session.run(None, feed))
