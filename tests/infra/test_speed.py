"""A speed means one thing in every command; what would move durable time absurdly is refused before a start."""

import subprocess
import sys

import pytest

from infra.config import load_config
from infra.errors import ConfigError
from infra.speed import live_speed, replay_speed


@pytest.mark.parametrize("text", ["10", "10x", "10.0", "1e1x"])
def test_a_speed_is_a_number_with_or_without_an_x_everywhere(text):
    assert live_speed(text) == replay_speed(text) == 10.0
    assert load_config(env={}, overrides=[f"replay.speed='{text}'"]).replay.speed == text


def test_a_number_is_a_speed_in_the_configuration():
    assert replay_speed(load_config(env={}, overrides=["replay.speed=60"]).replay.speed) == 60.0


@pytest.mark.parametrize("text", ["0", "-5", "nan", "inf", "-inf", "1e9", "0x", "", "x", "fast", "3601", "max"])
def test_an_absurd_speed_of_a_live_clock_is_refused_by_name(text):
    with pytest.raises(ConfigError, match=r"--speed is .* from 0\.001 to 3600"):
        live_speed(text)


def test_an_absurd_speed_of_a_replay_is_refused_where_the_configuration_is_read():
    assert replay_speed("max") is None
    for text in ("0", "-5", "nan", "inf", "1e9", "fast"):
        with pytest.raises(ConfigError, match=r"replay\.speed"):
            load_config(env={}, overrides=[f"replay.speed='{text}'"])


@pytest.mark.parametrize("command", ["up", "serve"])
def test_a_command_refuses_an_absurd_speed_before_it_touches_the_run(command, tmp_path):
    told = subprocess.run(
        [sys.executable, "-m", "infra.cli", command, "--run", str(tmp_path / "r"), "--speed", "inf"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert told.returncode != 0
    assert "--speed is 'inf'" in told.stderr + told.stdout
    assert "Traceback" not in told.stderr
    assert not (tmp_path / "r").exists()
