"""Damage is detected, never served: every byte of every file of a small log, flipped; every length, cut."""

import pytest
from losing_disk import LosingDisk

from infra.config import LogConfig
from infra.errors import ConfigError, CorruptStateError
from infra.eventlog import torn as torn_files
from infra.eventlog.log import EmbeddedLog
from infra.eventlog.marks import EMPTY_MARK

CONFIG = LogConfig(segment_bytes=200)
VALUES = [b"zero", b"", b"two" * 20, b"three", b"four" * 9, b"five", b"six"]
HIGHWATER = "/log/t/0/highwater"


def make_log():
    """A disk with a log of several segments and a reader at offset 2."""
    disk = LosingDisk()
    log = EmbeddedLog("/log", CONFIG, disk)
    log.create_topic("t", 1)
    writer = log.writer("t")
    for number, value in enumerate(VALUES):
        writer.append(0, value, timestamp_ms=number, key=b"key%d" % number, meta=b"m")
        writer.flush()
    log.reader("t", "r").commit({0: 2})
    log.close()
    return disk


@pytest.fixture
def healthy():
    return make_log()


def segments(disk):
    return sorted(path for path in disk.contents() if path.endswith(".log"))


def serve(disk):
    """Everything a reader and a writer could see of the log, through a fresh opening."""
    log = EmbeddedLog("/log", CONFIG, disk)
    log.create_topic("t", 1)
    reader = log.reader("t", "r")
    position = reader.position(0)
    polled = [record.offset for _, record in reader.poll()]
    records = [(r.offset, r.timestamp_ms, r.key, r.meta, bytes(r.value)) for r in log.read("t", 0, 0)]
    newest = log.last_record("t", 0)
    return log.partitions("t"), position, polled, records, newest and bytes(newest.value)


def served_wrong(healthy):
    """The single-byte flips after which the log serves something else without a word."""
    want, wrong, tried = serve(healthy.copy({})), [], 0
    for path, raw in healthy.contents().items():
        for index in range(len(raw)):
            flipped = bytearray(raw)
            flipped[index] ^= 1 << (index % 8)
            tried += 1
            try:
                if serve(healthy.copy({path: bytes(flipped)})) != want:
                    wrong.append((path, index))
            except (CorruptStateError, ConfigError):
                pass
    assert tried > 700
    return wrong


def test_a_flipped_byte_anywhere_is_detected_or_repaired(healthy):
    assert served_wrong(healthy) == []


def test_a_removed_checksum_is_caught_by_the_flips(monkeypatch):
    monkeypatch.setattr("infra.eventlog.frames.checksum", lambda data, start=0: 0)
    assert served_wrong(make_log()) != []


def test_a_cut_below_the_high_water_mark_is_detected(healthy):
    newest = segments(healthy)[-1]
    raw = healthy.contents()[newest]
    for length in range(len(raw)):
        with pytest.raises(CorruptStateError, match=r"durable|missing"):
            serve(healthy.copy({newest: raw[:length]}))


@pytest.mark.parametrize("index", [0, 1, -1])
def test_a_missing_segment_is_detected(healthy, index):
    assert len(segments(healthy)) >= 3
    path = segments(healthy)[index]
    del healthy.folders["/log/t/0"][path.rpartition("/")[2]]
    with pytest.raises((CorruptStateError, ValueError), match=r"missing|lost"):
        serve(healthy)


@pytest.mark.parametrize("garbage", [b"\0" * 7, b"\0" * 4_096, b"\xff" * 100, "half a frame", "a frame again"])
def test_a_torn_tail_is_cut_off_on_open(healthy, garbage):
    want = serve(healthy.copy({}))
    path = segments(healthy)[-1]
    raw = healthy.contents()[path]
    if isinstance(garbage, str):
        garbage = raw[32:60] if garbage == "half a frame" else raw[32:]
    torn = healthy.copy({path: raw + garbage})
    assert serve(torn) == want
    assert torn.contents()[path] == raw


@pytest.mark.parametrize("mark", [b"", b"\0" * 64, b"\xff" * 64, None])
def test_a_lost_high_water_mark_is_rebuilt_from_the_segments(healthy, mark):
    want = serve(healthy.copy({}))
    damaged = healthy.copy({HIGHWATER: mark or b""})
    if mark is None:
        del damaged.folders["/log/t/0"]["highwater"]
    assert serve(damaged) == want


def test_a_live_reader_halts_at_damage_after_serving_what_comes_before(healthy):
    path = segments(healthy)[-1]
    raw = healthy.contents()[path]
    log = EmbeddedLog("/log", CONFIG, healthy.copy({path: raw[:-5] + b"\xff" + raw[-4:]}))
    reader = log.reader("t", "fresh")
    assert [record.offset for _, record in reader.poll()] == list(range(len(VALUES) - 1))
    for _ in range(2):
        with pytest.raises(CorruptStateError, match="checksum"):
            reader.poll()


def test_a_reader_ahead_of_a_replaced_log_says_so(healthy):
    healthy.folders["/log/t/0"].clear()
    with pytest.raises(CorruptStateError, match="it was replaced"):
        serve(healthy)


