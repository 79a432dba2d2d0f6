"""Lives of the Faust engine, as a program: `python -m tests.join.faust_lives URL KILLS SEED OUT`.

Each life but the last is a fork of this process that is killed (SIGKILL) a random while after its first records; the
last one runs until the log is joined. What it counted is written to OUT. This process opens no client itself.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from infra.config import LogConfig
from infra.eventlog import open_log
from infra.eventlog.kafka.address import parse_address
from stream.join import core
from stream.join.faust.engine import FaustWorker
from tests.join import scenes

GIVE_UP_S = 100.0


def life(url: str, folder: Path, started: Path) -> None:
    """Join until everything is joined; say when the first records came."""
    log = open_log(url, LogConfig())
    settings = scenes.settings(core)
    worker = FaustWorker(log, parse_address(url), settings, datadir=folder / "faust", instance="one", overdue_s=2.0)
    deadline = time.monotonic() + GIVE_UP_S
    while not worker.ended:
        if worker.step(0.05):
            started.touch()
        if time.monotonic() > deadline:
            raise TimeoutError(f"not joined after {GIVE_UP_S} s: {worker.counts()}")
    said = {"reread": worker.reread, "counts": worker.counts()}
    worker.close()
    log.close()
    (folder / "said.json").write_text(json.dumps(said))


def main(url: str, kills: int, seed: int, folder: Path) -> None:
    rng = random.Random(seed)
    for number in range(kills + 1):
        started = folder / f"started-{number}"
        pid = os.fork()
        if pid == 0:
            life(url, folder, started)
            sys.stdout.flush()
            os._exit(0)
        if number < kills:
            while not started.exists() and os.waitpid(pid, os.WNOHANG) == (0, 0):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status not in (0, -signal.SIGKILL):
            sys.exit(f"life {number} ended with {status}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
