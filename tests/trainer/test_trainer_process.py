"""The trainer as a process: killed before any durable step, it ends with the versions of a straight run."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import CorruptStateError
from stream.ticks_in import TickExamples
from tests.trainer.process_worlds import (
    BOOTSTRAP,
    MIDNIGHT,
    QUIET_AT_MIDNIGHT,
    H,
    Killed,
    World,
    kills,
    nth_step,
    settings,
    stand_ins,
)
from trainer import promotion
from trainer.control import ControlLog, Decision
from trainer.loop import TrainLoop
from trainer.schedule import candidate_name
from trainer.state import BEFORE


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Logs, archive and candidates, no trainer ran yet; and what one makes of them: its versions, its durable steps."""
    folder = tmp_path_factory.mktemp("worlds")
    made: dict[str, Any] = {}
    with stand_ins():
        for name, quiet in (("busy", set()), ("quiet", QUIET_AT_MIDNIGHT)):
            world = World(folder / name, settings(), quiet=quiet)
            world.archive()
            world.retrain()
            twin = world.copy(folder / f"{name}-straight")
            with kills(lambda op: False) as steps:
                assert twin.train()
            made[name] = world, (twin.result(), len(steps))
        yield made


@pytest.fixture(params=["busy", "quiet"])
def either(request: pytest.FixtureRequest, worlds: Any) -> Any:
    """A world whose M + H is a tick with examples, or lies in an empty stretch; and its straight result."""
    return worlds[request.param]


@pytest.fixture
def prepared(worlds: Any) -> World:
    world: World = worlds["busy"][0]
    return world


@pytest.fixture
def straight(worlds: Any) -> Any:
    return worlds["busy"][1]


def killed_at(world: World, nth: int, loop_class: type[TrainLoop] = TrainLoop) -> bool:
    """One life of a trainer that is killed before its nth durable step; False where it ended before that."""
    try:
        with kills(nth_step(nth)):
            world.train(loop_class)
    except Killed:
        return True
    return False


def result_with_kill(
    prepared: World, folder: Path, nth: int, loop_class: type[TrainLoop] = TrainLoop, limit_s: float = 20.0
) -> Any:
    """What is in the log after a kill and a second life; what a wrong trainer raises."""
    world = prepared.copy(folder)
    try:
        assert killed_at(world, nth, loop_class)
        if not world.train(loop_class, limit_s=limit_s):
            return "did not end"
        return world.result()
    except (CorruptStateError, ValueError) as error:
        return str(error)
    finally:
        shutil.rmtree(folder)


def test_generations_open_at_b_plus_h_and_m_plus_h(straight: Any) -> None:
    result, _ = straight
    opened = [(g, tick) for g, tick, kind, _ in result if kind == "generation"]
    assert opened == [(0, BOOTSTRAP + H), (1, MIDNIGHT + H)]
    assert result[-1][3] == "True"
    assert [tick for _, tick, _, _ in result[:-1]] == sorted(tick for _, tick, _, _ in result[:-1])


def test_a_kill_before_any_durable_step_changes_no_version(either: Any, tmp_path: Path) -> None:
    prepared, (result, steps) = either
    assert steps > 20
    for nth in range(1, steps + 1):
        assert result_with_kill(prepared, tmp_path / f"kill-{nth}", nth) == result, f"killed before step {nth}"


