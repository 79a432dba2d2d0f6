"""Runs the `score` graph: what a replica ranks by, without torch and without the trainer.

One thread, sequential, no memory pattern: the same inputs give the same bits. The weights of a generation are handed
over once, by name; a call feeds the blocks of one batch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from stream.features.blocks import Blocks

Floats = NDArray[np.float32]
INPUTS = ("user", "item", "ctx", "imp_of_row", "item_of_row", "ctx_of_row")


class ScoreNet:
    """The score graph of one architecture, filled with one generation's weights. Safe to call from several threads."""

    def __init__(self, graph: bytes, weights: Mapping[str, Floats]) -> None:
        """Raises ValueError where the graph wants a weight that is not given, or of another shape."""
        self._session = onnxruntime.InferenceSession(graph, _options(), providers=["CPUExecutionProvider"])
        self._shapes = {i.name: i.shape for i in self._session.get_inputs() if i.name not in INPUTS}
        self._weights: dict[str, Any] = {}
        self.load(weights)

    def load(self, weights: Mapping[str, Floats]) -> None:
        """Take another generation's weights, all of them, at once."""
        missing = sorted(self._shapes.keys() - weights.keys())
        if missing:
            raise ValueError(f"the score graph wants weights that are not given: {', '.join(missing)}")
        for name, shape in self._shapes.items():
            if list(weights[name].shape) != list(shape):
                raise ValueError(f"weight {name} is {list(weights[name].shape)}, the score graph wants {shape}")
        self._weights = {k: np.array(weights[k], np.float32, order="C") for k in self._shapes}

    def score(self, blocks: Blocks) -> Floats:
        """f (n_row,): the logit without the position term."""
        if not len(blocks.imp_of_row):
            return np.empty(0, np.float32)
        feed = {name: getattr(blocks, name) for name in INPUTS}
        f: Floats = self._session.run(None, {**feed, **self._weights})[0]
        return f


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # sizes change every batch
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    return options
