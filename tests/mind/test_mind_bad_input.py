"""Every kind of bad line is a counted dead row that names file and line; every kind of wrong folder says what to do."""

from pathlib import Path

import numpy as np
import pytest

from infra.errors import InputError
from stream.mind import DeadReason, open_mind, read_news
from stream.mind.kernels import MAX_ID_BYTES, MAX_LINE_BYTES
from stream.mind.reader import find_strays

GOOD = b"1\tU1\t11/12/2019 2:14:46 PM\tN1 N2\tN3-0 N4-1"
NEWS_LINE = b'N1\tnews\tnewsworld\t"Quoted" title, it\'s 5\t\thttps://example.com\t[]\t[]\n'


def folder_with(tmp_path: Path, *lines: bytes, news: bytes = NEWS_LINE) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "behaviors.tsv").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "news.tsv").write_bytes(news)
    return folder


BAD_LINES = {
    "wrong column count": (b"2\tU2\t11/12/2019 2:14:46 PM\tN1\tN3-0\textra", DeadReason.COLUMNS),
    "blank line": (b"", DeadReason.COLUMNS),
    "truncated in the history": (b"2\tU2\t11/12/2019 2:14:46 PM\tN1 N", DeadReason.COLUMNS),
    "truncated in the items": (b"2\tU2\t11/12/2019 2:14:46 PM\tN1\tN3-0 N4", DeadReason.LABEL_MISSING),
    "truncated at a dash": (b"2\tU2\t11/12/2019 2:14:46 PM\tN1\tN3-0 N4-", DeadReason.LABEL_MISSING),
    "no label at all": (b"2\tU2\t11/12/2019 2:14:46 PM\tN1\tN3 N4", DeadReason.LABEL_MISSING),
    "label 2": (b"2\tU2\t11/12/2019 2:14:46 PM\tN1\tN3-0 N4-2", DeadReason.BAD_LABEL),
    "label 10": (b"2\tU2\t11/12/2019 2:14:46 PM\tN1\tN3-10", DeadReason.BAD_LABEL),
    "no candidates": (b"2\tU2\t11/12/2019 2:14:46 PM\tN1\t", DeadReason.NO_CANDIDATES),
    "empty impression id": (b"\tU2\t11/12/2019 2:14:46 PM\tN1\tN3-0", DeadReason.EMPTY_ID),
    "empty user id": (b"2\t\t11/12/2019 2:14:46 PM\tN1\tN3-0", DeadReason.EMPTY_ID),
    "empty item id": (b"2\tU2\t11/12/2019 2:14:46 PM\tN1\tN3-0 -1", DeadReason.EMPTY_ID),
    "endless item id": (b"2\tU2\t11/12/2019 2:14:46 PM\tN1\t" + b"N" * 200 + b"-0", DeadReason.ID_TOO_LONG),
    "endless user id": (b"2\t" + b"U" * 200 + b"\t11/12/2019 2:14:46 PM\tN1\tN3-0", DeadReason.ID_TOO_LONG),
    "endless history id": (b"2\tU2\t11/12/2019 2:14:46 PM\t" + b"N" * 200 + b"\tN3-0", DeadReason.ID_TOO_LONG),
    "day first": (b"2\tU2\t13/12/2019 2:14:46 PM\tN1\tN3-0", DeadReason.BAD_TIME),
    "no such day": (b"2\tU2\t2/29/2019 2:14:46 PM\tN1\tN3-0", DeadReason.BAD_TIME),
    "24-hour clock": (b"2\tU2\t11/12/2019 14:14:46 PM\tN1\tN3-0", DeadReason.BAD_TIME),
    "no AM or PM": (b"2\tU2\t11/12/2019 2:14:46\tN1\tN3-0", DeadReason.BAD_TIME),
    "year of the epoch's past": (b"2\tU2\t11/12/1969 2:14:46 AM\tN1\tN3-0", DeadReason.BAD_TIME),
    "not UTF-8": (b"2\tU\xff2\t11/12/2019 2:14:46 PM\tN1\tN3-0", DeadReason.NOT_UTF8),
    "overlong UTF-8": (b"2\tU\xc0\xaf\t11/12/2019 2:14:46 PM\tN1\tN3-0", DeadReason.NOT_UTF8),
    "10 MB": (b"2\tU2\t11/12/2019 2:14:46 PM\tN1\t" + b"N3-0 " * 2_000_000, DeadReason.TOO_LONG),
    "duplicate impression": (b"1\tU9\t11/12/2019 2:15:46 PM\tN1\tN3-0", DeadReason.DUPLICATE),
    "dated 2099": (b"2\tU2\t11/12/2099 2:14:46 PM\tN1\tN3-0", DeadReason.TIME_GAP),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line_is_dead_with_its_reason_and_the_rest_goes_on(tmp_path: Path, case: str) -> None:
    bad, reason = BAD_LINES[case]
    after = GOOD.replace(b"1\tU1", b"3\tU1")
    folder = folder_with(tmp_path, GOOD, bad, after)
    index = open_mind([folder])
    assert index.n == 2
    assert index.dead.counts() == {reason: 1}
    dead = index.dead[0]
    assert (dead.file, dead.line, dead.reason) == (folder / "behaviors.tsv", 2, reason)
    assert dead.raw == bad[:4096]
    assert index.lines == index.n + len(index.dead)
    assert index.rows(0, 2).items.lengths.tolist() == [2, 2]


def test_lines_at_the_limits_are_good(tmp_path: Path) -> None:
    long_id = b"U" * MAX_ID_BYTES
    head = b"2\t" + long_id + b"\t1/2/2019 12:00:00 AM\tN1\tN3-0"
    n = (MAX_LINE_BYTES - len(head)) // 9
    filler = b"".join(b" X%05d-1" % i for i in range(n))
    index = open_mind([folder_with(tmp_path, head + filler)])
    assert index.n == 1
    assert index.shown_items == 1 + n


def test_a_dead_line_does_not_claim_its_id(tmp_path: Path) -> None:
    index = open_mind([folder_with(tmp_path, GOOD.replace(b"N4-1", b"N4-7"), GOOD)])
    assert index.n == 1
    assert index.dead.counts() == {DeadReason.BAD_LABEL: 1}


def test_windows_line_ends_and_a_missing_last_newline_are_good(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, GOOD)
    (folder / "behaviors.tsv").write_bytes(GOOD + b"\r\n" + GOOD.replace(b"1\t", b"2\t", 1))
    index = open_mind([folder])
    assert index.n == 2
    assert index.rows(0, 2).labels.tolist() == [0, 1, 0, 1]


def test_test_split_without_labels_is_refused(tmp_path: Path) -> None:
    line = b"%d\tU1\t11/12/2019 2:14:46 PM\tN1\tN3 N4"
    with pytest.raises(InputError, match=r"no labels.*test split"):
        open_mind([folder_with(tmp_path, *[line % k for k in range(5)])])


def test_empty_file_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, GOOD)
    (folder / "behaviors.tsv").write_bytes(b"")
    with pytest.raises(InputError, match=r"behaviors\.tsv: empty file"):
        open_mind([folder])
    (folder / "news.tsv").write_bytes(b"")
    with pytest.raises(InputError, match=r"news\.tsv: empty file"):
        read_news([folder])


