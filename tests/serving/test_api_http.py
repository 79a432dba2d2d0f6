"""The HTTP API in-process: answers, refusals with their paths, limits, readiness, metrics."""

import asyncio
import time
from typing import Any

import httpx
import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import ConfigError
from infra.hashing import hash64
from infra.metrics import Metrics
from infra.paramstore.publisher import last_whole
from infra.paramstore.version import encode_meta as encode_version_meta
from serving.api import Services, build_app, check_host
from serving.clock import EventClock
from serving.feedback import Feedback
from serving.follower import Follower
from serving.replica import Replica
from serving.scorer import Scorer
from stream.events import RecordMeta, encode_events, encode_meta, heartbeats

ITEMS = [f"N{i}" for i in range(10)]


class Client:
    """Calls the application without a socket."""

    def __init__(self, runner: asyncio.Runner, app: Any) -> None:
        transport = httpx.ASGITransport(app=app)
        self._runner, self._client = runner, httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self._runner.run(self._client.get(path, **more))

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self._runner.run(self._client.post(path, **more))


@pytest.fixture
def wired(log, store, config):
    """Services over a run folder; the replica moves when a test says so."""
    config = msgspec.structs.replace(
        config, serve=msgspec.structs.replace(config.serve, max_body_bytes=20_000, max_candidates=50)
    )
    timeline, metrics = config.time.build(), Metrics("replica")
    clock, scorer = EventClock(log), Scorer(config.model, timeline)
    replica = Replica(store, config)
    follower = Follower(replica, scorer, clock, log, config, metrics)
    follower._warm_up_posts()
    feedback = Feedback(log, timeline, clock)
    feedback.start()
    yield Services(follower, scorer, feedback, clock, timeline, metrics, config.serve, config.wire)
    feedback.stop()
    follower.stop()


@pytest.fixture
def client(wired):
    with asyncio.Runner() as runner:
        yield Client(runner, build_app(wired))


@pytest.fixture
def serving(wired, trainer, log):
    """A version is served, and the log's clock stands at the end of its tick."""
    trainer.open()
    for _ in range(3):
        trainer.learn()
    trainer.flush()
    now_ms = wired.timeline.end_ms(trainer.tick)
    writer = log.writer("events")
    for partition in range(log.partitions("events")):
        value = encode_events(heartbeats(np.array([now_ms], dtype=np.int64)))
        writer.append(partition, value, timestamp_ms=now_ms, meta=encode_meta(RecordMeta(source=1)))
    writer.flush()
    writer.close()
    wired.follower.replica.advance_to_newest()
    wired.follower._warm_up()
    return wired


def test_rank_answers_in_order_with_version_and_age(serving, client, trainer):
    answer = client.post("/v1/rank", json={"user": "U1", "items": ITEMS, "history": ["N3"]})
    assert answer.status_code == 200
    body = answer.json()
    assert sorted(i["id"] for i in body["items"]) == sorted(ITEMS)
    scores = [i["score"] for i in body["items"]]
    assert scores == sorted(scores, reverse=True)
    assert body["version"] == {"generation": 0, "tick": trainer.tick}
    assert body["age_s"] == 0.0
    keys = np.array([hash64(i) for i in ITEMS])
    view = serving.follower.view()
    ranking = serving.scorer.rank(
        view, user=hash64("U1"), items=keys, history=keys[3:4], time_ms=serving.clock.now_ms()
    )
    assert [ITEMS[i] for i in ranking.order] == [i["id"] for i in body["items"]]


def test_before_the_first_version_rank_is_503_and_readyz_says_why(client):
    answer = client.post("/v1/rank", json={"user": "U1", "items": ITEMS})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert "first generation" in ready.json()["reason"]
    assert client.get("/healthz").status_code == 200


def test_ready_turns_off_when_the_trainer_stands_still_and_on_when_it_catches_up(
    serving, client, trainer, monkeypatch: pytest.MonkeyPatch
):
    from serving import follower

    tick = trainer.tick
    monkeypatch.setattr(follower, "closed_through", lambda log: tick)
    serving.follower._look()
    assert client.get("/readyz").json() | {"version": 0} == {
        "ready": True, "reason": "ready", "degraded": [], "lag_ticks": 0, "version": 0,
    }  # fmt: skip
    monkeypatch.setattr(follower, "closed_through", lambda log: tick + 11)
    serving.follower._next_look_s = 0.0
    serving.follower._look()
    late = client.get("/readyz")
    assert (late.status_code, late.json()["lag_ticks"]) == (503, 11)
    assert client.post("/v1/rank", json={"user": "U1", "items": ITEMS}).status_code == 200, "it goes on answering"
    assert b"ouzel_ready 0.0" in client.get("/metrics").content
    trainer.skip(11)
    trainer.flush()
    serving.follower.replica.advance_to_newest()
    assert client.get("/readyz").status_code == 200


