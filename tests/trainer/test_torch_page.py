"""The page about `trainer.nn`: its example is run as it stands, and what it names exists."""

import re
import runpy
import sys
from pathlib import Path

import torch

import trainer.nn
from tests.trainer.test_experiment_collisions import write_world

PAGE = (Path(__file__).resolve().parents[2] / "infra/docs/torch.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_example_runs_as_it_stands_and_learns(tmp_path, monkeypatch, capsys):
    torch.set_num_threads(1)  # two threads that share a core wait for each other by spinning
    script = tmp_path / "train.py"
    script.write_text(BLOCKS[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", str(write_world(tmp_path / "ml", ratings=20_000))])
    made = runpy.run_path(str(script), run_name="__main__")
    told = [float(share) for share in re.findall(r"([\d.]+)% of the test ratings told right", capsys.readouterr().out)]
    assert len(told) == 3
    share = float(made["liked"].mean())
    assert told[-1] / 100 > max(share, 1 - share) + 0.05, "no better than always saying what is more frequent"
    assert (tmp_path / "movielens-model" / "model.arrow").exists()


def test_the_example_is_thirty_lines_of_code():
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(lines) <= 30, len(lines)


def test_every_name_on_the_page_is_there():
    for name in trainer.nn.__all__:
        assert re.search(rf"`{name}\b|\b{name}\(", PAGE) or name in ("SparseEmbedding",), f"{name} is not on the page"
