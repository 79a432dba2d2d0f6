"""`ouzel up` as a user runs it: started, asked what it prints, told to stop."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from infra.process import RunFolder
from infra.supervisor.broker import free_ports

PATIENCE_S = 90
SPEED = 60  # event seconds a second: a click is learned some 4 s later


class Live:
    """A run that goes on, between `with` and its end. What it printed is in `said`."""

    def __init__(self, folder: RunFolder, output: Path, *flags: str) -> None:
        (port,) = free_ports(1)
        self._folder, self._output = folder, output
        self._file = open(output, "w", encoding="utf-8")  # noqa: SIM115
        command = [sys.executable, "-m", "infra.cli", "up", "--run", str(folder.path)]
        command += ["--speed", str(SPEED), "--port", str(port), *flags]
        self._process = subprocess.Popen(command, stdout=self._file, stderr=subprocess.STDOUT)

    def __enter__(self) -> "Live":
        with ExitStack() as stack:
            stack.callback(self._stop)
            self._wait(lambda: "Ctrl-C" in self.said, "says what to ask")
            commands = re.findall(r"curl -s (\S+) --json '(.*?)'", self.said, re.DOTALL)
            (self._rank, self._shown), (self._events, self._clicked) = commands
            self._wait(self._answers, "ranks")
            stack.pop_all()  # it runs: to stop it is for the end of the block
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._file.close()
        self.returncode = self._process.returncode

    @property
    def said(self) -> str:
        """All that was printed."""
        return self._output.read_text(encoding="utf-8")

    @property
    def clicked(self) -> str:
        """The item that the printed example clicks."""
        events = json.loads(self._clicked)["events"]
        return next(str(event["item"]) for event in events if event["type"] == "engagement")

    def rank(self) -> dict[str, Any]:
        """The answer to the printed question: scores by item, and the version that made them."""
        answer = _post(self._rank, self._shown)
        return {"scores": {item["id"]: item["score"] for item in answer["items"]}, "tick": answer["version"]["tick"]}

    def click(self) -> int:
        """Post the printed events; the event time in ms that they were given."""
        answer = _post(self._events, self._clicked)
        assert answer["accepted"] == 2
        return int(answer["time_ms"])

    def post(self, impression: str) -> None:
        """Post the printed events once more, as another impression."""
        events = json.loads(self._clicked)["events"]
        for event in events:
            event["id" if event["type"] == "impression" else "impression"] = impression
        assert _post(self._events, json.dumps({"events": events}))["accepted"] == 2

    def rank_at(self, tick: int) -> dict[str, Any]:
        """The same question once it is answered by the version of `tick` or a later one."""
        self._wait(lambda: self.rank()["tick"] >= tick, f"serves a version of tick {tick}")
        return self.rank()

    def kill(self, name: str) -> None:
        """SIGKILL one of its processes, once it has started."""
        live = self._folder.stats / f"{name}.live.json"
        children = {child.pid for child in psutil.Process(self._process.pid).children()}
        self._wait(lambda: json.loads(live.read_bytes())["pid"] in children, f"starts {name}")
        os.kill(json.loads(live.read_bytes())["pid"], signal.SIGKILL)

    def degraded_for(self, name: str) -> list[str]:
        """What `/readyz` says is missing, as soon as it says so of this process."""
        found: list[str] = []

        def told() -> bool:
            found[:] = self.readyz()["degraded"]
            return any(sentence.startswith(name) for sentence in found)

        self._wait(told, f"says that {name} does not run")
        return found

    def readyz(self) -> dict[str, Any]:
        """The answer, whatever its status."""
        try:
            with urllib.request.urlopen(self._rank.replace("/v1/rank", "/readyz"), timeout=10) as answer:
                result: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                result = json.load(error)
        return result

    def _answers(self) -> bool:
        try:
            return bool(self.rank())
        except OSError:  # refused, reset, timed out, or an answer that is an error
            return False

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert self._process.poll() is None, f"ended before it {what}:\n{self.said}"
            assert time.monotonic() < deadline, f"{PATIENCE_S} s, and it never {what}:\n{self.said}"
            time.sleep(0.1)


def _post(url: str, body: str) -> dict[str, Any]:
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        result: dict[str, Any] = json.load(answer)
    return result
