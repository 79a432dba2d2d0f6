"""Bootstrap and promotion delay of a log that is too short for them: decided once, recorded, said."""

import re
import signal
import subprocess
import sys
import time
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from infra.config import Config, load_config
from infra.errors import ConfigError, InputError
from infra.process import RunFolder
from infra.supervisor.broker import free_ports
from infra.supervisor.fit import Span, fitted, many_partitions
from infra.supervisor.runs import fit, prepare

START = datetime(2024, 3, 5, 6, 20, tzinfo=UTC)
HOUR_MS = 3_600_000
FIRST_MS = round(START.timestamp() * 1000)


def write_log(folder: Path, minutes: int) -> Path:
    folder.mkdir()
    times = [f"{START + timedelta(minutes=m):%m/%d/%Y %I:%M:%S %p}" for m in range(minutes + 1)]
    (folder / "behaviors.tsv").write_text("".join(f"{i}\tu{i % 7}\t{t}\ta\ta-0 b-1\n" for i, t in enumerate(times)))
    (folder / "news.tsv").write_text("".join(f"{x}\tshoes\tred\tA title\t\t\t\t\n" for x in "ab"))
    return folder


@pytest.mark.parametrize("minutes", [3, 17, 60, 180, 300, 500, 700])
@pytest.mark.parametrize("tick_s", [1, 60, 600])
def test_a_log_of_any_length_has_something_left_to_score(minutes: int, tick_s: int) -> None:
    asked = load_config(env={}, overrides=[f"time.tick_s={tick_s}", f"time.attribution_s={2 * tick_s}"])
    made = fitted(asked, Span(100, FIRST_MS, FIRST_MS + minutes * 60_000)).train
    opened = FIRST_MS // HOUR_MS * HOUR_MS + made.bootstrap_hours * HOUR_MS + made.promotion_delay_s * 1000
    assert made.bootstrap_hours * 3600 / tick_s == pytest.approx(round(made.bootstrap_hours * 3600 / tick_s))
    assert made.promotion_delay_s % tick_s == 0
    if minutes * 60 >= 12 * tick_s:
        assert opened <= FIRST_MS + minutes * 60_000 * 0.8


def test_a_log_that_is_long_enough_keeps_what_was_asked_for() -> None:
    assert fitted(Config(), Span(100, FIRST_MS, FIRST_MS + 10 * HOUR_MS)) == Config()


def test_more_partitions_than_were_measured_are_said_with_what_they_cost() -> None:
    span = Span(100, FIRST_MS, FIRST_MS + 10 * HOUR_MS)
    assert many_partitions(load_config(env={}, overrides=["log.partitions=64"]), span) == ""
    said = many_partitions(load_config(env={}, overrides=["log.partitions=300"]), span)
    assert re.search(r"log\.partitions is 300: measured are up to 64\..* 600 ticks take some 360 core-seconds", said)


def test_the_decision_is_taken_once_recorded_and_said(tmp_path: Path) -> None:
    log, folder, asked = write_log(tmp_path / "log", 180), RunFolder(tmp_path / "run"), load_config(env={})
    console = Console(record=True, quiet=False, width=300, file=open("/dev/null", "w"))  # noqa: SIM115
    made, was = fit(folder, asked, [log], console)
    text = console.export_text()
    assert "3.0 hours" in text
    assert "train.bootstrap_hours is" in text
    prepare(folder, made, [log], was)
    assert folder.load_config().train == made.train != asked.train
    whole = (log / "behaviors.tsv").read_bytes()
    (log / "behaviors.tsv").write_bytes(whole + b"900\tu1\t03/09/2024 6:00:00 AM\ta\ta-0 b-1\n")
    assert fit(folder, asked, [log], console) == (made, was)  # the same command, whatever became of the file
    with pytest.raises(ConfigError, match="bytes were appended since the run began"):
        prepare(folder, made, [log], was)
    (log / "behaviors.tsv").write_bytes(whole)
    prepare(folder, made, [log], was)
    other = load_config(env={}, overrides=["train.bootstrap_hours=2"])
    with pytest.raises(ConfigError, match=r"train\.bootstrap_hours"):
        prepare(folder, fit(folder, other, [log], console)[0], [log], was)
    console.file.close()


def test_ouzel_run_of_a_short_download_says_what_it_shrinks_and_keeps_it(tmp_path: Path) -> None:
    log, out = write_log(tmp_path / "log", 180), tmp_path / "run"
    with zipfile.ZipFile(tmp_path / "log.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in log.iterdir():
            archive.write(file, f"log/{file.name}")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "infra.cli", "run", "--mind", str(tmp_path / "log.zip"), "--out", str(out)]
    process = subprocess.Popen([*command, "--set", f"serve.port={port}"], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (out / "config.toml").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert "the log spans 3.0 hours: train.bootstrap_hours is" in text
    assert RunFolder(out).load_config().train.bootstrap_hours < 2


def test_a_source_that_cannot_be_used_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", 10)
    (log / "news.tsv").write_bytes(b"")
    with pytest.raises(InputError, match=r"news\.tsv: empty file"):
        fit(RunFolder(tmp_path / "run"), Config(), [log], Console(quiet=True))
    assert not (tmp_path / "run").exists()
