"""Dead letters come back once, where they belong, when they can be read; and the command says what lies there."""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.msgpack import encode

from infra.cli import main
from infra.config import Config, JoinConfig, LogConfig, WireConfig, dump_config
from infra.errors import ConfigError, RetryableError
from infra.eventlog import EventLog, open_log
from infra.hashing import hash64, partition_of
from stream import deadcommands
from stream.deadletters import count_by_reason, letter_of, letters
from stream.deadreplay import DeadReplay, Replayed, read_notes
from stream.events import ItemKind, decode_meta, encode_events
from stream.examples import decode_example_meta
from stream.inspector import ItemsInspector
from stream.join import core
from stream.join.run import check_fits
from stream.join.worker import JoinWorker
from stream.wire.dead import DeadRow, Fault, Reason
from stream.wire.formats import decode_wire_meta
from stream.wire.items import read_items
from stream.wire.limits import Rules
from tests.join import logs, scenes
from tests.wire import samples
from tests.wire.samples import NOW, engagement, impression, pack
from tests.wire.test_wire_join import poisoned

CONFIG = Config(log=LogConfig(partitions=logs.PARTITIONS))
WIDE = WireConfig(max_id_bytes=500, max_items=5_000, max_history=5_000, max_depth=100, max_record_bytes=1 << 24)


def config(wire: WireConfig) -> Config:
    return msgspec.structs.replace(CONFIG, wire=wire)


def replay(log: EventLog, wire: WireConfig = CONFIG.wire) -> Replayed:
    machine = DeadReplay(log, config(wire))
    try:
        return machine.run()
    finally:
        machine.close()


def join(log: EventLog, wire: WireConfig = CONFIG.wire) -> dict[str, int]:
    joiner = JoinWorker(log, scenes.settings(core), wire=wire)
    while joiner.step():
        pass
    counts = joiner.counts()
    joiner.close()
    return counts


def records_of(log: EventLog, topic: str = "events") -> list[tuple[int, Any]]:
    found = []
    for p in range(log.partitions(topic)):
        at = log.start_offset(topic, p)
        while batch := log.read(topic, p, at, 500):
            found += [(p, record) for record in batch]
            at = batch[-1].offset + 1
    return found


def log_of(folder: Path, *values: bytes, partition: int = 0) -> EventLog:
    log = logs.open_here(folder)
    writer = log.writer("events")
    for at, value in enumerate(values):
        writer.append(partition, value, timestamp_ms=NOW + at)
    writer.close()
    return log


def here(partition: int = 0) -> str:
    return next(f"u{i}" for i in range(99) if partition_of(f"u{i}", logs.PARTITIONS) == partition)


def test_a_raised_limit_brings_its_letters_back_once_and_leaves_the_others(tmp_path: Path) -> None:
    log, dead = poisoned(tmp_path)
    first = join(log)
    before = count_by_reason(log)
    assert replay(log).replayed == before["wrong_partition"] if "wrong_partition" in before else True
    ends = [log.end_offset("events", p) for p in range(2)]
    done = replay(log, WIDE)
    mended = sum(before[name] for name in ("id_too_long", "list_too_long", "nesting"))
    assert 0 < done.replayed <= mended
    assert sum(done.still_dead.values()) + done.replayed + done.before == len(letters(log))
    assert sum(log.end_offset("events", p) - end for p, end in enumerate(ends)) == done.replayed
    again = join(log, WIDE)
    assert again["events_in"] == first["events_in"] + done.replayed
    assert again["malformed"] == first["malformed"] == dead
    assert again["late_impression"] - first["late_impression"] == done.replayed
    assert count_by_reason(log) == before
    second = replay(log, WIDE)
    assert (second.replayed, second.before) == (0, done.replayed + done.before)
    log.close()


