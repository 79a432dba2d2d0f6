"""The evaluator over real logs, store, replica and net: a small world whose every state is known."""

import json
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

from infra.config import Config, ModelConfig, SlotConfig
from infra.eventlog import create_topics, open_log
from infra.hashing import hash64
from infra.metrics import Metrics
from infra.paramstore.store import ParamStore
from infra.process import RunFolder
from serving.evaluator import evaluate
from serving.evaluator.arms import POPULARITY_FEATURE
from serving.evaluator.evaluate import Evaluator
from stream.columns import Lists
from stream.examples import MARKER_OFFSET, ExampleColumns, ExampleMeta, encode_example_meta, encode_examples
from stream.features.batch import FIELDS_ITEM, FIELDS_USER
from stream.features.catalogue import Catalogue
from stream.features.context import N_FEATURES, item_context
from stream.features.counters import CounterState, LaggedCounters

DIM, ITEMS, SHOWN = 3, 30, 6
H = 60  # ticks
FIRST = 26_220_000 // 60 * 60  # a whole hour
OPENED = FIRST + 70  # generation 0
LAST = FIRST + 200
KEYS = {"user": range(9), "item": range(ITEMS), "history": range(ITEMS), "hour": range(24), "position": range(8)}


def config():
    slots = {s: SlotConfig(dim=1 if s == "position" else DIM) for s in ModelConfig().slots}
    serve = msgspec.structs.replace(Config().serve, precision="float32")
    return msgspec.structs.replace(Config(), model=ModelConfig(slots=slots), serve=serve)


def graph():
    """f = (user · wu)[imp] + (item · wi)[item] + (ctx · wc)[ctx]."""
    sides = {"user": len(FIELDS_USER) * DIM, "item": len(FIELDS_ITEM) * DIM, "ctx": N_FEATURES}
    index = {"user": "imp_of_row", "item": "item_of_row", "ctx": "ctx_of_row"}
    info = helper.make_tensor_value_info
    inputs = [info(n, TensorProto.FLOAT, [f"n_{n}", w]) for n, w in sides.items()]
    inputs += [info(n, TensorProto.INT64, ["r"]) for n in index.values()]
    inputs += [info(f"w_{n}", TensorProto.FLOAT, [w]) for n, w in sides.items()]
    nodes = []
    for n in sides:
        nodes.append(helper.make_node("MatMul", [n, f"w_{n}"], [f"{n}_s"]))
        nodes.append(helper.make_node("Gather", [f"{n}_s", index[n]], [f"{n}_r"]))
    nodes.append(helper.make_node("Sum", [f"{n}_r" for n in sides], ["f"]))
    made = helper.make_graph(nodes, "score", inputs, [info("f", TensorProto.FLOAT, ["r"])])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def examples_of(tick, timeline):
    """What closes in `tick`: two impressions of SHOWN items, some clicked, engaged 20 s later."""
    rng = np.random.default_rng(tick)
    shown = np.full(2, timeline.start_ms(tick - timeline.attribution_ticks) + 100, np.int64)
    ids = np.array([hash64(f"log/{tick}-{i}") for i in range(2)], np.int64)
    order = np.argsort(ids)
    items = np.concatenate([rng.choice(ITEMS, SHOWN, replace=False) for _ in range(2)]).astype(np.int64)
    offsets = np.array([0, SHOWN, 2 * SHOWN], np.int64)
    labels = (rng.random(2 * SHOWN) < 0.1 + 0.4 * (items % 5 == 0)).astype(np.uint8)
    made = ExampleColumns(
        ids, rng.integers(0, 9, 2), shown, ids * 0, np.arange(2, dtype=np.int32), shown + 20_000,
        Lists.of([[1, 2], []]), Lists(offsets, items), Lists(offsets, labels),
    )  # fmt: skip
    return made.take(order.astype(np.int64))


def state_of(seed):
    rng = np.random.default_rng(seed)
    state = {"graph/score": np.frombuffer(graph(), np.uint8).copy()}
    for name, width in (("user", len(FIELDS_USER) * DIM), ("item", len(FIELDS_ITEM) * DIM), ("ctx", N_FEATURES)):
        state[f"dense/w_{name}"] = rng.normal(0, 0.3, width).astype(np.float32)
    for slot, keys in KEYS.items():
        values = rng.normal(0, 0.5, (len(keys), 1 if slot == "position" else DIM)).astype(np.float32)
        state |= {f"slot/{slot}/keys": np.array(keys, np.int64), f"slot/{slot}/values": values}
    return state