def lost_in_silence(healthy):
    """The single-byte flips of segments after which a log without its high-water mark serves less, and keeps nothing.

    A flip in the last record is a torn tail to everyone who reads the file: it is cut off, and kept aside.
    """
    want, wrong = serve(healthy.copy({}))[3], []
    for path in segments(healthy):
        raw = healthy.contents()[path]
        for index in range(len(raw)):
            flipped = bytearray(raw)
            flipped[index] ^= 1 << (index % 8)
            disk = healthy.copy({path: bytes(flipped), HIGHWATER: b""})
            try:
                found = serve(disk)[3]
            except CorruptStateError:
                assert disk.contents()[path] == bytes(flipped)
                continue
            aside = [name for name in disk.contents() if "/torn-" in name]
            if found != want and not (found == want[:-1] and aside):
                wrong.append((path, index))
    return wrong


def make_one_segment():
    disk = LosingDisk()
    log = EmbeddedLog("/log", LogConfig(), disk)
    log.create_topic("t", 1)
    writer = log.writer("t")
    for flush in (VALUES[:1], VALUES[1:5], VALUES[5:]):
        for value in flush:
            writer.append(0, value, timestamp_ms=1, key=b"key")
        writer.flush()
    log.reader("t", "r")
    log.close()
    return disk


@pytest.mark.parametrize("make", [make_log, make_one_segment])
def test_without_its_mark_a_log_drops_nothing_that_something_readable_follows(make):
    assert lost_in_silence(make()) == []


def test_a_log_that_cuts_at_the_first_broken_frame_is_caught(monkeypatch):
    monkeypatch.setattr("infra.eventlog.frames.readable_after", lambda data, offset: None)
    assert lost_in_silence(make_one_segment()) != []


def test_damage_in_an_older_write_is_no_torn_tail_even_beyond_an_old_mark():
    disk = make_one_segment()
    (path,) = segments(disk)
    raw = bytearray(disk.contents()[path])
    raw[raw.index(b"two") + 1] ^= 1  # record 2, of the second of three writes
    with pytest.raises(CorruptStateError, match=r"byte 128: record 2: .*record 5 can be read .*truncate -s"):
        serve(disk.copy({path: bytes(raw), HIGHWATER: EMPTY_MARK}))


def test_holes_in_the_last_write_are_a_torn_tail_while_there_is_a_mark():
    disk = make_one_segment()
    (path,) = segments(disk)
    raw = disk.contents()[path]
    at = raw.index(b"five")
    torn = disk.copy({path: raw[:at] + bytes(4) + raw[at + 4 :], HIGHWATER: EMPTY_MARK})
    assert [record[4] for record in serve(torn)[3]] == VALUES[:5]
    (aside,) = [content for name, content in torn.contents().items() if "/torn-" in name]
    assert aside.endswith(raw[at + 4 :])


def test_what_is_cut_off_is_kept_within_bounds():
    disk = make_one_segment()
    (path,) = segments(disk)
    for count in range(torn_files.MAX_FILES + 3):
        raw = disk.contents()[path]
        disk.folders["/log/t/0"][path.rpartition("/")[2]].live.extend(b"torn %d" % count)
        log = EmbeddedLog("/log", LogConfig(), disk)
        assert log.end_offset("t", 0) == len(VALUES) + count
        assert disk.contents()[path] == raw
        writer = log.writer("t")
        writer.append(0, b"next", timestamp_ms=1)
        writer.close()
        log.close()
    aside = sorted(name for name in disk.contents() if "/torn-" in name)
    assert len(aside) == torn_files.MAX_FILES
    assert disk.contents()[aside[-1]] == b"torn %d" % count


def test_a_deleted_segment_is_told_from_retention_when_the_log_is_opened(healthy):
    log = EmbeddedLog("/log", CONFIG, healthy)
    log.reader("t", "r").commit({0: len(VALUES)})
    assert log.retain("t", before_ms=3) == 1
    log.close()
    assert len(segments(healthy)) >= 3
    start = EmbeddedLog("/log", CONFIG, healthy.copy({})).start_offset("t", 0)
    assert start > 0
    for path in segments(healthy):
        damaged = healthy.copy({})
        del damaged.folders["/log/t/0"][path.rpartition("/")[2]]
        with pytest.raises(CorruptStateError, match=r"lost|missing"):
            EmbeddedLog("/log", CONFIG, damaged).end_offset("t", 0)


def test_any_file_that_is_deleted_is_missed_or_made_again(healthy):
    want = serve(healthy.copy({}))[3:]
    for path in healthy.contents():
        folder, _, name = path.rpartition("/")
        damaged = healthy.copy({})
        del damaged.folders[folder][name]
        try:
            found = serve(damaged)[3:]
        except CorruptStateError:
            assert name.endswith(".log")
        else:
            assert found == want, path


def test_a_lost_topic_file_moves_no_key(tmp_path):
    log = EmbeddedLog(str(tmp_path), CONFIG)
    log.create_topic("t", 1)
    writer = log.writer("t")
    writer.append(0, b"first", timestamp_ms=1)
    writer.close()
    log.close()
    (tmp_path / "t" / "topic.json").unlink()
    log = EmbeddedLog(str(tmp_path), CONFIG)
    with pytest.raises(CorruptStateError, match="there are 1 partitions with records"):
        log.create_topic("t", 2)
    log.create_topic("t", 1)
    assert log.end_offset("t", 0) == 1
    log.close()


def test_a_lost_partition_folder_is_missed(healthy):
    del healthy.folders["/log/t/0"]
    with pytest.raises(CorruptStateError, match="folder is gone"):
        EmbeddedLog("/log", CONFIG, healthy).end_offset("t", 0)
