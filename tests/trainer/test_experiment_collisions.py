"""The collision experiment on a small world in MovieLens' format: same cells whoever runs them, and what it reports."""

import struct
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from infra import cli
from infra.errors import ConfigError, InputError
from trainer.experiments.arms import Arm, default_moduli, plan_arms, sharing_share
from trainer.experiments.collisions import Plan, run
from trainer.experiments.deepfm import auc
from trainer.experiments.movielens import read_ratings, split
from trainer.experiments.plot import draw
from trainer.experiments.summary import summarize, table
from trainer.experiments.train import Cell, Settings

SMALL = Settings(epochs=3, batch=256, hidden=(8,), dim=4)


def write_world(folder: Path, name: str = "ratings.csv", ratings: int = 6000, seed: int = 1) -> Path:
    """Ratings whose likes hang on who and what, so that a shared row costs something."""
    rng = np.random.default_rng(seed)
    users, movies = rng.integers(1, 120, ratings), rng.integers(1, 400, ratings) * 37
    taste = rng.normal(size=120)[users] + 1.5 * rng.normal(size=400 * 37)[movies]
    stars = np.clip(np.round(6.5 + 1.6 * taste + 0.7 * rng.normal(size=ratings)), 1, 10) / 2
    mark, head = (",", "userId,movieId,rating,timestamp\n") if name.endswith("csv") else ("::", "")
    rows = (mark.join((str(u), str(m), f"{s:g}", "964982703")) for u, m, s in zip(users, movies, stars, strict=True))
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(head + "\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("ml"))


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def report(world):
    return run(Plan.of(world, [1000, 40], [1, 2], jobs=1), SMALL, quiet)


def test_sharing_rows_costs_and_the_report_says_how_much(report):
    arms = report["arms"]
    assert list(arms) == ["collisionless", "modulo 1000", "modulo 40", "quotient-remainder 40", "multi-hash 40"]
    assert arms["collisionless"]["auc_best"]["mean"] > 0.75
    lost = arms["modulo 40"]["over_collisionless_best"]
    assert lost["mean"] < -0.05
    assert lost["mean"] == pytest.approx(
        arms["modulo 40"]["auc_best"]["mean"] - arms["collisionless"]["auc_best"]["mean"]
    )
    assert arms["modulo 40"]["ids_sharing"][1] > 0.99
    assert len(arms["modulo 40"]["auc_by_epoch"]) == SMALL.epochs
    assert report["data"]["users"] == 119


def test_arms_at_one_budget_hold_no_more_than_modulo_does(report):
    budget = report["arms"]["modulo 40"]["floats"]
    for kind in ("quotient-remainder 40", "multi-hash 40"):
        floats = report["arms"][kind]["floats"]
        assert all(0.8 * b < f <= b for f, b in zip(floats, budget, strict=True)), kind
    assert report["arms"]["collisionless"]["floats"][0] == 119 * (SMALL.dim + 1)


def test_processes_change_nothing_but_the_time_and_each_epoch_is_told(world, report):
    told = []
    other = run(Plan.of(world, [1000, 40], [1, 2], jobs=2), SMALL, lambda *news: told.append(news))

    def cells(of):
        return [{k: v for k, v in cell.items() if k != "seconds"} for cell in of["cells"]]

    assert cells(other) == cells(report)
    assert sorted(told) == sorted((c["arm"], c["seed"], e, c["auc"][e]) for c in other["cells"] for e in range(3))


def test_the_command_writes_json_table_and_plot(world, tmp_path, monkeypatch, capsys):
    arguments = ["--moduli", "50", "--seeds", "1", "--epochs", "1", "--jobs", "1"]
    monkeypatch.setattr(
        sys, "argv", ["ouzel", "experiment", "collisions", "--data", str(world), "--out", str(tmp_path), *arguments]
    )
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 0
    written = msgspec.json.decode((tmp_path / "collisions.json").read_bytes())
    assert written["settings"]["epochs"] == 1
    assert len(written["cells"]) == 4
    assert "| modulo 50 |" in (tmp_path / "collisions.md").read_text()
    assert "| modulo 50 |" in capsys.readouterr().out
    png = (tmp_path / "collisions.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"


def test_plot_and_table_hold_every_arm(report):
    width, height = struct.unpack(">II", draw(report)[16:24])
    assert (width, height) == (1160, 560)
    lines = table(report).splitlines()
    assert len(lines) == 2 + len(report["arms"])
    assert "100 ×" not in lines[0]
    assert lines[2].startswith("| collisionless | ")


def test_means_and_differences_are_taken_within_a_seed():
    cells = [
        Cell("collisionless", 1, [0.70, 0.80], [], [], 0.0),
        Cell("collisionless", 2, [0.72, 0.60], [], [], 0.0),
        Cell("modulo 9", 2, [0.62, 0.61], [], [], 0.0),
        Cell("modulo 9", 1, [0.70, 0.71], [], [], 0.0),
    ]
    out = summarize(cells)
    assert out["collisionless"]["auc_best"]["mean"] == pytest.approx(0.76)
    assert out["collisionless"]["best_epoch"] == 1
    assert out["modulo 9"]["over_collisionless_best"]["mean"] == pytest.approx((-0.09 - 0.10) / 2)
    assert out["modulo 9"]["over_collisionless_last"]["sd"] == pytest.approx(np.std([-0.09, 0.01], ddof=1))


def test_auc_is_the_chance_that_a_positive_scores_above_a_negative():
    rng = np.random.default_rng(3)
    labels, scores = (rng.random(200) < 0.3).astype(np.float32), rng.integers(0, 12, 200).astype(np.float32)
    above = scores[labels > 0][:, None] - scores[labels == 0][None, :]
    assert auc(labels, scores) == pytest.approx(((above > 0) + 0.5 * (above == 0)).mean(), abs=1e-12)


def test_both_forms_of_movielens_are_read_alike(tmp_path):
    csv, dat = (read_ratings(write_world(tmp_path / name, name)) for name in ("ratings.csv", "ratings.dat"))
    for left, right in zip(csv, dat, strict=True):
        assert np.array_equal(left, right)
    assert csv.users.dtype == np.int64
    assert set(csv.labels.tolist()) == {0.0, 1.0}


def test_label_is_a_rating_from_three_and_a_half_on(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,3.5,0\n1,3,3.0,0\n2,2,5,0\n")
    assert read_ratings(tmp_path).labels.tolist() == [1.0, 0.0, 1.0]


BAD = {
    "no file": (None, "grouplens.org"),
    "other columns": ("user,movie\n1,2\n", "userId"),
    "no numbers": ("userId,movieId,rating,timestamp\n1,two,3.5,0\n", "ratings.csv"),
    "nothing to learn": ("userId,movieId,rating,timestamp\n1,2,5,0\n", "one side"),
    "empty": ("userId,movieId,rating,timestamp\n", "one side"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_folder_without_ratings_is_refused_by_name(case, tmp_path):
    text, message = BAD[case]
    if text is not None:
        (tmp_path / "ratings.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_ratings(tmp_path)


@pytest.mark.parametrize("text", ["1000;10", "1", "-5", "ten", "99999999999"])
def test_moduli_that_are_none_are_refused(text, world, tmp_path):
    from trainer.experiments.commands import experiment

    with pytest.raises(ConfigError, match="--moduli"):
        experiment(name="collisions", data=world, out=tmp_path, moduli=text)


def test_split_is_a_function_of_the_seed_and_shares_no_row():
    learn, test = split(1000, 0.2, 7)
    assert len(test) == 200
    assert not set(learn.tolist()) & set(test.tolist())
    assert np.array_equal(test, split(1000, 0.2, 7)[1])
    assert not np.array_equal(test, split(1000, 0.2, 8)[1])


def test_moduli_reach_from_monoliths_down_to_heavy_sharing():
    assert default_moduli(9_066) == [1_000_000, 100_000, 10_000, 3000, 1000, 300, 100]
    assert default_moduli(162_541) == [1_000_000, 300_000, 100_000, 30_000, 10_000, 3000]


def test_quotient_remainder_is_left_out_where_twice_the_root_does_not_fit():
    arms, left_out = plan_arms([100, 200], (50, 9_066))
    assert [arm.name for arm in left_out] == ["quotient-remainder 100"]
    assert Arm("quotient-remainder", 200) in arms


def test_share_of_ids_in_shared_buckets_is_counted():
    ids = np.arange(3000)
    assert sharing_share(ids, 1) == 1.0
    expected = 1 - (1 - 1 / 3000) ** 2999
    assert sharing_share(ids, 3000) == pytest.approx(expected, abs=0.03)
