"""A whole run as a person starts it, `ouzel run` over Kafka, watched from outside: its endpoints, its logs, its end."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from infra.metrics import PORTS, PROCESSES
from infra.process import RunFolder

from .conftest import SETTINGS

PATIENCE_S = 120.0
WAITING = "ouzel_log_waiting_seconds"
VERSIONS = "ouzel_versions_total"
SAMPLE_S = 0.1


class WholeRun:
    """The run, and its processes by name: those of two joiners, two replicas and one of every other kind."""

    def __init__(self, folder: Path, mind: Path, address: str, *settings: str) -> None:
        self.folder = RunFolder(folder)
        base = free_range(3 * PORTS)
        self.ports = {name: base + number for number, name in enumerate(PROCESSES)}
        self.ports |= {f"{name}-2": self.ports[name] + PORTS for name in ("joiner", "replica")}
        self.api = {"replica": base + 2 * PORTS, "replica-2": base + 2 * PORTS + 1}
        given = (*SETTINGS, *settings, f"metrics.base_port={base}", f"serve.port={self.api['replica']}")
        self._output = folder.with_suffix(".out")
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "infra.cli", "run", "--mind", str(mind), "--out", str(folder)]
                + ["--log", f"kafka://{address}", "--workers", "2", "--replicas", "2"]
                + [part for setting in given for part in ("--set", setting)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def names(self) -> list[str]:
        """Of all processes."""
        return sorted(self.ports)

    def metric(self, process: str, name: str) -> float:
        """What a process exports; 0 where it does not answer (yet)."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[process]}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return 0.0
        return next((float(line.split()[1]) for line in lines if line.split()[0] == name), 0.0)

    def waiting_s(self) -> dict[str, float]:
        """How long each process has had no answer of the log."""
        return {name: self.metric(name, WAITING) for name in self.names}

    def rank(self, replica: str) -> dict[str, Any]:
        """The answer of a replica to a question of a user. Raises where it has none."""
        body = json.dumps({"user": "U1", "items": ["N1", "N2", "N3"]}).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.api[replica]}/v1/rank", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def cpu_s(self) -> dict[str, float]:
        """Processor time so far, by process."""
        return {name: sum(process.cpu_times()[:2]) for name, process in self._members().items()}

    def alive(self) -> list[str]:
        """Who runs."""
        return sorted(self._members())

    def _members(self) -> dict[str, psutil.Process]:
        pids = {}
        for name in self.names:
            with suppress(OSError, ValueError):
                pids[name] = json.loads((self.folder.stats / f"{name}.live.json").read_bytes())["pid"]
        children = {child.pid: child for child in psutil.Process(self.process.pid).children()}
        return {name: children[pid] for name, pid in pids.items() if pid in children}

    def said(self) -> dict[str, list[str]]:
        """The lines that each process has written."""
        return {
            name: (self.folder.process_logs / f"{name}.log").read_text(encoding="utf-8").splitlines()
            for name in self.names
        }

    def until(self, what: str, condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> float:
        """Wait for something that comes by itself; the seconds that it took. Fails where the run ends before."""
        started = time.monotonic()
        while not condition():
            waited = time.monotonic() - started
            assert self.process.poll() is None, f"the run ended before {what}:\n{self.output()}"
            assert waited < timeout_s, f"not {what} after {waited:.0f} s: {self.waiting_s()}"
            time.sleep(SAMPLE_S)
        return time.monotonic() - started

    def finish(self) -> dict[str, Any]:
        """Wait for the end of the run; its report."""
        code = self.process.wait(PATIENCE_S)
        assert code == 0, self.output()
        report: dict[str, Any] = json.loads((self.folder.path / "report.json").read_bytes())
        return report

    def lives(self) -> dict[str, int]:
        """How often each process was started."""
        return {name: self.stats(name)["lives"] for name in self.names}

    def stats(self, process: str) -> dict[str, Any]:
        """What a process left for the report."""
        found: dict[str, Any] = json.loads((self.folder.stats / f"{process}.json").read_bytes())
        return found

    def output(self) -> str:
        """What the command printed."""
        return self._output.read_text(encoding="utf-8")[-4_000:]

    def stop(self) -> None:
        """End it, where it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextmanager
def whole_run(folder: Path, mind: Path, address: str, *settings: str) -> Iterator[WholeRun]:
    """A run that ends with the block."""
    run = WholeRun(folder, mind, address, *settings)
    try:
        yield run
    finally:
        run.stop()


def free_range(count: int) -> int:
    """The first of some ports in a row that nobody listens on, below those that connections are given."""
    return next(base for base in range(21_000, 31_000, count) if all(_free(base + n) for n in range(count)))


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
