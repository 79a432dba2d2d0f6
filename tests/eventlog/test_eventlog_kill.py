"""SIGKILL at any instant, several writers at once: nothing acknowledged is lost, nothing doubled, readers go on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 40


def kill_rounds(folder, seed, rounds):
    program = Path(__file__).with_name("kill_rounds.py")
    done = subprocess.run(
        [sys.executable, program, folder, str(seed), str(rounds)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_writers_lose_nothing_and_double_nothing(tmp_path):
    result = kill_rounds(tmp_path / "log", 1, ROUNDS)
    assert result["problems"] == []
    assert result["in_flush"] >= ROUNDS  # kills that hit unfinished work


@pytest.mark.slow
def test_a_thousand_killed_writers_lose_nothing_and_double_nothing(tmp_path):
    result = kill_rounds(tmp_path / "log", 2, 340)
    assert result["problems"] == []
