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


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.slots.item.admit_after=0", r"model\.slots\.item\.admit_after is 0"),
        ("model.slots.item.admit_probability=0.0", r"admit_probability is 0\.0; it must be in \(0, 1\]"),
        ("model.slots.item.sketch_bytes=100", r"sketch_bytes is 100; it must be at least 4096"),
        ("model.slots.user.grow_after=1", r"grow_after is 1 at dim 16; factors grow after the bias"),
        ("model.slots.position.grow_after=9", r"grow_after is 9 at dim 1; factors grow after the bias"),
        ("model.slots.item.expiry_s=-1", r"expiry_s is -1"),
        ("model.slots.item.rule='ftrl'", r"bias_rule = 'ftrl'"),
        ("model.slots.item.rule='adamax'", r"Invalid enum value 'adamax'"),
        ("model.slots.item.evict='random'", r"Invalid enum value 'random'"),
        ("serve.precision='int4'", r"Invalid enum value 'int4'"),
    ],
)
def test_a_slot_option_out_of_range_is_refused_by_its_path(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(env={}, overrides=[override])


def test_a_slot_is_two_tables_only_where_its_factors_grow() -> None:
    slots = load_config(
        env={}, overrides=["model.slots.user.grow_after=3", "model.slots.item.bias_rule='ftrl'"]
    ).model.slots
    assert slots["user"].tables("user") == (("user", 1), ("user.factors", 15))
    assert slots["item"].tables("item") == (("item", 16),)
    assert slots["item"].has_bias
    assert not slots["words"].has_bias
