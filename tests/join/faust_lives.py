"""Lives of the Faust engine, as a program: `python -m tests.join.faust_lives URL KILLS SEED OUT INSTANCE`.

Each life but the last is a fork of this process that is killed (SIGKILL) a random while after its first records; the
last one runs until the log is joined. What it counted is written to OUT/said.json, and how many kills hit unfinished
work. This process opens no client itself.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from infra.config import KafkaConfig, LogConfig
from infra.eventlog.kafka import KafkaLog
from stream.join import core
from stream.join.faust import app
from stream.join.faust.engine import FaustWorker, start_faust
from tests.join import scenes

GIVE_UP_S = 100.0


def life(url: str, folder: Path, number: int, instance: str) -> None:
    """Join until everything is joined, in small steps; say when the first records came."""
    app.TAKE_RECORDS = 16
    log = KafkaLog(url, LogConfig())
    faust = start_faust(log, KafkaConfig(), folder / "faust", instance=instance)
    worker = FaustWorker(log, scenes.settings(core), faust, overdue_s=2.0)
    deadline = time.monotonic() + GIVE_UP_S
    while not worker.ended:
        if worker.step(0.05):
            (folder / f"started-{number}").touch()
            (folder / f"reread-{number}").write_text(str(worker.reread))
        if time.monotonic() > deadline:
            raise TimeoutError(f"not joined after {GIVE_UP_S} s: {worker.counts()}")
    (folder / f"ended-{number}").touch()
    lows = {p: last.low_offset for p in worker.partitions if (last := worker.last(p)) is not None}
    said = {"reread": worker.reread, "counts": worker.counts(), "lows": lows}
    worker.close()
    log.close()
    (folder / "said.json").write_text(json.dumps(said))


def main(url: str, kills: int, seed: int, folder: Path, instance: str) -> None:
    rng, hits = random.Random(seed), 0
    for number in range(kills + 1):
        pid = os.fork()
        if pid == 0:
            life(url, folder, number, instance)
            sys.stdout.flush()
            os._exit(0)
        if number < kills:
            wait_for(pid, folder / f"started-{number}")
            time.sleep(rng.uniform(0, 0.3))
            os.kill(pid, signal.SIGKILL)
            hits += not (folder / f"ended-{number}").exists()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status not in (0, -signal.SIGKILL):
            sys.exit(f"life {number} ended with {status}")
    said = json.loads((folder / "said.json").read_text())
    (folder / "said.json").write_text(json.dumps({**said, "hits": hits}))


def wait_for(pid: int, started: Path) -> None:
    """Return when the life has begun, or ended; it stays to be waited for."""
    while not started.exists() and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.005)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
