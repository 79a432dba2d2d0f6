"""The whole loop in real processes: what it accounts for, and that its result is a function of the log alone."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infra.errors import ConfigError
from infra.eventlog import TOPICS, open_log
from infra.process import RunFolder
from infra.supervisor.crew import Crew
from infra.supervisor.fleet import Fleet
from infra.supervisor.runlog import drop_log
from infra.supervisor.runs import loop_members, read_source, run_loop, write_report
from infra.supervisor.topics import lags_of, show

from .conftest import BAD_ROWS, ROWS, Run, figures
from .live import Live

ARM_FIGURES = ("auc_impression", "mrr", "ndcg5", "ndcg10", "auc", "log_loss", "ne", "calibration")
PATIENCE_S = 120


def test_every_event_ends_in_an_example_or_in_one_drop_reason(straight: Run) -> None:
    report = straight.report
    dropped = sum(report["dropped"].values())
    assert report["events_in"] == report["joined"]["impressions"] + report["joined"]["engagements"] + dropped
    assert report["examples_out"] == report["joined"]["impressions"] == report["rows"] == ROWS


def test_bad_rows_are_dead_letters_by_reason_and_the_run_goes_on(straight: Run) -> None:
    dead = {reason: n for reason, n in straight.report["dead_letters"].items() if n}
    expected = dict.fromkeys(BAD_ROWS, 1) | {"duplicate_impression": 1}
    expected["columns"] += 1  # the torn row at the end
    assert dead == expected
    config = straight.folder.load_config()
    log = open_log(straight.folder.log, config.log)
    letters = log.read("dead-letters", 0, 0)
    log.close()
    assert len(letters) == sum(expected.values())
    assert any(bytes(letter.value) == BAD_ROWS["bad_label"] for letter in letters)
    said = " ".join(straight.report["account"])
    assert f"{sum(expected.values()):,} of {ROWS + sum(expected.values()):,} rows of behaviors.tsv" in said
    assert f"ouzel dead-letters show --run {straight.folder.path} --reason columns" in said
    assert "What could not be read" in (straight.folder.path / "report.html").read_text(encoding="utf-8")


def test_the_report_has_every_figure_of_every_arm(straight: Run) -> None:
    report = straight.report
    for key in ("shown_items", "seconds", "stage_seconds", "stage_cpu_seconds", "peak_rss_bytes", "digest"):
        assert report[key], key
    assert set(report["stage_cpu_seconds"]) >= {"replay", "joiner", "trainer", "retrain", "replica", "evaluator"}
    assert {"p50", "p99"} <= set(report["label_wait_s"])
    assert {"p50", "p99"} <= set(report["sync_s"])
    assert set(report["arms"]) == {"online", "nightly", "frozen", "popularity", "oracle"}
    for name, arm in report["arms"].items():
        for scope in (arm, *arm["by_day"]):
            assert all(figure in scope for figure in ARM_FIGURES), name
        assert len(arm["by_day"]) == 2
        assert len(arm["by_hour"]) >= 24
    assert len(report["promotions_ms"]) == report["version"]["generation"] == 1  # the bootstrap is no night
    page = (straight.folder.path / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert not re.search(r"""(src|href)\s*=\s*["']https?://""", page)  # nothing is fetched


def test_another_speed_and_killing_every_process_in_the_middle_give_equal_digests(
    straight: Run, new_run: Callable[..., RunFolder]
) -> None:
    folder = new_run("replay.speed=20000x")  # `straight` went as fast as it could
    kill_each(folder, Crew(), "joiner", "replay", "trainer", "retrain", "evaluator", "replica")
    assert result(folder) == result(straight.folder)


@pytest.mark.slow
def test_another_speed_alone_gives_equal_digests(straight: Run, new_run: Callable[..., RunFolder]) -> None:
    folder = new_run("replay.speed=12000x")
    run_loop(folder, Console(quiet=True))
    assert result(folder) == result(straight.folder)


