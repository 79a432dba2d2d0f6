"""`Embedding` and `EmbeddingBag`: ids in, vectors out, one row per id, never shared, on a CPU.

    embedding = Embedding(16)                       # no number of ids: the table grows with those that come
    optimizer = SparseOptimizer(model)              # applies each module's own update rule to the rows touched
    loss(embedding(ids)).backward(); optimizer.step(); optimizer.zero_grad()

A row is made only in a forward that learns: in training mode, with gradients enabled. Elsewhere (`eval()`,
`torch.no_grad()`) an unknown id reads zeros and stays unknown, so scoring traffic never grows the table.

Every arm (`arms`) is a `SparseEmbedding` that says how keys become vectors; pooling, counting, snapshots and event
time are written once, here.
"""

import contextlib
import functools
import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from infra.compiling import announced
from infra.embedding import unique_inverse
from infra.embedding.life.policy import Policy
from trainer.nn import snapshot
from trainer.nn.keys import Ids, Keys, keys_of
from trainer.nn.store import Options, Store
from trainer.rules import RowwiseAdagrad, Rule

INIT_SCALE = 0.05  # components of a new row are uniform in ±this, a function of (seed, key)
LR = 0.05  # of the update rule where none is named
Mode = Literal["sum", "mean"]
Occurrences = NDArray[np.int64]
_TELLING = contextlib.ExitStack()  # for as long as the process lives


@functools.cache
def _say_when_compiling() -> None:
    """Tell on stderr when a kernel is compiled, from the first embedding on: it happens once a machine, for seconds."""
    _TELLING.enter_context(announced())


def _whole(name: str, number: Any) -> int:
    """A whole number of whatever library, as Python's own: snapshots hold it as JSON. Raises ValueError."""
    if isinstance(number, bool | np.bool_) or not hasattr(number, "__index__"):
        raise ValueError(f"{name} is {number!r}; it must be a whole number")
    return operator.index(number)


class SparseEmbedding(nn.Module):
    """What every arm is. Subclasses make `stores` and say how keys become vectors."""

    def __init__(
        self,
        dim: int,
        *,
        rule: Rule | None = None,
        init_scale: float = INIT_SCALE,
        seed: int | None = None,
        policy: Policy | None = None,
    ) -> None:
        """`seed` is drawn from torch's generator where it is None, so `torch.manual_seed` governs it."""
        super().__init__()
        _say_when_compiling()
        self.dim = dim
        drawn = int(torch.randint(1 << 31, ())) if seed is None else _whole("seed", seed)
        self.options = Options(rule or RowwiseAdagrad(lr=LR), init_scale, drawn, policy or Policy())
        self.stores: dict[str, Store] = {}

    def shape(self) -> Mapping[str, int]:
        """The sizes that a snapshot must agree with."""
        return {"dim": self.dim}

    def vectors(self, keys: Keys, occurrences: Occurrences) -> Tensor:
        """Vectors (m, dim) of distinct keys (m,), each of which came up so often (m,)."""
        raise NotImplementedError

    def forward(self, ids: Ids) -> Tensor:
        """Vectors (*ids.shape, dim). Raises ValueError for ids that are neither integers nor texts."""
        keys, shape = keys_of(ids)
        vectors, inverse = self.distinct(keys)
        return functional.embedding(inverse.view(shape), vectors)

    def distinct(self, keys: Keys) -> tuple[Tensor, Tensor]:
        """Vectors (m, dim) of the distinct ones among keys (n,), and which of them each key is, (n,)."""
        unique, inverse = unique_inverse(keys)
        vectors = self.vectors(unique, np.bincount(inverse, minlength=len(unique)))
        return vectors, torch.from_numpy(inverse)

    @property
    def learning(self) -> bool:
        """Whether this forward may make rows."""
        return self.training and torch.is_grad_enabled()

    def advance(self, tick: int) -> None:
        """Event time moves on to `tick`: rows expire by it, and new ones are dated with it. Never back.

        Raises ValueError where `tick` is no whole number.
        """
        whole = _whole("tick", tick)
        for store in self.stores.values():
            store.advance(whole)

    @property
    def floats(self) -> int:
        """Weights held now, optimizer state not counted."""
        return sum(len(store.table) * store.dim for store in self.stores.values())

    @property
    def dropped(self) -> int:
        """Gradients dropped so far because their id had no row."""
        return sum(store.dropped for store in self.stores.values())

    @property
    def not_finite(self) -> int:
        """Gradients refused so far because they were NaN or infinite."""
        return sum(store.not_finite for store in self.stores.values())

    def snapshot(self, folder: str | Path) -> Path:
        """Write rows, optimizer state, admission and event time into `folder`; the file, which is replaced whole."""
        return snapshot.write(self, Path(folder))

    def load(self, folder: str | Path) -> None:
        """Continue what `snapshot` wrote. InputError where there is none, or another module's; nothing changed then.

        Learning rate and policy are this module's own; the seed of new rows is the snapshot's.
        """
        snapshot.read(self, Path(folder))

    def get_extra_state(self) -> Tensor:
        """The snapshot as bytes, so that `state_dict()` is complete."""
        return torch.frombuffer(bytearray(snapshot.encode(self)), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        if not isinstance(state, Tensor) or state.dtype != torch.uint8:
            raise ValueError("the extra state of an embedding is a uint8 tensor, as state_dict() made it")
        snapshot.decode(self, state.numpy().tobytes(), "state_dict")

    def extra_repr(self) -> str:
        sizes = ", ".join(f"{name}={size}" for name, size in self.shape().items())
        rows = ", ".join(f"{len(store.table)} {name}" for name, store in self.stores.items())
        return f"{sizes}, rule={type(self.options.rule).__name__}, {rows}"


class Embedding(SparseEmbedding):
    """One row per id, never shared: like `nn.Embedding`, but ids are any integers or texts, and there is no size.

    `policy` says when an id gets a row and when it loses it (`infra.embedding.life.policy.Policy`).
    """

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, **options)
        self.stores["rows"] = Store("rows", dim, self.options)

    def vectors(self, keys: Keys, occurrences: Occurrences) -> Tensor:
        return self.stores["rows"].read_distinct(keys, insert=self.learning, occurrences=occurrences)


