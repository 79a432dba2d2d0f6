"""The archive: what it holds is what `examples` held, file by file, whatever crashed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import CorruptStateError, RetryableError
from infra.eventlog import EventLog
from infra.ticks import Timeline
from stream import archive as files_module
from stream import archiver as module
from stream.archive import COMPLETE, complete_through, read_ticks
from stream.archiver import Archive
from stream.columns import Lists
from stream.examples import EMPTY, ExampleColumns, ExampleMeta, encode_example_meta, encode_examples
from stream.rebuild import rebuild
from stream.ticks_in import ExampleTicks
from tests.join import logs

TIMELINE = Timeline(600_000, 2, 1, 300, 200)  # ticks of 10 minutes: 6 an hour
DAY_TICKS = 144
FIRST = 1_573_257_600_000 // 600_000  # midnight


def example(tick: int, p: int, n: int) -> ExampleColumns:
    def ints(value: int) -> Any:
        return np.full(n, value, dtype=np.int64)

    items = Lists.of([[n, 2, 3]] * n)
    return ExampleColumns(
        impression=np.arange(n, dtype=np.int64) * -7 + p,
        user=ints(p),
        shown_ms=ints(tick * 600_000) + np.arange(n) % 3,
        offset=ints(tick),
        row=np.arange(n, dtype=np.int32),
        first_engaged_ms=ints(-1),
        history=Lists.of([[1] * (i % 4) for i in range(n)]),
        items=items,
        labels=Lists(items.offsets, np.ones(3 * n, dtype=np.uint8)),
    )


def fill(log: EventLog, ticks: int, *, end: bool = False, first: int = 0, seq: dict[int, int] | None = None) -> None:
    """`examples` of ticks FIRST + first …, some of them empty; one record a tick and partition."""
    rng, writer = np.random.default_rng(first), log.writer("examples")
    for p in range(logs.PARTITIONS):
        for at in range(first, first + ticks):
            tick, n = FIRST + at, int(rng.integers(0, 4))
            key = (tick, tick, n - 1) if n else (tick, 2**63 - 1, -1)
            meta = ExampleMeta(
                partition=p, seq=at, tick=tick, closed_through=tick, read_offset=at, read_row=1, last_tick=key[0],
                last_offset=key[1], last_row=key[2], low_offset=0, low_row=0, low_watermark_ms=0, watermark_ms=0,
                counts={}, end=end and at == first + ticks - 1,
            )  # fmt: skip
            value = encode_examples(example(tick, p, n)) if n else b""
            writer.append(p, value, timestamp_ms=tick, meta=encode_example_meta(meta))
    writer.close()


def drain(log: EventLog, folder: Path, size: int = 512) -> Archive:
    archive = Archive(log, folder, TIMELINE)
    while archive.step(size):
        pass
    return archive


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def log(tmp_path: Path) -> Any:
    log = logs.open_here(tmp_path / "log")
    yield log
    log.close()


def test_what_is_read_back_is_what_the_tick_reader_gives(log: EventLog, tmp_path: Path) -> None:
    fill(log, 40)
    drain(log, tmp_path / "archive")
    ticks, expected, close = ExampleTicks(log, "reader"), [EMPTY], []
    while (tick := ticks.next_tick()) is not None:
        if FIRST + 4 <= tick.tick <= FIRST + 31:
            expected.append(tick.examples)
            close += [tick.tick] * len(tick.examples)
    found, when = read_ticks(tmp_path / "archive", FIRST + 4, FIRST + 31)
    assert encode_examples(found) == encode_examples(ExampleColumns.concat(expected))
    assert when.tolist() == close


def test_only_whole_hours_count_until_the_end(log: EventLog, tmp_path: Path) -> None:
    fill(log, 10)
    archive = drain(log, tmp_path / "archive")
    assert archive.closed_through == complete_through(tmp_path / "archive") == FIRST + 5
    with pytest.raises(ValueError, match="ends before"):
        read_ticks(tmp_path / "archive", FIRST, FIRST + 6)
    fill(log, 4, first=10, end=True)
    while archive.step():
        pass
    assert complete_through(tmp_path / "archive") == FIRST + 13


def test_a_log_that_goes_on_after_its_end_replaces_the_unfinished_hour(log: EventLog, tmp_path: Path) -> None:
    fill(log, 10, end=True)
    drain(log, tmp_path / "archive").close()
    fill(log, 8, first=10)
    drain(log, tmp_path / "archive")
    other = drain_at_once(log, tmp_path / "other")
    assert files(tmp_path / "archive") == other


def drain_at_once(log: EventLog, folder: Path) -> dict[str, bytes]:
    archive = Archive(log, folder, TIMELINE, name=f"archive-{folder.name}")
    while archive.step():
        pass
    return files(folder)


def test_an_archive_that_dies_anywhere_writes_the_same_files(log: EventLog, tmp_path: Path) -> None:
    fill(log, 60)
    rng = np.random.default_rng(1)
    for _ in range(40):
        archive = Archive(log, tmp_path / "archive", TIMELINE)
        for _ in range(int(rng.integers(1, 4))):
            archive.step(int(rng.integers(1, 30)))
    drain(log, tmp_path / "archive")
    assert files(tmp_path / "archive") == drain_at_once(log, tmp_path / "other")


def test_a_complete_day_is_marked_once_every_partition_closed_it(log: EventLog, tmp_path: Path) -> None:
    fill(log, DAY_TICKS - 1)
    archive = drain(log, tmp_path / "archive")
    assert not list((tmp_path / "archive").rglob(COMPLETE))
    fill(log, 1, first=DAY_TICKS - 1)
    while archive.step():
        pass
    marked = [path.parent.name for path in (tmp_path / "archive").rglob(COMPLETE)]
    assert marked == ["day=2019-11-09"]


def test_a_flipped_byte_is_detected_or_changes_nothing(log: EventLog, tmp_path: Path) -> None:
    fill(log, 12)
    drain(log, tmp_path / "archive")
    path = next((tmp_path / "archive").rglob("part-0.parquet"))
    whole = encode_examples(read_ticks(tmp_path / "archive", FIRST, FIRST + 5)[0])
    data, detected = path.read_bytes(), 0
    for at in range(0, len(data), 23):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            assert encode_examples(read_ticks(tmp_path / "archive", FIRST, FIRST + 5)[0]) == whole
        except CorruptStateError:
            detected += 1
    assert detected > len(data) // 23 // 4


def test_a_full_disk_is_waited_out(log: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(log, 12)
    naps: list[float] = []
    write, tries = files_module.write_file, iter(range(1_000))

    def full_at_first(path: Path, data: Any) -> None:
        if next(tries) % 3 == 0:
            raise RetryableError(f"{path}: No space left on device", after_s=1.0)
        write(path, data)

    monkeypatch.setattr(module, "write_file", full_at_first)
    monkeypatch.setattr(files_module, "write_file", full_at_first)
    archive = Archive(log, tmp_path / "archive", TIMELINE, sleep=naps.append)
    while archive.step():
        pass
    assert naps
    monkeypatch.undo()
    assert files(tmp_path / "archive") == drain_at_once(log, tmp_path / "other")


@pytest.fixture
def two_days(log: EventLog, tmp_path: Path) -> Path:
    """An archive of a whole day and a part of the next, to the replay's end."""
    fill(log, DAY_TICKS + 20, end=True)
    drain(log, tmp_path / "archive").close()
    return tmp_path / "archive"