@pytest.mark.slow
def test_killing_every_process_in_the_middle_over_kafka_gives_equal_digests(
    straight: Run, new_run: Callable[..., RunFolder], kafka: str
) -> None:
    folder = new_run("replay.speed=5000x", f"log.url='kafka://{kafka}'")
    names = ("joiner", "replay", "trainer", "joiner-2", "retrain", "archive", "evaluator", "replica", "replica-2")
    kill_each(folder, Crew(workers=2, replicas=2), *names)
    assert result(folder) == result(straight.folder)
    drop_log(folder, Console(quiet=True))


def kill_each(folder: RunFolder, crew: Crew, *names: str) -> None:
    """Run the loop; kill each of these processes once it is at work: the fleet starts it again."""
    config = folder.load_config()
    fleet = Fleet(folder, loop_members(read_source(folder), config, crew), supervise=config.supervise)
    try:
        fleet.start_all()
        for name in names:
            wait_until_busy(folder, name)
            fleet.kill(name)
            while fleet.standings()[name].restarts == 0:
                fleet.check()
                time.sleep(0.01)
        wait_for_the_end(fleet)
    finally:
        fleet.stop_all()


def wait_for_the_end(*fleets: Fleet) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while sum(len(fleet.check()) for fleet in fleets) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(fleet.running() for fleet in fleets), f"still running after {PATIENCE_S} s"


@pytest.mark.slow
def test_a_trainer_goes_on_on_another_machine_that_has_the_brokers_and_the_store_alone(
    straight: Run, new_run: Callable[..., RunFolder], kafka: str, tmp_path: Path
) -> None:
    folder, elsewhere = new_run("replay.speed=5000x", f"log.url='kafka://{kafka}'"), RunFolder(tmp_path)
    shutil.copy(folder.config_file, elsewhere.config_file)
    elsewhere.store.symlink_to(folder.store)  # a file system that both mount
    members = loop_members(read_source(folder), folder.load_config(), Crew(workers=2))
    others = Fleet(folder, [member for member in members if member.name != "trainer"])
    here, there = (Fleet(where, [m for m in members if m.name == "trainer"]) for where in (folder, elsewhere))
    try:
        here.start_all()
        others.start_all()
        wait_until_busy(folder, "trainer")
        here.kill("trainer")
        there.start_all()
        wait_for_the_end(others, there)
    finally:
        for fleet in (here, others, there):
            fleet.stop_all()
    shutil.copy(elsewhere.stats / "trainer.json", folder.stats)
    assert result(folder) == result(straight.folder)
    drop_log(folder, Console(quiet=True))


