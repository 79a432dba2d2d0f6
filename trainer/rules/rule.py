"""The update rules of embedding rows as settings: frozen, checked when made, each a call of its one kernel.

| config name | what one step does to a row with summed gradient g | state floats a row |
| --- | --- | --- |
| sgd | v ← v − lr·g | 0 |
| momentum | m ← μm + g; v ← v − lr·m | dim |
| adagrad | s ← s + g²; v ← v − lr·g/(√s + ε) | dim |
| rowwise-adagrad | s ← s + mean(g²); v ← v − lr·g/(√s + ε) | 1 |
| adam | Adam with the row's own step count | 2·dim + 1 |
| ftrl | FTRL-proximal | 2·dim |

Laws, for every rule:

1. Only rows named are touched: no decay, no moment, no step count moves for a row without a gradient (all rules are
   "lazy"). A model is a function of who was touched when, and rows without traffic cost nothing.
2. A row is named once, with the sum of its gradients. -1 names no row: its gradient is dropped.
3. A gradient whose sum of squares is not finite in float32 (NaN, Inf, or a norm beyond 1.8e19) leaves vector and state
   as they were and is counted: one broken example must not reach serving through rows that it shares with others.
4. Order within a step: gradient cap, state, decay and step, row cap. Same inputs, same bits, in any order of the rows.

Papers are named at each rule; `infra/docs/rules.md` says when to use which.
"""

from dataclasses import dataclass
from math import inf, isfinite
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from infra.embedding.base import as_rows
from trainer.rules import kernels
from trainer.rules.kernels import Floats

EPSILON = 1e-8
Args = tuple[Floats, Floats, NDArray[np.int32], Floats, int, int, int, int, float, float, float, float]