def test_what_comes_back_says_which_letter_it_is_and_keeps_its_own_time(tmp_path: Path) -> None:
    user, long = here(), "x" * 200
    log = log_of(tmp_path, pack([engagement(user=user), impression(id=long, user=user, time_ms=...)], "msgpack"))
    join(log)
    writer = log.writer("events")
    writer.append(0, pack({"type": "heartbeat"}, "json"), timestamp_ms=NOW + 500)
    writer.close()
    assert replay(log, WIDE).replayed == 1
    back = log.read("events", 0, 2)[0]
    meta = decode_wire_meta(back.meta)
    assert (meta.origin, meta.origin_ms, meta.content_type) == ("events/0/0/1", NOW, "application/msgpack")
    assert decode_meta(back.meta).source == -1
    assert back.timestamp_ms == NOW + 500
    join(log, WIDE)
    writer = log.writer("events")
    writer.append(0, pack({"type": "heartbeat"}, "json"), timestamp_ms=NOW + 10_000)
    writer.close()
    assert join(log, WIDE)["joined_impressions"] == 1
    log.close()


def test_an_event_in_the_wrong_partition_comes_back_in_its_users_without_any_fix(tmp_path: Path) -> None:
    shown = [impression(user=here(1)), impression(id="i2", user=here(0))]
    log = log_of(tmp_path, *(pack(event, "json") for event in shown))
    join(log)
    assert count_by_reason(log) == {"wrong_partition": 1}
    assert replay(log).replayed == 1
    assert [p for p, record in records_of(log) if decode_wire_meta(record.meta).origin] == [1]
    assert join(log)["malformed"] == 1
    assert replay(log).replayed == 0
    log.close()


