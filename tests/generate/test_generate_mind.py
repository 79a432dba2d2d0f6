"""The generated log: same bytes for a seed, readable as MIND, and its truth is the truth."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from infra.errors import ConfigError
from infra.hashing import hash64
from stream.generate import SCALES, Parameters, generate_mind
from stream.generate.mind import START_MS
from stream.generate.rows import RowSource
from stream.generate.world import build_world
from stream.mind import MindIndex, open_mind, read_news

ROWS = 6_000
# blake2b of the first 500 rows of (tiny, seed 7). A change of the model or of a parameter changes it, and is named in
# the changelog: runs on generated logs are compared across versions.
GOLDEN = {"behaviors.tsv": "7e731f293c7b4fe7e5779883d0d814b5", "news.tsv": "d515accfabbc4d6948e1d0d468d7ab69"}


def digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated") / "tiny"
    generate_mind(out, scale="tiny", seed=1)
    return out


@pytest.fixture(scope="module")
def index(folder: Path) -> MindIndex:
    return open_mind([folder])


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[str, NDArray[np.float64]]:
    table = pq.read_table(folder / "truth.parquet")
    columns = {name: table[name].to_numpy() for name in ("impression", "position", "p", "p_ref", "click")}
    columns["item"] = np.array([hash64(name) for name in table["item"].to_pylist()])
    return columns


def test_bytes_of_a_seed_are_golden(tmp_path: Path) -> None:
    generate_mind(tmp_path, scale="tiny", seed=7, rows=500)
    assert {name: digest(tmp_path / name) for name in GOLDEN} == GOLDEN


def test_same_seed_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 1), ("other", 2)):
        generate_mind(tmp_path / name, scale="tiny", seed=seed)
    for file in ("behaviors.tsv", "news.tsv", "truth.parquet"):
        assert digest(tmp_path / "again" / file) == digest(folder / file)
        assert digest(tmp_path / "other" / file) != digest(folder / file)


def test_first_rows_are_a_prefix_of_all_rows(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = generate_mind(
        tmp_path, scale="tiny", seed=1, rows=100, progress=lambda done, total: seen.append((done, total))
    )
    assert (folder / "behaviors.tsv").read_bytes().startswith((tmp_path / "behaviors.tsv").read_bytes())
    assert made.rows == 100
    assert seen == [(100, 100)]


def test_rows_do_not_depend_on_the_chunks() -> None:
    rng = np.random.default_rng(0)
    source = RowSource(build_world(SCALES["tiny"], Parameters(), rng), 3, rng)
    whole = source.chunk(np.arange(200))
    for size in (1, 7, 64):
        parts = list(source.chunks(200, size))
        assert np.array_equal(np.concatenate([c.items for c in parts]), whole.items)
        assert np.array_equal(np.concatenate([c.p for c in parts]), whole.p)
        assert np.array_equal(np.concatenate([c.click for c in parts]), whole.click)


def test_reader_finds_no_dead_row_and_every_item_in_the_catalogue(folder: Path, index: MindIndex) -> None:
    news = read_news([folder])
    rows = index.rows(0, index.n)
    assert (index.n, len(index.dead), len(news), news.dead_counts) == (ROWS, 0, SCALES["tiny"].news, {})
    assert np.isin(rows.items.values, news.item).all()
    assert np.isin(rows.history.values, news.item).all()
    assert len(np.unique(news.item)) == len(news)
    assert sum('"' in title for title in news.title) > 0
    assert (np.diff(index.line) < 0).any(), "rows of the file are not in time order, as in MIND"
    pairs = np.unique(np.stack([np.repeat(rows.impression, rows.items.lengths), rows.items.values]), axis=1)
    assert pairs.shape[1] == len(rows.items.values), "an impression shows an item once"


def test_marginals_are_those_of_mind(index: MindIndex) -> None:
    rows = index.rows(0, index.n)
    assert rows.items.lengths.mean() == pytest.approx(37.2, rel=0.03)
    assert rows.history.lengths.mean() == pytest.approx(32.5, rel=0.08)
    assert rows.labels.mean() == pytest.approx(0.0405, rel=0.04)
    day = (rows.time_ms - START_MS) // 86_400_000
    assert np.bincount(day).tolist() == list(SCALES["tiny"].day_rows)
    hour = np.bincount(rows.time_ms // 3_600_000 % 24, minlength=24)
    assert hour[7:10].sum() > 8 * hour[[0, 1, 23]].sum(), "a daily rhythm"
    shows = np.sort(np.unique(rows.items.values, return_counts=True)[1])[::-1]
    assert 0.4 < shows[: len(shows) // 20].sum() / shows.sum() < 0.8, "few items take much of the page"


def test_truth_names_what_the_file_shows(index: MindIndex, folder: Path, truth: dict[str, NDArray[np.float64]]) -> None:
    rows = index.rows(0, index.n)
    by_line = np.argsort(index.line)
    items = rows.items.take(by_line)
    assert np.array_equal(truth["item"], items.values)
    counts = items.lengths
    assert np.array_equal(truth["impression"], np.repeat(np.sort(index.line), counts))
    assert np.array_equal(truth["position"], np.concatenate([np.arange(n) for n in counts]))
    starts = rows.items.offsets[by_line]
    labels = np.concatenate([rows.labels[a : a + n] for a, n in zip(starts, counts, strict=True)])
    assert np.array_equal(truth["click"].astype(np.uint8), labels)


def excess(p: NDArray[np.float64], click: NDArray[np.float64], parts: int = 20) -> float:
    """Largest |clicks − expected| over quantiles of p, in standard deviations."""
    worst = 0.0
    for part in np.array_split(np.argsort(p, kind="stable"), parts):
        q = p[part].astype(np.float64)
        worst = max(worst, abs(click[part].sum() - q.sum()) / np.sqrt((q * (1 - q)).sum()))
    return worst


# The truth passes; three ways to get it wrong do not.
WRONG: dict[str, Callable[[dict[str, NDArray[np.float64]]], NDArray[np.float64]]] = {
    "reference position": lambda truth: truth["p_ref"],
    "neighbour's": lambda truth: np.roll(truth["p"], 1),
    "5 % too high": lambda truth: truth["p"] * 1.05,
}


def test_clicks_follow_the_true_probability(truth: dict[str, NDArray[np.float64]]) -> None:
    assert excess(truth["p"], truth["click"]) < 4.0
    assert np.array_equal(truth["p"][truth["position"] == 0], truth["p_ref"][truth["position"] == 0])
    assert (truth["p"][truth["position"] > 0] < truth["p_ref"][truth["position"] > 0]).all()


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_probability_is_seen(truth: dict[str, NDArray[np.float64]], wrong: str) -> None:
    total = WRONG[wrong](truth).astype(np.float64)
    pooled = abs(truth["click"].sum() - total.sum()) / np.sqrt((total * (1 - total)).sum())
    assert max(pooled, excess(total, truth["click"])) > 4.0


def impression_auc(score: NDArray[np.float64], truth: dict[str, NDArray[np.float64]]) -> float:
    first = np.flatnonzero(truth["position"] == 0)
    values = []
    for s, c in zip(np.split(score, first[1:]), np.split(truth["click"].astype(bool), first[1:]), strict=True):
        if c.any() and not c.all():
            values.append((s[c][:, None] > s[~c]).mean() + 0.5 * (s[c][:, None] == s[~c]).mean())
    return float(np.mean(values))


def test_oracle_is_far_from_certain_and_far_above_popularity(truth: dict[str, NDArray[np.float64]]) -> None:
    assert 0.72 < impression_auc(truth["p_ref"], truth) < 0.83
    _, item = np.unique(truth["item"], return_inverse=True)
    shown, clicked = np.bincount(item), np.bincount(item, truth["click"].astype(np.float64))
    # Leave the impression's own click out: what popularity knows without it.
    rest = (clicked[item] - truth["click"] + 0.8) / (shown[item] - 1 + 20)
    assert 0.57 < impression_auc(rest, truth) < 0.68


def test_unknown_scale_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose one of tiny, small, large"):
        generate_mind(tmp_path, scale="huge")
