"""A small model and a small made-up news stream: what tests of learning share."""

from typing import Any

import msgspec
import numpy as np

from infra.config import Config, load_config
from stream.columns import Lists
from stream.examples import ExampleColumns
from stream.features.catalogue import ItemRows

T = 60_000
FIRST = 1_000_000  # first close tick


def config(**slots_changed: dict[str, Any]) -> Config:
    """Small, with options of some slots changed: config(item={"expiry_s": 60})."""
    base = load_config(env={})
    small = {name: msgspec.structs.replace(s, dim=4) for name, s in base.model.slots.items() if name != "position"}
    slots = {**small, "position": base.model.slots["position"]}
    for name, changed in slots_changed.items():
        slots[name] = msgspec.structs.replace(slots[name], **changed)
        slots[name].check(name)
    model = msgspec.structs.replace(base.model, slots=slots, hidden=(8, 4), rank=4)
    return msgspec.structs.replace(base, model=model)


def items(n: int = 60) -> ItemRows:
    keys = np.arange(1, n + 1, dtype=np.int64)
    offsets = np.arange(n + 1, dtype=np.int64) * 3
    words = np.random.default_rng(5).integers(1000, 1040, 3 * n)
    unknown, known = np.full(n, -1), np.full(n, FIRST - 100)
    return ItemRows(keys, keys % 4 + 100, keys % 9 + 200, unknown, known, offsets, words)


def examples(tick: int, n: int = 12, seed: int = 0) -> ExampleColumns:
    rng = np.random.default_rng([seed, tick])
    shown = np.sort((tick - 2) * T + rng.integers(0, T, n))
    lengths = rng.integers(3, 9, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    shown_items = np.concatenate([rng.choice(60, k, replace=False) + 1 for k in lengths])
    history = Lists.of([rng.integers(1, 60, 5) for _ in range(n)])
    labels = (rng.random(offsets[-1]) < 0.2).astype(np.uint8)
    none = np.full(n, -1)
    impression = tick * 100 + np.arange(n)
    return ExampleColumns(
        impression, rng.integers(1, 9, n), shown, np.arange(n), np.zeros(n, np.int32), none, history,
        Lists(offsets, shown_items), Lists(offsets, labels),
    )  # fmt: skip


def day(first: int, ticks: int) -> ExampleColumns:
    return ExampleColumns.concat([examples(first + i) for i in range(ticks)])
