"""A replica serves true versions, one at a time, and exactly those it was asked for."""

import dataclasses
import threading

import numpy as np
import pytest

from infra.errors import CorruptStateError
from infra.paramstore.store import ParamStore
from infra.paramstore.version import VersionId
from serving.model import ServedModel, View, is_served
from serving.replica import Replica
from serving.scorer import Scorer

TEN = np.arange(10)


@pytest.fixture
def ask(trainer, config):
    """f of a fixed request, from a view: read at a fixed later tick, so that it depends on the version alone."""
    scorer = Scorer(config.model, config.time.build())
    items = trainer.state["slot/item/keys"][:20] if trainer.state else None

    def score(view: View) -> np.ndarray:
        nonlocal items
        if items is None:
            items = trainer.states[min(trainer.states)]["slot/item/keys"][:20]
        user = int(trainer.states[min(trainer.states)]["slot/user/keys"][0])
        now_ms = (trainer.tick + 50) * 60_000
        return scorer.rank(view, user=user, items=items, history=items[:5], time_ms=now_ms, read_tick=1_000_200).f

    return score


def from_scratch(state, config) -> View:
    """The view of a whole state, built at once: what a replica must agree with however it got there."""
    model = ServedModel(config.model, config.time.build(), precision="float32")
    model.open({n: t for n, t in state.items() if is_served(n)})
    view = model.show(VersionId(0, 0), "")
    assert view is not None
    return view


def run(trainer, ticks: int) -> None:
    trainer.open()
    for i in range(ticks):
        if i == ticks // 2:
            trainer.open()
        trainer.learn(new_items=i % 5 == 4)
        if i % 7 == 6:
            trainer.skip(2)
        trainer.flush()


def test_every_version_equals_the_state_built_at_once(store, trainer, config, ask):
    run(trainer, 24)
    replica, seen = Replica(store, config), []
    for tick in range(trainer.tick - 40, trainer.tick):
        replica.advance(tick)
        if (view := replica.view()) is not None:
            seen.append(view.version)
            expected = from_scratch(trainer.states[tuple(view.version)], config)
            assert np.array_equal(ask(view), ask(expected)), view.version
    assert len(set(seen)) > 20
    assert seen == sorted(seen)


def test_advance_applies_exactly_what_lies_through_the_tick(store, trainer, config):
    trainer.open()
    first = trainer.tick
    for _ in range(5):
        trainer.learn()
    trainer.flush()
    replica = Replica(store, config)
    assert replica.advance(first - 1)
    assert replica.version is None
    assert replica.advance(first + 3)
    assert replica.version == VersionId(0, first + 3)
    assert not replica.advance(first + 5), "more of that tick may come: a generation, for one"
    assert replica.version == VersionId(0, first + 5)
    trainer.open()
    trainer.flush()
    trainer.skip(3)
    trainer.flush()
    assert replica.advance(first + 5)
    assert replica.version == VersionId(1, first + 5), "the generation that opened at the end of the tick is part of it"
    assert not replica.advance(first + 9)
    trainer.skip(9, end=True)
    trainer.flush()
    assert replica.advance(first + 500), "nothing follows the end"
    assert (replica.ended, replica.through) == (True, first + 17)


def test_a_replica_that_starts_late_starts_from_the_nearest_snapshot(store, trainer, config, ask):
    run(trainer, 10)
    store.write_state(trainer.publisher, trainer.state)
    for _ in range(4):
        trainer.learn()
    trainer.flush()
    replica = Replica(store, config)
    assert replica.advance_to_newest() == 5, "one snapshot, four deltas"
    assert replica.version == VersionId(1, trainer.tick)
    assert np.array_equal(ask(replica.view()), ask(from_scratch(trainer.state, config)))


def test_a_bounded_start_never_begins_beyond_its_bound(store, trainer, config):
    run(trainer, 10)
    store.write_state(trainer.publisher, trainer.state)
    replica = Replica(store, config)
    replica.advance(trainer.tick - 8)
    assert replica.version is not None
    assert replica.version.tick <= trainer.tick - 8


def test_applying_again_changes_nothing(store, trainer, config, ask):
    run(trainer, 12)
    replica = Replica(store, config)
    replica.advance_to_newest()
    before, version, applied = ask(replica.view()), replica.version, replica.applied
    replica._reader.seek(0)
    replica.advance_to_newest()
    assert (replica.version, replica.applied) == (version, applied)
    assert np.array_equal(ask(replica.view()), before)


def test_a_gap_is_refused_and_answered_by_a_snapshot(store, trainer, config, ask):
    run(trainer, 12)
    replica = Replica(store, config)
    replica.advance(trainer.tick - 8)
    store.write_state(trainer.publisher, trainer.state)
    trainer.learn()
    trainer.flush()
    replica._reader.seek(replica._reader.position + 3)
    replica._ahead = None
    replica.advance_to_newest()
    assert replica.catch_ups == 1
    assert replica.version == VersionId(1, trainer.tick)
    assert np.array_equal(ask(replica.view()), ask(from_scratch(trainer.state, config)))


