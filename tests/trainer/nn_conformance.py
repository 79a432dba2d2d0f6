"""What every embedding with the face of `trainer.nn` does, as functions that take one and raise AssertionError.

A new arm joins `ARMS` and gets no tests of its own for these. `tests/trainer/test_nn_arms.py` runs each over each arm,
and over modules that are wrong on purpose.
"""

import copy
import tempfile
from collections.abc import Callable

import numpy as np
import torch

from trainer.nn import (
    Embedding,
    EmbeddingBag,
    ModuloEmbedding,
    MultiHashEmbedding,
    QuotientRemainderEmbedding,
    Sgd,
    SparseEmbedding,
    SparseOptimizer,
)
from trainer.rules import Rule

torch.set_num_threads(1)  # two threads that share a core wait for each other by spinning

DIM = 6
Make = Callable[..., SparseEmbedding]
ARMS: dict[str, Make] = {
    "collisionless": lambda **o: Embedding(DIM, **o),
    "modulo": lambda **o: ModuloEmbedding(DIM, 64, **o),
    "quotient-remainder": lambda **o: QuotientRemainderEmbedding(DIM, 16, 300, **o),
    "multi-hash": lambda **o: MultiHashEmbedding(DIM, 40, 64, **o),
}
IDS = torch.tensor([[3, 5, 3], [250, 7, 5]])


def step(module: SparseEmbedding, *batches: torch.Tensor, lr: float | None = None) -> None:
    """One step on the sum of squares around 1, summed over batches."""
    optimizer = SparseOptimizer(module, lr)
    for ids in batches:
        torch.autograd.backward(((module(ids) - 1) ** 2).sum())
    optimizer.step()
    optimizer.zero_grad()


def content(module: SparseEmbedding) -> list[bytes]:
    return [store.table.digest() for store in module.stores.values()]


def trained(make: Make, rule: Rule | None = None) -> SparseEmbedding:
    module = make(seed=11, **({"rule": rule} if rule else {}))
    step(module, IDS)
    return module


def vectors_have_the_shape_of_the_ids_and_repeat_with_them(make: Make) -> None:
    module = make(seed=1)
    out = module(IDS)
    assert out.shape == (2, 3, DIM)
    assert out.dtype == torch.float32
    assert torch.equal(out[0, 0], out[0, 2])
    assert torch.equal(out[0, 1], out[1, 2])
    assert torch.equal(module(torch.tensor(7)), out[1, 1])
    assert module(torch.empty(0, 4, dtype=torch.int64)).shape == (0, 4, DIM)


def text_and_wide_integers_are_ids(make: Make) -> None:
    for module, ids in ((make(seed=1), ["ann", "bob", "ann"]), (make(seed=1), np.array([2**62, -(2**63), 2**62]))):
        out = module(ids)
        assert torch.equal(out[0], out[2])
        assert not torch.equal(out[0], out[1])


def reading_changes_nothing(make: Make) -> None:
    module = trained(make)
    before = content(module)
    new = torch.tensor([91, 92, 3])
    with torch.no_grad():
        first = module(new)
    module.eval()
    assert torch.equal(module(new), first)
    assert content(module) == before, "a reading changed the table"
    assert torch.equal(module.train()(torch.tensor([3])).detach()[0], first[2])


def gradient_of_a_row_is_what_a_small_step_of_it_shows(make: Make) -> None:
    """Sgd at rate 1 moves each float by its gradient; a central difference of the loss says what that must be."""
    module = trained(make, Sgd(lr=1.0))
    weights = torch.linspace(-1, 1, IDS.numel() * DIM).view(*IDS.shape, DIM)

    def loss() -> torch.Tensor:
        out = module(IDS)
        return (weights * out + 0.5 * out**2).sum()

    optimizer = SparseOptimizer(module)
    torch.autograd.backward(loss())
    gradients = {name: store.waiting() for name, store in module.stores.items()}
    optimizer.zero_grad()
    checked = 0
    for name, (keys, grads) in gradients.items():
        values, rows = module.stores[name].table.values, module.stores[name].table.find(keys)
        for i, row in enumerate(rows):
            for j in (0, values.shape[1] - 1):
                assert abs(_slope(values, int(row), j, loss) - grads[i, j]) < 2e-2, (name, int(keys[i]), j)
                checked += 1
    assert checked >= 8


