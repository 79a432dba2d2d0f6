"""A joiner of a group over Kafka, as a process for tests to kill: `python -m tests.join.group_worker URL`."""

import signal
import sys
import time
from types import FrameType

from infra.config import KafkaConfig, LogConfig
from infra.eventlog import EventLog, open_log
from stream.join import core
from stream.join import worker as worker_module
from tests.join import scenes

PARTITIONS = 4
SESSION_MS = 1_500  # after which a worker that does not answer is replaced
STEP_S = 0.01  # slow enough that a fault finds something unfinished


def open_it(url: str) -> EventLog:
    client = {"session.timeout.ms": SESSION_MS, "heartbeat.interval.ms": 300}
    return open_log(url, LogConfig(partitions=PARTITIONS, kafka=KafkaConfig(client=client)))


def main(url: str) -> None:
    stopping: list[int] = []

    def stop(signum: int, _frame: FrameType | None) -> None:
        stopping.append(signum)

    signal.signal(signal.SIGTERM, stop)
    worker_module.POLL_RECORDS = 3
    log = open_it(url)
    worker = worker_module.JoinWorker(log, scenes.settings(core), grouped=True, stopping=lambda: bool(stopping))
    print("started", flush=True)
    while not stopping and not worker.ended:
        worker.step(0.02)
        time.sleep(STEP_S)
    worker.close()
    log.close()


if __name__ == "__main__":
    main(sys.argv[1])