def embeddings(model: nn.Module) -> Iterator[SparseEmbedding]:
    """Every embedding of this package inside a model, once."""
    return (module for module in model.modules() if isinstance(module, SparseEmbedding))


class EmbeddingBag(nn.Module):
    """Sums or means of bags of ids, without the vectors in between: like `nn.EmbeddingBag`, over any arm.

    `EmbeddingBag(16)` makes an `Embedding` of its own; `EmbeddingBag(ModuloEmbedding(16, 1000))` pools that one.
    """

    def __init__(self, embedding: SparseEmbedding | int, mode: Mode = "sum", **options: Any) -> None:
        super().__init__()
        if mode not in ("sum", "mean"):
            raise ValueError(f"mode is {mode!r}; sum or mean")
        if options and not isinstance(embedding, int):
            raise ValueError(f"{', '.join(options)}: options belong to the embedding that is given")
        self.mode = mode
        self.embedding = Embedding(embedding, **options) if isinstance(embedding, int) else embedding

    def forward(self, ids: Ids, offsets: Any = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Pooled vectors (bags, dim); an empty bag is zeros.

        ids (n,) with offsets (bags,), where each bag begins; or ids (bags, length) without. per_sample_weights has
        the shape of ids and goes with mode "sum". Raises ValueError where these do not fit together.
        """
        keys, shape = keys_of(ids)
        starts = _offsets(offsets, shape)
        weights = self._weights(per_sample_weights, shape)
        vectors, inverse = self.embedding.distinct(keys)
        return functional.embedding_bag(
            inverse, vectors, starts.to(inverse.dtype), mode=self.mode, per_sample_weights=weights
        )

    def _weights(self, weights: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        if weights is None:
            return None
        if self.mode != "sum":
            raise ValueError("per_sample_weights go with mode 'sum'; divide them yourself for a weighted mean")
        if tuple(weights.shape) != shape:
            raise ValueError(f"per_sample_weights {tuple(weights.shape)} and ids {shape} differ in shape")
        if weights.dtype != torch.float32:
            raise ValueError(f"per_sample_weights are {weights.dtype}; the rows are float32")
        return weights.reshape(-1)


def _offsets(offsets: Any, shape: tuple[int, ...]) -> Tensor:
    """Where each bag begins, checked against the ids' shape."""
    if offsets is None:
        if len(shape) != 2:
            raise ValueError(f"ids {shape} without offsets; either ids (bags, length), or ids (n,) and offsets (bags,)")
        return torch.arange(0, shape[0] * shape[1], shape[1]) if shape[1] else torch.zeros(shape[0], dtype=torch.int64)
    if len(shape) != 1:
        raise ValueError(f"ids {shape} with offsets; ids must be (n,)")
    starts = torch.as_tensor(offsets)
    if starts.ndim != 1 or starts.is_floating_point() or starts.dtype == torch.bool:
        raise ValueError(f"offsets are {starts.dtype}{tuple(starts.shape)}; they must be integers (bags,)")
    if len(starts) == 0 and shape[0] == 0:
        return starts
    if len(starts) == 0 or int(starts[0]) != 0:
        raise ValueError("offsets must begin with 0: every id belongs to a bag")
    if bool((starts[1:] < starts[:-1]).any()):
        raise ValueError("offsets must ascend: each says where a bag begins")
    if int(starts[-1]) > shape[0]:
        raise ValueError(f"the last offset is {int(starts[-1])}; there are {shape[0]} ids")
    return starts