def _slope(values: np.ndarray, row: int, column: int, loss: Callable[[], torch.Tensor], h: float = 1e-2) -> float:
    kept = values[row, column]
    with torch.no_grad():
        values[row, column] = kept + h
        above = loss().item()
        values[row, column] = kept - h
        below = loss().item()
    values[row, column] = kept
    return (above - below) / (2 * h)


def two_forwards_before_one_step_are_one_batch(make: Make) -> None:
    apart, together = trained(make), trained(make)
    step(apart, IDS[0], IDS[1])
    step(together, IDS)
    for a, b in zip(apart.stores.values(), together.stores.values(), strict=True):
        left, right = a.table.export(), b.table.export()
        assert np.array_equal(left.keys, right.keys)
        np.testing.assert_allclose(left.values, right.values, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(left.state, right.state, rtol=1e-5, atol=1e-6)


def only_rows_that_were_read_move(make: Make) -> None:
    module = trained(make)
    before = {name: store.table.export() for name, store in module.stores.items()}
    torch.autograd.backward(module(torch.tensor([3])).sum())
    touched = {name: set(store.waiting()[0].tolist()) for name, store in module.stores.items()}
    SparseOptimizer(module).step()
    for name, store in module.stores.items():
        after = store.table.export()
        moved = set(after.keys[(after.values != before[name].values).any(1)].tolist())
        assert moved == touched[name], name


def forgotten_gradients_move_nothing(make: Make) -> None:
    module = trained(make)
    before = content(module)
    optimizer = SparseOptimizer(module)
    torch.autograd.backward(module(IDS).sum())
    optimizer.zero_grad()
    optimizer.step()
    assert content(module) == before


def training_brings_the_loss_down(make: Make) -> None:
    module = make(seed=3)
    ids = torch.arange(40)
    first = float(((module(ids).detach() - 1) ** 2).sum())
    for _ in range(60):
        step(module, ids, lr=0.3)
    assert float(((module(ids).detach() - 1) ** 2).sum()) < 0.2 * first


def a_snapshot_continues_bit_for_bit(make: Make) -> None:
    module = trained(make)
    with tempfile.TemporaryDirectory() as folder:
        module.snapshot(folder)
        twin = make(seed=999)
        twin.load(folder)
    other = make(seed=998)
    other.load_state_dict(module.state_dict())
    later = torch.tensor([3, 777, 5])
    for one in (module, twin, other):
        step(one, later)
    assert content(twin) == content(module), "the snapshot lost something that the next step needs"
    assert content(other) == content(module)


def a_deep_copy_is_independent(make: Make) -> None:
    module = trained(make)
    twin = copy.deepcopy(module)
    before = content(module)
    assert content(twin) == before
    step(twin, IDS)
    assert content(module) == before
    step(module, IDS)
    assert content(module) == content(twin)


def bags_are_sums_and_means_of_the_vectors(make: Make) -> None:
    module = trained(make).eval()
    flat, offsets = IDS.reshape(-1), torch.tensor([0, 0, 4])
    single = module(flat).detach()
    zeros = torch.zeros(DIM)
    sums = EmbeddingBag(module, "sum")(flat, offsets)
    means = EmbeddingBag(module, "mean")(flat, offsets)
    weighted = EmbeddingBag(module)(flat, offsets, per_sample_weights=torch.arange(6.0))
    torch.testing.assert_close(sums, torch.stack([zeros, single[:4].sum(0), single[4:].sum(0)]))
    torch.testing.assert_close(means, torch.stack([zeros, single[:4].mean(0), single[4:].mean(0)]))
    scaled = torch.arange(6.0)[:, None] * single
    torch.testing.assert_close(weighted, torch.stack([zeros, scaled[:4].sum(0), scaled[4:].sum(0)]))


CHECKS: dict[str, Callable[[Make], None]] = {
    check.__name__: check
    for check in (
        vectors_have_the_shape_of_the_ids_and_repeat_with_them,
        text_and_wide_integers_are_ids,
        reading_changes_nothing,
        gradient_of_a_row_is_what_a_small_step_of_it_shows,
        two_forwards_before_one_step_are_one_batch,
        only_rows_that_were_read_move,
        forgotten_gradients_move_nothing,
        training_brings_the_loss_down,
        a_snapshot_continues_bit_for_bit,
        a_deep_copy_is_independent,
        bags_are_sums_and_means_of_the_vectors,
    )
}