class World:
    """A finished run: examples in one partition of two, versions, two nights. `seen[t]`: counters through tick t."""

    def __init__(self, path):
        self.config, self.folder = config(), RunFolder(path)
        self.timeline = self.config.time.build()
        self.log = open_log(self.folder.log, self.config.log)
        create_topics(self.log, self.config.log.partitions)
        self.store = ParamStore(path, self.log)
        self.seen: dict[int, CounterState] = {}
        self._examples()
        self._versions()

    def _examples(self):
        writer = self.log.writer("examples")
        for partition in (0, 1):
            for seq, tick in enumerate(range(FIRST, LAST + 1)):
                marker = partition == 1 or tick % 40 == 3
                meta = ExampleMeta(
                    partition=partition, seq=seq, tick=tick, closed_through=tick, read_offset=0, read_row=0,
                    last_tick=tick, last_offset=MARKER_OFFSET if marker else 0, last_row=0, low_offset=0, low_row=0,
                    low_watermark_ms=0, watermark_ms=self.timeline.end_ms(tick), counts={}, end=tick == LAST,
                )  # fmt: skip
                value = b"" if marker else encode_examples(examples_of(tick, self.timeline))
                meta_bytes = encode_example_meta(meta)
                writer.append(partition, value, timestamp_ms=self.timeline.end_ms(tick), meta=meta_bytes)
        writer.close()

    def _versions(self):
        publisher = self.store.publisher()
        counters, catalogue = LaggedCounters.build(self.config.model, self.timeline), Catalogue()
        where = {"positions": {0: 0, 1: 0}, "items_offset": 0, "control_offset": 0}
        for tick in range(FIRST, LAST + 1):
            stamp = {**where, "timestamp_ms": self.timeline.end_ms(tick), "end": tick == LAST}
            if tick in (OPENED - H, OPENED + 50):
                state = state_of(1 if tick < OPENED else 2) | counters.newest.export()
                self.store.write_snapshot(f"nightly-{tick:010d}", state, kind="nightly", generation=0, tick=tick)
            delta = {}
            if tick % 40 != 3:
                shown = examples_of(tick, self.timeline)
                delta = counters.learn(tick, shown.items.values, shown.labels.values, catalogue).tensors()
            self.seen[tick] = counters.newest.copy()
            if tick == OPENED:
                state = state_of(1) | counters.newest.export()
                self.store.write_snapshot("candidate", state, kind="candidate", generation=0, tick=tick)
                publisher.open_generation(0, tick, "candidate", **stamp)
            elif tick > OPENED and delta:
                publisher.publish(0, tick, delta, **stamp)
            elif tick > OPENED:
                publisher.progress(tick, **stamp)
        publisher.flush()
        publisher.close()

    def process(self):
        return SimpleNamespace(
            config=self.config, folder=self.folder, stopping=False, metrics=Metrics("evaluator"),
            progress=lambda **numbers: None,
        )  # fmt: skip

    def evaluate(self, process=None):
        evaluator = Evaluator(process or self.process(), self.log)
        try:
            evaluator.run(until_end=True)
        finally:
            evaluator.close()
        return self.result()

    def result(self):
        return (self.folder.evaluation / "evaluation.json").read_bytes()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.log.close()


def scored_ticks(world):
    """Close ticks whose impressions a replica could score: live(c - a) at or after the first generation."""
    ticks = [t for t in range(FIRST, LAST + 1) if t % 40 != 3]
    return [t for t in ticks if world.timeline.live_at_close(t) >= OPENED]


def expected_auc(world, score):
    """Mean impression AUC of score(items, live), plainly."""
    values = []
    for tick in scored_ticks(world):
        examples = examples_of(tick, world.timeline)
        for i in range(2):
            items, y = examples.items[i], examples.labels[i] & 1
            s = score(items, world.timeline.live_at_close(tick))
            if 0 < y.sum() < len(y):
                d = s[y == 1][:, None] - s[y == 0][None, :]
                values.append(((d > 0) + 0.5 * (d == 0)).mean())
    return np.mean(values)


def test_arms_over_a_real_store(world):
    arms = json.loads(world.evaluate())["arms"]
    assert set(arms) == {"online", "nightly", "frozen", "popularity"}
    assert {a["impressions"] for a in arms.values()} == {2 * len(scored_ticks(world))}
    assert {a["unscored"] for a in arms.values()} == {0}

    def popularity(items, live):
        return item_context(items, world.seen[live], Catalogue(), live)[:, POPULARITY_FEATURE]

    assert arms["popularity"]["auc_impression"] == pytest.approx(expected_auc(world, popularity))


