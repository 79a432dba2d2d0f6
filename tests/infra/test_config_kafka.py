"""The client settings of a Kafka log: anybody's names, and secrets that only the environment may carry."""

from pathlib import Path

import pytest

from infra.config import dump_config, load_config
from infra.errors import ConfigError


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
