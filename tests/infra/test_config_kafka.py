"""The client settings of a Kafka log: anybody's names, and secrets that only the environment may carry."""

from collections.abc import Callable
from pathlib import Path

import pytest

from infra.config import Config, dump_config, load_config, refuse_credentials
from infra.errors import ConfigError
from infra.eventlog import open_log
from infra.eventlog.kafka.address import parse_address
from infra.supervisor.commands import run
from infra.supervisor.topics import topics


def test_client_settings_may_be_dotted_or_nested(tmp_path: Path) -> None:
    file = tmp_path / "ouzel.toml"
    file.write_text('[log.kafka.client]\n"security.protocol" = "SASL_SSL"\nsasl.mechanism = "PLAIN"\n')
    config = load_config(file, env={"OUZEL_LOG__KAFKA__CLIENT__SSL__CA__LOCATION": "/ca"}, overrides=[])
    assert config.log.kafka.client == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "ssl.ca.location": "/ca",
    }


@pytest.mark.parametrize("name", ["sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"])
def test_a_secret_is_taken_from_the_environment_alone_and_never_dumped(tmp_path: Path, name: str) -> None:
    file = tmp_path / "ouzel.toml"
    file.write_text(f'[log.kafka.client]\n"{name}" = "hidden"\n')
    variable = "OUZEL_LOG__KAFKA__CLIENT__" + name.upper().replace(".", "__")
    with pytest.raises(ConfigError, match=variable):
        load_config(file, env={})
    with pytest.raises(ConfigError, match=variable):
        load_config(env={}, overrides=[f"log.kafka.client.{name}=hidden"])
    config = load_config(env={variable: "1e5"})
    assert config.log.kafka.client == {name: "1e5"}
    assert "1e5" not in dump_config(config)


def test_other_client_settings_are_kept_with_the_run(tmp_path: Path) -> None:
    config = load_config(env={}, overrides=["log.kafka.client.socket.timeout.ms=1000", "log.kafka.compression=gzip"])
    file = tmp_path / "config.toml"
    file.write_text(dump_config(config))
    assert load_config(file, env={}) == config


@pytest.mark.parametrize(
    "address", ["kafka://ann:hunter2@h:9092/run", "kafka://h:1,ann:hunter2@h:2", "ann:hunter2@h:1"]
)
def test_a_password_in_an_address_is_refused_and_never_shown(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given: list[Callable[[], object]] = [
        lambda: load_config(env={}, overrides=[f"log.url='{address}'"]),
        lambda: load_config(env={"OUZEL_LOG__URL": address}),
        lambda: open_log(address, Config().log),
        lambda: parse_address(address),
        lambda: run(mind=[tmp_path], out=tmp_path / "run", log=address),
        lambda: run(mind=[tmp_path], out=tmp_path / "run", log=address, kafka=True),
        lambda: topics("show", log=address),
        lambda: topics("drop", log=address),
    ]
    for attempt in given:
        with pytest.raises(ConfigError, match=r"SASL__PASSWORD in the environment") as refused:
            attempt()
        assert "hunter2" not in str(refused.value)
        assert "ann" not in str(refused.value)
    assert "hunter2" not in "".join(capfd.readouterr())
    assert not (tmp_path / "run").exists()


def test_a_secret_on_the_command_line_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="is a secret") as refused:
        load_config(env={}, overrides=["log.kafka.client.sasl.password=hunter2"])
    assert "hunter2" not in str(refused.value)


def test_an_address_without_a_password_is_taken(tmp_path: Path) -> None:
    load_config(env={}, overrides=["log.url=kafka://h:9092/run"])
    refuse_credentials(str(tmp_path / "mail@host" / "log"), "--log")
