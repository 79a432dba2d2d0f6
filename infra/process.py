"""What every process of a run shares: its folder, a stop flag, its accounting, its line in the live display.

A process is started by name over a run folder (`ouzel join --run RUN`), reads the folder's `config.toml`, and leaves
`stats/<name>.json` behind: wall and CPU seconds (summed over restarts), peak memory, and the numbers it noted.
Nothing that a model depends on is read from here.
"""

import os
import resource
import signal
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from infra import checked
from infra.config import Config, load_config
from infra.errors import ConfigError, InputError, OuzelError, RetryableError
from infra.metrics import PORTS, PROCESSES, Metrics
from infra.temporary import sweep

if TYPE_CHECKING:
    from infra.eventlog import EventLog

STATS_ADVICE = "delete it: the report then lacks the times and counts of that process so far"
PROGRESS_EVERY_S = 0.25
MAX_NUMBER = 64  # processes of one name
# Set by a fleet to its process id: a member whose fleet died stops by itself.
FLEET_VARIABLE = "OUZEL_FLEET"
ORPHAN_CHECK_S = 1.0
LEAVE_CHECK_S = 0.5
LEAVE_AFTER_S = 3.0  # of no answer, for a process that was told to stop


class RunFolder:
    """Where the parts of a run lie."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.toml"
        self.log = path / "log"
        self.broker = path / "kafka"
        self.archive = path / "archive"
        self.store = path / "store"
        self.stats = path / "stats"
        self.evaluation = path / "evaluation"
        self.process_logs = path / "logs"

    def load_config(self) -> Config:
        """The configuration this run was started with."""
        if not self.config_file.is_file():
            raise InputError(
                f"{self.path}: not a run folder (no config.toml); `ouzel run --mind DIR --out {self.path}` makes one"
            )
        return load_config(self.config_file)

    def open_log(self, config: Config) -> "EventLog":
        """The run's event log: where `log.url` says, else in this folder. Raises as `open_log`."""
        from infra.eventlog import open_log

        if config.log.url and not config.log.url.startswith("kafka://"):
            raise ConfigError(f"log.url is {config.log.url!r}; write kafka://host:port/prefix, or leave it empty")
        return open_log(config.log.url or self.log, config.log)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file so that a reader sees the old or the new content, also after a crash.

    Raises RetryableError when the disk refuses: what was there stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RetryableError(f"{path}: {error.strerror}; make room or mend the disk", after_s=1.0) from error


