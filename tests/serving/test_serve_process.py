"""`ouzel serve` as an operator starts it: a process of its own over a run folder, spoken to over HTTP."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import orjson
import pytest

from infra.process import FLEET_VARIABLE
from stream.events import LIVE, RecordMeta, decode_events, decode_meta, encode_events, encode_meta, heartbeats

ITEMS = [f"N{i}" for i in range(10)]


class Served:
    """The process, and a client that knows where it listens."""

    def __init__(self, run, *flags: str, **environment: str) -> None:
        command = [sys.executable, "-m", "infra.cli", "serve", "--run", str(run), *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
        )
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline()
        found = re.search(r"http://\S+", self.first)
        self.http = httpx.Client(base_url=found[0]) if found else None

    def wait_for(self, path: str, status: int, timeout_s: float = 60.0) -> dict:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                answer = self.http.get(path)
                if answer.status_code == status:
                    return answer.json()
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"{path} never answered {status}: {self.stop()}")

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

    def wait_for_tick(self, tick: int, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while self.metric("ouzel_served_tick") < tick:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self) -> str:
        if self.http is not None:
            self.http.close()
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=30)
        return self.first + out


def replay_ended_at(log, now_ms: int) -> None:
    writer = log.writer("events")
    for partition in range(log.partitions("events")):
        value = encode_events(heartbeats(np.array([now_ms], dtype=np.int64)))
        writer.append(partition, value, timestamp_ms=now_ms, meta=encode_meta(RecordMeta(source=9, end=True)))
    writer.flush()
    writer.close()


def test_serve_from_first_start_to_clean_stop(tmp_path, log, trainer):
    timeline = trainer.timeline
    served = Served(tmp_path, "--port", "0", "--speed", "3000")
    try:
        served.wait_for("/healthz", 200)
        assert "first generation" in served.wait_for("/readyz", 503)["reason"]
        trainer.open()
        trainer.flush()
        served.wait_for("/readyz", 200)
        for _ in range(5):
            trainer.learn()
        trainer.flush()
        deadline = time.monotonic() + 20
        while (answer := served.http.post("/v1/rank", json={"user": "U1", "items": ITEMS}).json())["version"] != {
            "generation": 0, "tick": trainer.tick,
        }:  # fmt: skip
            assert time.monotonic() < deadline, answer
        assert sorted(i["id"] for i in answer["items"]) == sorted(ITEMS)

        replay_ended_at(log, timeline.end_ms(trainer.tick))
        show = {"type": "impression", "id": "i1", "user": "U1", "items": ITEMS}
        click = {"type": "engagement", "impression": "i1", "user": "U1", "item": "N2"}
        posted = served.http.post("/v1/events", json={"events": [show, click]}).json()
        assert posted["accepted"] == 2
        assert posted["time_ms"] >= timeline.end_ms(trainer.tick), "minutes after the replay, not years"
        # 20 ms of wall are a tick: nobody closes what the clock says, so it is soon behind, and says so.
        assert "behind" in served.wait_for("/readyz", 503)["reason"]
        assert "ouzel_requests_total" in served.http.get("/metrics").text
    finally:
        out = served.stop()
    assert served.process.returncode == 0, out
    rows = [decode_events(r.value) for p in (0, 1) for r in log.read("events", p, 0, 1_000)
            if decode_meta(r.meta).source == LIVE]  # fmt: skip
    kinds = np.concatenate([r.kind for r in rows])
    assert {0, 1, 2} <= set(kinds.tolist()), "an impression, an engagement, heartbeats"
    stats = orjson.loads((tmp_path / "stats" / "replica.json").read_bytes())
    assert stats["notes"]["versions_applied"] == 6
    assert stats["notes"]["failure"] == ""


def test_nothing_that_a_request_can_reach_is_compiled_after_ready(tmp_path, log, trainer):
    """With an empty kernel cache: the first post used to stop the whole server for seconds."""
    trainer.open()
    trainer.flush()
    replay_ended_at(log, trainer.timeline.end_ms(trainer.tick))
    served = Served(tmp_path, "--port", "0", "--clock", "off", NUMBA_CACHE_DIR=str(tmp_path / "kernels"))
    try:
        served.wait_for("/healthz", 200)
        early = served.http.post("/v1/events", json={"events": [{"type": "impression", "id": "e"}]}).status_code
        assert early in (400, 503), "refused, or told to wait: never made to wait for a compiler"
        served.wait_for("/readyz", 200, timeout_s=200)
        compiled = served.metric("ouzel_kernels_compiled")
        assert compiled > 20
        show = {"type": "impression", "id": "i1", "user": "U1", "items": ITEMS, "history": ["N3", "new"]}
        click = {"type": "engagement", "impression": "i1", "user": "U1", "item": "N2"}
        dwell = click | {"item": "N1", "kind": "dwell"}
        assert served.http.post("/v1/events", json={"events": [show, click, dwell]}).status_code == 200
        for asked in (
            {"items": ITEMS},
            {"items": ["new"], "history": ["N1"]},
            {"items": ITEMS, "history": ["no", "N2"]},
        ):
            assert served.http.post("/v1/rank", json={"user": "U1", **asked}).status_code == 200
        for _ in range(3):
            trainer.learn()
        trainer.flush()
        served.wait_for_tick(trainer.tick)
        assert served.http.post("/v1/rank", json={"user": "U2", "items": ITEMS}).status_code == 200
        assert served.metric("ouzel_kernels_compiled") == compiled
    finally:
        served.stop()


def test_what_is_served_is_in_the_gauges_also_after_a_restart(tmp_path, log, trainer):
    trainer.open()
    for _ in range(4):
        trainer.learn()
    trainer.flush()
    for _ in range(2):
        served = Served(tmp_path, "--port", "0", "--clock", "off")
        try:
            served.wait_for("/readyz", 200)
            assert served.metric("ouzel_served_generation") == 0
            assert served.metric("ouzel_served_tick") == served.metric("ouzel_tick") == trainer.tick
            assert served.metric("ouzel_sync_seconds_count") == 0, "these closed before the replica was there"
            trainer.learn()
            trainer.flush()
            served.wait_for_tick(trainer.tick)
            assert served.metric("ouzel_sync_seconds_count") == 1
            assert 0 < served.metric("ouzel_sync_seconds_sum") < 20
            assert served.metric("ouzel_served_lag_ticks") < 10
        finally:
            served.stop()


def test_a_replica_whose_run_was_gone_before_it_served_stops(tmp_path, log):
    """The signal came before the server took signals over, and the orphan served for ever."""
    served = Served(tmp_path, "--port", "0", **{FLEET_VARIABLE: "1"})
    assert served.process.wait(timeout=60) == 0
    served.stop()


def test_serve_until_end_stops_by_itself_and_takes_another_port_when_its_own_is_taken(tmp_path, log, trainer):
    trainer.open()
    trainer.learn()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        served = Served(tmp_path, "--until-end", "--port", str(taken.getsockname()[1]))
        served.wait_for("/healthz", 200)
        trainer.skip(3, end=True)
        trainer.flush()
        assert served.process.wait(timeout=30) == 0
        served.stop()


@pytest.mark.parametrize(
    ("flags", "says"),
    [(["--host", "0.0.0.0"], "loopback"), (["--clock", "sundial"], "one of auto, wall, off")],
)
def test_what_is_not_allowed_is_refused_with_what_to_do(tmp_path, log, flags, says):
    command = [sys.executable, "-m", "infra.cli", "serve", "--run", str(tmp_path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ, check=False)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
