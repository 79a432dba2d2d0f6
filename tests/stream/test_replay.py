"""Replay: the bytes of the log are a function of (data, seed, configuration); speed, kills and readers change none."""

import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from infra.config import Config, KafkaConfig, LogConfig, ReplayConfig, dump_config
from infra.errors import ConfigError
from infra.eventlog import EventLog, create_topics, open_log
from infra.speed import replay_speed
from stream import schedule as schedule_module
from stream.events import EventColumns, EventKind, decode_events, decode_items, decode_meta
from stream.mind.news import read_news
from stream.mind.reader import open_mind
from stream.replay import Done, Replay
from tests.join import logs

CONFIG = Config(log=LogConfig(flush_s=0.0), replay=ReplayConfig(rows_per_record=16))
TOPICS = ("events", "items", "dead-letters")


def write_mind(folder: Path, rows: int = 400) -> Path:
    """A small MIND folder: bursts, an hour of silence, one bad row, one row of another century."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    lines, at = [], 0
    for n in range(rows):
        at += int(rng.exponential(9)) + (3_700 if n == rows // 2 else 0)
        h, m, s = at // 3600, at // 60 % 60, at % 60
        items = " ".join(f"N{k}-{int(rng.random() < 0.3)}" for k in rng.choice(50, size=5, replace=False))
        history = " ".join(f"N{k}" for k in rng.choice(50, size=int(rng.integers(0, 4))))
        lines.append(f"{n + 1}\tU{rng.integers(40)}\t11/9/2019 {h % 12 or 12}:{m:02}:{s:02} AM\t{history}\t{items}\n")
    lines += ["9998\tU1\tyesterday\t\tN1-0\n", "9999\tU1\t11/9/2099 1:00:00 AM\t\tN1-0\n"]
    rng.shuffle(lines)
    (folder / "behaviors.tsv").write_text("".join(lines), encoding="utf-8")
    news = "".join(f"N{k}\tnews\tnewsus\tTitle {k} of the day\t\thttps://x\t[]\t[]\n" for k in range(50))
    (folder / "news.tsv").write_text(news, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def mind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mind(tmp_path_factory.mktemp("data") / "mind")


def open_here(folder: Path) -> EventLog:
    log = open_log(folder, CONFIG.log)
    create_topics(log, CONFIG.log.partitions)
    return log


def replay(log: EventLog, mind: Path, config: Config = CONFIG, **options: Any) -> Replay:
    return Replay(log, open_mind([mind]), read_news([mind]), config, **options)


def contents(log: EventLog) -> dict[str, Any]:
    return {topic: logs.contents(log, topic) for topic in TOPICS}


@pytest.fixture(scope="module")
def whole(mind: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    log = open_here(tmp_path_factory.mktemp("whole"))
    done = replay(log, mind).run()
    assert done.finished
    found = contents(log)
    log.close()
    return found


def rows_of(whole: dict[str, Any], p: int) -> EventColumns:
    return EventColumns.concat([decode_events(value) for q, _, _, value, _ in whole["events"] if q == p])


def test_a_paced_replay_writes_the_same_bytes_and_takes_its_time(
    mind: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    log, now = open_here(tmp_path), [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    config = msgspec.structs.replace(CONFIG, replay=ReplayConfig(rows_per_record=16, speed="600x"))
    machine = replay(log, mind, config, clock=lambda: now[0], sleep=sleep)
    machine.run()
    span_s = (whole["events"][-1][4] - machine.schedule.first_ms) / 1000
    assert contents(log) == whole
    assert now[0] == pytest.approx(span_s / 600, rel=0.05)
    log.close()


def test_a_replay_that_dies_anywhere_and_resumes_writes_the_same_bytes(
    mind: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    log, rng, lives = open_here(tmp_path), np.random.default_rng(2), 0
    while True:
        flushes = iter(range(10**6))
        stop_at, lives = int(rng.integers(1, 40)), lives + 1
        stop = [False]

        def watch(done: Done, flushes: Any = flushes, stop_at: int = stop_at, stop: Any = stop) -> None:
            stop[0] = next(flushes) >= stop_at

        if replay(log, mind, watch=watch, stopping=lambda stop=stop: stop[0]).run().finished:
            break
    assert lives > 5
    assert contents(log) == whole
    replay(log, mind).run()
    assert contents(log) == whole
    log.close()


def test_how_much_is_parsed_at_a_time_changes_no_byte(
    mind: Path, tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_module, "CHUNK_ROWS", 37)
    monkeypatch.setattr(schedule_module, "CHUNK_SLOTS", 5)
    log = open_here(tmp_path)
    replay(log, mind).run()
    assert contents(log) == whole
    log.close()


def test_rows_are_ingested_in_order_within_the_bound_and_engagements_come_after(whole: dict[str, Any]) -> None:
    bound = CONFIG.time.build().disorder_bound_ms
    late = 0.0
    for p in range(2):
        rows = rows_of(whole, p)
        events = rows.take(np.flatnonzero(rows.kind != EventKind.HEARTBEAT))
        wait = events.ingested_ms - events.time_ms
        assert (np.diff(rows.ingested_ms) >= 0).all()
        assert wait.min() >= 0
        assert wait.max() < bound
        shown = {i: t for k, i, t in zip(events.kind, events.impression, events.time_ms, strict=True) if k == 0}
        delays = [
            t - shown[i] for k, i, t in zip(events.kind, events.impression, events.time_ms, strict=True) if k == 1
        ]
        assert min(delays) >= 0
        late = max(late, np.mean(np.array(delays) > 120_000))
    assert 0.0 < late < 0.1


def test_every_tick_is_closed_by_a_heartbeat_in_every_partition_and_the_last_one_too(whole: dict[str, Any]) -> None:
    t = CONFIG.time.build()
    columns = [rows_of(whole, p) for p in range(2)]
    beats = [rows.ingested_ms[rows.kind == EventKind.HEARTBEAT] for rows in columns]
    items = [decode_items(value) for *_, value, _ in whole["items"]][1:]
    newest = max(int(rows.time_ms[rows.kind != EventKind.HEARTBEAT].max()) for rows in columns)
    assert (np.diff(beats[0]) == t.tick_ms).all()
    assert beats[0].tolist() == beats[1].tolist() == [int(columns.ingested_ms[0]) for columns in items]
    assert int(beats[0][-1]) == t.replay_end_ms(t.tick_of(newest))
    for topic in ("events", "items"):
        ends = [decode_meta(meta).end for _, _, meta, *_ in whole[topic]]
        assert sum(ends) == (2 if topic == "events" else 1)
        assert ends[-1]


def test_the_catalogue_precedes_every_event(whole: dict[str, Any]) -> None:
    first = decode_items(whole["items"][0][3])
    assert len(first) == 50
    assert first.title[7] == "Title 7 of the day"
    assert first.ingested_ms.max() < min(int(rows_of(whole, p).ingested_ms[0]) for p in range(2))


def test_bad_rows_are_dead_letters_with_file_and_line_once(whole: dict[str, Any], mind: Path) -> None:
    metas = [msgspec.msgpack.decode(meta) for _, _, meta, _, _ in whole["dead-letters"]]
    lines = (mind / "behaviors.tsv").read_text().splitlines()
    assert sorted(meta["reason"] for meta in metas) == ["bad_time", "time_gap"]
    for meta, (*_, value, _) in zip(metas, whole["dead-letters"], strict=True):
        assert lines[meta["line"] - 1] == value.decode()


def test_no_event_is_lost_or_doubled(whole: dict[str, Any], mind: Path) -> None:
    index = open_mind([mind])
    rows = index.rows(0, index.n)
    kinds = np.concatenate([rows_of(whole, p).kind for p in range(2)])
    sources = np.concatenate([rows_of(whole, p).source for p in range(2)])
    assert (kinds == EventKind.IMPRESSION).sum() == index.n
    assert (kinds == EventKind.ENGAGEMENT).sum() == rows.labels.sum()
    assert len(np.unique(sources[sources >= 0])) == index.n + rows.labels.sum()


def test_records_of_others_after_the_replay_do_not_hide_where_it_was(
    mind: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    log = open_here(tmp_path)
    replay(log, mind).run()
    posted = log.writer("events")
    for _ in range(300):
        posted.append(0, b"posted", timestamp_ms=1)
    posted.close()
    replay(log, mind).run()
    assert log.end_offset("events", 0) == 300 + sum(p == 0 for p, *_ in whole["events"])
    log.close()


def test_a_reader_that_is_too_far_behind_holds_the_replay_back(mind: Path, tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, log=LogConfig(flush_s=0.0, max_lag_records=10))
    log, lag = open_here(tmp_path), []
    reader = log.reader("events", "slow")

    seen = [-1]

    def watch(done: Done) -> None:
        lag.append(max(log.reader_lag("events").values()))
        if done.records == seen[0]:  # it waits
            reader.poll(8)
        seen[0] = done.records

    done = replay(log, mind, config, watch=watch).run()
    assert done.finished
    assert done.waits > 5
    assert max(lag) <= 13
    log.close()


@pytest.mark.parametrize("text", ["fast", "0x", "-2x", "nanx", "infx"])
def test_a_speed_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"replay\.speed"):
        replay_speed(text)


def test_a_process_killed_in_the_middle_goes_on_without_doubling(
    mind: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    config = msgspec.structs.replace(CONFIG, replay=ReplayConfig(rows_per_record=16, speed="4000x"))
    (tmp_path / "config.toml").write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, "-m", "infra.cli", "replay", "--run", str(tmp_path), "--mind", str(mind)]
    process = subprocess.Popen(command)
    log = open_here(tmp_path / "log")
    deadline = time.monotonic() + 30
    while log.end_offset("events", 0) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = log.end_offset("events", 0)
    subprocess.run([*command, "--speed", "max"], check=True)
    assert 20 <= killed_at < sum(p == 0 for p, *_ in whole["events"])
    assert contents(log) == whole
    log.close()


def test_a_record_that_the_log_does_not_take_names_the_replays_own_option(tmp_path: Path, kafka: str) -> None:
    row = "\tU1\t11/9/2019 9:00:00 AM\t\tN1-0 N2-1 N3-0 N4-0\n"
    (tmp_path / "behaviors.tsv").write_text("".join(f"{n}{row}" for n in range(1, 2_001)), encoding="utf-8")
    (tmp_path / "news.tsv").write_text("N1\tnews\tnewsus\tTitle\t\thttps://x\t[]\t[]\n", encoding="utf-8")
    small = LogConfig(partitions=1, kafka=KafkaConfig(max_record_bytes=1 << 16))
    log = open_log(f"kafka://{kafka}/r{uuid.uuid4().hex}", small)
    create_topics(log, 1)
    machine = replay(log, tmp_path, Config(log=small, replay=ReplayConfig(rows_per_record=2_048)))
    with pytest.raises(ConfigError, match=r"lower replay.rows_per_record \(2048\) to (\d+), say") as refused:
        machine.run()
    machine.close()
    fewer = int(str(refused.value).split("to ")[1].split(",")[0])
    machine = replay(log, tmp_path, Config(log=small, replay=ReplayConfig(rows_per_record=fewer)))
    assert machine.run().finished
    machine.close()
    log.close()