def test_nightly_and_frozen_switch_at_midnight_plus_h(world):
    """Until the second night's H has passed, `nightly` is what was opened, so it equals `online` there, to the bit."""
    arms = json.loads(world.evaluate())["arms"]
    switch = OPENED + 50 + H
    before = [h for h in range(len(arms["online"]["by_hour"])) if _last_live(world, arms, h) < switch]
    same = ("auc_impression", "auc", "log_loss", "calibration")
    assert before
    for h in before:
        assert [arms["nightly"]["by_hour"][h][k] for k in same] == [arms["online"]["by_hour"][h][k] for k in same]
    assert arms["nightly"]["by_hour"][-1]["log_loss"] != arms["online"]["by_hour"][-1]["log_loss"]
    assert arms["frozen"]["by_hour"][0]["log_loss"] != arms["nightly"]["by_hour"][0]["log_loss"]

    def frozen(items, live):
        night = OPENED - H if live < switch else OPENED + 50
        state = state_of(1 if live < switch else 2)
        ctx = item_context(items, world.seen[night - 1], Catalogue(), night - 1)
        rows = state["slot/item/values"][items]
        return ctx @ state["dense/w_ctx"] + rows @ state["dense/w_item"][:DIM]

    assert arms["frozen"]["auc_impression"] == pytest.approx(expected_auc(world, frozen), abs=1e-6)


def _last_live(world, arms, hour):
    end_ms = arms["online"]["by_hour"][hour]["start_ms"] + 3_600_000
    return world.timeline.live(world.timeline.tick_of(end_ms) - 1)


@pytest.mark.parametrize("dies_after", [3, 75, 140])
def test_killed_between_saves_it_ends_with_the_same_bytes(world, monkeypatch, dies_after):
    want = world.evaluate()
    for file in world.folder.evaluation.iterdir():
        file.unlink()
    monkeypatch.setattr(evaluate, "SAVE_EVERY_TICKS", 20)

    class Killed(BaseException):
        pass

    evaluator = Evaluator(world.process(), world.log)
    take, left = evaluator.evaluation.take, iter(range(dies_after))

    def die(ticks, **options):
        if next(left, None) is None:
            raise Killed
        return take(ticks, **options)

    monkeypatch.setattr(evaluator.evaluation, "take", die)
    with pytest.raises(Killed):
        evaluator.run(until_end=True)
    evaluator.close()
    assert world.evaluate() == want


def test_oracle_is_joined_from_the_truth_of_the_folder(world, tmp_path):
    folder = tmp_path / "log-data" / "log"
    folder.mkdir(parents=True)
    ids, positions, p = [], [], []
    for tick in range(FIRST, LAST + 1):
        examples = examples_of(tick, world.timeline)
        names = {hash64(f"log/{tick}-{i}"): f"{tick}-{i}" for i in range(2)}
        for i in range(2):
            ids += [names[int(examples.impression[i])]] * SHOWN
            positions += range(SHOWN)
            p += np.where(examples.labels[i] & 1, 0.9, 0.1).tolist()
    p_ref = np.array(p, np.float32)
    table = {"impression": ids, "position": pa.array(positions, pa.int16()), "p": p_ref * np.float32(0.5)}
    pq.write_table(pa.table({**table, "p_ref": p_ref}), folder / "truth.parquet")
    (world.folder.path / "source.json").write_text(json.dumps({"mind": [str(folder)]}))
    arms = json.loads(world.evaluate())["arms"]
    assert arms["oracle"]["auc_impression"] == 1.0
    assert arms["oracle"]["unscored"] == 0
    clicks, rows = arms["oracle"]["clicks"], arms["oracle"]["shown_items"]
    assert arms["oracle"]["calibration"] == pytest.approx((0.45 * clicks + 0.05 * (rows - clicks)) / clicks, rel=1e-5)


def test_tables_hold_the_same_figures(world):
    report = json.loads(world.evaluate())
    table = pq.read_table(world.folder.evaluation / "by_hour.parquet").to_pylist()
    assert len(table) == sum(len(arm["by_hour"]) for arm in report["arms"].values())
    online = [row["auc_impression"] for row in table if row["arm"] == "online"]
    assert online == [h["auc_impression"] for h in report["arms"]["online"]["by_hour"]]


def test_asked_to_stop_while_the_trainer_is_behind_it_saves_and_continues(world):
    want = world.evaluate()
    for file in world.folder.evaluation.iterdir():
        file.unlink()
    process = world.process()
    evaluator = Evaluator(process, world.log)
    take, seen = evaluator.evaluation.take, []

    def stop_soon(ticks, **options):
        seen.append(ticks.tick)
        process.stopping = len(seen) >= 90
        return take(ticks, **options)

    evaluator.evaluation.take = stop_soon
    evaluator.run(until_end=True)
    evaluator.close()
    assert json.loads(world.result())["tick"] < LAST
    assert world.evaluate() == want