def all_of(folder: Path) -> bytes:
    found, ticks = read_ticks(folder, FIRST, FIRST + DAY_TICKS + 19)
    return encode_examples(found) + ticks.tobytes()


def mended(log: EventLog, folder: Path) -> str:
    return rebuild(log, folder, TIMELINE, hours=1)


def test_any_lost_file_of_the_archive_is_missed_and_made_again(log: EventLog, two_days: Path) -> None:
    whole, want = files(two_days), all_of(two_days)
    for name in whole:
        (two_days / name).unlink()
        try:
            with pytest.raises((CorruptStateError, ValueError), match=r"ouzel archive --run .* --again|ends before"):
                all_of(two_days)
        finally:
            (two_days / name).write_bytes(whole[name])
    lost = next(name for name in whole if name.endswith("hour=07/part-0.parquet"))
    (two_days / lost).unlink()
    assert f"{lost} was missing" in mended(log, two_days)
    assert files(two_days) == whole
    assert all_of(two_days) == want


def test_a_lost_day_is_missed(two_days: Path) -> None:
    shutil.rmtree(two_days / "day=2019-11-09")
    with pytest.raises(CorruptStateError, match="--again"):
        all_of(two_days)


def test_files_that_do_not_belong_to_the_archive_are_told(log: EventLog, two_days: Path) -> None:
    whole = files(two_days)
    hour = two_days / "day=2019-11-09" / "hour=07"
    extra = {
        "another partition's": (hour / "part-7.parquet", whole["day=2019-11-09/hour=07/part-0.parquet"]),
        "another hour's": (hour / "part-0.parquet", whole["day=2019-11-09/hour=08/part-0.parquet"]),
        "a copy": (hour / "part-0 (1).parquet", whole["day=2019-11-09/hour=07/part-0.parquet"]),
        "a day's later hour": (
            two_days / "day=2019-11-10" / "hour=00" / "part-1.parquet",
            whole["day=2019-11-10/hour=00/part-0.parquet"],
        ),
    }
    for path, content in extra.values():
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        with pytest.raises(CorruptStateError, match=r"(does not belong there|not those that were written).*--again"):
            all_of(two_days)
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
    path, content = extra["a copy"]
    path.write_bytes(content)
    assert "one too many" in mended(log, two_days)
    assert files(two_days) == whole


