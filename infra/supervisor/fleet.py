"""The processes of one run: started by name, watched, stopped together.

Each is `python -m infra.cli NAME --run RUN …` with its output in `RUN/logs/<name>.log`. They speak through the logs
of the run alone; the fleet passes nothing between them. Children live in sessions of their own, so that Ctrl-C reaches
the fleet first, which then stops them in order: producers before their readers.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from infra.errors import OuzelError
from infra.process import FLEET_VARIABLE, RunFolder, pss_bytes
from infra.supervisor.child import ouzel

STOP_TIMEOUT_S = 20.0
SAMPLE_EVERY_S = 0.5
LOG_TAIL_LINES = 15

# One thread each: results must not depend on how many cores a machine has.
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


FULL_BYTES = 1 << 20  # less than this, and a process could not say why it ended


class ProcessFailed(OuzelError):
    """A process of the run ended with an error; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Member:
    """A process by name: the command and its arguments after `--run RUN`."""

    name: str  # as in RUN/stats and RUN/logs
    command: str  # of the `ouzel` command
    arguments: tuple[str, ...] = ()


@dataclass
class Fleet:
    """Processes over one run folder. `echo(name, line)` is given what they print too, from threads."""

    folder: RunFolder
    members: Sequence[Member]
    echo: Callable[[str, str], None] | None = None
    peak_pss_bytes: int = 0
    _running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _logs: list[IO[bytes]] = field(default_factory=list)
    _copying: list[threading.Thread] = field(default_factory=list)
    _next_sample: float = 0.0

    def start_all(self) -> None:
        """Start every member."""
        for member in self.members:
            self.start(member.name)

    def start(self, name: str) -> None:
        """Start one member (again, where it was killed)."""
        member = next(m for m in self.members if m.name == name)
        self.folder.process_logs.mkdir(parents=True, exist_ok=True)
        log = open(self.folder.process_logs / f"{name}.log", "ab")  # noqa: SIM115 - closed with the fleet
        self._logs.append(log)
        run = str(self.folder.path)
        self._running[name] = process = subprocess.Popen(
            ouzel(member.command, "--run", run, *member.arguments),
            stdin=subprocess.DEVNULL,
            stdout=log if self.echo is None else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **THREADS, FLEET_VARIABLE: str(os.getpid())},
        )
        if process.stdout is not None:
            self._copying.append(threading.Thread(target=self._copy, args=(name, process.stdout, log), daemon=True))
            self._copying[-1].start()

    def _copy(self, name: str, output: IO[bytes], log: IO[bytes]) -> None:
        with output:
            for line in output:
                with suppress(OSError):  # a full disk
                    log.write(line)
                    log.flush()
                if self.echo is not None:
                    self.echo(name, line.decode(errors="replace").rstrip())

    def kill(self, name: str) -> None:
        """SIGKILL one member, as a crash would."""
        process = self._running[name]
        process.kill()
        process.wait()

    def running(self) -> list[str]:
        """Names of the members that have not ended."""
        return [name for name, process in self._running.items() if process.poll() is None]

    def check(self) -> list[str]:
        """Sample memory; return who is running. Raises ProcessFailed as soon as a member failed."""
        running = self.running()  # before: who fails after this is found by the next look
        self.raise_failed()
        now = time.monotonic()
        if now >= self._next_sample:
            self._next_sample = now + SAMPLE_EVERY_S
            pids = [os.getpid(), *(p.pid for p in self._running.values() if p.poll() is None)]
            self.peak_pss_bytes = max(self.peak_pss_bytes, sum(map(pss_bytes, pids)))
        return running

    def raise_failed(self, *, stopped: bool = False) -> None:
        """Raises ProcessFailed where a member failed. One that was `stopped` may die of it, before it had begun."""
        for name, process in self._running.items():
            code = process.poll()
            if code is not None and code != 0 and not (stopped and code == -signal.SIGTERM):
                raise ProcessFailed(self._why(name, code))

    def stop_all(self) -> None:
        """Ask every member to stop (SIGTERM), in order; kill what does not within 20 s."""
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in self._running.values():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.close()

    def close(self) -> None:
        """Close the log files."""
        for thread in self._copying:
            thread.join()
        self._copying.clear()
        for log in self._logs:
            log.close()
        self._logs.clear()

    def _why(self, name: str, code: int) -> str:
        path = self.folder.process_logs / f"{name}.log"
        if shutil.disk_usage(self.folder.path).free < FULL_BYTES:
            return (
                f"{name} {ending(code)}; the disk of {self.folder.path} is full, and what it said may not have found "
                f"room: make some, then start again: nothing is lost. The end of {path}:\n{tail(path)}"
            )
        if self.echo is not None:  # it was seen
            return f"{name} {ending(code)}; all that it said is in {path}"
        return f"{name} {ending(code)}; the end of {path}:\n{tail(path)}"


def tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a text file, indented."""
    if not path.is_file():
        return "  (empty)"
    text = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in text[-lines:]) or "  (empty)"


def ending(code: int) -> str:
    """How a process ended, after its name."""
    return f"was killed by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
