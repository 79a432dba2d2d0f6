"""The ranking net, written once: a DeepFM whose cross is a learned low-rank mix of fields, plus a deep part.

A shown item's logit is f + (position term), and f is computed from three blocks that are gathered outside:
`user` (one row an impression), `item` (one row a distinct item) and `ctx` (one row an item and tick: counters, age).
The first layer is split by block, so user work is done once per impression and item work once per item:

    [a_cross | a_hidden | a_linear] = user @ user_w                      (n_imp, rank + hidden[0] + 1)
    [b_cross | b_hidden | b_linear] = item @ item_w + ctx' @ ctx_w       ctx' = (ctx - ctx_shift) * ctx_scale
    f = a_cross · b_cross + a_linear + b_linear + deep(relu(a_hidden + b_hidden + hidden_b)) + bias

With `rank` = the embedding dimension and `user_w`, `item_w` starting as stacked identities this is exactly the
factorization machine of DeepFM (Guo et al. 2017; component 0 of an embedding is its linear weight); what is learned
beyond that is the low-rank cross of DCN v2 (Wang et al. 2021) between the two sides. Everything is a pure function of
named float32 weights: a generation is nothing but those weights. Pairs within one side are left to the deep part.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SCORE_INPUTS = ("user", "item", "ctx", "imp_of_row", "item_of_row", "ctx_of_row")
STEP_INPUTS = (*SCORE_INPUTS, "offset", "label", "weight")
STEP_OUTPUTS = ("f", "d_row", "d_user", "d_item")
# Weights that a retrain sets from the data and never differentiates.
STATISTICS = ("ctx_shift", "ctx_scale")


@dataclass(frozen=True, slots=True)
class NetShape:
    """The architecture: what decides the two graphs."""

    dim: int
    user_fields: int
    item_fields: int
    ctx_width: int
    rank: int
    hidden: tuple[int, ...]

    @property
    def user_width(self) -> int:
        return self.user_fields * self.dim

    @property
    def item_width(self) -> int:
        return self.item_fields * self.dim

    @property
    def split(self) -> list[int]:
        """Widths of cross, hidden and linear in the first layer."""
        return [self.rank, self.hidden[0], 1]

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight, by name, in the order in which the graphs take them."""
        first = sum(self.split)
        shapes: dict[str, tuple[int, ...]] = {
            "user_w": (self.user_width, first),
            "item_w": (self.item_width, first),
            "ctx_w": (self.ctx_width, first),
            "ctx_shift": (self.ctx_width,),
            "ctx_scale": (self.ctx_width,),
            "hidden_b": (self.hidden[0],),
        }
        for i, (n, m) in enumerate(zip(self.hidden, self.hidden[1:], strict=False)):
            shapes[f"deep{i}_w"] = (n, m)
            shapes[f"deep{i}_b"] = (m,)
        return {**shapes, "out_w": (self.hidden[-1],), "bias": (1,)}


def initial_weights(shape: NetShape, seed: int, bias: float = 0.0) -> dict[str, Tensor]:
    """Weights to start from, a function of (shape, seed): identities for the cross, N(0, 1/fan-in) elsewhere."""
    random = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, size in shape.weights().items():
        fan_in = size[0] if len(size) == 2 or name == "out_w" else 0
        scale = (1.0 / fan_in) ** 0.5 if fan_in else 0.0
        weights[name] = torch.randn(size, generator=random) * scale
    _start_as_factorization_machine(shape, weights["user_w"], shape.user_fields)
    _start_as_factorization_machine(shape, weights["item_w"], shape.item_fields)
    weights["ctx_w"][:, : shape.rank] = 0.0
    weights["ctx_w"][:, -1] = 0.0
    weights["ctx_scale"] = torch.ones(shape.ctx_width)
    weights["bias"] = torch.full((1,), bias)
    return weights


def _start_as_factorization_machine(shape: NetShape, w: Tensor, fields: int) -> None:
    """Component 0 of each field feeds the linear column, component j the j-th cross column."""
    w[:, : shape.rank] = 0.0
    w[:, -1] = 0.0
    for field in range(fields):
        w[field * shape.dim, -1] = 1.0
        for j in range(1, min(shape.dim, shape.rank + 1)):
            w[field * shape.dim + j, j - 1] = 1.0


def score(
    shape: NetShape,
    weights: Mapping[str, Tensor],
    user: Tensor,
    item: Tensor,
    ctx: Tensor,
    imp_of_row: Tensor,
    item_of_row: Tensor,
    ctx_of_row: Tensor,
) -> Tensor:
    """f (n_row,) of the rows that the three indices name."""
    ctx = (ctx - weights["ctx_shift"]) * weights["ctx_scale"]
    a = torch.index_select(user @ weights["user_w"], 0, imp_of_row)
    b = torch.index_select(item @ weights["item_w"], 0, item_of_row)
    b = b + torch.index_select(ctx @ weights["ctx_w"], 0, ctx_of_row)
    a_cross, a_hidden, a_linear = torch.split(a, shape.split, dim=1)
    b_cross, b_hidden, b_linear = torch.split(b, shape.split, dim=1)
    h = torch.relu(a_hidden + b_hidden + weights["hidden_b"])
    for i in range(len(shape.hidden) - 1):
        h = torch.relu(h @ weights[f"deep{i}_w"] + weights[f"deep{i}_b"])
    linear = (a_linear + b_linear + weights["bias"]).squeeze(1)
    return (a_cross * b_cross).sum(1) + linear + h @ weights["out_w"]


def step(
    shape: NetShape,
    weights: Mapping[str, Tensor],
    user: Tensor,
    item: Tensor,
    ctx: Tensor,
    imp_of_row: Tensor,
    item_of_row: Tensor,
    ctx_of_row: Tensor,
    offset: Tensor,
    label: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """f, and the gradient of the summed weighted log-loss at logit f + offset.

    Returns f (n_row,), d_row (n_row,) = (sigmoid(f + offset) - label) · weight, which is also the gradient of the
    position term, d_user like `user` and d_item like `item`.
    """
    with torch.enable_grad():
        user = user.detach().requires_grad_(True)
        item = item.detach().requires_grad_(True)
        f = score(shape, weights, user, item, ctx, imp_of_row, item_of_row, ctx_of_row)
        d_row = ((torch.sigmoid(f + offset) - label) * weight).detach()
        d_user, d_item = torch.autograd.grad([f], [user, item], grad_outputs=[d_row])
    return f, d_row, d_user, d_item
