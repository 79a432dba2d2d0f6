"""SIGKILL at any instant, several writers at once: nothing acknowledged is lost, nothing doubled, readers go on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 40


def kill_rounds(folder, seed, rounds, *bug):
    program = Path(__file__).with_name("kill_rounds.py")
    command = [sys.executable, program, folder, str(seed), str(rounds), *bug]
    # Files and a session of its own: children of a program that died must neither hold a pipe open nor live on.
    out, err = folder.with_name("out.json"), folder.with_name("err.txt")
    with open(out, "wb") as stdout, open(err, "wb") as stderr:
        program = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True)
        try:
            code = program.wait(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
    if code:
        return {"problems": [err.read_text()]}
    return json.loads(out.read_bytes())


def test_killed_writers_lose_nothing_and_double_nothing(tmp_path):
    result = kill_rounds(tmp_path / "log", 1, ROUNDS)
    assert result["problems"] == []
    assert result["in_flush"] >= ROUNDS  # kills that hit unfinished work


def test_writers_that_do_not_exclude_each_other_are_caught(tmp_path):
    assert kill_rounds(tmp_path / "log", 1, 5, "no-lock")["problems"] != []


@pytest.mark.slow
def test_a_thousand_killed_writers_lose_nothing_and_double_nothing(tmp_path):
    result = kill_rounds(tmp_path / "log", 2, 340)
    assert result["problems"] == []
