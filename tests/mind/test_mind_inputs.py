"""A data set as people have it: compressed, zipped, with a byte-order mark, or not a data set at all."""

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

from infra.errors import InputError
from infra.inputs import MAX_RATIO, open_input
from serving.report.words import DEAD_MEANING
from stream.mind import DeadReason, NewsTable, open_mind, read_news
from stream.mind.reader import MindIndex

ROWS = b"".join(b"%d\tU%d\t11/12/2019 2:%02d:46 PM\tN1 N2\tN3-0 N4-1\n" % (i, i % 5, i) for i in range(40))
NEWS = b"".join(b"N%d\tsport\tgolf\tA title\t\t\t[]\t[]\n" % i for i in range(1, 6))
BOM = b"\xef\xbb\xbf"


def plain(folder: Path, rows: bytes = ROWS, news: bytes = NEWS) -> Path:
    folder.mkdir(parents=True)
    (folder / "behaviors.tsv").write_bytes(rows)
    (folder / "news.tsv").write_bytes(news)
    return folder


def content(source: Path) -> tuple[MindIndex, NewsTable]:
    return open_mind([source]), read_news([source])


def assert_same(source: Path, other: Path) -> None:
    (index, news), (there, items) = content(source), content(other)
    assert news.item_id == items.item_id
    rows, expected = index.rows(0, index.n), there.rows(0, there.n)
    assert np.array_equal(rows.impression, expected.impression)
    assert np.array_equal(rows.items.values, expected.items.values)
    assert len(index.dead) == len(there.dead)


def gzipped(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "behaviors.tsv.gz").write_bytes(gzip.compress(ROWS[:100]) + gzip.compress(ROWS[100:]))  # two members
    (folder / "news.tsv").write_bytes(gzip.compress(NEWS))  # by its bytes, whatever its name
    return folder


def zipped(folder: Path) -> Path:
    folder.parent.mkdir(parents=True)
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("log/behaviors.tsv", ROWS)
        archive.writestr("log/news.tsv", NEWS)
        archive.writestr("__MACOSX/log/behaviors.tsv", b"rubbish")
    return path


@pytest.mark.parametrize("make", [gzipped, zipped])
def test_a_compressed_source_has_the_rows_and_the_ids_of_the_folder_that_it_unpacks_to(tmp_path: Path, make) -> None:
    assert_same(make(tmp_path / "packed" / "log"), plain(tmp_path / "log"))


def test_a_byte_order_mark_renames_nothing(tmp_path: Path) -> None:
    marked = plain(tmp_path / "marked" / "log", BOM + ROWS, BOM + NEWS)
    assert_same(marked, plain(tmp_path / "log"))
    assert read_news([marked]).item_id[0] == "N1"


def test_what_comes_out_of_a_bomb_is_bounded(tmp_path: Path) -> None:
    folder = plain(tmp_path / "log")
    (folder / "behaviors.tsv").unlink()
    bomb = folder / "behaviors.tsv.gz"
    with gzip.open(bomb, "wb", compresslevel=9) as file:
        for _ in range(80):
            file.write(bytes(b"\t" * (1 << 20)))
    assert bomb.stat().st_size * MAX_RATIO < 80 << 20
    with pytest.raises(InputError, match=r"behaviors\.tsv\.gz: more than [\d,]+ bytes come out of it"):
        open_mind([folder])


FOREIGN = {
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "UTF-16": ROWS.decode().encode("utf-16"),
    "iconv": ROWS.decode().encode("utf-16-le"),  # without a mark
    "web page": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "Parquet": b"PAR1\x15\x04\x15\x10",
    "zip archive": b"PK\x03\x04\x14\x00",
    "torn download": gzip.compress(ROWS)[:-20],
    "four columns and no impression id": b"".join(line.split(b"\t", 1)[1] for line in ROWS.splitlines(keepends=True)),
    "four columns and no shown items": b"".join(line.rsplit(b"\t", 1)[0] + b"\n" for line in ROWS.splitlines()),
    "separated by commas": ROWS.replace(b"\t", b","),
    "It has 3 tab-separated columns, not 5": b"1\tU1\tN1\n" * 5,
}


@pytest.mark.parametrize("says", FOREIGN)
def test_what_is_something_else_is_refused_with_what_it_is(tmp_path: Path, says: str) -> None:
    folder = plain(tmp_path / "log", FOREIGN[says])
    with pytest.raises(InputError, match=says):
        open_mind([folder])


@pytest.mark.parametrize("says", ["Git LFS", "UTF-16", "web page", "torn download"])
def test_a_catalogue_that_is_something_else_is_refused_too(tmp_path: Path, says: str) -> None:
    folder = plain(tmp_path / "log", news=FOREIGN[says].replace(b"U1", b"N1"))
    with pytest.raises(InputError, match=says):
        read_news([folder])


def test_a_zip_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    both = tmp_path / "both.zip"
    with zipfile.ZipFile(both, "w") as archive:
        archive.writestr("train/behaviors.tsv", ROWS)
        archive.writestr("dev/behaviors.tsv", ROWS)
    with pytest.raises(InputError, match=r"holds 2 of behaviors\.tsv: dev/behaviors\.tsv"):
        open_mind([both])
    with pytest.raises(InputError, match=r"it has no news\.tsv"):
        read_news([both])
    (tmp_path / "torn.zip").write_bytes(both.read_bytes()[:50])
    with pytest.raises(InputError, match="torn download"):
        open_mind([tmp_path / "torn.zip"])


def test_every_refused_row_of_a_catalogue_has_a_counted_reason(tmp_path: Path) -> None:
    rows = {
        DeadReason.COLUMNS: b"N9\tsport\tgolf\tA title\n",
        DeadReason.EMPTY_ID: b"\tsport\tgolf\tA title\t\t\t[]\t[]\n",
        DeadReason.ID_TOO_LONG: b"N" * 200 + b"\tsport\tgolf\tA title\t\t\t[]\t[]\n",
        DeadReason.NOT_UTF8: b"N\xff9\tsport\tgolf\tA title\t\t\t[]\t[]\n",
        DeadReason.DUPLICATE_ITEM: b"N1\tother\tgolf\tA title\t\t\t[]\t[]\n",
    }
    folder = plain(tmp_path / "log", news=NEWS + b"".join(rows.values()))
    news = read_news([folder])
    assert len(news) + sum(news.dead_counts.values()) == NEWS.count(b"\n") + len(rows)
    assert news.dead_counts == dict.fromkeys(rows, 1)
    assert news.category_name[news.item_id.index("N1")] == "sport"
    with pytest.raises(InputError, match="It has 4 tab-separated columns, not 8"):
        read_news([plain(tmp_path / "four", news=rows[DeadReason.COLUMNS])])


def test_a_file_that_nobody_may_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"), open_input(tmp_path):
        pass


def test_every_reason_is_on_the_page_and_has_its_words_in_the_report() -> None:
    page = (Path(__file__).parents[2] / "infra/docs/inputs.md").read_text(encoding="utf-8")
    assert [reason for reason in DeadReason if f"| `{reason}` |" not in page or reason not in DEAD_MEANING] == []
