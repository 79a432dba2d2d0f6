"""A small world for the trainer's processes: logs written by hand, a net of a few lines, kills at every durable step.

`examples` and `items` are written straight with their codecs: an hour before midnight and a little after it, with
stretches of empty ticks, one of them over the bootstrap's promotion. The nets and nights are stand-ins without torch:
they move the same tables through the same code, and all that is asked of them is to be functions of their inputs.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from infra.config import Config, LogConfig, dump_config, load_config
from infra.eventlog import EventLog, create_topics, open_log
from infra.paramstore.publisher import last_whole
from infra.paramstore.store import ParamStore
from infra.paramstore.version import Kind
from infra.process import Process
from stream.archiver import Archive
from stream.columns import Lists
from stream.events import ItemColumns, ItemKind, encode_items, item_heartbeats
from stream.examples import (
    EMPTY,
    MARKER_OFFSET,
    DropReason,
    ExampleColumns,
    ExampleMeta,
    encode_example_meta,
    encode_examples,
)
from trainer import nightly, state
from trainer.loop import TrainLoop
from trainer.online import learn_tick
from trainer.retrain_loop import RetrainLoop
from trainer.state import ModelState
from trainer.stepper import Gradients

T = 60_000
DAY = 1_440
MIDNIGHT = 18_210 * DAY
FIRST_SHOWN = MIDNIGHT - 70  # 22:50: the log's hour begins at 22:00, B is 23:00
LAST = MIDNIGHT + 18
BOOTSTRAP = MIDNIGHT - 60
H = 10
QUIET = {*range(BOOTSTRAP + 4, BOOTSTRAP + 16), *range(MIDNIGHT - 30, MIDNIGHT - 12)}  # B + H is among them
QUIET_AT_MIDNIGHT = {*range(MIDNIGHT + H - 2, MIDNIGHT + H + 3)}  # and M + H, where a world wants it
ITEMS = 40
COUNTS = dict.fromkeys(("events_in", "impressions", "joined_impressions", *(r.value for r in DropReason)), 0)


def settings(*more: str) -> Config:
    """Small, with a state snapshot every 12 ticks."""
    base = load_config(
        env={},
        overrides=["train.bootstrap_hours=1", "train.promotion_delay_s=600", "train.snapshot_ticks=12", *more],
    )
    small = {n: msgspec.structs.replace(s, dim=4) for n, s in base.model.slots.items() if n != "position"}
    slots = {**small, "position": base.model.slots["position"]}
    return msgspec.structs.replace(base, model=msgspec.structs.replace(base.model, slots=slots))


# -- the log ---------------------------------------------------------------------------------------------------


def examples_of(tick: int, quiet: set[int]) -> ExampleColumns:
    """What closes in a tick: a function of the tick."""
    if tick in quiet or tick < FIRST_SHOWN + 2:
        return EMPTY
    rng = np.random.default_rng(tick)
    n = int(rng.integers(1, 4))
    shown = np.sort((tick - 2) * T + rng.integers(0, T, n))
    lengths = rng.integers(2, 5, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate([rng.choice(ITEMS, k, replace=False) + 1 for k in lengths])
    history = Lists.of([rng.integers(1, ITEMS, 3) for _ in range(n)])
    labels = (rng.random(offsets[-1]) < 0.3).astype(np.uint8)
    return ExampleColumns(
        tick * 10 + np.arange(n), rng.integers(1, 7, n), shown, np.arange(n), np.zeros(n, np.int32),
        np.full(n, -1), history, Lists(offsets, items), Lists(offsets, labels),
    )  # fmt: skip


def write_logs(log: EventLog, partitions: int, first: int, last: int, quiet: set[int]) -> None:
    """`examples` as the joiner would write them, ending a replay; `items`, some of them known only on the way."""
    writer = log.writer("examples")
    for p in range(partitions):
        for seq, tick in enumerate(range(first, last + 1)):
            whole = examples_of(tick, quiet)
            mine = whole.take(np.flatnonzero(whole.user % partitions == p))
            key = (MARKER_OFFSET, -1) if not len(mine) else (int(mine.offset[-1]), int(mine.row[-1]))
            meta = ExampleMeta(
                partition=p, seq=seq, tick=tick, closed_through=tick, read_offset=tick, read_row=1, last_tick=tick,
                last_offset=key[0], last_row=key[1], low_offset=0, low_row=0, low_watermark_ms=0,
                watermark_ms=(tick + 1) * T, counts=COUNTS, end=tick == last,
            )  # fmt: skip
            value = encode_examples(mine) if len(mine) else b""
            writer.append(p, value, timestamp_ms=(tick + 1) * T, meta=encode_example_meta(meta))
    writer.close()
    _write_items(log, first, last)


def _write_items(log: EventLog, first: int, last: int) -> None:
    writer = log.writer("items")
    keys = np.arange(1, ITEMS + 1, dtype=np.int64)
    early = np.where(keys % 5 == 0, MIDNIGHT + keys - 30, first - 100)  # a fifth of them becomes known on the way
    early[6] = BOOTSTRAP + H - 2  # this one just before the promotion, in an empty stretch
    kind, none = np.zeros(1, np.uint8) + ItemKind.ITEM, np.full(1, -1, np.int64)
    for tick in range(first - 100, last + 2):
        for key in keys[early == tick].tolist():
            one = np.array([key])
            row = ItemColumns(
                kind, np.array([tick * T + 30_000]), one, one % 4 + 100, one % 9 + 200, none,
                Lists.of([[1000 + key % 7, 1010 + key % 3]]), [f"N{key}"], ["c"], ["s"], ["t"],
            )  # fmt: skip
            writer.append(0, encode_items(row), timestamp_ms=tick * T + 30_000)
        if tick >= first:
            beat = (tick + 1) * T + 5_000
            writer.append(0, encode_items(item_heartbeats(np.array([beat]))), timestamp_ms=beat)
    writer.close()


# -- stand-ins -------------------------------------------------------------------------------------------------


class LinearNet:
    """A logistic model of the sums of its inputs, in NumPy: a net as the tables see one."""

    def __init__(self, graph: bytes, weights: Mapping[str, Any]) -> None:
        self.load(weights)

    def load(self, weights: Mapping[str, Any]) -> None:
        self._w = np.float32(weights["w"][0])

    def run(self, *, user: Any, item: Any, ctx: Any, offset: Any, label: Any, weight: Any, **at: Any) -> Gradients:
        f = self._w * (user.sum(1)[at["imp_of_row"]] + item.sum(1)[at["item_of_row"]]) + ctx[:, 0][at["ctx_of_row"]]
        d_row = ((1 / (1 + np.exp(-(f + offset))) - label) * weight).astype(np.float32)
        d_user, d_item = np.zeros_like(user), np.zeros_like(item)
        np.add.at(d_user, at["imp_of_row"], (self._w * d_row)[:, None])
        np.add.at(d_item, at["item_of_row"], (self._w * d_row)[:, None])
        return Gradients(f, d_row, d_user, d_item)


def learn_night(
    night: ModelState, moments: Any, examples: ExampleColumns, *, day: int, last_tick: int, epochs: int, graphs: Any
) -> dict[str, Any]:
    """Like the retrain: every example, counters through the night, another dense weight; ticks in order, no torch."""
    close = examples.shown_ms // T + 2
    night.set_net({"w": np.array([1.0 + day % 7 / 10], np.float32)}, {"step": b"linear", "score": b"linear"})
    generation, night.generation = night.generation, 0
    night.tick = state.BEFORE
    for tick in np.unique(close).tolist():
        learn_tick(night, tick, examples.take(np.flatnonzero(close == tick)))
    night.counters.as_shown(last_tick + 1)
    night.generation, night.tick = generation, last_tick
    return {"m": np.array([day], np.float32)}


def make_nan(night: ModelState, *args: Any, **named: Any) -> dict[str, Any]:
    """A night whose net explodes."""
    moments = learn_night(night, *args, **named)
    night.dense["w"] = np.array([np.nan], np.float32)
    return moments


# -- runs ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """SIGKILL, in-process: nothing after it runs."""


class World:
    """A run folder, its processes in this thread."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        *,
        partitions: int = 2,
        last: int = LAST,
        quiet: frozenset[int] | set[int] = frozenset(),
    ) -> None:
        self.folder, self.config, self.partitions = folder, config, partitions
        (folder / "stats").mkdir(parents=True)
        (folder / "config.toml").write_text(dump_config(config))
        log = self.open()
        create_topics(log, partitions)
        write_logs(log, partitions, FIRST_SHOWN + 2, last, QUIET | quiet)
        log.close()

    def open(self) -> EventLog:
        return open_log(self.folder / "log", LogConfig(partitions=self.partitions))

    def copy(self, folder: Path) -> "World":
        """Another run folder with the same content."""
        twin = World.__new__(World)
        twin.__dict__.update(self.__dict__)
        twin.folder = folder
        shutil.copytree(self.folder, folder)
        return twin

    def process(self, name: str, limit_s: float = 20.0) -> Process:
        """A process that is told to stop after a while, so that a wrong one ends."""
        process = _Limited(name, self.folder, self.config)
        process.deadline = time.monotonic() + limit_s
        return process

    def archive(self) -> None:
        log = self.open()
        archive = Archive(log, self.folder / "archive", self.config.time.build())
        while archive.step():
            pass
        archive.close()
        log.close()

    def retrain(self, loop_class: type[RetrainLoop] = RetrainLoop) -> None:
        """The retrain, to the end of the log."""
        log = self.open()
        try:
            loop = loop_class(self.process("retrain"), log, {}, until_end=True)
            loop.run()
            loop.close()
        finally:
            log.close()

    def nights(self) -> dict[str, str]:
        """What the retrain left: snapshots by name with the digest of their content, and marks of failure."""
        store = ParamStore(self.folder, self.open()).snapshots
        made = {n: store.meta(n).content_digest for n in store.names() if not n.startswith("state-")}
        return made | {path.name: path.read_text() for path in store.folder.glob(".failed-*")}

    def train(self, loop_class: type[TrainLoop] = TrainLoop, *, until_end: bool = True, limit_s: float = 20.0) -> bool:
        """The trainer, to the end of the log; whether it got there."""
        log = self.open()
        publisher = None
        try:
            loop = loop_class(self.process("trainer", limit_s), log, until_end=until_end)
            publisher = loop._publisher
            loop.run()
            loop.close()
            return loop.ended
        finally:
            if publisher is not None:
                publisher._lock.close()
            log.close()

    def result(self) -> list[tuple[int, int, str, str]]:
        """Every version but notes of progress: generation, tick, kind, digest; then whether the end was noted."""
        log = self.open()
        versions = [
            (v.meta.generation, v.meta.tick, v.meta.kind.value, v.meta.digest)
            for v in ParamStore(self.folder, log).deltas(None)
            if v.meta.kind is not Kind.PROGRESS
        ]
        head = last_whole(log)
        log.close()
        return [*versions, (-1, -1, "end", str(head is not None and head.end))]


