"""The dense half of the retrain: the net's weights under Adam, in torch, one thread and deterministic.

The sparse half hands in gathered blocks and takes back their gradients, exactly as the `step` graph does online, so
both halves of training meet the tables through the same kernels. Adam's moments are named float32 arrays beside the
weights: a warm start continues them. Importing this module imports torch: only the retrain does.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from trainer import net
from trainer.net import STATISTICS, NetShape
from trainer.stepper import Floats, Gradients

# Adam, Kingma and Ba 2015, algorithm 1, with its default decay rates.
BETAS = (0.9, 0.999)
EPSILON = 1e-8


class DenseTrainer:
    """Weights of one generation in the making.

    `moments` maps "<weight>/m", "<weight>/v" to arrays and "step" to (1,) float32, as `moments()` returned them.
    """

    def __init__(
        self, shape: NetShape, weights: Mapping[str, Floats], moments: Mapping[str, Floats] | None, lr: float
    ) -> None:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        self._shape = shape
        self._weights = {k: torch.from_numpy(np.array(weights[k], np.float32)) for k in shape.weights()}
        self._trained = [k for k in self._weights if k not in STATISTICS]
        for name in self._trained:
            self._weights[name].requires_grad_(True)
        self._adam = torch.optim.Adam([self._weights[k] for k in self._trained], lr=lr, betas=BETAS, eps=EPSILON)
        if moments:
            self._load(moments)

    def step(
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
    ) -> Gradients:
        """One Adam step on the summed log-loss; the gradients of the blocks come back, before the step was taken."""
        tensor = torch.from_numpy
        u, v = tensor(user).requires_grad_(True), tensor(item).requires_grad_(True)
        indices = (tensor(imp_of_row), tensor(item_of_row), tensor(ctx_of_row))
        f = net.score(self._shape, self._weights, u, v, tensor(ctx), *indices)
        d_row = (torch.sigmoid(f + tensor(offset)) - tensor(label)).detach()
        self._adam.zero_grad()
        f.backward(d_row)  # type: ignore[no-untyped-call]
        self._adam.step()
        assert u.grad is not None
        assert v.grad is not None
        return Gradients(f.detach().numpy(), d_row.numpy(), u.grad.numpy(), v.grad.numpy())

    def weights(self) -> dict[str, Floats]:
        """Copies of the weights, by name."""
        return {k: v.detach().numpy().copy() for k, v in self._weights.items()}

    def moments(self) -> dict[str, Floats]:
        """Copies of Adam's state, by name."""
        out: dict[str, Floats] = {}
        for name in self._trained:
            state = self._adam.state[self._weights[name]]
            if state:
                out[f"{name}/m"], out[f"{name}/v"] = state["exp_avg"].numpy().copy(), state["exp_avg_sq"].numpy().copy()
                out["step"] = np.array([state["step"].item()], np.float32)
        return out

    def _load(self, moments: Mapping[str, Floats]) -> None:
        for name in self._trained:
            self._adam.state[self._weights[name]] = {
                "step": torch.tensor(float(moments["step"][0])),
                "exp_avg": torch.from_numpy(np.array(moments[f"{name}/m"])),
                "exp_avg_sq": torch.from_numpy(np.array(moments[f"{name}/v"])),
            }
