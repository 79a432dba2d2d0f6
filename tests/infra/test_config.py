"""Configuration: four sources in order, and errors that name the key."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from infra.config import Config, dump_config, load_config
from infra.config_reference import reference
from infra.errors import ConfigError
from infra.ranges import RANGES, Interval, range_of


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
        ("time.tick_s=0", r"time\.tick_s is 0; it must be in \[1, 86400\]"),
        ("time.attribution_s=90", "whole number of ticks"),
        ("time.attribution_s=0", r"time\.attribution_s is 0"),
        ("time.skew_s=-1.0", r"time\.skew_s is -1\.0; it must be in \[0, "),
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
        ("model.slots.item.sketch_bytes=100", r"sketch_bytes is 100; it must be in \[4096, "),
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


def numbers(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every numeric setting of the defaults: its path and its value."""
    for name, value in tree.items():
        full = f"{path}.{name}" if path else name
        if isinstance(value, dict):
            yield from numbers(value, full)
        elif (isinstance(value, (int, float)) and not isinstance(value, bool)) or (
            isinstance(value, (list, tuple)) and value and isinstance(value[0], (int, float))
        ):
            yield full, value


@pytest.mark.parametrize(("path", "value"), [*numbers(msgspec.to_builtins(Config()))])
def test_every_numeric_setting_has_a_range_and_is_held_to_it(path: str, value: Any) -> None:
    interval = Interval.of(range_of(path))
    bad = [interval.low - 1, *([interval.low] if interval.open_low else [])]
    bad += [interval.high + 1] if interval.high < 2**52 else []
    one = value[0] if isinstance(value, (list, tuple)) else value
    bad += [math.nan, math.inf, -math.inf]
    for wrong in bad:
        number = int(wrong) if isinstance(one, int) and math.isfinite(wrong) else wrong
        written = [number, number] if isinstance(value, (list, tuple)) else number
        with pytest.raises(ConfigError, match=re.escape(path.split(".")[-1])):
            load_config(env={}, overrides=[f"{path}={written}"])


def test_every_setting_is_explained_by_a_text_of_its_own() -> None:
    rows = [line.split("|")[1:4] for line in reference().splitlines() if line.startswith("| `")]
    texts = [text.strip() for _, _, text in rows]
    assert len(rows) > 80
    assert [name for name, _, text in rows if len(text.strip()) < 10] == []
    assert [text for text in set(texts) if texts.count(text) > 1] == []


def test_no_range_is_left_of_a_setting_that_is_gone() -> None:
    paths = {re.sub(r"(model\.slots\.)\w+", r"\1*", path) for path, _ in numbers(msgspec.to_builtins(Config()))}
    assert set(RANGES) == paths