def test_many_kills_in_one_run_change_no_version(prepared: World, straight: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    world, lives = prepared.copy(tmp_path / "often"), 0
    while killed_at(world, int(rng.integers(1, 7))):
        lives += 1
    assert lives >= 4
    assert world.train()
    assert world.result() == straight[0]


class ForgetsTheUnopened(TrainLoop):
    """Takes a decision in `control` for a generation in `versions`."""

    def _newest_opened(self, through: int) -> int:
        decided, cut = BEFORE, self._schedule.cut_after(None) if self._schedule else 0
        while self._schedule and (due := self._schedule.due(cut)) <= through and self._control.at(due) is not None:
            decided, cut = due, self._schedule.cut_after(cut)
        return decided


class PositionsAfterTheTick(TrainLoop):
    """Stores with a generation that opens before a tick the positions after it."""

    def _open(self, decision: Decision, tick: TickExamples) -> None:
        before, self._positions = self._positions, tick.positions
        super()._open(decision, tick)
        self._positions = before


class SuppressesTooMuch(TrainLoop):
    """After a restart, takes the first new tick for one that was published."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._published = self._publisher.chain.through + 1

    def _publish(self, tick: int, *args: Any) -> None:
        if tick > self._published:
            super()._publish(tick, *args)


class ForgetsTheEnd(TrainLoop):
    """Goes on after the last durable tick without doing what follows it."""

    def _settle(self) -> None:
        pass


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (ForgetsTheUnopened, "busy"),
        (PositionsAfterTheTick, "quiet"),
        (SuppressesTooMuch, "busy"),
        (ForgetsTheEnd, "busy"),
    ],
)
def test_a_wrong_trainer_is_caught(worlds: Any, tmp_path: Path, wrong: type[TrainLoop], where: str) -> None:
    prepared, (result, steps) = worlds[where]
    assert any(
        result_with_kill(prepared, tmp_path / f"wrong-{nth}", nth, wrong, limit_s=3.0) != result
        for nth in range(steps, 0, -1)
    )


def test_told_to_stop_while_it_waits_the_trainer_learns_nothing_later(
    prepared: World, straight: Any, tmp_path: Path
) -> None:
    world = prepared.copy(tmp_path / "waiting")
    candidate = world.folder / "store" / candidate_name(BOOTSTRAP + H)
    candidate.rename(tmp_path / "kept")
    assert not world.train(limit_s=1.5)
    assert world.result()[-1] == (-1, -1, "end", "False")
    (tmp_path / "kept").rename(candidate)
    assert world.train()
    assert world.result() == straight[0]


def test_a_candidate_that_is_late_in_wall_time_is_waited_for_in_a_replay(
    prepared: World, straight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "PATIENCE_S", 0.0)
    world, kept = prepared.copy(tmp_path / "late"), tmp_path / "kept"
    candidate = world.folder / "store" / candidate_name(MIDNIGHT + H)
    candidate.rename(kept)
    monkeypatch.setattr(promotion, "time", _Waits(lambda: kept.exists() and kept.rename(candidate)))
    assert world.train()
    assert world.result() == straight[0]


def test_a_skip_that_live_patience_led_to_is_obeyed_when_derived_again(
    prepared: World, straight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "PATIENCE_S", 0.0)
    live, again = prepared.copy(tmp_path / "live"), prepared.copy(tmp_path / "again")
    shutil.rmtree(live.folder / "store" / candidate_name(MIDNIGHT + H))
    live.train(until_end=False, limit_s=1.5)
    assert {g for g, _, _, _ in live.result()[:-1]} == {0}
    assert live.result() != straight[0]
    shutil.rmtree(again.folder / "log" / "control")
    shutil.copytree(live.folder / "log" / "control", again.folder / "log" / "control")
    assert again.train()
    assert again.result() == live.result()


def test_a_candidate_that_failed_is_skipped_and_the_old_generation_goes_on(prepared: World, tmp_path: Path) -> None:
    world = prepared.copy(tmp_path / "failed")
    due = MIDNIGHT + H
    shutil.rmtree(world.folder / "store" / candidate_name(due))
    (world.folder / "store" / f".failed-{due:010d}").write_text("not finite: dense/w")
    assert world.train()
    assert {g for g, _, _, _ in world.result()[:-1]} == {0}
    log = world.open()
    assert ControlLog(log).at(due) == Decision(kind="skip-generation", tick=due, reason="not finite: dense/w")
    log.close()


def test_without_a_first_generation_the_trainer_says_so(prepared: World, tmp_path: Path) -> None:
    world = prepared.copy(tmp_path / "none")
    due = BOOTSTRAP + H
    shutil.rmtree(world.folder / "store" / candidate_name(due))
    (world.folder / "store" / f".failed-{due:010d}").write_text("not finite: dense/w")
    with pytest.raises(CorruptStateError, match="no generation before it"):
        world.train()


def test_a_candidate_other_than_the_one_decided_is_refused(prepared: World, tmp_path: Path) -> None:
    world = prepared.copy(tmp_path / "other")
    log = world.open()
    control = ControlLog(log)
    name = candidate_name(BOOTSTRAP + H)
    other = Decision(kind="open-generation", tick=BOOTSTRAP + H, generation=0, snapshot=name, digest="ab" * 32)
    control.decide(other, timestamp_ms=0)
    control.close()
    log.close()
    with pytest.raises(CorruptStateError, match="use the build and machine of the"):
        world.train()


def test_a_decided_candidate_that_fails_when_derived_again_is_refused(prepared: World, tmp_path: Path) -> None:
    world = prepared.copy(tmp_path / "gone")
    assert world.train()
    log = world.open()
    with pytest.raises(CorruptStateError, match="this run has no candidate for it"):
        ControlLog(log).decide(Decision(kind="skip-generation", tick=MIDNIGHT + H, reason="x"), timestamp_ms=0)
    log.close()


def test_without_a_state_snapshot_the_trainer_derives_everything_again(
    prepared: World, straight: Any, tmp_path: Path
) -> None:
    world = prepared.copy(tmp_path / "lost")
    assert killed_at(world, 20)
    for state in (world.folder / "store").glob("state-*"):
        shutil.rmtree(state)
    assert world.train()
    assert world.result() == straight[0]


def test_partitions_of_the_log_do_not_reach_the_versions(straight: Any, tmp_path: Path) -> None:
    with stand_ins():
        for partitions in (1, 4):
            world = World(tmp_path / str(partitions), settings(), partitions=partitions)
            world.archive()
            world.retrain()
            assert world.train()
            assert world.result() == straight[0]


class _Waits:
    """`time`, whose tenth sleep lets the candidate appear."""

    def __init__(self, appear: Any) -> None:
        self._appear, self._slept = appear, 0

    def sleep(self, seconds: float) -> None:
        self._slept += 1
        if self._slept == 10:
            self._appear()

    def monotonic(self) -> float:
        return float(self._slept)