class Rule(Protocol):
    """How a row steps along its summed gradient."""

    @property
    def lr(self) -> float:
        """The rate of a step whose caller names none."""

    def state_dim(self, dim: int) -> int:
        """Floats of state beside a vector of `dim`."""

    def state_init(self, dim: int) -> tuple[float, ...]:
        """What a new row's state holds, (state_dim,)."""

    def apply(
        self,
        values: Floats,
        state: Floats,
        rows: NDArray[np.int32],
        grads: Floats,
        *,
        at: int = 0,
        dim: int | None = None,
        state_at: int = 0,
        grads_at: int = 0,
        lr: float | None = None,
    ) -> int:
        """One step in place; how many rows were refused because their gradient was not finite.

        values (capacity, w) and state (capacity, s): a table's slabs. rows (n,) unique, -1 for none; grads (n, g)
        summed. The rule's columns are values[:, at : at + dim], state[:, state_at : state_at + state_dim(dim)] and
        grads[:, grads_at : grads_at + dim]; `dim` defaults to the columns of `values` from `at` on. `lr` overrides
        the rule's own. Raises ValueError where shapes, columns or row numbers do not fit.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    """What all rules share. A cap or decay of 0 is none."""

    lr: float  # rate of a step
    weight_decay: float = 0.0  # decoupled (Loshchilov and Hutter 2019): a touched row loses lr · weight_decay of itself
    grad_cap: float = 0.0  # L2 norm that a row's summed gradient is scaled down to (Pascanu et al. 2013)
    row_norm_cap: float = 0.0  # L2 norm that a row is scaled down to after its step

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        _within(self.name, "lr", self.lr, 0, inf)
        for option in ("weight_decay", "grad_cap", "row_norm_cap"):
            _within(self.name, option, getattr(self, option), 0, inf)

    def state_dim(self, dim: int) -> int:
        return len(self.state_init(dim))

    def state_init(self, dim: int) -> tuple[float, ...]:
        raise NotImplementedError

    def apply(
        self,
        values: Floats,
        state: Floats,
        rows: NDArray[np.int32],
        grads: Floats,
        *,
        at: int = 0,
        dim: int | None = None,
        state_at: int = 0,
        grads_at: int = 0,
        lr: float | None = None,
    ) -> int:
        dim = values.shape[1] - at if dim is None else dim
        rows, grads = as_rows(rows), _as_grads(grads)
        _fit("values", values, at, dim)
        _fit("state", state, state_at, self.state_dim(dim))
        _fit("grads", grads, grads_at, dim)
        if len(grads) != len(rows):
            raise ValueError(f"{len(rows)} rows and {len(grads)} gradients")
        if len(rows) and (rows.max() >= len(values) or len(state) < len(values)):
            raise ValueError(f"row {rows.max()} of values {values.shape}, state {state.shape}")
        rate = float(self.lr if lr is None else lr)
        keep = 1.0 - rate * self.weight_decay
        where = (int(at), int(dim), int(state_at), int(grads_at))
        return int(self._step((values, state, rows, grads, *where, rate, keep, *self._caps())))

    def _caps(self) -> tuple[float, float]:
        return float(self.grad_cap), float(self.row_norm_cap)

    def _step(self, args: Args) -> int:
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd(_Common):
    """Stochastic gradient descent (Robbins and Monro 1951)."""

    name: ClassVar[str] = "sgd"

    def state_init(self, dim: int) -> tuple[float, ...]:
        return ()

    def _step(self, args: Args) -> int:
        return kernels.sgd(*args)


@dataclass(frozen=True, slots=True, kw_only=True)
class Momentum(_Common):
    """Heavy ball (Polyak 1964), the rate outside the velocity, as PyTorch has it."""

    momentum: float = 0.9

    name: ClassVar[str] = "momentum"

    def __post_init__(self) -> None:
        _Common.__post_init__(self)
        _within(self.name, "momentum", self.momentum, 0, 1)

    def state_init(self, dim: int) -> tuple[float, ...]:
        return (0.0,) * dim

    def _step(self, args: Args) -> int:
        return kernels.momentum(*args, float(self.momentum))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adagrad(_Common):
    accumulator_init: float = 0.0  # s of a new row: above 0 it bounds the first steps
    epsilon: float = EPSILON  # added to √s, not under the root

    def __post_init__(self) -> None:
        _Common.__post_init__(self)
        _within(self.name, "accumulator_init", self.accumulator_init, 0, inf)
        _within(self.name, "epsilon", self.epsilon, 1e-30, inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adagrad(_Adagrad):
    """Adagrad, diagonal (Duchi, Hazan and Singer 2011, fig. 1, composite mirror descent without a regularizer)."""

    name: ClassVar[str] = "adagrad"

    def state_init(self, dim: int) -> tuple[float, ...]:
        return (float(self.accumulator_init),) * dim

    def _step(self, args: Args) -> int:
        return kernels.adagrad(*args, float(self.epsilon))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowwiseAdagrad(_Adagrad):
    """Adagrad with one accumulator a row, the mean of squares (as FBGEMM and TorchRec; Mudigere et al. 2022)."""

    name: ClassVar[str] = "rowwise-adagrad"

    def state_init(self, dim: int) -> tuple[float, ...]:
        return (float(self.accumulator_init),)

    def _step(self, args: Args) -> int:
        return kernels.rowwise_adagrad(*args, float(self.epsilon))


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam(_Common):
    """Adam (Kingma and Ba 2015, algorithm 1), lazy, with each row's own step count; decay as AdamW's.

    t counts the row's own steps, not the table's. The correction 1 − βᵗ undoes that the moments began at zero, and a
    row's moments began when the row did: with a global t a row first seen after a million steps would take a first step
    of (1 − β₁)/√(1 − β₂) = 3.2 times the rate, for β = 0.9, 0.999. So `lazy` here is not TensorFlow's LazyAdam or
    PyTorch's SparseAdam, which share t among rows. A row touched in every step does exactly what Adam does.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = EPSILON

    name: ClassVar[str] = "adam"

    def __post_init__(self) -> None:
        _Common.__post_init__(self)
        _within(self.name, "beta1", self.beta1, 0, 1)
        _within(self.name, "beta2", self.beta2, 0, 1)
        _within(self.name, "epsilon", self.epsilon, 1e-30, inf)

    def state_init(self, dim: int) -> tuple[float, ...]:
        return (0.0,) * (2 * dim + 1)

    def _step(self, args: Args) -> int:
        return kernels.adam(*args, float(self.beta1), float(self.beta2), float(self.epsilon))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ftrl(_Common):
    """FTRL-proximal with per-coordinate rates (McMahan et al. 2013, algorithm 1); `lr` is its α.

    After its first step a vector is a function of z and n alone, so new rows should begin at zero (init_scale 0), as
    in the paper. `l1` makes zeros, `l2` is this rule's decay: `weight_decay` beside it is refused, since the next step
    would undo it. Where the row cap shrinks a row, z stays: the cap holds for what is read.
    """

    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    name: ClassVar[str] = "ftrl"

    def __post_init__(self) -> None:
        _Common.__post_init__(self)
        for option, least in (("lr", 1e-30), ("beta", 1e-30), ("l1", 0.0), ("l2", 0.0)):
            _within(self.name, option, getattr(self, option), least, inf)
        if self.weight_decay:
            raise ValueError("ftrl: weight_decay would be undone by the next step; use l2")

    def state_init(self, dim: int) -> tuple[float, ...]:
        return (0.0,) * (2 * dim)

    def _step(self, args: Args) -> int:
        return kernels.ftrl(*args, float(self.beta), float(self.l1), float(self.l2))


RULES: dict[str, type[_Common]] = {rule.name: rule for rule in (Sgd, Momentum, Adagrad, RowwiseAdagrad, Adam, Ftrl)}


def _within(rule: str, option: str, value: float, least: float, below: float) -> None:
    if not (isfinite(value) and least <= value < below):
        raise ValueError(f"{rule}: {option} is {value}; it must be in [{least:g}, {below:g})")


def _fit(name: str, array: NDArray[np.float32], at: int, count: int) -> None:
    ok = array.dtype == np.float32 and array.ndim == 2 and array.flags.carray
    if not ok or at < 0 or count < 0 or at + count > array.shape[1]:
        raise ValueError(f"{name} is {array.dtype}{array.shape}; columns [{at}, {at + count}) of float32 are wanted")


def _as_grads(grads: Floats) -> Floats:
    """The same gradients as a contiguous, writable array, so that kernels are compiled for one type only."""
    return grads if grads.flags.carray else np.array(grads, order="C")