@pytest.mark.parametrize("died", ["before it appended", "in the middle", "before it said so"])
def test_a_replay_that_dies_anywhere_and_runs_again_appends_each_letter_once(
    tmp_path: Path, died: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = here()
    log = log_of(tmp_path, *(pack(impression(id=f"{i}" * 200, user=user), "json") for i in range(6)))
    join(log)
    append, notes = DeadReplay._append, DeadReplay._write_note

    def dies(self: DeadReplay, places: Any) -> None:
        append(self, places[: {"before it appended": 0, "in the middle": 3}.get(died, 6)])
        raise RetryableError("power", after_s=0.0)

    monkeypatch.setattr(DeadReplay, "_append", dies)
    with pytest.raises(RetryableError):
        replay(log, WIDE)
    monkeypatch.setattr(DeadReplay, "_append", append)
    assert [note.done for note in read_notes(log).values()] == [False]
    replay(log, WIDE)
    replay(log, WIDE)
    assert DeadReplay._write_note is notes
    assert all(note.done for note in read_notes(log).values())
    origins = [decode_wire_meta(record.meta).origin for _, record in records_of(log)][6:]
    assert sorted(origins) == [f"events/0/{i}" for i in range(6)]
    log.close()


def test_bad_columnar_rows_stay_dead_and_a_record_that_was_too_large_comes_back_whole(tmp_path: Path) -> None:
    rows = [scenes.Row(3, NOW, NOW), scenes.Row(2, NOW, NOW)]
    batch = pack([impression(id=f"i{i}", user=here(), note="x" * 400) for i in range(5)], "json")
    log = log_of(tmp_path, encode_events(scenes.columns(rows)), batch)
    small = WireConfig(max_record_bytes=1_000)
    assert join(log, small)["malformed"] == 2
    assert count_by_reason(log) == {"too_large": 1, "unusable_row": 1}
    done = replay(log)
    assert (done.replayed, done.still_dead) == (1, {"unusable_row": 1})
    assert join(log)["impressions"] == 5
    log.close()


def test_a_letter_that_does_not_fit_holds_what_it_can_and_its_replay_takes_the_rest_from_where_the_record_lies(
    tmp_path: Path,
) -> None:
    value = pack(impression(user=here(), note="x" * 5_000), "json")
    log = log_of(tmp_path, value)
    fault = Fault(Reason.TOO_LARGE, "too large: " + "y" * 9_000)
    letter = letter_of(DeadRow(0, -1, fault, value, "json"), "events", 0, NOW, most_bytes=2_000)
    row = letter_of(DeadRow(0, 3, fault, value, "json"), "events", 0, NOW, most_bytes=2_000)
    writer = log.writer("dead-letters")
    for each in (letter, row):
        assert len(each.key) + len(each.value) + len(encode(each.meta)) <= 2_000
        assert each.meta.cut == len(value)
        each.append_to(writer)
    writer.close()
    done = replay(log)
    assert (done.replayed, done.still_dead) == (1, {"too_large": 1})
    assert bytes(records_of(log)[-1][1].value) == value
    log.close()


def test_what_a_newer_release_wrote_stays_dead_until_this_one_is_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logs.open_here(tmp_path)
    writer, value = log.writer("events"), encode_events(scenes.columns([scenes.Row(2, NOW, NOW)]))
    for meta in (encode({"v": 2}), b"\xc1 no meta"):
        writer.append(0, value, timestamp_ms=NOW, meta=meta)
    writer.close()
    assert join(log)["malformed"] == 2
    assert count_by_reason(log) == {"syntax": 1, "unknown_version": 1}
    done = replay(log)
    assert (done.replayed, done.still_dead) == (1, {"unknown_version": 1})
    monkeypatch.setattr("stream.wire.formats.SCHEMA_VERSION", 2)
    assert replay(log).replayed == 1
    log.close()


def test_rows_of_a_columnar_record_that_were_ingested_after_it_close_nobodys_ticks(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    writer = log.writer("events")
    shown = scenes.Row(0, NOW, NOW, 1, 1, items=(1, 2))
    writer.append(0, scenes.encode([scenes.Row(2, NOW + 3_600_000, 0), shown]), timestamp_ms=NOW)
    writer.append(0, scenes.encode([scenes.Row(1, NOW + 90, NOW + 80, 1, 1, 2)]), timestamp_ms=NOW + 100)
    writer.append(0, scenes.encode([scenes.Row(2, NOW + 60_000, 0)]), timestamp_ms=NOW + 60_000)
    writer.close()
    counts = join(log)
    assert (counts["malformed"], counts["joined_impressions"], counts["joined_engagements"]) == (1, 1, 1)
    assert count_by_reason(log) == {"unusable_row": 1}
    log.close()


def test_an_impression_longer_than_a_record_of_examples_is_dead_until_those_are_larger(tmp_path: Path) -> None:
    """Without that a log with small records could never take its example: the joiner would end at it for ever."""
    items = [f"n{i}" for i in range(200)]
    log = log_of(tmp_path, pack(impression(user=here(), items=items), "json"))
    writer, most = log.writer("events"), 1_000
    long = scenes.Row(0, NOW, NOW, 1, 1, items=tuple(range(200)))
    writer.append(0, scenes.encode([long._replace(items=(1, 2)), long]), timestamp_ms=NOW)
    writer.append(0, scenes.encode([scenes.Row(2, NOW + 60_000, 0)]), timestamp_ms=NOW + 60_000)
    writer.close()
    worker = JoinWorker(log, dataclasses.replace(scenes.settings(core), bytes_per_record=most), wire=CONFIG.wire)
    while worker.step():
        pass
    worker.close()
    assert worker.counts()["joined_impressions"] == 1
    assert count_by_reason(log) == {"list_too_long": 1, "unusable_row": 1}
    small = msgspec.structs.replace(CONFIG, join=JoinConfig(bytes_per_record=most))
    machine = DeadReplay(log, small)
    assert machine.run().replayed == 0
    machine.close()
    assert replay(log).replayed == 2
    with pytest.raises(ConfigError, match=r"join\.bytes_per_record"):
        check_fits(msgspec.structs.replace(CONFIG, join=JoinConfig(bytes_per_record=1 << 40)), log)
    check_fits(CONFIG, log)
    log.close()


# -- items -----------------------------------------------------------------------------------------------------------


def item(**changes: Any) -> dict[str, Any]:
    return {"type": "item", "id": "N1", "category": "news", "title": "The cat's hat"} | changes


@pytest.mark.parametrize("form", samples.FORMS)
def test_items_of_others_are_read_and_what_is_bad_of_them_is_buried_once(tmp_path: Path, form: str) -> None:
    log = logs.open_here(tmp_path)
    bad = [item(id=1.5), item(title="x" * 5_000), item(id=""), item(published="?"), {"type": "impression"}, 7]
    events = [item(published="2019-11-12T00:00:00Z"), *bad, item(id=42, ingested_ms=NOW - 5), {"type": "heartbeat"}]
    writer = log.writer("items")
    for value in (pack(events, form), b"junk", pack(item(id="N2"), form)):
        writer.append(0, value, timestamp_ms=NOW)
    writer.close()
    for _ in range(2):
        inspector = ItemsInspector(log, WireConfig(), skew_ms=0)
        while inspector.step():
            pass
        inspector.close()
        log.forget_reader("items", "inspector")
    reasons = ["bad_time", "empty_id", "text_too_long", "unknown_format", "wrong_type", "wrong_value"]
    assert count_by_reason(log) == dict.fromkeys(reasons, 1) | {"wrong_type": 2}
    assert len(logs.contents(log, "dead-letters")) == 7
    found = [read_items(record, Rules(WireConfig(), 0)) for _, record in records_of(log, "items")]
    rows = found[0].items
    assert rows.kind.tolist() == [ItemKind.ITEM, ItemKind.ITEM, ItemKind.HEARTBEAT]
    assert rows.item.tolist() == [hash64("N1"), 42, 0]
    assert rows.item_id[:2] == ["N1", "42"]
    assert rows.ingested_ms.tolist() == [NOW, NOW - 5, NOW]
    assert rows.published_ms.tolist() == [1_573_516_800_000, -1, -1]
    assert rows.words[0].tolist() == [hash64(word) for word in ("the", "cat's", "hat")]
    assert rows.category.tolist() == [hash64("news"), hash64("news"), 0]
    done = replay(log, WireConfig(max_text_bytes=10_000))
    assert done.replayed == 1
    assert read_items(records_of(log, "items")[-1][1], Rules(WireConfig(max_text_bytes=10_000), 0)).items.title == [
        "x" * 5_000
    ]
    log.close()


# -- the command -----------------------------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["ouzel", "dead-letters", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    return int(leaving.value.code or 0)


def test_the_command_lists_shows_and_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [b"\x1b[31mhello", pack(impression(id="x" * 200, user=here()), "json")]
    log = log_of(tmp_path / "log", *values)
    join(log)
    log.close()
    (tmp_path / "config.toml").write_text(dump_config(config(WIDE)), encoding="utf-8")
    assert call(monkeypatch, "list", "--run", str(tmp_path)) == 0
    listed = capsys.readouterr().out
    assert "unknown_format                1" in listed
    assert call(monkeypatch, "show", "--log", str(tmp_path / "log"), "--reason", "unknown_format") == 0
    shown = capsys.readouterr().out
    assert "events/0/0  unknown_format" in shown
    assert "\x1b" not in shown
    assert call(monkeypatch, "replay", "--run", str(tmp_path)) == 0
    assert "1 letters replayed" in capsys.readouterr().out
    assert call(monkeypatch, "list", "--run", str(tmp_path)) == 0
    assert "1 replayed" in capsys.readouterr().out
    assert call(monkeypatch, "list") == 1
    assert call(monkeypatch, "bury", "--run", str(tmp_path)) == 1


def test_a_second_replay_beside_a_first_is_refused(tmp_path: Path) -> None:
    with (
        deadcommands._alone(tmp_path),
        pytest.raises(RetryableError, match="being replayed"),
        deadcommands._alone(tmp_path),
    ):
        pass


def test_the_counts_of_the_last_output_hold_every_dead_event(tmp_path: Path) -> None:
    log, dead = poisoned(tmp_path)
    join(log)
    last = {p: log.last_record("examples", p) for p in range(logs.PARTITIONS)}
    assert sum(decode_example_meta(r.meta).counts["malformed"] for r in last.values() if r) == dead
    with pytest.raises(ConfigError):
        open_log("kafka-of-nowhere://x", LogConfig())
    log.close()
