"""`ouzel topics`, and where a run's log lies."""

from pathlib import Path

import pytest

from infra.config import Config, LogConfig, load_config
from infra.errors import ConfigError, InputError, RetryableError
from infra.eventlog import create_topics, open_log, remove_log
from infra.eventlog.kafka import log as kafka_log
from infra.process import RunFolder
from infra.supervisor import commands
from infra.supervisor.broker import free_ports
from infra.supervisor.crew import Crew
from infra.supervisor.runlog import OWN, placed, refuse_elsewhere, with_address
from infra.supervisor.runs import prepare
from infra.supervisor.topics import Lag, lags_of, topics


def test_lag_is_told_in_records_and_in_event_seconds(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log", LogConfig())
    log.create_topic("events", 2)
    writer = log.writer("events")
    for i in range(5):
        writer.append(0, b"x", timestamp_ms=1_000 + 2_500 * i)
    writer.append(1, b"x", timestamp_ms=1_000)
    writer.close()
    reader = log.reader("events", "slow", [0])
    reader.poll(2)
    log.reader("events", "none", [1])
    assert lags_of(log, "events") == [Lag("events", "none", 1, 0.0), Lag("events", "slow", 3, 5.0)]
    reader.poll(9)
    assert lags_of(log, "events")[1] == Lag("events", "slow", 0, 0.0)
    log.close()


def test_topics_are_created_with_the_configured_partitions_and_another_count_is_refused(tmp_path: Path) -> None:
    where = str(tmp_path / "log")
    topics("create", log=where, set_=["log.partitions=3"])
    log = open_log(where, LogConfig())
    assert (log.partitions("events"), log.partitions("items")) == (3, 1)
    log.close()
    with pytest.raises(ConfigError, match="3 partitions, the configuration says 5"):
        topics("create", log=where, set_=["log.partitions=5"])
    with pytest.raises(ConfigError, match="create, show or drop"):
        topics("mend", log=where)
    with pytest.raises(ConfigError, match="goes with it"):
        topics("drop", log=where)
    with pytest.raises(ConfigError, match="name a log"):
        topics("show")
    with pytest.raises(ConfigError, match="write the log's address"):
        topics("show", log="localhost:9092/news")
    with pytest.raises(InputError, match="no such folder"):
        topics("show", log=str(tmp_path / "nosuch"))
    assert not (tmp_path / "nosuch").exists()


def test_a_run_gets_a_prefix_once_and_keeps_it(tmp_path: Path) -> None:
    folder, mind = RunFolder(tmp_path / "My run"), tmp_path / "mind"
    mind.mkdir()
    wanted = with_address(Config(), "kafka://a:1,b:2")
    prepare(folder, wanted, [mind])
    url = folder.load_config().log.url
    assert url.startswith("kafka://a:1,b:2/my-run-")
    prepare(folder, wanted, [mind])
    assert folder.load_config().log.url == url
    with pytest.raises(ConfigError, match=r"another source or configuration \(its log.url is 'kafka://a:1,b:2/"):
        prepare(folder, with_address(Config(), "kafka://c:1"), [mind])
    written_out = with_address(Config(), "kafka://a:1/x")
    assert placed(RunFolder(tmp_path / "other"), written_out) == written_out


def test_a_broker_that_nobody_has_is_said_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_log, "CONNECT_S", 0.5)
    monkeypatch.setattr(commands, "stoppable", lambda: None)  # this process keeps its signals
    (tmp_path / "mind").mkdir()
    (port,) = free_ports(1)
    with pytest.raises(RetryableError, match="check that the brokers run"):
        commands.run([tmp_path / "mind"], tmp_path / "out", log=f"kafka://127.0.0.1:{port}")
    assert not (tmp_path / "out").exists()


def test_a_broker_of_the_runs_own_keeps_its_port(tmp_path: Path) -> None:
    folder, mind = RunFolder(tmp_path / "run"), tmp_path / "mind"
    mind.mkdir()
    prepare(folder, with_address(Config(), OWN), [mind])
    url = folder.load_config().log.url
    assert url.startswith("kafka://127.0.0.1:")
    prepare(folder, with_address(Config(), OWN), [mind])
    assert folder.load_config().log.url == url
    refuse_elsewhere(folder)


def test_a_log_does_not_move_to_another_place(tmp_path: Path) -> None:
    folder, mind = RunFolder(tmp_path / "run"), tmp_path / "mind"
    mind.mkdir()
    prepare(folder, Config(), [mind])
    with pytest.raises(ConfigError, match="stays there"):
        refuse_elsewhere(folder)


def test_several_workers_need_a_log_on_kafka_and_addresses_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="joined by one worker"):
        Crew(workers=2).check(Config())
    with pytest.raises(ConfigError, match="write kafka://host:port/prefix"):
        RunFolder(tmp_path).open_log(load_config(env={}, overrides=["log.url='folder'"]))
    with pytest.raises(ConfigError, match="may be somebody else's"):
        remove_log("kafka://localhost:9092", LogConfig())
    with pytest.raises(InputError):
        topics("show", run=tmp_path)


def test_the_members_of_a_crew_have_names_and_ports_of_their_own() -> None:
    config = with_address(Config(), "kafka://a:1/x")
    crew = Crew(workers=2, replicas=2)
    assert [m.name for m in crew.joiners(config, "--follow")] == ["joiner", "joiner-2", "archive"]
    assert [m.name for m in Crew().joiners(Config(), "--follow")] == ["joiner"]
    replicas = crew.replicas_on(8300)
    assert [(m.name, *m.arguments) for m in replicas] == [
        ("replica", "--port", "8300"),
        ("replica-2", "--port", "8301", "--number", "2"),
    ]


def test_topics_of_a_log_on_kafka_are_shown_and_dropped(kafka: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"kafka://{kafka}/topics-test"
    topics("create", log=url)
    log = open_log(url, LogConfig())
    create_topics(log, LogConfig().partitions)
    log.reader("events", "somebody")
    log.close()
    topics("show", log=url)
    assert "somebody" in capsys.readouterr().out
    topics("drop", log=url)
    topics("drop", log=url)
    assert "nothing" in capsys.readouterr().out
    with pytest.raises(InputError, match="Check the prefix"):
        topics("show", log=url)