def test_an_archive_that_is_gone_is_not_begun_in_the_middle(log: EventLog, two_days: Path) -> None:
    whole = files(two_days)
    shutil.rmtree(two_days)
    with pytest.raises(CorruptStateError, match=r"progress/0.json: missing, .*--again"):
        Archive(log, two_days, TIMELINE)
    mended(log, two_days)
    assert files(two_days) == whole
    assert Archive(log, two_days, TIMELINE).step() >= 0


def test_an_archive_of_an_older_release_is_read_and_gone_on_with(log: EventLog, tmp_path: Path) -> None:
    fill(log, DAY_TICKS + 20)
    folder = tmp_path / "archive"
    drain(log, folder).close()
    for path in [*folder.glob("progress/*.json"), *folder.rglob(COMPLETE)]:
        said = json.loads(path.read_bytes())
        for name in ("files", "days", "next_offset", "check"):
            said.pop(name, None)
        path.write_text(json.dumps(said))
    fill(log, 20, first=DAY_TICKS + 20, end=True)
    before, _ = read_ticks(folder, FIRST, FIRST + DAY_TICKS + 5)
    drain(log, folder).close()
    after, _ = read_ticks(folder, FIRST, FIRST + DAY_TICKS + 5)
    assert encode_examples(before) == encode_examples(after)
    lost = sorted(folder.glob("day=2019-11-10/hour=0*/part-0.parquet"))[0]
    lost.unlink()
    with pytest.raises(CorruptStateError, match="is missing"):
        read_ticks(folder, FIRST, FIRST + DAY_TICKS + 39)


def test_a_day_is_marked_by_the_next_life_where_the_one_that_closed_it_was_killed(
    log: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(log, DAY_TICKS + 1)
    monkeypatch.setattr(Archive, "_mark", lambda self, day: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        drain(log, tmp_path / "archive")
    monkeypatch.undo()
    fill(log, 20, first=DAY_TICKS + 1, end=True)
    drain(log, tmp_path / "archive")
    made, other = files(tmp_path / "archive"), drain_at_once(log, tmp_path / "other")
    assert f"day=2019-11-09/{COMPLETE}" in made
    assert {name: made[name] for name in made if "progress" not in name} == {
        name: other[name] for name in other if "progress" not in name
    }


def test_half_written_files_of_the_dead_are_swept_and_nothing_else(log: EventLog, two_days: Path) -> None:
    whole = files(two_days)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    hour = two_days / "day=2019-11-09" / "hour=07"
    ours = [hour / f".part-0.parquet.{gone.pid}.tmp", two_days / "progress" / f".0.json.{gone.pid}.tmp"]
    others = [
        hour / f".part-0.parquet.{os.getppid()}.tmp",
        hour / ".DS_Store",
        hour / f".part-0.parquet.{os.getpid()}.tmp",
    ]
    for path in (*ours, *others):
        path.write_bytes(b"half")
    Archive(log, two_days, TIMELINE).close()
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in others)
    for path in others:
        path.unlink()
    assert files(two_days) == whole
