"""The reader agrees with a plain Python reading of the format, whatever the bytes."""

import datetime
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import InputError
from infra.hashing import hash64, partition_of
from stream.mind import ImpressionRows, MindIndex, open_mind, read_news, title_words
from stream.mind.fields import NO_TIME, is_utf8, parse_time

Row = tuple[int, int, str, str, str, list[str], list[tuple[str, int]]]


def reference(folders: list[Path]) -> list[Row]:
    """Usable rows in order: (time_ms, folder, line, id, user, history, items). Good for well-formed ids."""
    rows: list[Row] = []
    for k, folder in enumerate(folders):
        seen = set()
        for number, raw in enumerate((folder / "behaviors.tsv").read_bytes().split(b"\n"), 1):
            try:
                fields = raw.decode().split("\t")
                name, user, time, history, items = fields
                moment = datetime.datetime.strptime(time, "%m/%d/%Y %I:%M:%S %p").replace(tzinfo=datetime.UTC)
                shown = [(item.rpartition("-")[0], {"0": 0, "1": 1}[item.rpartition("-")[2]]) for item in items.split()]
            except (ValueError, KeyError):
                continue
            if name and user and shown and all(item for item, _ in shown) and name not in seen:
                seen.add(name)
                ms = round(moment.timestamp() * 1000)
                rows.append((ms, k, number, f"{folder.name}/{name}", user, history.split(), shown))
    return sorted(rows, key=lambda row: row[:3])


def as_keys(row: Row) -> tuple[object, ...]:
    ms, _, _, name, user, history, items = row
    return (
        ms,
        hash64(name),
        hash64(user),
        [hash64(h) for h in history],
        [hash64(i) for i, _ in items],
        [c for _, c in items],
    )


def read(index: MindIndex, window: int) -> list[tuple[object, ...]]:
    out: list[tuple[object, ...]] = []
    for lo in range(0, index.n, window):
        part: ImpressionRows = index.rows(lo, lo + window, partitions=3)
        for i in range(len(part)):
            labels = part.labels[part.items.offsets[i] : part.items.offsets[i + 1]]
            ids = int(part.time_ms[i]), int(part.impression[i]), int(part.user[i])
            out.append((*ids, part.history[i].tolist(), part.items[i].tolist(), labels.tolist()))
    return out


ids = st.text(alphabet="NU0123456789é-", min_size=0, max_size=4).map(lambda s: s.strip("-"))
times = st.one_of(
    st.datetimes(datetime.datetime(2019, 11, 9), datetime.datetime(2019, 11, 15)).map(
        lambda d: f"{d.month}/{d.day}/{d.year} {(d.hour + 11) % 12 + 1}:{d:%M:%S} {d:%p}"
    ),
    st.sampled_from(["11/31/2019 1:00:00 AM", "11/9/2019 0:30:00 AM", "11/9/2019 12:30:00 XM", "now", ""]),
)
shown = st.lists(st.tuples(ids, st.sampled_from(["-0", "-1", "-2", "-", ""])).map("".join), max_size=4)
lines = st.one_of(
    st.tuples(ids, ids, times, st.lists(ids, max_size=4).map(" ".join), shown.map(" ".join)).map("\t".join),
    st.text(alphabet="N1\t -", max_size=12),
).map(str.encode)
spoiled = st.tuples(lines, st.sampled_from([b"", b"\xff", b"\xe2\x82"])).map(lambda pair: pair[0] + pair[1])
GOOD = b"good\tU1\t11/12/2019 12:00:00 PM\tN1 N2\tN3-0 N4-1"


