"""A run keeps the configuration that its content depends on: nothing that works on it starts with another."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from infra.config import Config, load_config
from infra.errors import ConfigError
from infra.eventlog import EventLog, create_topics, open_log
from infra.paramstore.configuration import (
    APART,
    CONTENT,
    OTHER,
    configuration_digest,
    content_of,
    hold_to_configuration,
)
from infra.paramstore.publisher import last_whole
from infra.paramstore.store import ParamStore
from infra.process import RunFolder

from .conftest import Run

COMMANDS = (("up", "--run"), ("train", "--run"), ("serve", "--run"), ("join", "--run"), ("verify",))


def configured(*overrides: str) -> Config:
    return load_config(env={}, overrides=overrides)


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    log = open_log(tmp_path / "log", Config().log)
    create_topics(log, 2)
    return log


def version(log: EventLog, folder: Path, configuration: str) -> None:
    publisher = ParamStore(folder, log).publisher(configuration=configuration)
    publisher.progress(7, positions={0: 0, 1: 0}, items_offset=0, control_offset=0, timestamp_ms=0)
    publisher.flush()
    publisher.close()


def test_every_section_counts_or_is_known_not_to() -> None:
    assert sorted(msgspec.to_builtins(Config())) == sorted((*CONTENT, *OTHER)), (
        "a new section: say in infra/paramstore/configuration.py whether examples or versions depend on it"
    )
    keys = content_of(Config())
    assert {"time.tick_s", "join.late_s", "model.slots.item.lr", "train.negative_rate", "replay.seed"} <= keys.keys()
    assert not any(key.startswith(("serve.", "metrics.", "log.")) for key in keys)
    assert not {"replay.speed", "train.snapshot_ticks", "model.slots.item.precision"} & keys.keys()
    assert len(APART) == 3


def test_another_configuration_is_refused_with_the_keys_that_differ(log: EventLog) -> None:
    hold_to_configuration(log, configured(), first=True)
    hold_to_configuration(log, configured("serve.port=8400", "train.snapshot_ticks=7", "replay.speed=60x"), first=True)
    assert log.end_offset("control", 0) == 1
    with pytest.raises(
        ConfigError, match=r"model.slots.item.lr is 0.5, the run has 0.15; time.tick_s is 10, the run has 60"
    ):
        hold_to_configuration(log, configured("time.tick_s=10", "model.slots.item.lr=0.5"))


def test_a_run_of_an_older_release_is_taken_as_it_is_and_held_from_then_on(log: EventLog, tmp_path: Path) -> None:
    version(log, tmp_path, "")
    hold_to_configuration(log, configured("train.dense_lr=0.01"))
    hold_to_configuration(log, configured("train.dense_lr=0.01"), first=True)
    with pytest.raises(ConfigError, match=r"train.dense_lr is 0.003, the run has 0.01"):
        hold_to_configuration(log, configured())


def test_without_control_the_versions_still_tell_another_configuration(log: EventLog, tmp_path: Path) -> None:
    version(log, tmp_path, configuration_digest(configured()))
    hold_to_configuration(log, configured())
    with pytest.raises(ConfigError, match="made with another configuration"):
        hold_to_configuration(log, configured("time.tick_s=10"), first=True)


def test_a_key_that_the_run_did_not_know_counts_once_it_is_not_at_its_default(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_to_configuration(log, configured(), first=True)
    kept = msgspec.json.decode(log.read("control", 0, 0)[0].value)
    del kept["values"]["train.negative_rate"]
    monkeypatch.setattr("infra.paramstore.configuration.TOPIC", "dead-letters")
    writer = log.writer("dead-letters")
    writer.append(0, msgspec.json.encode(kept), timestamp_ms=0)
    writer.close()
    hold_to_configuration(log, configured())
    with pytest.raises(ConfigError, match=r"train.negative_rate is 0.5, the run has 1.0"):
        hold_to_configuration(log, configured("train.negative_rate=0.5"))


@pytest.mark.slow
def test_no_process_starts_over_a_run_with_another_configuration(straight: Run, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(straight.folder.path, folder.path)
    config = folder.load_config()
    log = folder.open_log(config)
    head = last_whole(log)
    assert head is not None
    assert head.configuration == configuration_digest(config)
    ends = {topic: log.end_offset(topic, 0) for topic in ("examples", "versions", "control")}
    log.close()
    environment = os.environ | {"OUZEL_TIME__TICK_S": "120"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "infra.cli", *command, str(folder.path)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in COMMANDS
    ]
    for command, process in zip(COMMANDS, started, strict=True):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 1, command
        assert "time.tick_s is 120 (by OUZEL_TIME__TICK_S in the environment), the run has 60" in said, (command, said)
    log = folder.open_log(config)
    assert {topic: log.end_offset(topic, 0) for topic in ends} == ends
    log.close()
