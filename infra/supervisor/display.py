"""What a person watches while a run goes on: one line a process, redrawn; plain lines where there is no terminal."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

PLAIN_EVERY_S = 10.0
SHOWN_FIRST = ("state", "name", "pid", "event_time_ms")


class Display:
    """Live table of the processes of a run; `with Display(…) as display: display.update()`."""

    def __init__(self, console: Console, stats: Path, names: Sequence[str]) -> None:
        self._console = console
        self._stats = stats
        self._names = names
        self._started = time.monotonic()
        self._next_plain = self._started + PLAIN_EVERY_S
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, running: Sequence[str]) -> None:
        """Show what the processes last said of themselves."""
        said = {name: _read(self._stats / f"{name}.live.json") for name in self._names}
        if self._live is not None:
            self._live.update(self._table(said, running), refresh=True)
        elif time.monotonic() >= self._next_plain:
            self._next_plain += PLAIN_EVERY_S
            self._console.print(self._line(said), highlight=False)

    def _table(self, said: dict[str, dict[str, Any]], running: Sequence[str]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column(f"{time.monotonic() - self._started:4.0f} s", style="bold", width=10)
        table.add_column("event time", width=16)
        table.add_column("", overflow="ellipsis", no_wrap=True)
        for name in self._names:
            numbers = said[name]
            state = str(numbers.get("state", "")) or ("running" if name in running else "waiting")
            if name not in running and state not in ("failed", "done"):
                state = "starting" if not numbers else "ended"
            rest = "  ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in _rest(numbers))
            table.add_row(name, _event_time(numbers), rest or state)
        return table

    def _line(self, said: dict[str, dict[str, Any]]) -> str:
        parts = [f"{name} {_event_time(said[name]) or said[name].get('state', '…')}" for name in self._names]
        return f"{time.monotonic() - self._started:5.0f} s  " + "  ".join(parts)


def _read(path: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return {}
    return said


def _rest(numbers: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in numbers.items() if k not in SHOWN_FIRST and v is not None]


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
