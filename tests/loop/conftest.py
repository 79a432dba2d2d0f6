"""A small generated log with bad rows in it, and one straight run of the whole loop over it, shared by the tests."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infra.config import load_config
from infra.process import RunFolder
from infra.supervisor.runs import prepare, run_loop, write_report
from stream.generate import generate_mind

ROWS = 1_500
SETTINGS = (
    "train.bootstrap_hours=3", "train.first_epochs=1", "train.snapshot_ticks=300", "log.partitions=4",
    # Keys come and go: what they leave behind must survive kills, other speeds and a derivation from the logs.
    "model.slots.item.expiry_s=14400", "model.slots.item.rule='adam'", "model.slots.item.bias_rule='ftrl'",
    "model.slots.user.admit_after=2", "model.slots.user.admit_window_s=21600", "model.slots.user.grow_after=3",
    "model.slots.user.sketch_bytes=65536", "model.slots.read_subcategory.byte_budget=4096",
)  # fmt: skip
BAD_ROWS = {
    "columns": b"900001\tU1\t11/9/2019 9:00:00 AM\tN1",
    "label_missing": b"900002\tU1\t11/9/2019 9:00:01 AM\tN1\tN2 N3",
    "bad_label": b"900003\tU1\t11/9/2019 9:00:02 AM\tN1\tN2-2 N3-0",
    "not_utf8": b"900004\tU\xff\xfe\t11/9/2019 9:00:03 AM\tN1\tN2-1 N3-0",
    "bad_time": b"900005\tU1\t31/31/2019 9:00:04 AM\tN1\tN2-1 N3-0",
    "time_gap": b"900006\tU1\t1/1/2099 9:00:05 AM\tN1\tN2-1 N3-0",
    "too_long": b"900007\tU1\t11/9/2019 9:00:06 AM\t" + b"N1 " * 3_500_000 + b"\tN2-1 N3-0",
}


FIGURES = ("digest", "arms", "events_in", "examples_out", "dropped", "dead_letters")


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: RunFolder
    report: dict[str, Any]


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """What must be equal: the digest of the last version, and every figure of every arm."""
    return {key: report[key] for key in FIGURES}


@pytest.fixture(scope="session")
def mind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days of a small news site, with one bad row of each kind and one row twice."""
    folder = tmp_path_factory.mktemp("data") / "mind"
    generate_mind(folder, scale="tiny", seed=5, rows=ROWS)
    log = folder / "behaviors.tsv"
    first_row = log.read_bytes().split(b"\n", 1)[0]
    with open(log, "ab") as file:
        file.write(b"\n".join([*BAD_ROWS.values(), first_row]) + b"\n")
        file.write(b"900009\tU1\t11/9/2019 9:0")  # torn by a full disk
    return folder


@pytest.fixture(scope="session")
def new_run(mind: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """Makes run folders over the log."""

    def make(*settings: str) -> RunFolder:
        folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
        prepare(folder, load_config(env={}, overrides=[*SETTINGS, *settings]), [mind])
        return folder

    return make


@pytest.fixture(scope="session")
def straight(new_run: Callable[..., RunFolder]) -> Run:
    """The loop, undisturbed, as fast as it goes."""
    folder = new_run()
    run_loop(folder, Console(quiet=True))
    write_report(folder)
    return Run(folder, json.loads((folder.path / "report.json").read_bytes()))
