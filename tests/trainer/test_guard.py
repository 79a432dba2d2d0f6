"""Exploded rows and predictions are held before they are published; a restart comes to the same state."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from infra.config import Config, TrainConfig, dump_config
from infra.paramstore.store import ParamStore
from infra.paramstore.version import Kind
from tests.trainer.process_worlds import BOOTSTRAP, MIDNIGHT, H, Killed, World, kills, nth_step, settings, stand_ins
from trainer.control import ControlLog
from trainer.guard import Forecast, unfit
from trainer.loop import TrainLoop

BOUNDS = TrainConfig()


def exploding(config: Config, lr: float = 1e5) -> Config:
    """Online, items learn at a rate at which nothing converges."""
    item = msgspec.structs.replace(config.model.slots["item"], lr=lr)
    model = msgspec.structs.replace(config.model, slots=config.model.slots | {"item": item})
    return msgspec.structs.replace(config, model=model)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Sound nights; the trainer of the same logs is configured to explode."""
    with stand_ins():
        world = World(tmp_path_factory.mktemp("guard") / "prepared", settings())
        world.archive()
        world.retrain()
        world.config = exploding(world.config)
        (world.folder / "config.toml").write_text(dump_config(world.config))
        yield world


@pytest.fixture(scope="module")
def held(prepared: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, int]:
    """A trainer ran over it; and how many durable steps it took."""
    world = prepared.copy(tmp_path_factory.mktemp("held") / "world")
    with kills(lambda op: False) as steps:
        assert world.train()
    return world, len(steps)


def longest_row(tensors: dict[str, Any]) -> float:
    values = [t for name, t in tensors.items() if name.startswith("slot/") and name.endswith("/values") and len(t)]
    return max((float(np.linalg.norm(t, axis=1).max()) for t in values), default=0.0)


def test_exploded_rows_are_published_in_no_version_and_each_generation_is_held_from_its_first_tick(
    held: tuple[World, int],
) -> None:
    world, _ = held
    log = world.open()
    versions = list(ParamStore(world.folder, log).deltas(None))
    holds = ControlLog(log).holds()
    state = ParamStore(world.folder, log).state()
    log.close()
    opened = [v.meta.tick for v in versions if v.meta.kind is Kind.GENERATION]
    assert opened == [BOOTSTRAP + H, MIDNIGHT + H]
    assert [hold.generation for hold in holds] == [0, 1]
    assert all(opens < hold.tick for opens, hold in zip(opened, holds, strict=True))
    assert "train.max_row_norm" in holds[0].reason
    deltas = [(v.meta.tick, v.tensors()) for v in versions if v.meta.kind is Kind.DELTA]
    assert {name.partition("/")[0] for _, tensors in deltas for name in tensors} == {"counters", "items"}
    assert deltas[0][0] == holds[0].tick  # the tick that was refused is counted all the same
    assert state is not None
    assert longest_row(dict(state.tensors)) < 10


def test_a_hold_is_shown_by_metric_and_live_state(prepared: World, tmp_path: Path) -> None:
    world = prepared.copy(tmp_path / "shown")
    log = world.open()
    process = world.process("trainer")
    loop = TrainLoop(process, log, until_end=True)
    loop.run()
    loop.close()
    log.close()
    assert b"ouzel_held 1.0" in process.metrics.render()
    live = json.loads((process.folder.stats / "trainer.live.json").read_bytes())
    assert live["state"] == "held"
    assert "train.max_row_norm" in live["held"]


def test_a_kill_before_a_durable_step_changes_nothing_of_a_held_run(
    prepared: World, held: tuple[World, int], tmp_path: Path
) -> None:
    straight, steps = held
    for nth in range(1, steps + 1, 3):
        world = prepared.copy(tmp_path / f"kill-{nth}")
        with pytest.raises(Killed), kills(nth_step(nth)):
            world.train()
        assert world.train()
        assert world.result() == straight.result(), f"killed before step {nth}"
        shutil.rmtree(world.folder)


def test_bounds_leave_alone_what_sound_runs_show_and_name_what_they_refuse() -> None:
    rows = {"slot/item/values": np.full((3, 16), 1.2, np.float32), "slot/item/state": np.full(3, 1e9, np.float32)}
    assert unfit(rows, Forecast(180.0, 140.0), BOUNDS) == ""
    assert unfit(rows, Forecast(150.0, 0.0), BOUNDS) == ""  # too few to say
    assert "0.01 clicks were predicted and 400 came" in unfit(rows, Forecast(0.01, 400.0), BOUNDS)
    assert "3e+04 clicks were predicted and 400 came" in unfit(rows, Forecast(30_000.0, 400.0), BOUNDS)
    assert unfit(rows, Forecast(float("nan"), 0.0), BOUNDS) == "predictions are NaN or Inf"
    assert "norm 400, train.max_row_norm is 100" in unfit(
        {"slot/item/values": np.full((1, 16), 100.0)}, Forecast(), BOUNDS
    )
    assert unfit({"slot/user/state": np.array([np.inf])}, Forecast(), BOUNDS) == "slot/user/state holds NaN or Inf"


def test_a_forecast_survives_extreme_logits() -> None:
    forecast = Forecast()
    forecast.add(np.array([1e30, -1e30, 0.0], np.float32), np.array([1, 0, 0], np.float32))
    assert (forecast.predicted, forecast.clicked) == (1.5, 1.0)
