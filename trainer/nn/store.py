"""A table as a module's weights: rows out, gradients back, and the step that joins the two.

    read(keys)   distinct keys → rows, made where absent and allowed → their vectors, as a tensor with a gradient
    backward     hands (keys, gradients) to the list of those that wait
    step(lr)     sums what waits by key, finds the rows anew, and applies the update rule once to each

What waits is kept by key, never by row number: between a forward and its step another forward may evict the key, and
its row may be another's by then. A key without a row (not admitted, evicted, expired) reads zeros and its gradient is
dropped and counted.

`torch.nn.Parameter` is not used: the slabs are reserved address space for millions of rows, and a dense gradient or a
dense optimizer step over them would touch them all.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from infra.embedding import EmbeddingTable, group_sum, unique_inverse
from infra.embedding.life.policy import Policy
from trainer.nn.keys import Keys
from trainer.rules import Rule

Floats = NDArray[np.float32]
SWEEP_ROWS = 65_536  # rows that one `advance` frees at most: what is left waits for the next and is absent already


class Options(NamedTuple):
    """How a table is made, but for its size: what one module's tables have in common."""

    rule: Rule
    init_scale: float
    seed: int
    policy: Policy


class Store:
    """One table, its update rule, and the gradients that wait. One thread."""

    def __init__(self, slot: str, dim: int, options: Options) -> None:
        if dim < 1:
            raise ValueError(f"dim is {dim}; a vector has at least one component")
        self.slot, self.dim, self.options = slot, dim, options
        self.table = self.empty(options.seed)
        self.tick = 0
        self.dropped = 0  # gradients of keys that had no row, ever
        self.not_finite = 0  # gradients that the rule refused, ever
        self._waiting: list[tuple[Keys, Floats]] = []
        # Carries the wish for a gradient into autograd, and an optimizer's learning rate; it never gets either.
        self.anchor = torch.zeros((), requires_grad=True)

    def empty(self, seed: int) -> EmbeddingTable:
        """A table without rows, of this store's making."""
        rule, init_scale, _, policy = self.options
        return EmbeddingTable(
            slot=self.slot, dim=self.dim, state_dim=rule.state_dim(self.dim), state_init=rule.state_init(self.dim),
            seed=seed, init_scale=init_scale, policy=policy,
        )  # fmt: skip

    def fill(self, rows: int, center: float = 0.0) -> None:
        """Rows for the keys [0, rows), around `center`: a table of fixed size, as the sharing arms have it."""
        self.table.values[self.table.assign(np.arange(rows), self.tick)] += np.float32(center)

    def read(self, keys: Keys, *, insert: bool, occurrences: NDArray[np.int64] | None = None) -> torch.Tensor:
        """Vectors (n, dim) of keys (n,), which may repeat; zeros where there is no row."""
        distinct, inverse = unique_inverse(keys)
        if len(distinct) == len(keys):
            return self.read_distinct(keys, insert=insert, occurrences=occurrences)
        if occurrences is not None:
            occurrences = np.bincount(inverse, weights=occurrences, minlength=len(distinct)).astype(np.int64)
        vectors = self.read_distinct(distinct, insert=insert, occurrences=occurrences)
        return torch.nn.functional.embedding(torch.from_numpy(inverse), vectors)

    def read_distinct(self, keys: Keys, *, insert: bool, occurrences: NDArray[np.int64] | None = None) -> torch.Tensor:
        """Vectors (n, dim) of keys (n,), each of them once."""
        if insert:
            vectors, rows = self.table.lookup_or_insert(keys, self.tick, occurrences)
        else:
            rows = self.table.find(keys)
            vectors = self.table.gather(rows)
        if not torch.is_grad_enabled():
            return torch.from_numpy(vectors)
        out: torch.Tensor = _Read.apply(self.anchor, self, keys, rows, vectors)  # type: ignore[no-untyped-call]
        return out

    def wait(self, keys: Keys, rows: NDArray[np.int32], grads: Floats) -> None:
        """Gradients (n, dim) of keys (n,) that were read from rows (n,)."""
        present = rows >= 0
        if not present.all():
            self.dropped += int(len(rows) - np.count_nonzero(present))
            keys, grads = keys[present], grads[present]
        if len(keys):
            self._waiting.append((keys, grads))

    def waiting(self) -> tuple[Keys, Floats]:
        """Distinct keys (m,) and their summed gradients (m, dim) since the last step."""
        if len(self._waiting) == 1:
            return self._waiting[0]
        if not self._waiting:
            return np.empty(0, np.int64), np.empty((0, self.dim), np.float32)
        keys, inverse = unique_inverse(np.concatenate([k for k, _ in self._waiting]))
        return keys, group_sum(np.concatenate([g for _, g in self._waiting]), inverse, len(keys))

    def forget(self) -> None:
        """Drop what waits: `zero_grad`."""
        self._waiting.clear()

    def step(self, lr: float) -> None:
        """Apply the rule to what waits, and keep it until `forget`, as torch keeps `.grad`."""
        keys, grads = self.waiting()
        if not len(keys):
            return
        rows = self.table.find(keys)
        self.dropped += int(np.count_nonzero(rows < 0))
        self.not_finite += self.options.rule.apply(self.table.values, self.table.state, rows, grads, lr=lr)

    def advance(self, tick: int) -> None:
        """Event time moves on to `tick`; what expired is absent from now on. ValueError for a tick before the last."""
        if tick < self.tick:
            raise ValueError(f"tick {tick} is before {self.tick}: event time never moves back")
        self.table.advance(tick)
        self.table.sweep(SWEEP_ROWS)
        self.tick = tick

    def __deepcopy__(self, memo: dict[int, Any]) -> "Store":
        """An independent store with the same rows; nothing waits in it. (The slabs themselves are never copied.)"""
        twin: Store = Store.__new__(Store)
        twin.__dict__.update(self.__dict__)
        twin.table, twin._waiting = self.table.copy(), []
        twin.anchor = torch.zeros((), requires_grad=True)
        memo[id(self)] = twin
        return twin

    def __reduce__(self) -> Any:
        raise TypeError("a table is not pickled; use the module's snapshot() and load(), or its state_dict()")


class _Read(torch.autograd.Function):
    """Distinct keys' vectors forward; their summed gradients, backward, to the list of those that wait."""

    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, store: Store, keys: Keys, rows: NDArray[np.int32], vectors: Floats
    ) -> torch.Tensor:
        ctx.store, ctx.keys, ctx.rows = store, keys, rows
        return torch.from_numpy(vectors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, ...]:
        ctx.store.wait(ctx.keys, ctx.rows, grad.contiguous().numpy())
        return None, None, None, None, None
