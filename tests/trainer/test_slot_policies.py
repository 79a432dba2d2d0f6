"""Keys that come and go: what the trainer publishes is what it holds, and a restart goes on from it bit for bit."""

import dataclasses

import numpy as np
import pytest

from infra.paramstore.merge import fold
from infra.paramstore.version import VersionId
from serving.model import ServedModel, is_served
from stream.columns import Lists
from stream.examples import EMPTY, ExampleColumns
from stream.features.batch import SLOTS
from tests.trainer.small_model import FIRST, config, day, examples, items
from trainer.export import export_graphs
from trainer.online import learn_tick
from trainer.retrain import retrain_day, shape_of
from trainer.state import ModelState

ROW = (4 + 1) * 4 + 20  # about what a row of 4 floats and its state takes
POLICIES = {
    "expiring": {"item": {"expiry_s": 300}, "user": {"expiry_s": 600}},
    "admitted by count": {"item": {"admit_after": 9}, "user": {"admit_after": 300, "admit_window_s": 900}},
    "admitted by chance": {"item": {"admit_probability": 0.1}},
    "bounded, least recent": {"item": {"byte_budget": 24 * ROW}, "user": {"byte_budget": 5 * ROW}},
    "bounded, least frequent": {"item": {"byte_budget": 24 * ROW, "evict": "least-frequent"}},
    "bounded, smallest norm": {"item": {"byte_budget": 24 * ROW, "evict": "smallest-norm"}},
    "growing": {"item": {"grow_after": 12, "bias_rule": "ftrl"}, "user": {"bias_rule": "adagrad"}},
    "all at once": {
        "item": {
            "admit_after": 3, "admit_window_s": 1800, "expiry_s": 420, "grow_after": 8,
            "byte_budget": 4096 + 6000, "sketch_bytes": 4096, "evict": "smallest-norm",
            "rule": "adam", "bias_rule": "ftrl", "ftrl_l1": 0.01, "grad_cap": 1.0, "row_norm_cap": 2.0,
        },
        "user": {"rule": "momentum", "expiry_s": 420, "weight_decay": 0.01},
        "subcategory": {"rule": "sgd"},
    },
}  # fmt: skip


def drifting(tick: int) -> ExampleColumns:
    """A tick of a news site: items live for some ticks; every fifth tick nobody comes."""
    if tick % 5 == 4:
        return EMPTY
    some = examples(tick)
    items_now = (some.items.values + tick * 2) % 14 + (tick // 2 % 12) * 4 + 1
    return dataclasses.replace(some, items=Lists(some.items.offsets, items_now))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return export_graphs(shape_of(config().model), tmp_path_factory.mktemp("graphs"))


@pytest.fixture(params=POLICIES)
def settings(request):
    return config(**POLICIES[request.param])


@pytest.fixture
def trained(settings, graphs) -> ModelState:
    state = ModelState(settings)
    state.catalogue.add(items())
    days = ExampleColumns.concat([drifting(FIRST + i) for i in range(20)])
    retrain_day(state, None, days, day=0, last_tick=FIRST + 19, epochs=1, graphs=graphs)
    state.generation = 0
    return state


TICKS = range(FIRST + 20, FIRST + 60)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name], b[name]), name


def test_the_policies_of_this_test_do_something(trained):
    seen = dict.fromkeys(("inserted", "rejected", "expired", "evicted"), 0)
    for tick in TICKS:
        learn_tick(trained, tick, drifting(tick))
    for slot in ("item", "user"):
        options = trained.slots[slot].options
        for table in trained.slots[slot].tables.values():
            seen = {fate: n + getattr(table.counts, fate) for fate, n in seen.items()}
        assert seen["expired"] > 0 or not options.expiry_s
        assert seen["evicted"] > 0 or not options.byte_budget
        assert seen["rejected"] > 0 or (options.admit_after == 1 and options.admit_probability == 1)
    assert seen["inserted"] > 0


def test_a_restart_from_a_snapshot_and_deltas_goes_on_bit_for_bit(trained, settings):
    snapshot = {name: tensor.copy() for name, tensor in trained.export().items()}
    deltas = {tick: learn_tick(trained, tick, drifting(tick)) for tick in TICKS}
    restarted = ModelState.restore(settings, snapshot, generation=0, tick=FIRST + 19)
    half = len(TICKS) // 2
    for tick in TICKS[:half]:
        if deltas[tick]:
            restarted.apply(tick, deltas[tick])
    for tick in TICKS[half:]:
        same(learn_tick(restarted, tick, drifting(tick)), deltas[tick])
    assert restarted.digest() == trained.digest()


