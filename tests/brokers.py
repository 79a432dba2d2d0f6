"""A real Kafka broker for the tests of one run, shared by all its workers.

In this order: `OUZEL_KAFKA=host:port`; Docker through testcontainers, where a daemon answers; an installation in
`KAFKA_HOME`; Apache Kafka by Maven. Whoever needs it first starts it, under a lock; it ends with the pytest process.
Where none can be had, tests skip, or fail if `OUZEL_KAFKA_REQUIRED=1` (`make test` and CI say so).
"""

import fcntl
import os
import shutil
import subprocess
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.errors import OuzelError
from infra.supervisor.broker import READY_TIMEOUT_S, Broker, free_ports

IMAGE = "apache/kafka:4.3.0"
DOCKER_TIMEOUT_S = 10.0
RUNNING: list[object] = []  # what outlives whoever started it


def main_process() -> int:
    """The pytest process that a person started: the parent of xdist's workers."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


def shared_folder(base: Path) -> Path:
    """A folder that all workers of this run see; `base` is a worker's own."""
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def shared_address(folder: Path) -> str:
    """host:port of the broker of this run, started if it is the first time that somebody asks."""
    if given := os.environ.get("OUZEL_KAFKA"):
        return given
    with open(folder / "kafka.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        noted = folder / "kafka.address"
        if not noted.exists():
            noted.write_text(_in_docker() or _of_jars(folder / "kafka"))
        return noted.read_text()


def _of_jars(folder: Path) -> str:
    broker = Broker(folder, owner_pid=main_process(), remove=True)
    RUNNING.append(broker)
    broker.start()
    return broker.address


def _in_docker() -> str | None:
    """A container that is removed when the run's main process has gone; None where that cannot be had, and why not."""
    docker = shutil.which("docker")
    if docker is None:
        return None
    try:
        subprocess.run([docker, "info"], check=True, capture_output=True, timeout=DOCKER_TIMEOUT_S)
    except (subprocess.SubprocessError, OSError):
        return None
    from docker.errors import DockerException
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    # Its reaper is another image, and removes the container with the worker that started it; ours outlives that one.
    testcontainers_config.ryuk_disabled = True
    (port,) = free_ports(1)
    container = DockerContainer(IMAGE).with_envs(**_settings(port))
    container.ports["9092/tcp"] = ("127.0.0.1", port)
    try:
        container.start()
    except (DockerException, OSError) as error:
        _say(f"Docker is here, but {IMAGE} does not start: {error}")
        return None
    running = container.get_wrapped_container()
    _stop_with(main_process(), [docker, "rm", "--force", "--volumes", running.id])
    if not _answers(f"127.0.0.1:{port}"):
        _say(f"{IMAGE} in Docker does not answer: {running.logs(tail=20).decode(errors='replace')}")
        container.stop()
        return None
    return f"127.0.0.1:{port}"


def _settings(port: int) -> dict[str, str]:
    return {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": "CLIENT://:9092,INSIDE://:19092,CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"CLIENT://127.0.0.1:{port},INSIDE://localhost:19092",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CLIENT:PLAINTEXT,INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "INSIDE",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "2",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    }


def _say(text: str) -> None:
    """A warning in the run's summary that is no error, though warnings are: there is another way to a broker."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn(text, stacklevel=3)


def _stop_with(pid: int, command: list[str]) -> None:
    watch = 'while kill -0 "$1" 2>/dev/null; do sleep 0.5; done; shift; exec "$@"'
    quiet = subprocess.DEVNULL
    watcher = ["sh", "-c", watch, "sh", str(pid), *command]
    RUNNING.append(subprocess.Popen(watcher, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True))


def _answers(address: str) -> bool:
    """Whether a broker answers, within as long as one of the jars is given."""
    admin = AdminClient({"bootstrap.servers": address, "log_level": 0, "reconnect.backoff.max.ms": 200})
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(KafkaException):
            if admin.list_topics(timeout=1).brokers:
                return True
    return False


def or_skip(error: OuzelError) -> None:
    """No broker: a failure where one is required, else a skip that says what is missing."""
    if os.environ.get("OUZEL_KAFKA_REQUIRED") == "1":
        raise error
    pytest.skip(f"no Kafka broker: {error}")
