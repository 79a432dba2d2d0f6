"""`ouzel join --workers 2`: one command, two joiners that share the partitions, stopped together, failed together."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.config import Config, LogConfig
from infra.errors import ConfigError
from infra.eventlog import EventLog, open_log
from infra.process import RunFolder
from infra.supervisor.broker import Broker
from infra.supervisor.fleet import Fleet, Member, ProcessFailed
from stream.join.core import JoinSettings
from stream.join.together import join_together
from stream.join.worker import JoinWorker
from tests.join import logs
from tests.join.faust_logs import accepted, on_kafka
from tests.wire.test_wire_join import poisoned

PATIENCE_S = 60.0
NAMES = ("joiner", "joiner-2")


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EventLog]:
    """A log in a folder, joined by one worker."""
    log, _ = poisoned(tmp_path_factory.mktemp("truth"), good=300)
    own = JoinWorker(log, JoinSettings.of(Config()))
    while own.step():
        pass
    own.close()
    yield log
    log.close()


@pytest.fixture
def run(tmp_path: Path, truth: EventLog, own_broker: Broker) -> Path:
    """A run folder whose log, on Kafka, holds the same events."""
    url = f"kafka://{own_broker.address}/together-{uuid.uuid4().hex[:12]}"
    client = '"session.timeout.ms" = 1500\n"heartbeat.interval.ms" = 300\n'  # a dead member is missed sooner
    log = f'[log]\nurl = "{url}"\npartitions = {logs.PARTITIONS}\n[log.kafka.client]\n{client}'
    (tmp_path / "config.toml").write_text(log)
    on_kafka(url, truth).close()
    return tmp_path


def start(run: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "infra.cli", "join", "--run", str(run), *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def said(run: Path, name: str) -> dict[str, Any]:
    """What a joiner last said of itself."""
    path = run / "stats" / f"{name}.live.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def wait_for(true: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, process.args
        time.sleep(0.02)


def test_two_joiners_of_one_command_share_the_partitions_and_are_stopped_together(run: Path, truth: EventLog) -> None:
    config = (run / "config.toml").read_text()
    log = open_log(config.split('"')[1], LogConfig(partitions=logs.PARTITIONS))
    process = start(run, "--workers", "2")
    wait_for(lambda: [said(run, name).get("partitions") for name in NAMES] == [1, 1], process)
    wait_for(lambda: len(logs.contents(log)) >= len(logs.contents(truth)), process)
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert [said(run, name)["state"] for name in NAMES] == ["done", "done"]
    assert "joiner   | joins partitions " in output
    assert "joiner-2 | joins partitions " in output
    assert accepted(logs.contents(log)) == logs.contents(truth)
    log.close()


def test_a_joiner_that_dies_is_named_and_started_again_beside_the_others(run: Path) -> None:
    process = start(run, "--workers", "2", "--number", "2")
    wait_for(lambda: all("state" in said(run, f"joiner-{n}") for n in (2, 3)), process)
    pids = {n: said(run, f"joiner-{n}")["pid"] for n in (2, 3)}
    os.kill(pids[3], signal.SIGKILL)
    wait_for(lambda: said(run, "joiner-3")["pid"] != pids[3] and "partitions" in said(run, "joiner-3"), process)
    assert said(run, "joiner-2")["pid"] == pids[2]
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    assert "joiner-3 was killed by signal SIGKILL and is started again in 0.5 s" in output
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_several_joiners_need_a_log_on_kafka_and_numbers_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config_file.write_text("")
    with pytest.raises(ConfigError, match="joined by one worker"):
        join_together(folder, 2, 1, ())
    folder.config_file.write_text('[log]\nurl = "kafka://127.0.0.1:1/x"\n')
    with pytest.raises(ConfigError, match="numbers go to 64"):
        join_together(folder, 2, 64, ())


def test_what_a_process_prints_is_shown_behind_its_name_and_kept_in_its_log(tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []
    fleet = Fleet(RunFolder(tmp_path), [Member("a", "joinn")], echo=lambda name, line: heard.append((name, line)))
    fleet.start_all()
    while fleet.running():
        time.sleep(0.01)
    fleet.close()
    with pytest.raises(ProcessFailed, match="exit code 2; all that it said is in"):
        fleet.check()
    assert heard == [("a", "ouzel: no command 'joinn'; did you mean join?")]
    assert "did you mean join?" in (tmp_path / "logs" / "a.log").read_text()
