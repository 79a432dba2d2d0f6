"""The processes of one run: started by name, watched, stopped together.

Each is `python -m infra.cli NAME --run RUN …` with its output in `RUN/logs/<name>.log`. They speak through the logs
of the run alone; the fleet passes nothing between them. Children live in sessions of their own, so that Ctrl-C reaches
the fleet first, which then stops them in order: producers before their readers.

A member that ends by itself is started again (`supervise` in the configuration) after a wait that doubles with each
end; one that ends too often, or with an error that a person must mend (`EXIT_MEND`), stays stopped. `RUN/members.json`
and `RUN/logs/supervisor.log` say so.
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

from rich.console import Console

from infra.cli import EXIT_MEND, EXIT_USAGE
from infra.config import SuperviseConfig
from infra.errors import OuzelError
from infra.members import Standing, write_members
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
class Ends:
    """How often a member has ended by itself, and what is done about it."""

    at_s: list[float] = field(default_factory=list)  # within the window
    due_s: float | None = None  # when it is started again
    standing: Standing = field(default_factory=Standing)


@dataclass
class Fleet:
    """Processes over one run folder. `echo(name, line)` is given what they print too, from threads.

    `supervise`: start again what ends; without it, the first end is the fleet's. `needed`: the command of which one
    member must be left, "" where every member must; then a member that stays stopped is no end of the others.
    `endless`: a member that ends without an error was not meant to either. `say` is given a line whenever one ends.
    """

    folder: RunFolder
    members: Sequence[Member]
    echo: Callable[[str, str], None] | None = None
    supervise: SuperviseConfig | None = None
    needed: str = ""
    endless: bool = False
    say: Callable[[str], None] | None = None
    publishes: bool = True  # members.json: one fleet of a run does
    _ends: dict[str, Ends] = field(default_factory=dict)
    peak_pss_bytes: int = 0
    _running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    _logs: list[IO[bytes]] = field(default_factory=list)
    _copying: list[threading.Thread] = field(default_factory=list)
    _next_sample: float = 0.0

    def start_all(self) -> None:
        """Start every member."""
        for member in self.members:
            self.start(member.name)
        self._publish()

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

    def standings(self) -> dict[str, Standing]:
        """How each member stands."""
        return {member.name: self._ends.get(member.name, Ends()).standing for member in self.members}

    def check(self) -> list[str]:
        """Sample memory; start again what is due; return who is running or will be.

        Raises ProcessFailed where a member failed and stays stopped, and is needed.
        """
        running = self.running()  # before: who fails after this is found by the next look
        if self.supervise is None:
            self.raise_failed()
        else:
            self._mend(self.supervise)
            running += [n for n, ends in self._ends.items() if ends.due_s is not None and n not in running]
        now = time.monotonic()
        if now >= self._next_sample:
            self._next_sample = now + SAMPLE_EVERY_S
            pids = [os.getpid(), *(p.pid for p in self._running.values() if p.poll() is None)]
            self.peak_pss_bytes = max(self.peak_pss_bytes, sum(map(pss_bytes, pids)))
        return running

    def _mend(self, supervise: SuperviseConfig) -> None:
        now_s = time.monotonic()
        for name, process in tuple(self._running.items()):
            code = process.poll()
            if code is None or (code == 0 and not self.endless):
                continue
            ends = self._ends.setdefault(name, Ends())
            if ends.due_s is not None and now_s >= ends.due_s:
                ends.due_s = None
                restarts = ends.standing.restarts + 1
                self.start(name)
                self._stands(name, Standing("running", "was started again", restarts))
            elif ends.due_s is None and ends.standing.state != "stopped":
                self._ended(name, code, ends, supervise)

    def _ended(self, name: str, code: int, ends: Ends, supervise: SuperviseConfig) -> None:
        """A member ended: say when it is started again, or that it is not. Raises ProcessFailed where it is needed."""
        now_s, before = time.monotonic(), ends.standing
        ends.at_s = [*(at for at in ends.at_s if now_s - at < supervise.window_s), now_s]
        failures = len(ends.at_s)
        if code not in (EXIT_MEND, EXIT_USAGE) and failures < supervise.max_failures:
            wait_s = min(supervise.first_wait_s * 2 ** (failures - 1), supervise.longest_wait_s)
            ends.due_s = now_s + wait_s
            reason = (
                f"{ending(code)} and is started again in {wait_s:.3g} s (end {failures} of {supervise.max_failures}"
            )
            return self._stands(
                name, Standing("restarting", f"{reason} within {supervise.window_s:.0f} s)", before.restarts)
            )
        log = self.folder.process_logs / f"{name}.log"
        last = tail(log, 1).strip()
        why = "which another start does not mend" if failures < supervise.max_failures else f"end {failures} of as many"
        reason = f"{ending(code)}, {why}: it stays stopped until the command is started again; {log} ends with: {last}"
        self._stands(name, Standing("stopped", reason, before.restarts))
        if not self._enough():
            raise ProcessFailed(self._why(name, code))
        return None

    def _enough(self) -> bool:
        """Whether what has not been given up is of use without the rest."""
        standings = self.standings()
        return bool(self.needed) and any(
            member.command == self.needed and standings[member.name].state != "stopped" for member in self.members
        )

    def _stands(self, name: str, standing: Standing) -> None:
        self._ends[name].standing = standing
        line = f"{name} {standing.reason}"
        if self.say is not None:
            self.say(line)
        with suppress(OSError), open(self.folder.process_logs / "supervisor.log", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}\n")
        self._publish()

    def _publish(self) -> None:
        if self.publishes:
            write_members(self.folder.path, self.standings())

    def raise_failed(self, *, stopped: bool = False) -> None:
        """Raises ProcessFailed where a member failed. One that was `stopped` may die of it, before it had begun."""
        for name, process in self._running.items():
            code = process.poll()
            if stopped and name in self._ends and self._ends[name].due_s is not None:
                continue
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


def said_on(console: Console) -> Callable[[str], None]:
    """For `Fleet(say=…)`: a line above what is drawn."""
    return lambda line: console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
