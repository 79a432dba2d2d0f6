"""A log and a store in a temporary folder, and a toy trainer that publishes a deterministic sequence of versions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.config import LogConfig
from infra.eventlog import EventLog, create_topics, open_log
from infra.paramstore.merge import fold
from infra.paramstore.publisher import Publisher
from infra.paramstore.store import ParamStore
from infra.paramstore.tensors import Tensors
from infra.paramstore.version import VersionMeta

DIM = 3


def delta_of(seed: int, *, keys: int = 20, tombstones: int = 2) -> Tensors:
    """A delta of a small model: rows with optimizer state, tombstones, counters, catalogue records."""
    rng = np.random.default_rng(seed)
    touched = np.sort(rng.choice(40, size=rng.integers(1, keys), replace=False)).astype(np.int64)
    dead = rng.choice(40, size=rng.integers(0, tombstones + 1), replace=False).astype(np.int64)
    n = len(touched)
    return {
        "slot/item/keys": touched,
        "slot/item/values": rng.standard_normal((n, DIM)).astype(np.float32),
        "slot/item/state": rng.random((n, 1)).astype(np.float32),
        "slot/item/last_seen": np.full(n, seed, dtype=np.int32),
        "slot/item/tombstones": dead,
        "counters/item/keys": touched,
        "counters/item/values": rng.random((n, 4)).astype(np.float32),
        "counters/item/last_tick": np.full(n, seed, dtype=np.int32),
        "counters/item/first_tick": np.zeros(n, dtype=np.int32),
        "items/keys": np.array([seed], dtype=np.int64),
        "items/known_tick": np.array([seed], dtype=np.int64),
        "items/word_offsets": np.array([0, seed % 3], dtype=np.int64),
        "items/words": np.arange(seed % 3, dtype=np.int64),
    }


def whole_state(seed: int) -> Tensors:
    """A generation's state: slots, dense weights, graphs, counters, items."""
    rng = np.random.default_rng(1_000 + seed)
    return fold(delta_of(seed, keys=40, tombstones=0), []) | {
        "dense/w": rng.standard_normal((4, 2)).astype(np.float32),
        "graph/score": np.frombuffer(b"score graph", dtype=np.uint8).copy(),
    }


class ToyTrainer:
    """Publishes whatever it is told, and remembers the state that results: the oracle of these tests."""

    def __init__(self, store: ParamStore, publisher: Publisher) -> None:
        self.store, self.publisher = store, publisher
        self.state: Tensors = {}
        self.generation = -1

    def open(self, generation: int, tick: int, *, seed: int = 0) -> VersionMeta:
        name = f"generation-{generation:04d}"
        state = whole_state(seed)
        self.store.write_snapshot(name, state, kind="generation", generation=generation, tick=tick)
        meta = self.publisher.open_generation(generation, tick, name, **self._where(tick))
        self.state, self.generation = state, generation
        return meta

    def delta(self, tick: int, *, seed: int | None = None) -> VersionMeta:
        delta = delta_of(tick if seed is None else seed)
        meta = self.publisher.publish(self.generation, tick, delta, **self._where(tick))
        self.state = fold(self.state, [delta])
        return meta

    def progress(self, tick: int) -> VersionMeta:
        return self.publisher.progress(tick, **self._where(tick))

    def flush(self) -> None:
        self.publisher.flush()

    @staticmethod
    def _where(tick: int) -> dict[str, object]:
        return {
            "positions": {0: tick, 1: 2 * tick},
            "items_offset": 7,
            "control_offset": 1,
            "timestamp_ms": tick * 60_000,
        }


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    log = open_log(tmp_path / "log", LogConfig())
    create_topics(log, 2)
    yield log
    log.close()


@pytest.fixture
def store(tmp_path: Path, log: EventLog) -> ParamStore:
    return ParamStore(tmp_path, log)


@pytest.fixture
def trainer(store: ParamStore) -> Iterator[ToyTrainer]:
    publisher = store.publisher(fingerprint="test", part_bytes=1 << 20)
    yield ToyTrainer(store, publisher)
    publisher.close()


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
