"""The launcher of a real broker: what it needs, and what it says where that is missing. That it runs: Kafka's tests."""

import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from infra.errors import ConfigError, CorruptStateError, RetryableError
from infra.supervisor import kafka_jars as jars
from infra.supervisor.broker import WATCH, Broker, BrokerFailed
from infra.supervisor.broker_folder import Held, runs


def executable(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_no_java_is_said_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="openjdk-17"):
        jars.find_java({"PATH": str(tmp_path)})
    with pytest.raises(ConfigError, match=f"JAVA_HOME={tmp_path}"):
        jars.find_java({"PATH": "/usr/bin", "JAVA_HOME": str(tmp_path)})


def test_no_maven_is_said_with_the_other_ways(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"KAFKA_HOME.*OUZEL_KAFKA"):
        jars.kafka_jars({"PATH": str(tmp_path), "OUZEL_CACHE": str(tmp_path / "cache")})


def test_an_installation_is_used_and_a_wrong_one_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="KAFKA_HOME"):
        jars.kafka_jars({"KAFKA_HOME": str(tmp_path)})
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-4.3.0.jar").touch()
    assert jars.kafka_jars({"KAFKA_HOME": str(tmp_path)}) == tmp_path / "libs"


def test_a_maven_that_fails_leaves_nothing_and_is_quoted(tmp_path: Path) -> None:
    executable(tmp_path / "bin", "mvn", "echo cannot resolve; exit 1")
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "OUZEL_CACHE": str(tmp_path / "cache")}
    with pytest.raises(RetryableError, match="cannot resolve"):
        jars.kafka_jars(env)
    assert not list((tmp_path / "cache" / "kafka").iterdir())


def test_a_jar_that_is_not_the_pinned_one_is_refused_and_never_kept(tmp_path: Path) -> None:
    executable(tmp_path / "bin", "mvn", "mkdir jars; echo other > jars/kafka_2.13-4.3.0.jar")
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "OUZEL_CACHE": str(tmp_path / "cache")}
    with pytest.raises(CorruptStateError, match="pinned"):
        jars.kafka_jars(env)
    assert not list((tmp_path / "cache" / "kafka").iterdir())


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}.*taken"):
            Broker(tmp_path, port=port).start()


def test_two_nodes_are_no_quorum(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="three"):
        Broker(tmp_path, nodes=2)


def test_a_broker_that_ends_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path / "bin", "java", "echo no such class; exit 1")
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs" / "kafka_2.13-4.3.0.jar").touch()
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(BrokerFailed, match="no such class"):
        Broker(tmp_path / "data").start()


def test_a_second_broker_over_a_folder_is_refused_before_it_touches_anything(tmp_path: Path) -> None:
    first = Held(tmp_path, 1)
    second = Broker(tmp_path)
    with pytest.raises(ConfigError, match="runs over this folder already"), second:
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    first.release()
    Held(tmp_path, 1).release()


def test_a_folder_keeps_its_number_of_nodes(tmp_path: Path) -> None:
    (tmp_path / "node-1" / "data").mkdir(parents=True)
    (tmp_path / "node-1" / "data" / "meta.properties").touch()
    with pytest.raises(ConfigError, match="of 1 nodes, and 3 were asked for"):
        Held(tmp_path, 3)
    Held(tmp_path, 1).release()


def test_a_broker_waits_for_what_a_killed_launcher_left_running(tmp_path: Path) -> None:
    (tmp_path / "node-1").mkdir()
    left = subprocess.Popen(["sh", "-c", "read go", f"{tmp_path}/node-1/server.properties"], stdin=subprocess.PIPE)
    (tmp_path / "node-1" / "pid").write_text(f"{left.pid}\n")
    assert runs(tmp_path / "node-1" / "pid")
    held = []
    waiting = threading.Thread(target=lambda: held.append(Held(tmp_path, 1)))
    waiting.start()
    assert not held
    left.communicate(b"go\n")
    waiting.join()
    held[0].release()
    assert not (tmp_path / "node-1" / "pid").exists()


def test_nodes_end_and_their_folder_goes_when_their_owner_has_gone(tmp_path: Path) -> None:
    node = subprocess.Popen(["sleep", "60"])
    owner = subprocess.Popen(["sleep", "60"])
    folder = tmp_path / "broker"
    (folder / "node-1").mkdir(parents=True)
    (folder / "node-1" / "pid").write_text(f"{node.pid}\n")
    watch = subprocess.Popen(["sh", "-c", WATCH, "sh", str(owner.pid), str(folder), "yes"])
    time.sleep(0.1)
    assert node.poll() is None
    owner.kill()
    owner.wait()
    assert node.wait(timeout=60) == -9
    assert watch.wait(timeout=60) == 0
    assert not folder.exists()
