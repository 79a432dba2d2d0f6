"""The nightly chain as a process: killed anywhere, it makes the nights and candidates of a straight run."""

import datetime
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import CorruptStateError, InputError
from stream.ticks_in import TickExamples
from tests.trainer.process_worlds import (
    BOOTSTRAP,
    FIRST_SHOWN,
    LAST,
    MIDNIGHT,
    H,
    Killed,
    World,
    kills,
    learn_night,
    make_nan,
    nth_step,
    settings,
    stand_ins,
)  # fmt: skip
from trainer.by_day import retrain_one_day
from trainer.control import ControlLog, Decision
from trainer.retrain_loop import RetrainLoop
from trainer.schedule import candidate_name, nightly_name

LONG_H = 70  # B + H lies ten minutes after midnight
EVERYTHING = [nightly_name(BOOTSTRAP), nightly_name(MIDNIGHT)]


def world_of(folder: Path, *more: str, last: int = LAST) -> World:
    world = World(folder, settings(*more), last=last)
    world.archive()
    return world


@pytest.fixture(scope="module", autouse=True)
def light() -> Iterator[None]:
    with stand_ins():
        yield


@pytest.fixture(scope="module", params=[H, LONG_H], ids=["", "two candidates at once"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, int]:
    """Logs and archive, and H."""
    h: int = request.param
    folder = tmp_path_factory.mktemp("worlds") / "prepared"
    return world_of(folder, f"train.promotion_delay_s={h * 60}", last=MIDNIGHT + h + 8), h


def test_nights_and_candidates_are_made_once_each(prepared: tuple[World, int], tmp_path: Path) -> None:
    world, h = prepared[0].copy(tmp_path / "straight"), prepared[1]
    world.retrain()
    assert sorted(world.nights()) == sorted([*EVERYTHING, candidate_name(BOOTSTRAP + h), candidate_name(MIDNIGHT + h)])
    assert world.train()
    opened = [(g, tick) for g, tick, kind, _ in world.result() if kind == "generation"]
    assert opened == [(0, BOOTSTRAP + h), (1, MIDNIGHT + h)]


def test_a_kill_before_any_durable_step_changes_no_night(prepared: tuple[World, int], tmp_path: Path) -> None:
    straight = prepared[0].copy(tmp_path / "straight")
    with kills(lambda op: False) as steps:
        straight.retrain()
    for nth in range(1, len(steps) + 1):
        world = prepared[0].copy(tmp_path / f"kill-{nth}")
        with kills(nth_step(nth)), pytest.raises(Killed):
            world.retrain()
        world.retrain()
        assert world.nights() == straight.nights(), f"killed before step {nth} of {len(steps)}"


class OneCandidate(RetrainLoop):
    """Drops a candidate that is not through when the next night is made."""

    def _carry(self, *args: object) -> None:
        self._candidates.clear()
        super()._carry(*args)  # type: ignore[arg-type]


class ForgetsTheCandidate(RetrainLoop):
    """Goes on after a night that is there, without the candidate that is not."""

    def _recover(self) -> None:
        super()._recover()
        self._candidates.clear()


class SkipsTheTickAtHand(RetrainLoop):
    """Keeps with a night the positions after the tick that came when it was due."""

    def _take(self, tick: TickExamples) -> None:
        self._before = tick.positions
        super()._take(tick)


@pytest.mark.parametrize("wrong", [OneCandidate, ForgetsTheCandidate, SkipsTheTickAtHand])
def test_a_wrong_retrain_is_caught(tmp_path: Path, wrong: type[RetrainLoop]) -> None:
    first = world_of(tmp_path / "first", f"train.promotion_delay_s={LONG_H * 60}", last=MIDNIGHT + LONG_H + 8)
    straight = first.copy(tmp_path / "straight")
    straight.retrain()
    found = []
    for nth in range(1, 9):
        world = first.copy(tmp_path / f"kill-{nth}")
        try:
            with kills(nth_step(nth)):
                world.retrain(wrong)
        except Killed:
            pass
        world.retrain(wrong)
        found.append(world.nights() == straight.nights())
    assert not all(found)


def test_a_night_of_nan_is_refused_and_the_chain_goes_on_from_the_night_before(tmp_path: Path) -> None:
    world = world_of(tmp_path / "nan")
    with stand_ins(lambda *a, **kw: (make_nan if kw["day"] == MIDNIGHT else learn_night)(*a, **kw)):
        world.retrain()
        nights = world.nights()
        assert nights[f".failed-{MIDNIGHT + H:010d}"] == "dense/w holds NaN or Inf"
        assert candidate_name(MIDNIGHT + H) not in nights
        assert nightly_name(MIDNIGHT) in nights
        world.retrain()
        assert world.nights() == nights
    assert world.train()
    assert {g for g, _, _, _ in world.result()[:-1]} == {0}


def test_a_bootstrap_of_nan_ends_with_what_to_do(tmp_path: Path) -> None:
    world = world_of(tmp_path / "nan")
    with stand_ins(make_nan), pytest.raises(CorruptStateError, match=r"lower train\.dense_lr"):
        world.retrain()
    with pytest.raises(CorruptStateError, match="no generation before it"):
        world.train()


def test_a_night_made_by_hand_is_the_one_that_the_process_makes_and_it_goes_on_from_it(tmp_path: Path) -> None:
    world = world_of(tmp_path / "by-hand")
    world.retrain()
    nights = world.nights()
    for name in (nightly_name(MIDNIGHT), candidate_name(MIDNIGHT + H)):
        shutil.rmtree(world.folder / "store" / name)
    log = world.open()
    ControlLog(log).decide(Decision(kind="bootstrap", tick=FIRST_SHOWN), timestamp_ms=0)
    day = datetime.datetime.fromtimestamp((MIDNIGHT - 1) * 60, datetime.UTC).date().isoformat()
    for outside in ("2031-01-01", "2001-01-01", "9999-12-31"):
        with pytest.raises(InputError, match=r"lies outside the log, which holds \d{4}-"):
            retrain_one_day(world.process("retrain-day"), log, {}, outside)
    assert "new: kept" in retrain_one_day(world.process("retrain-day"), log, {}, day)
    assert "bit for bit" in retrain_one_day(world.process("retrain-day"), log, {}, day)
    log.close()
    world.retrain()
    assert world.nights() == nights


@pytest.mark.parametrize(
    ("last", "made", "generations"),
    [
        (MIDNIGHT + H - 1, [*EVERYTHING, candidate_name(BOOTSTRAP + H)], {0}),  # ends between M and M + H
        (MIDNIGHT + H, [*EVERYTHING, candidate_name(BOOTSTRAP + H), candidate_name(MIDNIGHT + H)], {0, 1}),
        (BOOTSTRAP + H, [EVERYTHING[0], candidate_name(BOOTSTRAP + H)], {0}),
        (BOOTSTRAP - 1, [], set()),  # the bootstrap is longer than the log
    ],
)
def test_a_log_may_end_anywhere(tmp_path: Path, last: int, made: list[str], generations: set[int]) -> None:
    world = world_of(tmp_path / "short", last=last)
    world.retrain()
    assert world.train()
    assert sorted(world.nights()) == sorted(made)
    *versions, end = world.result()
    assert {g for g, _, _, _ in versions} == generations
    assert end == (-1, -1, "end", "True")


def test_a_last_tick_that_is_a_promotion_is_finished_after_any_kill(tmp_path: Path) -> None:
    first = world_of(tmp_path / "first", last=MIDNIGHT + H)
    first.retrain()
    straight = first.copy(tmp_path / "straight")
    with kills(lambda op: False) as steps:
        assert straight.train()
    for nth in range(len(steps), len(steps) - 8, -1):
        world = first.copy(tmp_path / f"kill-{nth}")
        with kills(nth_step(nth)), pytest.raises(Killed):
            world.train()
        assert world.train(limit_s=10.0), f"killed before step {nth} of {len(steps)}: no end"
        assert world.result() == straight.result()
        shutil.rmtree(world.folder)
