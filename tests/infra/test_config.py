"""Configuration: four sources in order, and errors that name the key."""

from pathlib import Path

import pytest

from infra.config import Config, dump_config, load_config
from infra.errors import ConfigError


def test_defaults_file_environment_and_flags_override_each_other_in_that_order(tmp_path: Path) -> None:
    file = tmp_path / "ouzel.toml"
    file.write_text("[time]\ntick_s = 30\nattribution_s = 240\n[log]\npartitions = 3\n")
    config = load_config(
        file, env={"OUZEL_TIME__TICK_S": "20", "OUZEL_LOG__PARTITIONS": "5"}, overrides=["time.tick_s=10"]
    )
    assert (config.time.tick_s, config.log.partitions, config.time.attribution_s) == (10, 5, 240)
    assert config.serve.port == Config().serve.port


def test_what_is_dumped_loads_to_the_same_configuration(tmp_path: Path) -> None:
    config = load_config(env={}, overrides=["model.slots.item.lr=0.5", "replay.speed=60x", "model.hidden=[8, 4]"])
    file = tmp_path / "config.toml"
    file.write_text(dump_config(config))
    assert load_config(file, env={}) == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time.tik_s=1", "did you mean tick_s"),
        ("model.slots.itm.lr=1", "did you mean item"),
        ("time=3", "time is a section"),
        ("time.tick_s.x=3", "time.tick_s is a value"),
        ("time.tick_s='a'", "time.tick_s"),
        ("time.tick_s=0", "1 or more"),
        ("time.attribution_s=90", "whole number of ticks"),
        ("time.attribution_s=0", "whole number of ticks"),
        ("time.skew_s=-1.0", "cannot be negative"),
        ("nonsense", "section.key=value"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_path_and_what_to_write(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(env={}, overrides=[text])


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(tmp_path / "absent.toml", env={})
    broken = tmp_path / "broken.toml"
    broken.write_bytes(b"[time\n\xff")
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        load_config(broken, env={})