def test_a_gap_without_a_snapshot_stops_and_goes_on_serving(store, trainer, config):
    run(trainer, 12)
    replica = Replica(store, config)
    replica.advance(trainer.tick - 4)
    served = replica.view()
    replica._reader.seek(replica._reader.position + 2)
    replica._ahead = None
    with pytest.raises(CorruptStateError, match="does not follow"):
        replica.advance_to_newest()
    assert replica.view() is served


def test_a_rollback_reaches_replicas_and_no_bounded_one_before_it_was_decided(store, trainer, config, ask):
    from infra.paramstore.rollback import roll_back

    run(trainer, 10)
    good = VersionId(1, trainer.tick)
    for _ in range(4):
        trainer.learn()
    trainer.flush()
    decided = trainer.tick
    roll_back(store, trainer.publisher, good, timestamp_ms=0)
    trainer.skip(5)
    trainer.flush()
    for start_late in (False, True):
        replica = Replica(store, config)
        if not start_late:
            replica.advance(decided - 6)
        assert replica.advance(decided - 1)
        assert replica.version == VersionId(1, decided - 1), "the rollback is not yet known"
        assert replica.advance(decided)
        assert replica.version == VersionId(2, good.tick)
        assert np.array_equal(ask(replica.view()), ask(from_scratch(trainer.states[tuple(good)], config)))
    newest = Replica(store, config)
    newest.advance_to_newest()
    assert newest.version == VersionId(2, good.tick)


def test_a_held_view_never_changes(store, trainer, config, ask):
    run(trainer, 6)
    replica = Replica(store, config)
    replica.advance(trainer.tick - 4)
    held, before = replica.view(), ask(replica.view())
    for _ in range(6):
        trainer.learn(new_items=True)
    trainer.flush()
    replica.advance_to_newest()
    assert np.array_equal(ask(held), before)
    assert not np.array_equal(ask(replica.view()), before)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_rows_are_served_within_their_precision(store, trainer, ask, config, precision):
    import msgspec

    run(trainer, 6)
    less = msgspec.structs.replace(config, serve=msgspec.structs.replace(config.serve, precision=precision))
    replica = Replica(store, less)
    replica.advance_to_newest()
    full = ask(from_scratch(trainer.state, config))
    assert np.allclose(ask(replica.view()), full, rtol=2e-2, atol=2e-1)
    assert not np.array_equal(ask(replica.view()), full)


def hammer(store: ParamStore, trainer, config, ask, *, exclusive: bool, versions: int = 40) -> list[str]:
    """Three threads score while versions are applied; every answer must be the one of the version that it names."""
    run(trainer, 3)
    replica = Replica(store, config, exclusive=exclusive)
    replica.advance_to_newest()
    for _ in range(versions):
        trainer.learn(new_items=True)
    expected = {v: ask(from_scratch(s, config)) for v, s in trainer.states.items()}
    wrong: list[str] = []
    reads, done = [0, 0, 0], threading.Event()

    def read(me: int) -> None:
        while not done.is_set():
            view = replica.view()
            try:
                if not np.array_equal(ask(view), expected[tuple(view.version)]):
                    wrong.append(f"{view.version}: another version's scores")
            except ValueError as error:
                wrong.append(str(error))
            reads[me] += 1

    threads = [threading.Thread(target=read, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    trainer.flush()
    for _ in range(versions):
        replica.advance_to_newest(max_versions=1)
        seen = sum(reads)
        while sum(reads) < seen + 5 and not wrong:
            pass
    done.set()
    for thread in threads:
        thread.join()
    assert wrong or replica.version == VersionId(1, trainer.tick)
    assert wrong or sum(reads) >= 5 * versions
    return wrong


def test_readers_never_see_a_half_applied_version(store, trainer, config, ask):
    assert hammer(store, trainer, config, ask, exclusive=False) == []


def test_a_replica_that_changes_what_is_being_read_is_caught(store, trainer, config, ask, monkeypatch):
    """The planted bug: counters changed in place under a view (what `exclusive` does, for an owner without readers)."""
    run(trainer, 4)
    replica = Replica(store, config, exclusive=True)
    replica.advance(trainer.tick - 2)
    held, before = replica.view(), ask(replica.view())
    replica.advance_to_newest()
    assert not np.array_equal(ask(held), before)


def test_a_view_that_mixes_versions_is_caught(store, trainer, config, ask):
    run(trainer, 8)
    replica = Replica(store, config)
    replica.advance(trainer.tick - 4)
    old = replica.view()
    replica.advance_to_newest()
    mixed = dataclasses.replace(replica.view(), counters=old.counters)
    assert not np.array_equal(ask(mixed), ask(from_scratch(trainer.state, config)))
