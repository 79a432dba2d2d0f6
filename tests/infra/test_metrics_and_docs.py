"""The declared metrics, and the configuration page."""

import re
import urllib.request
from pathlib import Path

import pytest

from infra import metrics_reference
from infra.config import Config
from infra.config_reference import reference
from infra.errors import ConfigError
from infra.metrics import METRICS, PROCESSES, Metrics
from infra.process import Process

ROOT = Path(__file__).resolve().parents[2]


def test_names_carry_prefix_units_and_total_for_counters() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"ouzel_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not set(metric.labels) & {"user", "item", "impression", "id"}, "ids never become labels"
        assert metric.process in ("*", *PROCESSES)


def test_every_declared_metric_is_set_somewhere() -> None:
    boxes = [*(p for box in ("infra", "stream", "trainer", "serving") for p in sorted((ROOT / box).rglob("*.py")))]
    source = "".join(p.read_text(encoding="utf-8") for p in boxes if p.name != "metrics.py" or p.parent.name != "infra")
    assert not [metric.name for metric in METRICS if f'"{metric.name}"' not in source]


def test_the_page_of_metrics_and_ports_is_what_is_declared() -> None:
    page = (ROOT / "infra/docs/metrics.md").read_text(encoding="utf-8")
    assert page == metrics_reference.reference(), "python -m infra.metrics_reference > infra/docs/metrics.md"


def test_a_process_can_set_only_what_is_declared_for_it() -> None:
    metrics = Metrics("replay")
    metrics.add("ouzel_replay_rows_total", 3, kind="event")
    assert b'ouzel_replay_rows_total{kind="event"} 3.0' in metrics.render()
    with pytest.raises(KeyError):
        metrics.set("ouzel_served_tick", 1)
    with pytest.raises(KeyError):
        metrics.add("ouzel_made_up_total")


def test_a_gauge_that_follows_is_asked_when_it_is_read() -> None:
    metrics, waited = Metrics("trainer"), [0.0]
    metrics.follow("ouzel_log_waiting_seconds", lambda: waited[0])
    waited[0] = 30.0
    assert b"ouzel_log_waiting_seconds 30.0" in metrics.render()


def test_every_process_exports_on_a_port_of_its_own_and_a_taken_port_is_named(tmp_path: Path) -> None:
    base = 19_400
    config = Config(metrics=type(Config().metrics)(base_port=base))
    with Process("trainer", tmp_path, config) as process:
        process.metrics.set("ouzel_tick", 7)
        port = base + PROCESSES.index("trainer")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            assert b"ouzel_tick 7.0" in answer.read()
        with pytest.raises(ConfigError, match=r"metrics\.base_port"):
            Metrics("trainer").serve(port)


def test_the_configuration_page_is_what_the_code_says() -> None:
    page = (ROOT / "infra/docs/configuration.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m infra.config_reference > infra/docs/configuration.md"