def test_deltas_fold_into_what_the_trainer_holds(trained):
    snapshot = {name: tensor.copy() for name, tensor in trained.export().items()}
    deltas = [learn_tick(trained, tick, drifting(tick)) for tick in TICKS]
    folded, held = fold(snapshot, deltas), trained.export()
    rows = ("slot/", "admission/")
    same({n: t for n, t in folded.items() if n.startswith(rows)}, {n: t for n, t in held.items() if n.startswith(rows)})


def replica_after_every_tick(state, drop=()):
    """Hold a replica to the trainer's rows after every tick; `drop`: tensors that it does not get."""
    served = ServedModel(state.model, state.timeline, precision="float32")
    served.open({n: t for n, t in state.export().items() if is_served(n)})
    for tick in TICKS:
        delta = learn_tick(state, tick, drifting(tick))
        served.apply({n: t for n, t in delta.items() if is_served(n) and not n.endswith(tuple(drop))})
        view = served.show(VersionId(0, tick), "")
        for name, table in state.tables.items():
            rows = table.export()
            keys, values = view.tables[name].export()
            assert np.array_equal(keys, rows.keys), (tick, name)
            assert np.array_equal(values, rows.values), (tick, name)


def test_a_replica_holds_the_rows_that_the_trainer_holds_after_every_tick(trained):
    replica_after_every_tick(trained)


@pytest.mark.parametrize("settings", [config(**POLICIES["expiring"]), config(**POLICIES["bounded, least recent"])])
def test_a_replica_that_misses_tombstones_is_caught(trained):
    with pytest.raises(AssertionError):
        replica_after_every_tick(trained, drop=["/tombstones"])


def test_which_keys_a_night_holds_does_not_hang_on_its_shuffle(settings, graphs):
    keys = []
    for shuffle in (1, 2):
        state = ModelState(settings)
        state.catalogue.add(items())
        days = ExampleColumns.concat([drifting(FIRST + i) for i in range(20)])
        retrain_day(state, None, days, day=shuffle, last_tick=FIRST + 19, epochs=1, graphs=graphs)
        keys.append({name: table.export().keys.tolist() for name, table in state.tables.items()})
    assert keys[0] == keys[1]


def test_rows_of_a_slot_whose_policy_rejects_are_not_learned(graphs):
    settings = config(item={"admit_after": 1_000_000})
    state = ModelState(settings)
    state.catalogue.add(items())
    retrain_day(state, None, day(FIRST, 5), day=0, last_tick=FIRST + 4, epochs=1, graphs=graphs)
    state.generation = 0
    delta = learn_tick(state, FIRST + 5, examples(FIRST + 5))
    assert len(state.tables["item"]) == 0
    assert "slot/item/keys" not in delta
    assert len(delta["admission/item/keys"]) > 0
    shown = len(examples(FIRST + 5).items.values)
    assert state.tables["item"].counts.rejected >= shown
    assert all(len(state.tables[slot]) for slot in SLOTS if slot != "item")


def test_an_expiry_that_is_switched_on_later_counts_from_then(graphs):
    forever = ModelState(config())
    forever.catalogue.add(items())
    retrain_day(forever, None, day(FIRST, 5), day=0, last_tick=FIRST + 4, epochs=1, graphs=graphs)
    snapshot = forever.export()
    assert not any(name.endswith("/last_seen") for name in snapshot)
    held = len(forever.tables["item"])
    state = ModelState.restore(config(item={"expiry_s": 300}), snapshot, generation=0, tick=FIRST + 50)
    assert len(state.tables["item"]) == held > 0
    learn_tick(state, FIRST + 55, EMPTY)
    assert len(state.tables["item"]) == held
    learn_tick(state, FIRST + 56, EMPTY)
    assert len(state.tables["item"]) == 0
    back = ModelState.restore(config(), state.export() | snapshot, generation=0, tick=FIRST + 60)
    assert len(back.tables["item"]) == held
