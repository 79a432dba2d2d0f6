"""Plain mistakes on the command line: one line that says what to do, exit 1 or 2, and nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROW = "{n}\tme\t3/5/2024 {h}:00:00 AM\t\tx-1 y-0\n"


def ouzel(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "infra.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=False, cwd=cwd)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "mind"
    folder.mkdir()
    (folder / "behaviors.tsv").write_text("".join(ROW.format(n=n, h=1 + n % 9) for n in range(1, 20)))
    (folder / "news.tsv").write_text("x\tnews\tworld\tA title\t\t\t\t\n")
    return folder


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--speed", "0x"], "replay.speed is '0x'"),
        (["--set", "serve.port=99999"], "serve.port is 99999; it must be in [0, 65535]"),
        (["--set", "model.slots.item.lr=nan"], "model.slots.item.lr is nan"),
        (["--set", "train.negative_rate=0"], "train.negative_rate is 0.0; it must be in (0, 1]"),
    ],
)
def test_a_bad_value_leaves_no_folder_that_blocks_the_corrected_command(log, tmp_path, extra, says):
    done = ouzel("run", "--mind", str(log), "--out", str(tmp_path / "run"), *extra)
    assert done.returncode == 1
    assert says in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_is_refused_by_its_option(log, tmp_path):
    (tmp_path / "file").write_text("mine")
    for command in (["run", "--mind", str(log)], ["generate", "mind"]):
        done = ouzel(*command, "--out", str(tmp_path / "file"))
        assert done.returncode == 1
        assert "is a file; name a folder" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"
    assert "name a folder that can be written" in ouzel("generate", "mind", "--out", "/proc/x").stderr


def test_a_name_that_is_not_utf8_is_refused_and_shown_as_far_as_it_can_be(log, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    assert "its name is not UTF-8" in ouzel("run", "--mind", str(log), "--out", odd).stderr
    log.rename(odd)
    assert "its name is not UTF-8" in ouzel("run", "--mind", odd, "--out", str(tmp_path / "run")).stderr


def test_generating_never_replaces_a_log_that_was_not_generated(log):
    before = (log / "behaviors.tsv").read_bytes()
    done = ouzel("generate", "mind", "--out", str(log), "--until-rows", "3")
    assert done.returncode == 1
    assert "--force" in done.stderr
    assert (log / "behaviors.tsv").read_bytes() == before


@pytest.mark.parametrize("flag", [("--seed", "-1"), ("--until-rows", "-3")])
def test_a_number_out_of_its_range_is_refused_before_anything_is_written(tmp_path, flag):
    assert ouzel("generate", "mind", "--out", str(tmp_path / "g"), *flag).returncode == 2
    assert not (tmp_path / "g").exists()


def test_modules_of_the_working_folder_replace_none_of_ours(tmp_path):
    (tmp_path / "stream.py").write_text("raise SystemExit('mine')")
    done = ouzel("inspect", "--mind", str(tmp_path / "absent"), cwd=tmp_path)
    assert "mine" not in done.stderr
    assert "absent" in done.stderr


def test_the_version_is_said_and_a_reader_that_has_read_enough_is_no_error():
    assert ouzel("--version").stdout.startswith("ouzel 0.")
    command = f"{sys.executable} -P -m infra.cli --help | true"
    for _ in range(5):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
        assert done.stderr == ""


def test_up_says_so_before_it_starts_anything(tmp_path):
    done = ouzel("up", "--run", str(tmp_path), "--speed", "1e9")
    assert done.returncode == 1
    assert "--speed is '1e9'" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert ouzel("up", "--run", str(tmp_path), "--port", "99999").returncode == 2
