"""A small world for serving: a run folder, a score graph without torch, and a toy trainer that learns ticks."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infra.config import Config, ModelConfig, SlotConfig, TimeConfig, dump_config
from infra.eventlog import EventLog, create_topics, open_log
from infra.hashing import hash64
from infra.paramstore.merge import fold
from infra.paramstore.publisher import Publisher
from infra.paramstore.store import ParamStore
from infra.paramstore.tensors import Tensors
from infra.ticks import Timeline
from stream.features.batch import FIELDS_ITEM, FIELDS_USER
from stream.features.catalogue import Catalogue, ItemRows
from stream.features.context import N_FEATURES
from stream.features.counters import LaggedCounters

DIM = 4
N_ITEMS, N_USERS = 60, 12
FIRST_TICK = 1_000_000
ITEMS = [f"N{i}" for i in range(N_ITEMS)]
USERS = [f"U{i}" for i in range(N_USERS)]


def toy_config(**serve: object) -> Config:
    slots = {s: SlotConfig(dim=1 if s == "position" else DIM) for s in ModelConfig().slots}
    config = Config(model=ModelConfig(slots=slots), time=TimeConfig())
    import msgspec

    return msgspec.structs.replace(config, serve=msgspec.structs.replace(config.serve, **serve))


def toy_graph() -> bytes:
    """f = (user @ wu)[imp] · (item @ wi)[item] summed, + (ctx @ wc)[ctx]: small, and uses every input."""
    inputs = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("user", TensorProto.FLOAT, ["i", len(FIELDS_USER) * DIM]),
            ("item", TensorProto.FLOAT, ["v", len(FIELDS_ITEM) * DIM]),
            ("ctx", TensorProto.FLOAT, ["c", N_FEATURES]),
            ("imp_of_row", TensorProto.INT64, ["r"]),
            ("item_of_row", TensorProto.INT64, ["r"]),
            ("ctx_of_row", TensorProto.INT64, ["r"]),
            ("wu", TensorProto.FLOAT, [len(FIELDS_USER) * DIM, 3]),
            ("wi", TensorProto.FLOAT, [len(FIELDS_ITEM) * DIM, 3]),
            ("wc", TensorProto.FLOAT, [N_FEATURES, 1]),
        )
    ]
    nodes = [
        helper.make_node("MatMul", ["user", "wu"], ["a"]),
        helper.make_node("MatMul", ["item", "wi"], ["b"]),
        helper.make_node("MatMul", ["ctx", "wc"], ["c"]),
        helper.make_node("Gather", ["a", "imp_of_row"], ["ar"]),
        helper.make_node("Gather", ["b", "item_of_row"], ["br"]),
        helper.make_node("Gather", ["c", "ctx_of_row"], ["cr"]),
        helper.make_node("Mul", ["ar", "br"], ["ab"]),
        helper.make_node("ReduceSum", ["ab", "axis"], ["dot"], keepdims=0),
        helper.make_node("Squeeze", ["cr", "axis"], ["cs"]),
        helper.make_node("Add", ["dot", "cs"], ["f"]),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    output = helper.make_tensor_value_info("f", TensorProto.FLOAT, ["r"])
    graph = helper.make_graph(nodes, "score", inputs, [output], [axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def keys_of(ids: list[str]) -> np.ndarray:
    return np.array([hash64(i) for i in ids], dtype=np.int64)


class ToyTrainer:
    """Learns nothing, moves everything: each tick changes rows, counters and now and then the catalogue.

    `states[version]` is the whole state after each version: the oracle.
    """

    def __init__(self, store: ParamStore, publisher: Publisher, config: Config, seed: int = 0) -> None:
        self.store, self.publisher, self.config = store, publisher, config
        self.timeline: Timeline = config.time.build()
        self.rng = np.random.default_rng(seed)
        self.lagged = LaggedCounters.build(config.model, self.timeline)
        self.catalogue = Catalogue()
        self.catalogue.add(self._items(ITEMS[:50], known_tick=0))
        self.generation, self.tick = -1, FIRST_TICK
        self.state: Tensors = {}
        self.states: dict[tuple[int, int], Tensors] = {}
        self.shown: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def open(self) -> None:
        """The next generation at the present tick, with new dense weights and rows; counters stay."""
        self.generation += 1
        rng, dims = self.rng, {s: c.dim for s, c in self.config.model.slots.items()}
        keys = {
            "user": keys_of(USERS),
            "item": keys_of(ITEMS),
            "history": keys_of(ITEMS),
            "read_subcategory": np.arange(11, 16),
            "hour": np.arange(24),
            "position": np.arange(8),
            "words": np.arange(100, 140),
            "category": np.arange(1, 6),
            "subcategory": np.arange(11, 16),
        }
        state: Tensors = {"graph/score": np.frombuffer(toy_graph(), dtype=np.uint8).copy()}
        for name, shape in (
            ("wu", (len(FIELDS_USER) * DIM, 3)),
            ("wi", (len(FIELDS_ITEM) * DIM, 3)),
            ("wc", (N_FEATURES, 1)),
        ):
            state[f"dense/{name}"] = rng.standard_normal(shape).astype(np.float32)
        for slot, dim in dims.items():
            state |= self._rows(slot, np.sort(keys[slot]), dim)
        state |= self.lagged.newest.export() | self.catalogue.export()
        self.state = fold(state, [])
        name = f"generation-{self.generation:04d}"
        more = {"kind": "generation", "generation": self.generation, "tick": self.tick}
        self.store.write_snapshot(name, self.state, **more)
        self.publisher.open_generation(self.generation, self.tick, name, **self._where())
        self._remember()

    def learn(self, *, new_items: bool = False) -> None:
        """One tick: counters, some rows, a tombstone, sometimes new items."""
        self.tick += 1
        rng = self.rng
        items = keys_of([ITEMS[i] for i in rng.integers(0, N_ITEMS, 30)])
        labels = (rng.random(30) < 0.2).astype(np.uint8)
        self.shown[self.tick] = (items, labels)
        fresh = self._items([f"new{self.tick}", ITEMS[0]] if new_items else [], known_tick=self.tick)
        self.catalogue.add(fresh)
        delta: Tensors = dict(self.lagged.learn(self.tick, items, labels, self.catalogue).tensors())
        for slot in ("user", "item", "category"):
            touched = np.sort(rng.choice(self.state[f"slot/{slot}/keys"], size=3, replace=False))
            delta |= self._rows(slot, touched, DIM)
        delta["slot/item/tombstones"] = rng.choice(self.state["slot/item/keys"], size=1)
        delta |= fresh.tensors() if new_items else {}
        self.publisher.publish(self.generation, self.tick, delta, **self._where())
        self.state = fold(self.state, [delta])
        self._remember()

    def skip(self, ticks: int, *, end: bool = False) -> None:
        """Ticks without change."""
        self.tick += ticks
        self.publisher.progress(self.tick, **self._where(), end=end)

    def flush(self) -> None:
        self.publisher.flush()

    def _remember(self) -> None:
        self.states[(self.generation, self.tick)] = self.state

    def _rows(self, slot: str, keys: np.ndarray, dim: int) -> Tensors:
        n = len(keys)
        return {
            f"slot/{slot}/keys": keys.astype(np.int64),
            f"slot/{slot}/values": self.rng.standard_normal((n, dim)).astype(np.float32),
            f"slot/{slot}/state": np.ones((n, 1), np.float32),
            f"slot/{slot}/last_seen": np.zeros(n, np.int32),
        }

    def _items(self, ids: list[str], known_tick: int) -> ItemRows:
        n = len(ids)
        words = np.arange(2 * n, dtype=np.int64) % 40 + 100
        return ItemRows.of(
            item=keys_of(ids),
            category=np.arange(n, dtype=np.int64) % 5 + 1,
            subcategory=np.arange(n, dtype=np.int64) % 5 + 11,
            words=(np.arange(n + 1, dtype=np.int64) * 2, words),
            published_ms=np.full(n, -1, np.int64),
            ingested_ms=np.full(n, known_tick * self.timeline.tick_ms, np.int64),
            timeline=self.timeline,
        )

    def _where(self) -> dict[str, object]:
        return {
            "positions": {0: self.tick, 1: self.tick},
            "items_offset": 0,
            "control_offset": 0,
            "timestamp_ms": self.timeline.end_ms(self.tick),
            "closed_wall_ms": time.time_ns() // 1_000_000,
        }


@pytest.fixture
def config() -> Config:
    return toy_config(precision="float32", port=0)


@pytest.fixture
def log(tmp_path: Path, config: Config) -> Iterator[EventLog]:
    (tmp_path / "config.toml").write_text(dump_config(config), encoding="utf-8")
    log = open_log(tmp_path / "log", config.log)
    create_topics(log, config.log.partitions)
    yield log
    log.close()


@pytest.fixture
def store(tmp_path: Path, log: EventLog) -> ParamStore:
    return ParamStore(tmp_path, log)


@pytest.fixture
def trainer(store: ParamStore, config: Config) -> Iterator[ToyTrainer]:
    publisher = store.publisher()
    yield ToyTrainer(store, publisher, config)
    publisher.close()