class Process:
    """One named process of a run: `with Process("joiner", run, config) as process: while not process.stopping: …`."""

    def __init__(self, name: str, run_dir: Path, config: Config, *, number: int = 1) -> None:
        """`number`: which of several of that name, from 1 on; its own name then ends in it."""
        if not 1 <= number <= MAX_NUMBER:
            raise ConfigError(f"{name} number {number}; 1 to {MAX_NUMBER}")
        self.name = name if number == 1 else f"{name}-{number}"
        self._port = PROCESSES.index(name) + (number - 1) * PORTS if name in PROCESSES else -1
        self.config = config
        self.folder = RunFolder(run_dir)
        self.metrics = Metrics(name)
        self.stopping = False
        self._started = time.monotonic()
        self._notes: dict[str, Any] = {}
        self._stages: dict[str, float] = {}
        self._next_progress = 0.0
        self._said: dict[str, Any] = {}
        self._before: dict[str, Any] = {}
        self._while_inside = ExitStack()

    def __enter__(self) -> Self:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._stop)
        self.folder.stats.mkdir(parents=True, exist_ok=True)
        sweep([self.folder.stats], f".{self.name}.json.")
        base_port = self.config.metrics.base_port
        if base_port and self._port >= 0:
            self.metrics.serve(base_port + self._port)
        if self._stats_file.is_file():
            self._before = checked.from_json(self._stats_file, dict[str, Any], STATS_ADVICE)
        self.progress(force=True, state="starting")
        from infra.compiling import announced  # numba takes half a second, and `--help` needs none

        compiling = self._while_inside.enter_context(announced(self._compiling))
        self.metrics.follow("ouzel_kernels_compiled", lambda: len(compiling.kernels))
        fleet = os.environ.get(FLEET_VARIABLE, "")
        if fleet.isdigit():
            threading.Thread(target=self._watch_fleet, args=(int(fleet),), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._while_inside.close()
        self.progress(force=True, state="failed" if kind else "done")
        self._save_in_time(gave_up=kind is not None)
        self.metrics.close()

    def open_log(self) -> "EventLog":
        """The run's event log; a metric says while no broker of it answers."""
        log = self.folder.open_log(self.config)
        self.metrics.follow("ouzel_log_waiting_seconds", lambda: log.waiting_s)
        if self.config.log.url:
            threading.Thread(target=self._leave_without, args=(log,), daemon=True).start()
        return log

    def _leave_without(self, log: "EventLog") -> None:
        """End a process that was told to stop and waits for brokers that are away: there is nothing it could finish.

        What is not durable is lost as in a crash: the next start makes it again.
        """
        while not self.stopping:
            time.sleep(LEAVE_CHECK_S)
        # Whether anybody answers is known to who asks, and the others may wait for something else.
        threading.Thread(target=_ask, args=(log,), daemon=True).start()
        while log.waiting_s < LEAVE_AFTER_S:
            time.sleep(LEAVE_CHECK_S)
        with suppress(OSError):
            print(
                "told to stop, and no broker answers: left; the next start goes on from what is durable",
                file=sys.stderr,
            )
        self.progress(force=True, state="stopped")
        with suppress(RetryableError):
            self.save()
        os._exit(0)

    def _save_in_time(self, *, gave_up: bool) -> None:
        """Wait for a full disk, but not where the process was told to stop: then its numbers are lost, no more."""
        while True:
            try:
                return self.save()
            except RetryableError as error:
                if self.stopping or gave_up:
                    return None
                time.sleep(error.after_s)

    def _compiling(self, line: str) -> None:
        """Kernels that no cache holds: it takes seconds, and the state that is shown says why nothing moves."""
        print(line, file=sys.stderr, flush=True)
        self.progress(force=True, state="compiling")

    def _watch_fleet(self, fleet: int) -> None:
        while os.getppid() == fleet:
            time.sleep(ORPHAN_CHECK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self.stopping = True

    @property
    def _stats_file(self) -> Path:
        return self.folder.stats / f"{self.name}.json"

    def note(self, **numbers: Any) -> None:
        """Keep these for the report; a later note of the same name replaces an earlier one."""
        self._notes.update(numbers)

    def spent(self, stage: str, seconds: float) -> None:
        """Add wall seconds to a stage of this process (`learn`, `publish`, …)."""
        self._stages[stage] = self._stages.get(stage, 0.0) + seconds

    def progress(self, *, force: bool = False, **numbers: Any) -> None:
        """Show these numbers in the live display, beside those said before; at most four times a second reach the disk.

        `state` is one or two words; `event_time_ms` how far the process is, `tick` the newest tick that it completed:
        these two are gauges as well.
        """
        if numbers.get("event_time_ms", 0) > 0:
            self.metrics.set("ouzel_event_time_seconds", numbers["event_time_ms"] / 1000)
        if numbers.get("tick", -1) >= 0:
            self.metrics.set("ouzel_tick", numbers["tick"])
        now = time.monotonic()
        if not force and now < self._next_progress:
            return
        self._next_progress = now + PROGRESS_EVERY_S
        self._said.update(numbers)
        live = {"name": self.name, "pid": os.getpid(), **self._said}
        path = self.folder.stats / f"{self.name}.live.json"
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(live))
            os.replace(temporary, path)
        except OSError:
            return  # a full disk stops what has to be durable; this is only looked at

    def save(self) -> None:
        """Write `stats/<name>.json`, adding to what an earlier life of this process left there."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        before = self._before
        stages = dict(before.get("stages", {}))
        for stage, seconds in self._stages.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
        stats = {
            "name": self.name,
            "wall_s": before.get("wall_s", 0.0) + time.monotonic() - self._started,
            "cpu_s": before.get("cpu_s", 0.0) + usage.ru_utime + usage.ru_stime,
            "peak_rss_bytes": max(before.get("peak_rss_bytes", 0), usage.ru_maxrss * 1024),
            "peak_pss_bytes": max(before.get("peak_pss_bytes", 0), pss_bytes(os.getpid())),
            "lives": before.get("lives", 0) + 1,
            "stages": stages,
            "notes": {**before.get("notes", {}), **self._notes},
        }
        write_atomically(self._stats_file, checked.to_json(stats, indent=True))


def _ask(log: "EventLog") -> None:
    with suppress(OuzelError):
        log.end_offset("control", 0)


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process, bytes: shared pages divided by their users. 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return 0