@given(st.lists(spoiled, max_size=12), st.lists(spoiled, max_size=4), st.integers(1, 5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_reader_equals_the_reference(
    tmp_path_factory: pytest.TempPathFactory, a: list[bytes], b: list[bytes], window: int
) -> None:
    base = tmp_path_factory.mktemp("mind")
    for name, body in (("train", a), ("dev", b)):
        (base / name).mkdir()
        (base / name / "behaviors.tsv").write_bytes(b"\n".join([*body, GOOD]))
    folders = [base / "train", base / "dev"]
    want = reference(folders)
    index = open_mind(folders)
    assert read(index, window) == [as_keys(row) for row in want]
    assert list(zip(index.folder.tolist(), index.line.tolist(), strict=True)) == [row[1:3] for row in want]
    assert index.n + len(index.dead) == index.lines
    users = index.rows(0, index.n, partitions=3).partition.tolist()
    assert users == [partition_of(row[4], 3) for row in want]


def test_a_reference_that_forgets_noon_would_be_caught() -> None:
    """Twelve o'clock is where readings of this format differ."""
    for text, hour in (
        ("12:00:00 AM", 0),
        ("12:59:59 AM", 0),
        ("1:00:00 AM", 1),
        ("12:00:00 PM", 12),
        ("11:00:00 PM", 23),
    ):
        data = np.frombuffer(f"11/9/2019 {text}".encode(), dtype=np.uint8).copy()
        ms = parse_time(data, 0, len(data))
        assert ms // 3_600_000 % 24 == hour, text


@given(st.datetimes(datetime.datetime(1974, 1, 1), datetime.datetime(5137, 12, 31)), st.booleans())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_time_reads_as_utc(moment: datetime.datetime, padded: bool) -> None:
    moment = moment.replace(microsecond=0, tzinfo=datetime.UTC)
    hour = (moment.hour + 11) % 12 + 1
    date = f"{moment.month:02}/{moment.day:02}" if padded else f"{moment.month}/{moment.day}"
    text = f"{date}/{moment.year} {hour:02}" if padded else f"{date}/{moment.year} {hour}"
    data = np.frombuffer(f"{text}:{moment:%M:%S} {'AM' if moment.hour < 12 else 'PM'}".encode(), dtype=np.uint8).copy()
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert parse_time(data, 0, len(data)) == (moment - epoch) // datetime.timedelta(milliseconds=1)
    for cut in range(len(data)):
        assert parse_time(data, 0, cut) == NO_TIME


@given(st.one_of(st.binary(max_size=8), st.text(max_size=4).map(str.encode)))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_utf8_is_judged_as_python_does(raw: bytes) -> None:
    data = np.frombuffer(raw, dtype=np.uint8).copy() if raw else np.empty(0, dtype=np.uint8)
    try:
        raw.decode()
        good = True
    except UnicodeDecodeError:
        good = False
    assert is_utf8(data, 0, len(data)) == good


def test_folders_merge_in_time_order_with_ids_made_unique(tmp_path: Path) -> None:
    rng = random.Random(3)
    for name in ("train", "dev"):
        (tmp_path / name).mkdir()
        rows = [
            f"{k}\tU{k % 7}\t11/{9 + rng.randrange(3)}/2019 {rng.randrange(1, 13)}:30:00 AM\t\tN{k}-1"
            for k in range(50)
        ]
        (tmp_path / name / "behaviors.tsv").write_text("\n".join(rows) + "\n")
    index = open_mind([tmp_path / "train", tmp_path / "dev"])
    assert index.n == 100
    assert (np.diff(index.time_ms) >= 0).all()
    same_time = np.diff(index.time_ms) == 0
    place = index.folder.astype(np.int64) * 1_000 + index.line
    assert (np.diff(place)[same_time] > 0).all()
    assert len(np.unique(index.rows(0, 100).impression)) == 100
    assert index.rows(0, 100).history.lengths.tolist() == [0] * 100
    assert len(index.rows(100, 200)) == 0


def test_news_of_two_folders_is_one_catalogue(tmp_path: Path) -> None:
    for name, title in (("train", 'Why "they" don\'t win 5-0'), ("dev", "Another")):
        (tmp_path / name).mkdir()
        body = f"N1\tsports\tgolf\t{title}\t\turl\t[]\t[]\nN-{name}\tnews\tworld\t\tabstract\turl\t\t\n"
        (tmp_path / name / "news.tsv").write_text(body)
    table = read_news([tmp_path / "train", tmp_path / "dev"])
    assert table.item_id == ["N1", "N-train", "N-dev"]
    assert table.title[0] == 'Why "they" don\'t win 5-0'
    assert table.words[0].tolist() == [hash64(w) for w in ("why", "they", "don't", "win", "5", "0")]
    assert table.words.lengths.tolist() == [6, 0, 0]
    assert table.item.tolist() == [hash64(i) for i in table.item_id]
    assert table.category.tolist() == [hash64("sports"), hash64("news"), hash64("news")]


def test_title_words_are_lower_case_letters_and_digits() -> None:
    assert title_words("“Élan” — it’s NASA's 2nd_try!") == ["élan", "it’s", "nasa's", "2nd", "try"]


def test_no_folder_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no MIND folder given"):
        open_mind([])
