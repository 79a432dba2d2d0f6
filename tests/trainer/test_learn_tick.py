"""Learning a tick and a day: a function of state and examples, of nothing else."""

import numpy as np
import pytest

from infra.embedding import SegmentedTable
from stream.examples import EMPTY
from stream.features.batch import SLOTS
from tests.trainer.small_model import FIRST, config, day, examples, items
from trainer.export import export_graphs
from trainer.guard import Forecast
from trainer.online import learn_tick
from trainer.retrain import retrain_day, shape_of
from trainer.state import ModelState


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return export_graphs(shape_of(config().model), tmp_path_factory.mktemp("graphs"))


@pytest.fixture
def trained(graphs) -> ModelState:
    """A state whose generation 0 was made from 30 ticks."""
    state = ModelState(config())
    state.catalogue.add(items())
    retrain_day(state, None, day(FIRST, 30), day=0, last_tick=FIRST + 29, epochs=1, graphs=graphs)
    state.generation = 0
    return state


def test_same_state_and_examples_give_the_same_delta_and_digest(trained):
    twin = trained.copy()
    assert twin.digest() == trained.digest()
    for tick in range(FIRST + 30, FIRST + 36):
        mine, theirs = learn_tick(trained, tick, examples(tick)), learn_tick(twin, tick, examples(tick))
        assert mine.keys() == theirs.keys()
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert twin.digest() == trained.digest()


def test_result_does_not_depend_on_where_rows_lie_in_the_tables(trained):
    moved = trained.copy()
    for name, slot in moved.slots.items():
        here = slot.table
        seed = moved.model.seed
        other = SegmentedTable(slot=name, segments=here.segments, seed=seed, policy=here.policy, index_seed=99)
        for group, rows in here.export().items():
            order = np.random.default_rng(3).permutation(len(rows.keys))
            other.put(group, *(column[order] if len(column) else column for column in rows))
        other.advance(here.tick)
        slot.table = other
    for tick in range(FIRST + 30, FIRST + 34):
        learn_tick(trained, tick, examples(tick))
        learn_tick(moved, tick, examples(tick))
    assert moved.digest() == trained.digest()


def test_restart_from_a_snapshot_and_deltas_continues_bit_for_bit(trained):
    snapshot = {name: tensor.copy() for name, tensor in trained.export().items()}
    deltas = {}
    for tick in range(FIRST + 30, FIRST + 40):
        deltas[tick] = learn_tick(trained, tick, examples(tick))
    restarted = ModelState.restore(config(), snapshot, generation=0, tick=FIRST + 29)
    for tick in range(FIRST + 30, FIRST + 35):
        restarted.apply(tick, deltas[tick])
    for tick in range(FIRST + 35, FIRST + 40):
        learn_tick(restarted, tick, examples(tick))
    assert restarted.digest() == trained.digest()


def test_delta_holds_exactly_the_rows_that_changed(trained):
    before = trained.copy()
    delta = learn_tick(trained, FIRST + 30, examples(FIRST + 30))
    for slot in SLOTS:
        old, new = before.tables[slot].export(), trained.tables[slot].export()
        known = dict(zip(old.keys.tolist(), old.values, strict=True))
        changed = {
            k for k, v in zip(new.keys.tolist(), new.values, strict=True)
            if k not in known or not np.array_equal(known[k], v)
        }  # fmt: skip
        assert changed <= set(delta.get(f"slot/{slot}/keys", np.empty(0)).tolist())
        if not trained.model.slots[slot].online:
            assert not changed


def test_dense_weights_stay_frozen_online(trained):
    before = {name: weight.copy() for name, weight in trained.dense.items()}
    learn_tick(trained, FIRST + 30, examples(FIRST + 30))
    assert all(np.array_equal(before[name], trained.dense[name]) for name in before)


def test_before_the_first_generation_ticks_are_counted_and_nothing_is_learned():
    state = ModelState(config())
    state.catalogue.add(items())
    delta = learn_tick(state, FIRST, examples(FIRST))
    assert not any(name.startswith("slot/") for name in delta)
    assert len(delta["counters/item/keys"]) > 0
    assert all(len(table) == 0 for table in state.tables.values())


def test_opening_a_generation_replaces_rows_and_keeps_counters(trained):
    candidate = trained.export()
    for tick in range(FIRST + 30, FIRST + 33):
        learn_tick(trained, tick, examples(tick))
    counted = trained.counters.newest.digest()
    trained.open(candidate, generation=1, tick=FIRST + 29)
    assert trained.counters.newest.digest() == counted
    slots = {name: t for name, t in trained.export().items() if name.startswith("slot/")}
    assert all(np.array_equal(slots[name], candidate[name]) for name in slots)


def test_empty_tick_changes_nothing_and_no_tick_is_learned_twice(trained):
    before = {n: t for n, t in trained.export().items() if n.startswith(("slot/", "counters/"))}
    assert learn_tick(trained, FIRST + 30, EMPTY) == {}
    after = trained.export()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with pytest.raises(ValueError, match="cannot learn"):
        learn_tick(trained, FIRST + 30, EMPTY)


def test_retrain_gives_the_same_bits_and_another_day_another_shuffle(graphs):
    digests = []
    for number in (1, 1, 2):
        state = ModelState(config())
        state.catalogue.add(items())
        retrain_day(state, None, day(FIRST, 20), day=number, last_tick=FIRST + 19, epochs=1, graphs=graphs)
        digests.append(state.digest())
    assert digests[0] == digests[1] != digests[2]


def test_retrain_from_a_restored_snapshot_equals_one_without_a_restart(graphs, trained):
    whole, restored = trained.copy(), ModelState.restore(config(), trained.export(), 0, trained.tick)
    moments = [None, None]
    for i, state in enumerate((whole, restored)):
        days = day(FIRST + 30, 20)
        moments[i] = retrain_day(state, None, days, day=7, last_tick=FIRST + 49, epochs=1, graphs=graphs)
    assert whole.digest() == restored.digest()
    assert all(np.array_equal(moments[0][name], moments[1][name]) for name in moments[0])


def test_state_with_nan_or_inf_names_what_holds_it(trained):
    assert trained.unfit(Forecast()) == ""
    rows = trained.tables["item"].export()
    trained.tables["item"].put(rows.keys[:1], np.full((1, 4), np.inf), rows.state[:1], rows.last_seen[:1])
    assert trained.unfit(Forecast()) == "slot/item/values holds NaN or Inf"
    trained.dense["bias"] = np.array([np.nan], np.float32)
    assert trained.unfit(Forecast()) == "dense/bias holds NaN or Inf"