def test_age_is_the_time_since_the_end_of_what_is_served(serving, client, log):
    """By the log's clock; an age that stayed 0 would say so to everybody while the trainer stands still."""
    later_ms = serving.clock.now_ms() + 90_000
    writer = log.writer("events")
    for partition in range(log.partitions("events")):
        value = encode_events(heartbeats(np.array([later_ms], dtype=np.int64)))
        writer.append(partition, value, timestamp_ms=later_ms, meta=encode_meta(RecordMeta(source=2)))
    writer.close()
    deadline = time.monotonic() + 10
    while serving.clock.now_ms() < later_ms and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.post("/v1/rank", json={"user": "U1", "items": ITEMS}).json()["age_s"] == 90.0


def test_a_replica_whose_thread_died_is_not_ready_and_says_why(serving, client, trainer, log):
    """It goes on answering with what it has, for ever: somebody must be told."""
    serving.follower.start()
    deadline = time.monotonic() + 20
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    head = last_whole(log)
    forked = msgspec.structs.replace(head, tick=head.tick + 1, predecessor="f" * 32, digest="e" * 32)
    writer = log.writer("versions")
    writer.append(0, b"not what the digest says", timestamp_ms=0, meta=encode_version_meta(forked))
    writer.close()
    while (ready := client.get("/readyz")).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not serving.follower._thread.is_alive()
    assert ready.json()["reason"] == serving.follower.failure != ""
    assert client.post("/v1/rank", json={"user": "U1", "items": ITEMS}).status_code == 200


