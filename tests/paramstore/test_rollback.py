"""A rollback restores state, not only weights, opens a new generation, and names the input that it skips."""

import numpy as np
import pytest

from infra.errors import ConfigError
from infra.paramstore.chain import Chain, Verdict
from infra.paramstore.merge import fold
from infra.paramstore.rollback import decisions, roll_back
from infra.paramstore.version import VersionId


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def not_items(state):
    return {n: t for n, t in state.items() if not n.startswith("items/")}


@pytest.fixture
def poisoned(store, trainer):
    trainer.open(0, 10)
    for tick in range(11, 16):
        trainer.delta(tick)
    good = fold(trainer.state, [])
    for tick in range(16, 20):
        trainer.delta(tick)
    trainer.flush()
    return good


def test_rollback_opens_the_next_generation_from_the_old_state(store, trainer, poisoned):
    head = roll_back(store, trainer.publisher, VersionId(0, 15), timestamp_ms=0, reason="test")
    state = store.state()
    assert head.id == state.id == VersionId(1, 15)
    assert same(not_items(state.tensors), not_items(poisoned)), "optimizer state and counters come back too"
    assert 19 in state.tensors["items/keys"], "items stay known"
    assert state.meta.positions == {0: 19, 1: 38}, "input goes on after what is skipped"
    (record,) = decisions(store)
    assert record.skipped == {0: (15, 19), 1: (30, 38)}
    assert (record.tick, record.generation, record.reason) == (19, 1, "test")


def test_after_a_rollback_learning_goes_on_like_a_run_that_never_saw_the_poison(store, trainer, poisoned):
    roll_back(store, trainer.publisher, VersionId(0, 15), timestamp_ms=0)
    trainer.generation, trainer.state = 1, poisoned
    for tick in range(20, 25):
        trainer.delta(tick)
    trainer.flush()
    assert same(not_items(store.state().tensors), not_items(trainer.state))


def test_numbers_never_run_backwards_for_a_reader(store, trainer, poisoned):
    roll_back(store, trainer.publisher, VersionId(0, 15), timestamp_ms=0)
    trainer.generation = 1
    trainer.delta(20)
    trainer.flush()
    chain, ids = Chain(), []
    for version in store.reader():
        assert chain.judge(version.meta, version.value) is Verdict.APPLY
        chain.advance(version.meta)
        ids.append(version.meta.id)
    assert ids == sorted(ids)
    assert chain.through == 20
    with pytest.raises(ValueError, match="does not follow"):
        trainer.delta(19)


def test_a_crash_between_the_decision_and_the_publication_is_finished_by_calling_again(
    store, trainer, poisoned, monkeypatch: pytest.MonkeyPatch
):
    class Killed(Exception):
        pass

    def die(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer.publisher, "open_generation", die)
        with pytest.raises(Killed):
            roll_back(store, trainer.publisher, VersionId(0, 15), timestamp_ms=0)
    assert store.head().id == VersionId(0, 19)
    head = roll_back(store, trainer.publisher, VersionId(0, 15), timestamp_ms=0)
    assert head.id == VersionId(1, 15)
    assert len(decisions(store)) == 1


def test_a_version_that_never_was_cannot_be_rolled_back_to(store, trainer, poisoned):
    with pytest.raises(ConfigError, match="never published"):
        roll_back(store, trainer.publisher, VersionId(3, 15), timestamp_ms=0)
