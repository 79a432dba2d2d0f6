"""Compiles the update rules before anyone waits for them: `warm(console.print)`, or `python -m trainer.rules.warm`."""

from collections.abc import Callable

import numpy as np

from infra.compiling import Compiling, announced, to_stderr
from trainer.rules.rule import RULES

_DIM = 2


def warm(say: Callable[[str], None] = to_stderr) -> Compiling:
    """Load every rule's kernel, compiling those that are in no cache, and say so only then."""
    with announced(say) as compiling:
        for kind in RULES.values():
            rule = kind(lr=0.1)
            values, state = np.zeros((1, _DIM), np.float32), np.zeros((1, rule.state_dim(_DIM)), np.float32)
            rule.apply(values, state, np.zeros(1, np.int32), np.ones((1, _DIM), np.float32))
    return compiling


if __name__ == "__main__":
    print(f"{len(warm().kernels)} compiled")
