"""`ouzel dead-letters` and `ouzel report` find the log of a run on Kafka, and say what is missing where it has none."""

import json
import subprocess
import uuid
from pathlib import Path

import pytest

from infra.cli import main
from infra.config import Config, KafkaConfig, LogConfig, dump_config
from infra.errors import ConfigError
from infra.eventlog import EventLog, create_topics, open_log
from infra.process import RunFolder
from infra.supervisor.broker import Broker
from stream.join.core import JoinSettings
from stream.join.worker import JoinWorker
from tests.wire.samples import NOW, engagement, impression, pack
from tests.wire.test_dead_replay import here


@pytest.fixture
def url(kafka: str) -> str:
    return f"kafka://{kafka}/letters-{uuid.uuid4().hex[:12]}"


def run_over(folder: Path, url: str) -> RunFolder:
    folder.mkdir()
    config = Config(log=LogConfig(url=url, partitions=2, kafka=KafkaConfig(patience_s=5.0)))
    (folder / "config.toml").write_text(dump_config(config), encoding="utf-8")
    return RunFolder(folder)


def with_letters(url: str) -> EventLog:
    """A joined log: two engagements whose users belong elsewhere, one record that is nothing."""
    log = open_log(url, LogConfig(partitions=2))
    create_topics(log, 2)
    writer = log.writer("events")
    for event in (impression(user=here(0)), engagement(user=here(1)), engagement(user=here(1), item="b")):
        writer.append(0, pack(event, "json"), timestamp_ms=NOW)
    writer.append(0, b"\x1b[31mhello", timestamp_ms=NOW)
    for p in range(2):
        writer.append(p, pack({"type": "heartbeat"}, "json"), timestamp_ms=NOW + 10_000_000)
    writer.close()
    worker = JoinWorker(log, JoinSettings.of(Config()))
    while worker.step():
        pass
    worker.close()
    return log


class Said:
    """What a command printed, and its exit status."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str]:
        self._monkeypatch.setattr("sys.argv", ["ouzel", *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
        said = self._capsys.readouterr()
        return int(leaving.value.code or 0), said.out + said.err


@pytest.fixture
def ouzel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    return Said(monkeypatch, capsys)


def test_a_run_on_kafka_is_reported_and_its_letters_listed_shown_and_replayed_once(
    tmp_path: Path, url: str, ouzel: Said
) -> None:
    folder, log = run_over(tmp_path / "run", url), with_letters(url)
    run = ("--run", str(folder.path))
    assert ouzel("report", *run)[0] == 0
    report = json.loads((folder.path / "report.json").read_bytes())
    assert report["accounted"]
    assert report["dead_letters"] == {"unknown_format": 1, "wrong_partition": 2}
    assert report["dropped"]["malformed"] == 3
    assert "3  dead events; 0 replayed" in ouzel("dead-letters", "list", *run)[1]
    _, shown = ouzel("dead-letters", "show", *run, "--reason", "wrong_partition")
    assert "events/0/1  wrong_partition: its user belongs to partition 1" in shown
    assert shown.endswith("2 of 2 letters\n")
    assert "\x1b" not in ouzel("dead-letters", "show", *run)[1]
    assert ouzel("dead-letters", "replay", *run)[1].startswith("2 letters replayed; 0 were before")
    assert ouzel("dead-letters", "replay", *run)[1].startswith("0 letters replayed; 2 were before")
    assert log.end_offset("events", 1) == 3
    _, elsewhere = ouzel("dead-letters", "list", "--log", url)
    assert "3  dead events; 2 replayed" in elsewhere
    assert not folder.log.exists()
    log.close()


def test_a_run_without_topics_or_with_a_log_of_nobody_is_said_and_nothing_is_made(
    tmp_path: Path, url: str, ouzel: Said
) -> None:
    run = ("--run", str(run_over(tmp_path / "run", url).path))
    for command in (("report", *run), ("dead-letters", "list", *run), ("dead-letters", "list", "--log", url)):
        code, said = ouzel(*command)
        assert (code, "no topic" in said) == (1, True), said
        assert url in said
    log = open_log(url, LogConfig())
    with pytest.raises(ConfigError, match="no topic"):
        log.partitions("dead-letters")
    log.close()
    code, said = ouzel("dead-letters", "list", "--log", str(tmp_path / "typo"))
    assert (code, "no event log there" in said) == (1, True)
    assert not (tmp_path / "typo").exists()
    assert ouzel("dead-letters", "list")[1].strip().endswith("or an event log (--log ADDRESS)")
    assert ouzel("dead-letters", "mend", *run)[1].strip().endswith("mend: list, show or replay")


@pytest.fixture
def of_its_own(tmp_path: Path) -> RunFolder:
    """A run folder with a broker of its own, which does not run now."""
    folder = tmp_path / "run"
    with Broker(folder / "kafka") as broker:
        made = f"kafka://{broker.address}/own"
        config = Config(log=LogConfig(url=made, partitions=2))
        (folder / "config.toml").write_text(dump_config(config), encoding="utf-8")
        with_letters(made).close()
    return RunFolder(folder)


@pytest.mark.slow
def test_the_broker_of_a_finished_runs_own_is_started_for_as_long_as_a_command_looks(
    of_its_own: RunFolder, ouzel: Said
) -> None:
    run = ("--run", str(of_its_own.path))
    for command, shows in ((("dead-letters", "list"), "3  dead events"), (("topics", "show"), "dead-letters")):
        code, said = ouzel(*command, *run)
        assert (code, shows in said) == (0, True), said
    assert ouzel("report", *run)[0] == 0
    alive = subprocess.run(["pgrep", "-f", str(of_its_own.broker)], capture_output=True, text=True, check=False)
    assert not [pid for pid in alive.stdout.split() if "java" in Path(f"/proc/{pid}/cmdline").read_text()]
