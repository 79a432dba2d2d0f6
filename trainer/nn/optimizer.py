"""The optimizer of sparse modules: each row touched since the last step gets one step of its module's own rule."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from trainer.nn.modules import embeddings
from trainer.nn.store import Store


class SparseOptimizer(torch.optim.Optimizer):
    """Steps every embedding inside a model, beside a dense optimizer for `model.parameters()`.

    Rules and their options belong to the modules; `lr` replaces each rule's learning rate. It is a torch optimizer so
    that learning-rate schedulers take it: one parameter group a table, and the rate in it is what a step uses. Its
    `state_dict` holds rates alone: moments lie beside the rows, in each module's snapshot.
    """

    def __init__(self, model: nn.Module | Iterable[nn.Module], lr: float | None = None) -> None:
        modules = [model] if isinstance(model, nn.Module) else list(model)
        found = dict.fromkeys(module for top in modules for module in embeddings(top))
        self._stores: list[Store] = [store for module in found for store in module.stores.values()]
        if not self._stores:
            raise ValueError("there is no embedding of trainer.nn in this model")
        groups = [{"params": [s.anchor], "lr": s.options.rule.lr if lr is None else lr} for s in self._stores]
        super().__init__(groups, {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply what backward left. What it left stays until `zero_grad()`, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for store, group in zip(self._stores, self.param_groups, strict=True):
            if not 0 <= group["lr"] < math.inf:
                raise ValueError(f"lr is {group['lr']}; a learning rate is a finite number of at least 0")
            store.step(group["lr"])
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients that wait."""
        for store in self._stores:
            store.forget()