def test_a_run_is_derived_again_from_its_logs_bit_for_bit(straight: Run) -> None:
    done = ouzel("verify", str(straight.folder.path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal") >= 2


def test_a_finished_run_is_continued_by_the_same_command_and_changes_nothing(straight: Run, mind: Path) -> None:
    before = result(straight.folder)
    run_loop(straight.folder, Console(quiet=True))
    assert result(straight.folder) == before


def test_a_finished_run_goes_on_learns_what_is_posted_and_is_derived_again(straight: Run, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "copy")
    shutil.copytree(straight.folder.path, folder.path)
    check_that_it_goes_on(folder, tmp_path, "--replicas", "2", killed=("joiner", "replica-2"))


@pytest.mark.slow
def test_a_finished_run_over_kafka_goes_on_learns_what_is_posted_and_is_derived_again(
    new_run: Callable[..., RunFolder], kafka: str, tmp_path: Path
) -> None:
    folder = new_run(f"log.url='kafka://{kafka}'")
    run_loop(folder, Console(quiet=True), Crew(workers=2))
    check_that_it_goes_on(folder, tmp_path, "--workers", "2", "--replicas", "2")
    drop_log(folder, Console(quiet=True))


def check_that_it_goes_on(folder: RunFolder, output: Path, *flags: str, killed: tuple[str, ...] = ()) -> None:
    """`ouzel up`: what it says to ask is answered, what it says to post is learned; twice; then `ouzel verify`.

    `killed` are killed first, and started again beside the others, which go on answering.
    """
    ticks = folder.load_config().time.build()
    with Live(folder, output / "first.txt", *flags) as live:
        before = live.rank()
        assert live.clicked in before["scores"]
        assert all(item.startswith("N") for item in before["scores"])
        for name in killed:
            live.kill(name)
            assert live.rank()["scores"].keys() == before["scores"].keys()
            assert any(sentence.startswith(f"{name} was killed") for sentence in live.degraded_for(name)), name
        after = live.rank_at(live.click() // ticks.tick_ms + ticks.attribution_ticks)
        rise = {item: score / before["scores"][item] for item, score in after["scores"].items()}
        assert rise[live.clicked] > 1
        assert rise[live.clicked] == max(rise.values())
    assert live.returncode == 0, live.said
    for name in killed:
        assert (
            f"{name} was killed by signal SIGKILL and is started again in 0.5 s (end 1 of 5 within 300 s)" in live.said
        )
        assert f"{name} was started again" in live.said
    with Live(folder, output / "second.txt", *flags) as live:
        assert live.rank()["tick"] >= after["tick"]
        live.post("one that waits")
    assert live.returncode == 0, live.said
    check_that_nothing_is_called_lost(folder)
    done = ouzel("verify", str(folder.path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal") >= 2


def check_that_nothing_is_called_lost(folder: RunFolder) -> None:
    """`ouzel report` of a run that was stopped with a click in it whose window is open."""
    done = ouzel("report", "--run", str(folder.path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder.path / "report.json").read_bytes())
    assert report["waiting"] == {"impressions": 1, "engagements": 1}
    ends = [*report["joined"].values(), *report["dropped"].values(), *report["waiting"].values()]
    assert report["events_in"] == sum(ends)
    assert report["accounted"]
    assert "2 waiting" in done.stdout
    assert "do not add up" not in done.stdout + (folder.path / "report.html").read_text(encoding="utf-8")


def test_two_workers_and_two_replicas_over_kafka_give_the_digests_of_the_run_folder(
    straight: Run, new_run: Callable[..., RunFolder], kafka: str
) -> None:
    folder = new_run(f"log.url='kafka://{kafka}'")
    config = folder.load_config()
    assert config.log.url.startswith(f"kafka://{kafka}/run-"), "two runs on a broker keep apart"
    run_loop(folder, Console(quiet=True), Crew(workers=2, replicas=2))
    assert result(folder) == result(straight.folder)
    assert not folder.log.exists()
    for name in ("joiner", "joiner-2", "archive", "replica", "replica-2"):
        assert (folder.stats / f"{name}.json").is_file(), name
    check_topics(folder)


def check_topics(folder: RunFolder) -> None:
    """What `ouzel topics` says of a finished run; then its log is dropped."""
    config = folder.load_config()
    log = folder.open_log(config)
    assert [log.partitions(topic) for topic in TOPICS] == [4, 1, 4, 1, 1, 1]
    behind = {lag.reader: lag for lag in lags_of(log, "examples")}
    assert {"trainer", "retrain", "evaluator", "archive"} <= behind.keys()
    assert behind["trainer"][2:] == (0, 0.0)
    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    show(log, console)
    console.file.close()
    assert "joiner" in console.export_text()
    log.close()
    drop_log(folder, Console(quiet=True))
    log = folder.open_log(config)
    with pytest.raises(ConfigError, match="no topic events"):
        log.partitions("events")
    log.close()


def result(folder: RunFolder) -> dict[str, Any]:
    """What must be equal of a finished run, from a report that is written anew."""
    return figures(write_report(folder))


def wait_until_busy(folder: RunFolder, name: str) -> None:
    """Return once a process has said that event time moves in it, so that the kill hits unfinished work."""
    live = folder.stats / f"{name}.live.json"
    deadline = time.monotonic() + PATIENCE_S
    seen: set[str] = set()
    while len(seen) < 3 and time.monotonic() < deadline:
        if live.is_file():
            seen.add(live.read_text(encoding="utf-8"))
        time.sleep(0.05)


def ouzel(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command as a user calls it."""
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *arguments], capture_output=True, text=True, timeout=300, check=False
    )
