"""The Faust engine against a real broker: the bytes of the own engine, also where it is killed with a backlog."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions
from confluent_kafka.admin import AdminClient

from infra.config import Config, LogConfig
from infra.eventlog import EventLog, open_log
from infra.eventlog.kafka.address import parse_address
from infra.metrics import PROCESSES
from infra.supervisor.broker import free_ports
from stream.join.core import JoinSettings
from stream.join.worker import JoinWorker
from tests.join import logs
from tests.join.faust_logs import accepted, joined_here, on_kafka
from tests.wire.test_wire_join import poisoned

LIVES_S = 150.0


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Any:
    log = joined_here(tmp_path_factory.mktemp("truth"))
    yield log
    log.close()


@pytest.fixture
def url(kafka: str) -> str:
    return f"kafka://{kafka}/faust-{uuid.uuid4().hex[:12]}"


def live(url: str, kills: int, folder: Path) -> dict[str, Any]:
    """What the last life of the engine said; see `faust_lives`."""
    command = [sys.executable, "-m", "tests.join.faust_lives", url, str(kills), "7", str(folder), "one"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIVES_S)
    assert not done.returncode, done.stderr
    said: dict[str, Any] = json.loads((folder / "said.json").read_text())
    return {**said, "stderr": done.stderr}


def letters(log: EventLog) -> list[Any]:
    return sorted(set(logs.contents(log, "dead-letters")))


def committed(url: str) -> dict[int, int]:
    """Offsets of Faust's group, by partition."""
    address = parse_address(url)
    admin = AdminClient({"bootstrap.servers": address.brokers})
    (answer,) = admin.list_consumer_group_offsets(
        [ConsumerGroupTopicPartitions(f"{address.prefix}-joiner-faust")]
    ).values()
    return {each.partition: each.offset for each in answer.result().topic_partitions}


@pytest.mark.parametrize("kills", [2, pytest.param(18, marks=pytest.mark.slow)])
def test_killed_with_a_backlog_it_writes_the_bytes_of_the_own_engine(
    tmp_path: Path, truth: Any, url: str, kills: int
) -> None:
    log = on_kafka(url, truth)
    said = live(url, kills, tmp_path)
    assert said["hits"] >= kills - 1
    assert "Not guaranteed" in said["stderr"]
    assert accepted(logs.contents(log)) == logs.contents(truth)
    assert letters(log) == letters(truth)
    assert committed(url) == {int(p): low for p, low in said["lows"].items()}
    log.close()


@pytest.mark.slow
def test_of_two_workers_one_is_killed_and_the_other_goes_on_with_both_partitions(
    tmp_path: Path, truth: Any, url: str
) -> None:
    log = on_kafka(url, truth)
    pair = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        command = [sys.executable, "-m", "tests.join.faust_lives", url, "0", "7", str(tmp_path / name), name]
        pair.append(subprocess.Popen(command, start_new_session=True))
    while not all((tmp_path / name / "started-0").exists() for name in ("a", "b")):
        assert all(process.poll() is None for process in pair)
        time.sleep(0.005)
    os.killpg(pair[0].pid, signal.SIGKILL)
    pair[0].wait()
    unfinished = not (tmp_path / "a" / "ended-0").exists()
    assert pair[1].wait(LIVES_S) == 0
    said = json.loads((tmp_path / "b" / "said.json").read_text())
    assert accepted(logs.contents(log)) == logs.contents(truth)
    assert unfinished
    assert len(said["lows"]) == logs.PARTITIONS
    log.close()


def test_ouzel_join_with_the_engine_faust_joins_a_run_and_exports_its_sensors(tmp_path: Path, url: str) -> None:
    source, _ = poisoned(tmp_path / "source", good=300)
    run, (port,) = tmp_path / "run", free_ports(1)
    run.mkdir()
    base = port - PROCESSES.index("joiner")
    (run / "config.toml").write_text(f'[log]\nurl = "{url}"\npartitions = 2\n[metrics]\nbase_port = {base}\n')
    on_kafka(url, source).close()
    command = [sys.executable, "-m", "infra.cli", "join", "--run", str(run), "--engine", "faust"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = open_log(url, LogConfig(partitions=logs.PARTITIONS))
    own = JoinWorker(source, JoinSettings.of(Config()))
    while own.step():
        pass
    deadline = time.monotonic() + LIVES_S
    while len(logs.contents(log)) < len(logs.contents(source)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        metrics = answer.read().decode()
    process.terminate()
    _, said = process.communicate(timeout=LIVES_S)
    assert process.returncode == 0
    assert "Not guaranteed" in said
    assert logs.contents(log) == logs.contents(source)
    seen = {line.split()[0]: float(line.split()[1]) for line in metrics.splitlines() if line[0] != "#"}
    assert seen["ouzel_faust_messages_total"] + seen["ouzel_faust_reread_total"] >= log.end_offset("events", 0)
    assert seen["ouzel_faust_rebalances_total"] >= 1
    for each in (own, log, source):
        each.close()


def test_a_run_whose_log_lies_in_its_folder_has_no_faust_engine(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    command = [sys.executable, "-m", "infra.cli", "join", "--run", str(tmp_path), "--engine", "faust"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode
    assert "use the own engine" in done.stderr
