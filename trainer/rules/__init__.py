"""Update rules of embedding rows: what a slot may choose, and their kernels (`rule` has the laws)."""

import numpy as np
from numpy.typing import NDArray

from trainer.rules.kernels import Floats
from trainer.rules.rule import EPSILON, RULES, Adagrad, Adam, Ftrl, Momentum, RowwiseAdagrad, Rule, Sgd

__all__ = [
    "EPSILON",
    "RULES",
    "Adagrad",
    "Adam",
    "Ftrl",
    "Momentum",
    "RowwiseAdagrad",
    "Rule",
    "Sgd",
    "rowwise_adagrad",
]


def rowwise_adagrad(values: Floats, state: Floats, rows: NDArray[np.int32], grads: Floats, lr: float) -> int:
    """`RowwiseAdagrad` with the rate `lr` and nothing else, on whole rows and the first column of `state`."""
    return RowwiseAdagrad(lr=lr).apply(values, state, rows, grads)
