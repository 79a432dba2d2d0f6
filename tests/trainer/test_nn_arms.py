"""The conformance suite of `trainer.nn` over every arm, and over modules that are wrong on purpose."""

import hashlib

import numpy as np
import pytest
import torch

from tests.trainer.nn_conformance import ARMS, CHECKS, DIM
from trainer.nn import Embedding, ModuloEmbedding, MultiHashEmbedding, Policy, QuotientRemainderEmbedding, snapshot
from trainer.nn.buckets import md5_mod, mixed_mod
from trainer.nn.store import Store


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("check", CHECKS)
def test_arm_conforms(arm, check):
    CHECKS[check](ARMS[arm])


class ReadsInsert(Embedding):
    @property
    def learning(self):
        return True


class OneGradientOfMany(Embedding):
    """Of a key that comes up twice in a batch, the last gradient wins."""

    def distinct(self, keys):
        vectors = self.vectors(keys, np.ones(len(keys), np.int64))
        return vectors, torch.arange(len(keys), dtype=torch.int32)


class NeverForgets(Store):
    def forget(self):
        pass


class LastBatchOnly(Store):
    def waiting(self):
        return self._waiting[-1] if self._waiting else super().waiting()


class DecaysAll(Store):
    def step(self, lr):
        super().step(lr)
        self.table.values[: len(self.table)] *= np.float32(0.999)


def with_store(kind):
    def make(**options):
        module = Embedding(DIM, **options)
        module.stores["rows"] = kind("rows", DIM, module.options)
        return module

    return make


class ForgetsMoments(Embedding):
    def get_extra_state(self):
        rows = self.stores["rows"].table.export()
        self.stores["rows"].table.put(rows.keys, rows.values, np.zeros_like(rows.state), rows.last_seen)
        state = torch.frombuffer(bytearray(snapshot.encode(self)), dtype=torch.uint8)
        self.stores["rows"].table.put(*rows)
        return state


WRONG = {
    "reads insert": (lambda **o: ReadsInsert(DIM, **o), "reading_changes_nothing"),
    "duplicates are not summed": (
        lambda **o: OneGradientOfMany(DIM, **o),
        "gradient_of_a_row_is_what_a_small_step_of_it_shows",
    ),
    "gradients stay": (with_store(NeverForgets), "forgotten_gradients_move_nothing"),
    "one forward is lost": (with_store(LastBatchOnly), "two_forwards_before_one_step_are_one_batch"),
    "all rows decay": (with_store(DecaysAll), "only_rows_that_were_read_move"),
    "moments are not saved": (lambda **o: ForgetsMoments(DIM, **o), "a_snapshot_continues_bit_for_bit"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_module_is_caught(fault):
    make, check = WRONG[fault]
    with pytest.raises(AssertionError):
        CHECKS[check](make)


def test_md5_is_hashlibs():
    rng = np.random.default_rng(5)
    keys = np.r_[0, 9, 10, -1, 2**63 - 1, -(2**63), 10**18, rng.integers(-(2**63), 2**63 - 1, 300)].astype(np.int64)
    for buckets in (2, 1000, 10**6, 2**31 - 1):
        want = [int(hashlib.md5(str(key).encode()).hexdigest(), 16) % buckets for key in keys.tolist()]
        assert md5_mod(keys, buckets).tolist() == want


def test_hash_functions_of_the_multi_hash_arm_are_independent_and_even():
    keys = np.arange(20_000)
    first, second = mixed_mod(keys, 100, 1), mixed_mod(keys, 100, 2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    counts = np.bincount(first, minlength=100)
    assert ((counts - 200) ** 2 / 200).sum() < 150  # chi square of 99 degrees of freedom: 1 in 1,000


def test_modulo_arm_shares_exactly_the_rows_of_equal_buckets():
    module = ModuloEmbedding(DIM, 10, seed=1)
    buckets = md5_mod(np.arange(50), 10)
    out = module(torch.arange(50)).detach().numpy()
    for a in range(50):
        same = (out == out[a]).all(1)
        assert np.array_equal(same, buckets == buckets[a])


def test_quotient_remainder_gives_every_id_of_its_universe_a_vector_of_its_own():
    module = QuotientRemainderEmbedding(DIM, remainders=16, universe=300, seed=1)
    out = module(torch.arange(300)).detach().numpy()
    assert len(np.unique(out, axis=0)) == 300
    stores = module.stores
    want = (
        stores["remainders"].table.lookup(np.array([77 % 16]))[0]
        * stores["quotients"].table.lookup(np.array([77 // 16]))[0]
    )
    assert np.array_equal(out[77], want[0])
    assert module.floats == DIM * (16 + 19)


def test_multi_hash_is_the_weighted_sum_of_its_components():
    module = MultiHashEmbedding(DIM, components=40, importances=64, hashes=3, seed=1)
    key = np.array([77])
    rows = [module.stores["components"].table.lookup(mixed_mod(key, 40, j + 1))[0][0] for j in range(3)]
    weights = module.stores["importances"].table.lookup(mixed_mod(key, 64, 0))[0][0]
    want = sum(w * row for w, row in zip(weights, rows, strict=True))
    np.testing.assert_allclose(module(torch.tensor([77])).detach().numpy()[0], want, rtol=1e-6)
    assert module.floats == 40 * DIM + 64 * 3


def test_arm_of_shared_rows_refuses_a_policy_and_sizes_that_hold_nothing():
    with pytest.raises(ValueError, match="policy"):
        ModuloEmbedding(DIM, 10, policy=Policy(expiry_ticks=3))
    for make in (
        lambda: ModuloEmbedding(DIM, 0),
        lambda: QuotientRemainderEmbedding(DIM, 4, 0),
        lambda: MultiHashEmbedding(DIM, 0, 4),
        lambda: MultiHashEmbedding(DIM, 4, 4, hashes=0),
        lambda: Embedding(0),
    ):
        with pytest.raises(ValueError):
            make()
