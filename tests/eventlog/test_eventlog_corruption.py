"""Damage is detected, never served: every byte of every file of a small log, flipped; every length, cut."""

import pytest
from losing_disk import LosingDisk

from infra.config import LogConfig
from infra.errors import CorruptStateError
from infra.eventlog.log import EmbeddedLog

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
    return log.partitions("t"), position, polled, records, bytes(log.last_record("t", 0).value)


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
            except CorruptStateError:
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
    with pytest.raises((CorruptStateError, ValueError), match=r"missing|lost acknowledged|the log holds"):
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
