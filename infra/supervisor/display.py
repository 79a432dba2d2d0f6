"""What a person watches while a run goes on: one line a process, redrawn; plain lines where there is no terminal."""

import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from infra.members import Standing

PLAIN_EVERY_S = 10.0
BAR_WIDTH = 24
OVER = ("restarting", "stopped")
FULL_BYTES = 1 << 20
# Shown in columns of their own, or not at all.
ELSEWHERE = ("state", "name", "pid", "event_time_ms", "first_ms", "last_ms", "tick")


class Display:
    """Live table of the processes of a run; `with Display(…) as display: display.update()`."""

    def __init__(self, console: Console, stats: Path, names: Sequence[str]) -> None:
        self._console = console
        self._stats = stats
        self._names = names
        self._started = time.monotonic()
        self._next_plain = self._started + PLAIN_EVERY_S
        self._next_warning = self._started
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, running: Sequence[str], standings: Mapping[str, Standing] | None = None) -> None:
        """Show what the processes last said of themselves; say so where their disk is full."""
        self._warn()
        said = {name: _read(self._stats / f"{name}.live.json") for name in self._names}
        for name, standing in (standings or {}).items():
            if standing.state != "running":
                said[name] = {**said.get(name, {}), "state": standing.state}
        running = [name for name in running if said[name].get("state") not in OVER]
        if self._live is not None:
            self._live.update(self._table(said, running), refresh=True)
        elif time.monotonic() >= self._next_plain:
            self._next_plain += PLAIN_EVERY_S
            self._console.print(self._line(said, running), highlight=False, soft_wrap=True)

    def _warn(self) -> None:
        """Processes wait for a full disk, and their own logs lie on it: only who watches can say it."""
        if time.monotonic() >= self._next_warning and shutil.disk_usage(self._stats.parent).free < FULL_BYTES:
            self._next_warning = time.monotonic() + PLAIN_EVERY_S
            self._console.print(
                f"[bold red]the disk of {self._stats.parent} is full[/]: make room; the run waits, nothing is lost, "
                "and it goes on by itself",
                soft_wrap=True,
            )

    def _table(self, said: dict[str, dict[str, Any]], running: Sequence[str]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column(f"{time.monotonic() - self._started:4.0f} s", style="bold", width=10)
        table.add_column("event time", width=16)
        table.add_column("", width=BAR_WIDTH)
        table.add_column("", style="dim", no_wrap=True)
        table.add_column("", overflow="ellipsis", no_wrap=True)
        span = _span(said)
        for name in self._names:
            numbers = said[name]
            rest = "  ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in _rest(numbers))
            bar = ProgressBar(total=1.0, completed=_done(numbers, span), width=BAR_WIDTH)
            table.add_row(name, _event_time(numbers), bar, _state(numbers, name in running), rest)
        return table

    def _line(self, said: dict[str, dict[str, Any]], running: Sequence[str]) -> str:
        parts = (
            f"{name} {_event_time(said[name]) if name in running else ''}".strip()
            + ("" if _event_time(said[name]) and name in running else f" {_state(said[name], name in running)}")
            for name in self._names
        )
        return f"{time.monotonic() - self._started:5.0f} s  " + ", ".join(parts)


def _read(path: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return {}
    return said


def _rest(numbers: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in numbers.items() if k not in ELSEWHERE and v is not None]


def _span(said: dict[str, dict[str, Any]]) -> tuple[float, float]:
    """First and last event time of the replay, as it said; equal where there is none."""
    for numbers in said.values():
        if "last_ms" in numbers:
            return float(numbers["first_ms"]), float(numbers["last_ms"])
    return 0.0, 0.0


def _done(numbers: dict[str, Any], span: tuple[float, float]) -> float:
    at = numbers.get("event_time_ms")
    first, last = span
    if not isinstance(at, (int, float)) or last <= first:
        return 0.0
    return min(1.0, max(0.0, (at - first) / (last - first)))


def _state(numbers: dict[str, Any], running: bool) -> str:
    if not numbers:
        return "starting"
    state = str(numbers.get("state", ""))
    return state if running or state in ("done", "failed", *OVER) else "ended"


def _event_time(numbers: dict[str, Any]) -> str:
    ms = numbers.get("event_time_ms")
    if not isinstance(ms, (int, float)) or ms <= 0:
        return ""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%a %d %b %H:%M")


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, float) and abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}"