def test_file_without_one_usable_line_names_the_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1: columns"):
        open_mind([folder_with(tmp_path, b"user,item,rating", b"1,2,3")])


@pytest.mark.parametrize("make", [lambda p: p / "missing", lambda p: p, lambda p: p / "file"])
def test_wrong_folder_says_what_was_looked_for_and_where_mind_is(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("x")
    for reader in (open_mind, read_news):
        with pytest.raises(InputError, match=r"(?s)behaviors\.tsv|news\.tsv") as error:
            reader([make(tmp_path)])
        assert "msnews.github.io" in str(error.value)


def test_folder_above_mind_folders_names_them(tmp_path: Path) -> None:
    folder_with(tmp_path, GOOD)
    with pytest.raises(InputError, match="Below it lie log; give these"):
        open_mind([tmp_path])


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        folder_with(tmp_path / parent, GOOD)
    with pytest.raises(InputError, match="both named log"):
        open_mind([tmp_path / "a" / "log", tmp_path / "b" / "log"])


def test_two_logs_further_apart_than_the_gap_are_refused_with_where_and_what_to_do(tmp_path: Path) -> None:
    def rows(year: int, first: int) -> list[bytes]:
        return [GOOD.replace(b"2019", b"%d" % year).replace(b"1\t", b"%d\t" % (first + i), 1) for i in range(20)]

    folder = folder_with(tmp_path, *rows(2012, 100), *rows(2019, 200))
    with pytest.raises(InputError, match=r"behaviors\.tsv: 20 rows until 2012-11-12 .* days apart.*max_gap_s to \d+"):
        open_mind([folder])
    assert open_mind([folder], max_gap_s=8 * 366 * 86_400).n == 40


def test_the_replay_of_rows_of_a_wrong_clock_never_spans_the_years_between(tmp_path: Path) -> None:
    good = [GOOD.replace(b"1\t", b"%d\t" % i, 1) for i in range(1, 60)]
    wrong = [GOOD.replace(b"2019", b"1970"), GOOD.replace(b"2019", b"9999"), *[GOOD.replace(b"2019", b"2001")] * 3]
    wrong = [row.replace(b"1\t", b"%d\t" % (900 + i), 1) for i, row in enumerate(wrong)]
    index = open_mind([folder_with(tmp_path, *wrong[:3], *good, *wrong[3:])])
    assert index.dead.counts() == {DeadReason.BAD_TIME: 2, DeadReason.TIME_GAP: 3}
    assert index.n == len(good)
    assert index.time_ms[-1] - index.time_ms[0] < 86_400_000


def test_strays_are_lone_rows_and_small_stretches_never_the_largest() -> None:
    gap = 100
    assert find_strays(np.array([5]), gap).tolist() == [False]
    assert find_strays(np.array([0, 100, 201]), gap).tolist() == [False, False, True]
    assert find_strays(np.array([0, 1000]), gap).tolist() == [False, True]
    week = np.arange(1_000)
    assert find_strays(np.concatenate([week, [5000, 5001]]), gap).sum() == 2
    assert find_strays(np.concatenate([[0, 0], np.full(148, 5000)]), gap).tolist() == [True] * 2 + [False] * 148
    assert find_strays(np.concatenate([week, week + 50_000]), gap).sum() == 0
    assert find_strays(np.array([], dtype=np.int64), gap).tolist() == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"N2\tnews\tworld\ttitle\t\turl\t[]", DeadReason.COLUMNS),
        (b"\tnews\tworld\ttitle\t\turl\t[]\t[]", DeadReason.EMPTY_ID),
        (b"N2\tnews\tworld\tti\xfftle\t\turl\t[]\t[]", DeadReason.NOT_UTF8),
        (b"N" * 300 + b"\tnews\tworld\ttitle\t\turl\t[]\t[]", DeadReason.ID_TOO_LONG),
        (b"N2\tnews\tworld\t" + b"x" * 10_000_000 + b"\t\turl\t[]\t[]", DeadReason.TOO_LONG),
    ],
)
def test_bad_news_line_is_dead_and_the_rest_goes_on(tmp_path: Path, line: bytes, reason: DeadReason) -> None:
    news = NEWS_LINE + line + b"\n" + NEWS_LINE.replace(b"N1", b"N9")
    table = read_news([folder_with(tmp_path, GOOD, news=news)])
    assert table.item_id == ["N1", "N9"]
    assert table.dead_counts == {reason: 1}
    assert (table.dead[0].line, table.dead[0].raw) == (2, line[:4096])


def test_an_item_that_is_shown_twice_is_a_dead_row_as_on_the_wire(tmp_path: Path) -> None:
    """It was learned once as clicked and once as not."""
    rows = [
        f"{n}\tU{n}\t11/9/2019 9:0{n}:00 AM\t\t{shown}" for n, shown in enumerate(("A-0 B-1", "A-1 A-0", "A-1 B-0 A-1"))
    ]
    (tmp_path / "behaviors.tsv").write_text("\n".join(rows) + "\n")
    index = open_mind([tmp_path])
    assert index.n == 1
    assert index.dead.counts() == {DeadReason.REPEATED_ITEM: 2}
