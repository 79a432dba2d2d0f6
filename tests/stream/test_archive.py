"""The archive: what it holds is what `examples` held, file by file, whatever crashed."""

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
