"""`Embedding` and `EmbeddingBag` against torch's own with the same weights, and what torch's own cannot do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from infra.hashing import hash64
from trainer.nn import (
    Adagrad,
    Embedding,
    EmbeddingBag,
    ModuloEmbedding,
    Policy,
    RowwiseAdagrad,
    Sgd,
    SparseOptimizer,
    embeddings,
)

torch.set_num_threads(1)  # two threads that share a core wait for each other by spinning

ROWS, DIM = 30, 5
SEED = 20_260_101
RULES = {
    "sgd": (Sgd(lr=0.3), lambda weights: torch.optim.SGD(weights, lr=0.3)),
    "adagrad": (
        Adagrad(lr=0.3, accumulator_init=0.1, epsilon=1e-10),
        lambda weights: torch.optim.Adagrad(weights, lr=0.3, initial_accumulator_value=0.1, eps=1e-10),
    ),
}


def pair(rule=None):
    """An Embedding and an nn.Embedding with the same weights for the ids 0 to 29."""
    ours, theirs = Embedding(DIM, rule=rule or Sgd(lr=0.3), seed=1), nn.Embedding(ROWS, DIM)
    theirs.weight.data.copy_(ours(torch.arange(ROWS)).detach())
    return ours, theirs


def batches(n=4):
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randint(ROWS, (3, 7), generator=generator) for _ in range(n)]


def weights_of(ours):
    return ours.stores["rows"].table.lookup(np.arange(ROWS))[0]


@pytest.mark.parametrize("rule", RULES)
def test_values_gradients_and_steps_are_those_of_nn_embedding(rule):
    ours, theirs = pair(RULES[rule][0])
    optimizer, reference = SparseOptimizer(ours), RULES[rule][1](theirs.parameters())
    for ids in batches():
        torch.testing.assert_close(ours(ids), theirs(ids), rtol=2e-5, atol=1e-6)
        for module in (ours, theirs):
            torch.autograd.backward((module(ids).sin() * torch.arange(DIM)).sum())
        keys, grads = ours.stores["rows"].waiting()
        torch.testing.assert_close(torch.from_numpy(grads), theirs.weight.grad[keys], rtol=1e-5, atol=1e-6)
        optimizer.step()
        reference.step()
        optimizer.zero_grad()
        reference.zero_grad()
        np.testing.assert_allclose(weights_of(ours), theirs.weight.detach().numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bag_is_nn_embedding_bag(mode):
    single, _ = pair()
    ours, theirs = EmbeddingBag(single, mode), nn.EmbeddingBag(ROWS, DIM, mode=mode)
    theirs.weight.data.copy_(torch.from_numpy(weights_of(single)))
    optimizer, reference = SparseOptimizer(ours), torch.optim.SGD(theirs.parameters(), lr=0.3)
    flat, offsets = batches(1)[0].reshape(-1), torch.tensor([0, 4, 4, 9, 21])
    cases = [(flat, offsets), (flat.view(7, 3), None), (flat[:0], torch.tensor([0, 0]))]
    for ids, starts in cases:
        out, want = ours(ids, starts), theirs(ids, starts)
        torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-7)
        for result, stepper in ((out, optimizer), (want, reference)):
            torch.autograd.backward((result**2).sum())
            stepper.step()
            stepper.zero_grad()
        np.testing.assert_allclose(weights_of(single), theirs.weight.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_weights_of_samples_scale_them_and_get_gradients_themselves():
    single, _ = pair()
    ours, theirs = EmbeddingBag(single), nn.EmbeddingBag(ROWS, DIM, mode="sum")
    theirs.weight.data.copy_(torch.from_numpy(weights_of(single)))
    flat, offsets = batches(1)[0].reshape(-1), torch.tensor([0, 4, 4])
    scales = [torch.linspace(-1, 2, len(flat)).requires_grad_() for _ in range(2)]
    out, want = ours(flat, offsets, scales[0]), theirs(flat, offsets, scales[1])
    torch.testing.assert_close(out, want)
    torch.autograd.backward((out**2).sum() + (want**2).sum())
    torch.testing.assert_close(scales[0].grad, scales[1].grad)
    keys, grads = single.stores["rows"].waiting()
    torch.testing.assert_close(torch.from_numpy(grads), theirs.weight.grad[keys], rtol=1e-5, atol=1e-6)


def test_unknown_ids_get_rows_only_while_learning():
    module = Embedding(DIM, seed=2)
    ids = torch.tensor([5, 6])
    module.eval()
    assert not module(ids).any()
    module.train()
    with torch.no_grad():
        assert not module(ids).any()
    assert len(module.stores["rows"].table) == 0
    assert module(ids).detach().abs().min() > 0
    assert len(module.stores["rows"].table) == 2


def test_id_not_yet_admitted_reads_zeros_and_its_gradient_is_dropped_and_counted():
    module = Embedding(DIM, seed=2, rule=Sgd(lr=1.0), policy=Policy(admit_after=3))
    optimizer = SparseOptimizer(module)
    out = module(torch.tensor([8, 9, 9]))
    assert not out.detach().any()
    torch.autograd.backward(out.sum())
    optimizer.step()
    optimizer.zero_grad()
    assert module.dropped == 2  # keys, whose gradients were summed first
    out = module(torch.tensor([8, 9]))
    assert not out[0].detach().any()
    assert out[1].detach().all()
    torch.autograd.backward(out.sum())
    optimizer.step()
    assert module.dropped == 3
    torch.testing.assert_close(module(torch.tensor([9])).detach(), out[1:].detach() - 1)


def test_expired_id_reads_zeros_and_begins_anew():
    module = Embedding(DIM, seed=2, policy=Policy(expiry_ticks=10))
    first = module(torch.tensor([8])).detach().clone()
    optimizer = SparseOptimizer(module)
    torch.autograd.backward(module(torch.tensor([8, 9])).sum())
    module.advance(11)
    optimizer.step()
    assert module.dropped == 2
    assert not module.eval()(torch.tensor([8, 9])).any()
    assert torch.equal(module.train()(torch.tensor([8])).detach(), first)
    with pytest.raises(ValueError, match="never moves back"):
        module.advance(10)


def test_gradient_of_an_evicted_id_never_reaches_the_id_that_has_its_row_now():
    table = Embedding(DIM, seed=2, rule=Sgd(lr=1.0), policy=Policy(byte_budget=4096))
    limit = table.stores["rows"].table.row_limit
    optimizer = SparseOptimizer(table)
    torch.autograd.backward(table(torch.tensor([1])).sum())  # waits for the step …
    table.advance(1)
    others = torch.arange(1000, 1000 + limit)
    before = table(others).detach().clone()  # … while these evict it
    assert table.stores["rows"].table.find(np.array([1]))[0] == -1
    optimizer.step()
    assert table.dropped == 1
    assert torch.equal(table(others).detach(), before)


def test_gradient_that_is_not_finite_is_refused_and_counted():
    module = Embedding(DIM, seed=2)
    before = module(torch.tensor([1, 2])).detach().clone()
    out = module(torch.tensor([1, 2]))
    torch.autograd.backward((out * torch.tensor([[torch.inf], [1.0]])).sum())
    SparseOptimizer(module).step()
    after = module(torch.tensor([1, 2])).detach()
    assert module.not_finite == 1
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_integers_are_keys_as_they_are_and_texts_go_through_hash64():
    module = Embedding(DIM, seed=2)
    module(torch.tensor([-5, 2**62], dtype=torch.int64))
    module(torch.tensor([7], dtype=torch.int32))
    module(np.array([8], np.uint8))
    module([9])
    assert module.stores["rows"].table.export().keys.tolist() == [-5, 7, 8, 9, 2**62]
    texts = Embedding(DIM, seed=2)
    texts(["ann", "bób", "ann", ""])
    texts(np.array([["ann", "carl"]]))
    assert texts.stores["rows"].table.export().keys.tolist() == sorted(map(hash64, ("ann", "bób", "", "carl")))


BAD_IDS = {
    "floats": (torch.tensor([1.0]), "integers"),
    "bools": (torch.tensor([True]), "integers"),
    "one text": ("ann", "list of texts"),
    "both kinds": (["ann", 3], "all are"),
    "another device": (torch.empty(1, dtype=torch.int64, device="meta"), "main memory"),
    "beyond int64": (np.array([2**63], np.uint64), "int64"),
    "float array": (np.array([1.5]), "float"),
}


@pytest.mark.parametrize("case", BAD_IDS)
def test_what_is_no_id_is_refused_by_name(case):
    ids, message = BAD_IDS[case]
    with pytest.raises(ValueError, match=message):
        Embedding(DIM)(ids)


BAD_BAGS = {
    "no offsets": (torch.arange(3), None, None, "without offsets"),
    "offsets of a matrix": (torch.ones(2, 2, dtype=torch.int64), [0, 1], None, "must be \\(n,\\)"),
    "not from 0": (torch.arange(3), [1, 2], None, "begin with 0"),
    "descending": (torch.arange(3), [0, 2, 1], None, "ascend"),
    "beyond": (torch.arange(3), [0, 4], None, "last offset is 4"),
    "not whole": (torch.arange(3), [0.0, 1.0], None, "integers"),
    "weights of another shape": (torch.arange(3), [0], torch.ones(2), "differ in shape"),
    "weights of another type": (torch.arange(3), [0], torch.ones(3, dtype=torch.float64), "float32"),
}


@pytest.mark.parametrize("case", BAD_BAGS)
def test_bags_that_do_not_fit_are_refused(case):
    ids, offsets, weights, message = BAD_BAGS[case]
    with pytest.raises(ValueError, match=message):
        EmbeddingBag(DIM)(ids, offsets, weights)


def test_a_weighted_mean_and_other_modes_are_refused():
    with pytest.raises(ValueError, match="weighted mean"):
        EmbeddingBag(DIM, "mean")(torch.arange(3), [0], torch.ones(3))
    with pytest.raises(ValueError, match="sum or mean"):
        EmbeddingBag(DIM, "max")
    with pytest.raises(ValueError, match="seed"):
        EmbeddingBag(Embedding(DIM), seed=3)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.users, self.tags = Embedding(4, rule=RowwiseAdagrad(lr=0.2)), EmbeddingBag(ModuloEmbedding(4, 50))
        self.out = nn.Linear(8, 1)

    def forward(self, user, tags):
        return self.out(torch.cat([self.users(user), self.tags(tags)], 1)).squeeze(1)


def test_a_model_trains_from_a_data_loader_beside_a_dense_optimizer_and_a_scheduler():
    torch.manual_seed(SEED)
    user, tags = torch.randint(40, (256,)), torch.randint(10**9, (256, 3))
    label = (user % 3 == 0).float()
    model = Pair()
    assert [type(e).__name__ for e in embeddings(model)] == ["Embedding", "ModuloEmbedding"]
    sparse, dense = SparseOptimizer(model), torch.optim.Adam(model.parameters(), lr=0.02)
    halving = torch.optim.lr_scheduler.ExponentialLR(sparse, gamma=0.8)
    losses = []
    for _ in range(8):
        for u, t, y in DataLoader(TensorDataset(user, tags, label), batch_size=32, shuffle=True):
            loss = nn.functional.binary_cross_entropy_with_logits(model(u, t), y)
            sparse.zero_grad()
            dense.zero_grad()
            torch.autograd.backward(loss)
            sparse.step()
            dense.step()
        halving.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert len(model.users.stores["rows"].table) == len(user.unique())
    assert sparse.param_groups[0]["lr"] == pytest.approx(0.2 * 0.8**8)


def test_texts_come_from_a_data_loader_as_lists():
    loader = DataLoader([("ann", 1), ("bob", 2), ("ann", 3)], batch_size=3)
    names, _ = next(iter(loader))
    out = Embedding(DIM)(names).detach()
    assert torch.equal(out[0], out[2])


def test_manual_seed_governs_initial_vectors_and_two_modules_differ():
    torch.manual_seed(4)
    first, second = Embedding(DIM), Embedding(DIM)
    torch.manual_seed(4)
    again = Embedding(DIM)
    ids = torch.arange(9)
    assert torch.equal(first(ids), again(ids))
    assert not torch.equal(first(ids), second(ids))


def test_an_optimizer_needs_an_embedding_and_takes_a_rate_of_its_own():
    with pytest.raises(ValueError, match="no embedding"):
        SparseOptimizer(nn.Linear(2, 2))
    module = Embedding(DIM, rule=Sgd(lr=0.1), seed=1)
    before = module(torch.tensor([3])).detach().clone()
    torch.autograd.backward(module(torch.tensor([3])).sum())
    SparseOptimizer([module], lr=0.5).step()
    torch.testing.assert_close(module(torch.tensor([3])).detach(), before - 0.5)


def test_a_closure_is_called_with_gradients():
    module = Embedding(DIM, rule=Sgd(lr=0.1), seed=1)

    def closure():
        optimizer.zero_grad()
        loss = module(torch.tensor([3])).sum()
        torch.autograd.backward(loss)
        return loss

    optimizer = SparseOptimizer(module)
    first, second = optimizer.step(closure).item(), optimizer.step(closure).item()
    assert second == pytest.approx(first - 0.1 * DIM, rel=1e-4)


def test_the_online_trainer_imports_neither_this_nor_torch():
    code = "import sys, trainer.loop, trainer.online\nassert not {'torch', 'trainer.nn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])


def test_unsigned_ids_beyond_int64_are_refused_and_share_no_row():
    embedding = Embedding(2, seed=1)
    with pytest.raises(ValueError, match="keys are int64"):
        embedding(torch.tensor([2**63 + 5], dtype=torch.uint64))
    small = torch.tensor([7, 2**62], dtype=torch.uint64)
    assert torch.equal(embedding(small), embedding(small.long())), "below, they are the ids that they say"


@pytest.mark.parametrize("tick", [1.5, True, np.bool_(1), "3", None])
def test_a_tick_that_is_no_whole_number_is_refused(tick):
    with pytest.raises(ValueError, match="tick is"):
        Embedding(2, seed=1).advance(tick)


def test_whole_numbers_of_other_libraries_make_snapshots_that_can_be_read(tmp_path):
    one = Embedding(2, seed=np.int64(5))
    one.advance(np.int32(3))
    one([1])
    one.snapshot(tmp_path)
    again = Embedding(2)
    again.load(tmp_path)
    assert torch.equal(again([1]), one([1]))


@pytest.mark.parametrize("lr", [float("nan"), float("inf"), -1.0])
def test_a_learning_rate_that_is_none_is_refused_and_changes_no_row(lr):
    embedding = Embedding(2, seed=1)
    sparse = SparseOptimizer(embedding, lr=lr)
    before = embedding([1]).detach().clone()
    embedding([1]).sum().backward()
    with pytest.raises(ValueError, match="lr is"):
        sparse.step()
    assert torch.equal(embedding([1]), before)
