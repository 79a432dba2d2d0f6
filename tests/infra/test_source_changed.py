"""A run goes on over the files that it began with, and over no others."""

import os
from pathlib import Path

import pytest

from infra.config import load_config
from infra.errors import ConfigError, CorruptStateError
from infra.process import RunFolder
from infra.supervisor.runs import prepare, read_source

ROWS = b"".join(b"%d\tU1\t11/9/2019 9:00:%02d AM\t\tN1-1 N2-0\n" % (n, n) for n in range(40))


@pytest.fixture
def mind(tmp_path: Path) -> Path:
    folder = tmp_path / "mind"
    folder.mkdir()
    (folder / "behaviors.tsv").write_bytes(ROWS)
    (folder / "news.tsv").write_bytes(b"N1\tnews\tus\tA title\t\t\t[]\t[]\n")
    return folder


@pytest.fixture
def run(tmp_path: Path, mind: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    prepare(folder, load_config(env={}), [mind])
    return folder


def again(run: RunFolder, mind: Path) -> None:
    prepare(run, load_config(env={}), [mind])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ROWS[len(ROWS) // 3 :], r"behaviors.tsv was changed since the run began: .* now"),
        (ROWS.replace(b"N1-1", b"N1-0", 1), r"behaviors.tsv was changed since the run began"),
        (ROWS + ROWS[:40], r"behaviors.tsv: 40 bytes were appended"),
        (None, r"behaviors.tsv is gone"),
    ],
)
def test_a_run_does_not_go_on_over_a_changed_source(
    run: RunFolder, mind: Path, content: bytes | None, said: str
) -> None:
    path = mind / "behaviors.tsv"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
        os.utime(path, ns=(0, 0))
    with pytest.raises(ConfigError, match=said + r".*another --out"):
        again(run, mind)
    path.write_bytes(ROWS)
    again(run, mind)


def test_a_file_that_was_only_touched_or_copied_is_the_same(run: RunFolder, mind: Path) -> None:
    os.utime(mind / "behaviors.tsv", ns=(1, 1))
    again(run, mind)


def test_a_file_that_came_beside_is_told(run: RunFolder, mind: Path) -> None:
    (mind / "news.tsv.gz").write_bytes(b"more")
    with pytest.raises(ConfigError, match=r"news.tsv.gz was not there"):
        again(run, mind)


def test_a_run_of_an_older_release_is_held_to_its_source_from_now_on(run: RunFolder, mind: Path) -> None:
    (run.path / "source.json").write_bytes(b'{"mind":["%s"]}' % str(mind).encode())
    again(run, mind)
    assert read_source(run).files is not None
    (mind / "behaviors.tsv").write_bytes(ROWS[40:])
    with pytest.raises(ConfigError, match="its source changed"):
        again(run, mind)


def test_a_damaged_source_note_says_what_to_do(run: RunFolder) -> None:
    path = run.path / "source.json"
    path.write_bytes(path.read_bytes().replace(b"mind", b"mine", 1))
    with pytest.raises(CorruptStateError, match="does not fit its check; restore it from a copy, or write"):
        read_source(run)