class _Limited(Process):
    deadline = 0.0

    @property  # type: ignore[override]
    def stopping(self) -> bool:
        return time.monotonic() > self.deadline

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self.deadline = 0.0 if value else self.deadline


@contextmanager
def kills(before: Callable[[str], bool]) -> Iterator[list[str]]:
    """Raise Killed before a durable operation of which `before(name)` says so; the operations that were seen."""
    from infra.eventlog.writer import EmbeddedWriter
    from infra.paramstore.snapshots import SnapshotStore
    from stream.ticks_in import ExampleTicks

    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (EmbeddedWriter, "flush"), (SnapshotStore, "write"), (SnapshotStore, "delete"), (ExampleTicks, "commit"),
        ):  # fmt: skip
            original = getattr(owner, name)

            def operation(self: Any, *a: Any, _original: Any = original, _name: str = name, **kw: Any) -> Any:
                seen.append(_name)
                if before(_name):
                    raise Killed
                return _original(self, *a, **kw)

            patch.setattr(owner, name, operation)
        yield seen


def nth_step(n: int) -> Callable[[str], bool]:
    """For `kills`: true at the nth durable step."""
    left = [n]

    def now(operation: str) -> bool:
        left[0] -= 1
        return left[0] == 0

    return now


@contextmanager
def stand_ins(night: Callable[..., Any] = learn_night) -> Iterator[None]:
    """The linear net and its nights in place of torch's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "StepNet", LinearNet)
        patch.setattr(nightly, "retrain_day", night)
        yield
