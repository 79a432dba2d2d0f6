"""A full disk under a run folder: what is only looked at is left out, what has to be durable waits, and it is said."""

import errno
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infra.config import Config
from infra.errors import RetryableError
from infra.process import Process, RunFolder, write_atomically
from infra.supervisor import display, fleet
from infra.supervisor.display import Display
from infra.supervisor.fleet import Fleet, Member, ProcessFailed
from stream.retry import Retrier


class FullDisk:
    """Makes renames fail until there is room again."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.full, self.tries, replace = True, 0, os.replace

        def refuse(source: Any, target: Any) -> None:
            self.tries += 1
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            replace(source, target)

        patch.setattr(os, "replace", refuse)


def test_a_small_file_keeps_its_old_content_and_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    disk = FullDisk(monkeypatch)
    with pytest.raises(RetryableError, match="make room"):
        write_atomically(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"old")]
    disk.full = False
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_process_goes_on_without_its_line_in_the_display_and_saves_its_numbers_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    slept: list[float] = []

    def make_room(seconds: float) -> None:
        slept.append(seconds)
        disk.full = len(slept) < 3

    monkeypatch.setattr("infra.process.time.sleep", make_room)
    with Process("trainer", tmp_path, Config()) as process:
        process.progress(force=True, state="learning")
    assert len(slept) == 3
    assert (tmp_path / "stats" / "trainer.json").is_file()


def test_a_process_that_is_told_to_stop_does_not_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch)
    with Process("trainer", tmp_path, Config()) as process:
        process.stopping = True
    assert not (tmp_path / "stats" / "trainer.json").exists()


def test_whoever_waits_says_why_and_goes_on_where_its_own_output_is_on_the_full_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def action() -> None:
        tries.append(1)
        if len(tries) < 4:
            raise RetryableError("no space left", after_s=0.0)

    retry = Retrier(sleep=lambda s: None)
    retry(action)
    assert capsys.readouterr().err.count("waiting, to try again: no space left") == 2  # at 1 and 2, not 3
    monkeypatch.setattr("sys.stderr", _Refusing())
    tries.clear()
    retry(action)
    assert retry.retries == 6


def test_who_watches_a_run_on_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stats").mkdir()
    said = io.StringIO()
    with Display(Console(file=said, width=200), tmp_path / "stats", ["trainer"]) as shown:
        shown.update([])
        assert "full" not in said.getvalue()
        monkeypatch.setattr(display, "FULL_BYTES", 1 << 62)
        shown.update([])
        shown.update([])
    assert said.getvalue().count("is full: make room") == 1


class _Refusing(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_process_that_could_not_say_why_it_ended_is_said_to_have_met_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = Fleet(RunFolder(tmp_path), [Member("replay", "replay", ("--mind", "nowhere"))])
    monkeypatch.setattr(fleet, "FULL_BYTES", 1 << 62)
    members.start_all()
    while members.running():
        time.sleep(0.05)
    with pytest.raises(ProcessFailed, match=r"exit code 78; the disk of .* is full.*make some, then start again"):
        members.check()
    members.close()


def test_a_command_whose_output_finds_no_room_still_ends_as_failed() -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "infra.cli", "topics", "show"]
        assert subprocess.run(command, stdout=full, stderr=full, timeout=60, check=False).returncode == 1


def test_a_graph_that_finds_no_room_or_is_damaged_is_exported_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer import export
    from trainer.retrain import shape_of

    exported: list[str] = []
    monkeypatch.setattr(export, "_export", lambda shape, name: exported.append(name) or name.encode() * 100)
    shape, want = shape_of(Config().model), {"score": b"score" * 100, "step": b"step" * 100}
    (tmp_path / "taken").write_bytes(b"a file where the folder should be")
    assert export.export_graphs(shape, tmp_path / "taken" / "graphs") == want
    assert "the graph is not kept" in capsys.readouterr().err
    exported.clear()
    assert export.export_graphs(shape, tmp_path / "graphs") == want
    assert export.export_graphs(shape, tmp_path / "graphs") == want
    assert exported == ["score", "step"]
    path = next((tmp_path / "graphs").glob("step-*"))
    path.write_bytes(path.read_bytes().replace(b"step", b"stop", 1))
    assert export.export_graphs(shape, tmp_path / "graphs") == want
    assert exported == ["score", "step", "step"]