@pytest.mark.parametrize(
    ("body", "path", "says"),
    [
        (b"", "$", "not JSON"),
        (b"{", "$", "not JSON"),
        (b"\xff\xfe", "$", "not JSON"),
        (b"[]", "$", "object"),
        (b'{"items": ["N1"]}', "$", "user"),
        (b'{"user": "U1"}', "$", "items"),
        (b'{"user": 7, "items": ["N1"]}', "$.user", "str"),
        (b'{"user": "", "items": ["N1"]}', "$.user", "length"),
        (b'{"user": "U1", "items": []}', "$.items", "empty"),
        (b'{"user": "U1", "items": ["N1", 2]}', "$.items[1]", "str"),
        (b'{"user": "U1", "items": ["N1", "N2", "N1"]}', "$.items[2]", "repeats $.items[0]"),
        (b'{"user": "U1", "items": ["N1"], "histori": []}', "$", "histori"),
        (b'{"user": "U1", "items": ["N1"], "history": [null]}', "$.history[0]", "str"),
        (b'{"user": "%s", "items": ["N1"]}' % (b"x" * 129), "$.user", "129 characters"),
        (b'{"user": "U1", "items": %s}' % orjson.dumps([f"N{i}" for i in range(51)]), "$.items", "at most 50"),
        (b'{"user": "U1", "items": %s}' % (b"[" * 2_000 + b"]" * 2_000), "$.items[0]", "str"),
    ],
)
def test_a_bad_rank_names_the_path(serving, client, body, path, says):
    answer = client.post("/v1/rank", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["path"].startswith(path)
    assert says in error["message"]


@pytest.mark.parametrize(
    ("event", "path"),
    [
        ({"type": "impression", "id": "i", "user": "U1", "items": []}, "$.events[1].items"),
        ({"type": "impression", "user": "U1", "items": ["N1"]}, "$.events[1]"),
        ({"type": "engagement", "impression": "i", "user": "U1", "item": "N1", "kind": "buy"}, "$.events[1].kind"),
        ({"type": "view"}, "$.events[1].type"),
        ({"type": "engagement", "impression": "i", "user": "U1", "item": "N1", "time_ms": -1}, "$.events[1].time_ms"),
        ({"type": "engagement", "impression": "i", "user": "U1", "item": "N1", "time_ms": 1 << 70}, "$.events[1]"),
        ({"type": "engagement", "impression": "x" * 200, "user": "U1", "item": "N1"}, "$.events[1].impression"),
        (
            {"type": "engagement", "impression": "i", "user": "U1", "item": "N1", "time_ms": 1_500_000_000},
            "$.events[1].time_ms",
        ),
        ({"type": "engagement", "impression": "i", "user": "U1", "item": "N1", "time": "soon"}, "$.events[1].time"),
        (
            {"type": "engagement", "impression": "i", "user": "U1", "item": "N1", "ingested_ms": 5},
            "$.events[1].ingested_ms",
        ),
        ({"type": "engagement", "impression": "i", "user": "U1", "item": 7}, "$.events[1].item"),
        ({"type": "engagement", "impression": "i", "user": "", "item": "N1"}, "$.events[1].user"),
        ({"type": "engagement", "impression": "i", "user": "U1", "item": "N1", "knid": "like"}, "$.events[1]"),
        ({"type": "engagement", "impression": "i", "user": "U1", "item": "N1", "v": 2}, "$.events[1].v"),
        ({"type": "impression", "id": "i", "user": "U1", "items": ["N1", "N2", "N1"]}, "$.events[1].items[2]"),
        ({"type": "impression", "id": "i", "user": "U1", "items": ["N1", ""]}, "$.events[1].items[1]"),
        (
            {"type": "impression", "id": "i", "user": "U1", "items": ["N1"], "history": ["N2", 3]},
            "$.events[1].history[1]",
        ),
        (
            {"type": "impression", "id": "i", "user": "U1", "items": ["N1"], "history": ["x" * 200]},
            "$.events[1].history[0]",
        ),
        ({"type": "heartbeat"}, "$.events[1].type"),
        (7, "$.events[1]"),
    ],
)
def test_a_bad_event_names_the_path_and_nothing_is_written(serving, client, log, event, path):
    good = {"type": "impression", "id": "i0", "user": "U1", "items": ["N1"]}
    before = [log.end_offset("events", p) for p in range(log.partitions("events"))]
    body = msgspec.json.encode({"events": [good, event]})
    answer = client.post("/v1/events", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["path"].startswith(path)
    assert before == [log.end_offset("events", p) for p in range(log.partitions("events"))]


def test_a_post_keeps_every_rule_of_the_wire_and_says_the_names_that_it_does_not_know(client):
    good = b'{"type": "engagement", "impression": "i", "user": "U1", "item": "N1"}'
    for body, path, says in (
        (b'{"events": [%s, {"type": "engagement", "user": "a"}]}' % good, "$.events[1]", "impression"),
        (b'{"events": [%s]}' % good.replace(b'"U1"', b'"U1", "user": "U2"'), "$.events[0]", "there twice"),
        (b'{"events": [%s]}' % good.replace(b'"U1"', b'"U1", "knid": 3'), "$.events[0]", "knid"),
        (b'{"events": {}}', "$.events", "array"),
        (b'{"events": []}', "$.events", "1 to 1000"),
        (b'{"events": [%s]}' % b",".join([b"{}"] * 1_001), "$.events", "1 to 1000"),
        (b'{"events": %s1%s}' % (b"[" * 90, b"]" * 90), "$.events[0]", "too deep"),
        (b'{"evnts": []}', "$", "evnts"),
    ):
        answer = client.post("/v1/events", content=body, headers={"content-type": "application/json"})
        error = answer.json()["error"]
        assert (answer.status_code, error["path"]) == (400, path), (body[:80], error)
        assert says in error["message"], error


def test_limits_and_strangers_are_refused(serving, client):
    assert (
        client.post("/v1/rank", content=b"x" * 20_001, headers={"content-type": "application/json"}).status_code == 413
    )
    assert client.post("/v1/rank", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    for host in ("evil.example", "evil.example:8300", "127.0.0.1.evil.example"):
        assert client.get("/healthz", headers={"host": host}).status_code == 421
    for host in ("localhost:8300", "127.0.0.1:8300", "[::1]:8300"):
        assert client.get("/healthz", headers={"host": host}).status_code == 200
    assert client.get("/v1/rank").status_code == 405
    assert client.get("/nothing").json()["error"]["message"].startswith("Not Found")


def test_metrics_count_by_route_and_never_by_id(serving, client):
    client.post("/v1/rank", json={"user": "U1", "items": ITEMS})
    client.get("/secret-user-id")
    page = client.get("/metrics").text
    assert 'ouzel_requests_total{route="/v1/rank",status="200"} 1.0' in page
    assert 'ouzel_requests_total{route="other",status="404"} 1.0' in page
    assert "secret" not in page


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "8.8.8.8", "example.com", ""])
def test_a_public_host_is_refused(host):
    with pytest.raises(ConfigError, match="loopback"):
        check_host(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_loopback_host_is_taken(host):
    assert check_host(host) == host


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.one_of(st.binary(max_size=200), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["user", "items", "history", "events", "type", "id", "x"]), inner, max_size=4
    ),
    max_leaves=12,
).map(lambda x: msgspec.json.encode(x))))  # fmt: skip
def test_no_body_makes_the_server_fail(serving, client, body):
    for route in ("/v1/rank", "/v1/events"):
        answer = client.post(route, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400, 413), (route, body)
        if answer.status_code == 400:
            assert answer.json()["error"]["path"].startswith("$")
