"""Speeds as commands and configuration take them: "60x", "60" or, for a replay, "max"."""

import math

from infra.errors import ConfigError

SLOWEST, FASTEST = 0.001, 1e6  # a replay: pacing alone, no event's time depends on it
FASTEST_LIVE = 3_600.0  # a clock that goes on writes its time into the log for ever: an hour a second, not centuries


def replay_speed(text: str, where: str = "replay.speed") -> float | None:
    """None for "max", else event seconds a wall second. Raises ConfigError."""
    return None if text == "max" else _speed(text, where, FASTEST, 'write "max" or a multiple of real time')


def live_speed(text: str, where: str = "--speed") -> float:
    """Event seconds a wall second of a clock that goes on. Raises ConfigError."""
    return _speed(text, where, FASTEST_LIVE, "write how many times real time a live clock runs")


def _speed(text: str, where: str, fastest: float, what: str) -> float:
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = math.nan
    if not SLOWEST <= speed <= fastest:  # also where it is not a number
        raise ConfigError(f'{where} is {text!r}; {what} such as "60x" or "60", from {SLOWEST:g} to {fastest:g}')
    return speed
