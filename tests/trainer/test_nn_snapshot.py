"""Snapshots of modules and models: whole, in one step, checked before anything is believed."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from infra.errors import CorruptStateError, InputError, RetryableError
from infra.paramstore.tensors import decode_tensors, write_tensors
from tests.trainer.nn_conformance import content, step
from trainer.nn import (
    Adagrad,
    Embedding,
    EmbeddingBag,
    ModuloEmbedding,
    Policy,
    SparseOptimizer,
    load_model,
    save_model,
    snapshot,
)

IDS = torch.tensor([4, 5, 6, 4])


def module(**options):
    made = Embedding(4, seed=3, **options)
    step(made, IDS)
    return made


def test_admission_counts_and_event_time_are_in_it(tmp_path):
    policy = Policy(admit_after=4, admit_window_ticks=100, expiry_ticks=50)
    one = Embedding(4, seed=3, policy=policy)
    one.advance(7)
    step(one, torch.tensor([1, 1, 1, 2, 3, 3, 3, 3]))
    one.snapshot(tmp_path)
    two = Embedding(4, policy=policy)
    two.load(tmp_path)
    assert two.stores["rows"].tick == 7
    for each in (one, two):
        step(each, torch.tensor([1, 2]))  # the fourth 1, the second 2
    assert content(one) == content(two)
    assert one.stores["rows"].table.export().keys.tolist() == [1, 3]
    assert one.dropped - two.dropped == 2  # those of before; from here on both drop the same


def test_the_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    one = module()
    path = one.snapshot(tmp_path / "deep" / "folder")
    first = path.read_bytes()
    step(one, IDS)
    assert one.snapshot(path.parent) == path
    assert path.read_bytes() != first
    assert [p.name for p in path.parent.iterdir()] == ["embedding.arrow"]
    with pytest.raises(RetryableError):
        one.snapshot(path)  # a file where a folder should be


WRONG = {
    "no snapshot": (lambda: Embedding(4), None, "does not exist"),
    "another width": (lambda: Embedding(8), module, "its shape is"),
    "another kind": (lambda: ModuloEmbedding(4, 8), module, "its kind is Embedding"),
    "another rule": (lambda: Embedding(4, rule=Adagrad(lr=0.1)), module, "its rule is RowwiseAdagrad"),
    "other sizes": (lambda: ModuloEmbedding(4, 8), lambda: ModuloEmbedding(4, 9), "its shape is"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_wrong_snapshot_is_refused_and_changes_nothing(case, tmp_path):
    make, other, message = WRONG[case]
    if other is not None:
        other().snapshot(tmp_path)
    into = make()
    step(into, IDS)
    before = content(into)
    with pytest.raises(InputError, match=message):
        into.load(tmp_path)
    assert content(into) == before


def test_no_damaged_byte_is_believed(tmp_path):
    path = module().snapshot(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(8)
    caught = 0
    for at in rng.choice(len(whole), 120, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        into = Embedding(4)
        try:
            into.load(tmp_path)
        except CorruptStateError:
            caught += 1
        else:  # padding between tensors: what it says is what was written
            path.write_bytes(whole)
            into.load(tmp_path)
            assert content(into) == content(module()), f"byte {at}"
    assert caught > 20
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptStateError):
        Embedding(4).load(tmp_path)


def write_forged(path, tensors, *, sign):
    """Write these tensors in place of a snapshot's, with the digest that they would have had or the old one."""
    if sign:
        digest = snapshot._digest({name: t for name, t in tensors.items() if name != "digest"})
        tensors = tensors | {"digest": np.frombuffer(digest, np.uint8)}
    sink = io.BytesIO()
    write_tensors(sink, tensors)
    path.write_bytes(sink.getvalue())


@pytest.mark.parametrize("gone", ["module", "rows/state", "rows/values"])
def test_a_snapshot_whose_tensors_do_not_fit_together_is_refused(gone, tmp_path):
    path = module().snapshot(tmp_path)
    tensors = decode_tensors(path.read_bytes())
    short = {name: t[1:] if name == gone else t for name, t in tensors.items()}
    without = {name: t for name, t in tensors.items() if name != gone}
    write_forged(path, without, sign=False)
    with pytest.raises(CorruptStateError, match="not those that were written"):
        Embedding(4).load(tmp_path)
    for forged in (without, short):
        write_forged(path, forged, sign=True)
        into = module()
        before = content(into)
        with pytest.raises(CorruptStateError, match=r"no header|contradict"):
            into.load(tmp_path)
        assert content(into) == before


def test_pickle_and_torch_save_of_a_module_are_refused(tmp_path):
    with pytest.raises(TypeError, match="snapshot"):
        torch.save(module(), tmp_path / "model.pt")


class Model(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a, self.bag = Embedding(width), EmbeddingBag(ModuloEmbedding(width, 9))
        self.norm, self.out = nn.BatchNorm1d(width), nn.Linear(width, 1)

    def forward(self, ids):
        return self.out(self.norm(self.a(ids) + self.bag(ids[:, None]))).squeeze(1)


def test_a_whole_model_is_one_file_and_continues(tmp_path):
    model = Model()
    torch.autograd.backward(model(IDS).sum())
    SparseOptimizer(model).step()
    save_model(model, tmp_path)
    twin = Model()
    load_model(twin, tmp_path)
    assert torch.equal(twin.eval()(IDS), model.eval()(IDS))
    assert content(twin.a) == content(model.a)
    with pytest.raises(InputError, match="another model"):
        load_model(nn.Linear(2, 2), tmp_path)
    with pytest.raises(InputError, match="its shape is"):
        load_model(Model(width=5), tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_model(twin, tmp_path / "elsewhere")
    (tmp_path / "model.arrow").write_bytes(b"nothing")
    with pytest.raises(CorruptStateError):
        load_model(twin, tmp_path)
    with pytest.raises(ValueError, match="bfloat16"):
        save_model(nn.Linear(2, 2).bfloat16(), tmp_path)
