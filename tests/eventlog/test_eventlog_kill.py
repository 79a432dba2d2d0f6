"""SIGKILL at any instant, several writers at once: nothing acknowledged is lost, nothing doubled, readers go on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 40


def kill_rounds(folder, seed, rounds, *bug):
    program = Path(__file__).with_name("kill_rounds.py")
    command = [sys.executable, program, folder, str(seed), str(rounds), *bug]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        return {"problems": [done.stderr]}
    return json.loads(done.stdout)


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
