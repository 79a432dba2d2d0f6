"""Clients that send half a request, too much, or all at once, against a real `ouzel serve`: health stays up."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from infra.config import Config
from tests.serving.conftest import toy_config
from tests.serving.test_serve_process import Served

CONNECTIONS, WAITING, HEAD_S, BODY_S = 40, 4, 1.5, 1.5
HALF = b"POST /v1/rank HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
RANK = b'{"user": "U1", "items": ["N1", "N2"]}'
WHOLE = HALF + b"Content-Length: %d\r\n\r\n" % len(RANK) + RANK


@pytest.fixture
def config() -> Config:
    return toy_config(
        precision="float32", port=0, max_connections=CONNECTIONS, max_waiting=WAITING, head_s=HEAD_S, body_s=BODY_S,
        max_head_bytes=4_096, max_body_bytes=10_000, keep_alive_s=1.0,
    )  # fmt: skip


class Peer:
    """A client that sends what it likes."""

    def __init__(self, port: int, sends: bytes = b"") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.sendall(sends)

    def rest(self) -> bytes:
        """All that the server still sends, until it closes."""
        parts = []
        try:
            while part := self.socket.recv(65_536):
                parts.append(part)
        except ConnectionError:
            pass
        self.socket.close()
        return b"".join(parts)


def healthy(served: Served) -> None:
    for _ in range(3):
        with httpx.Client(base_url=served.http.base_url, timeout=5) as http:
            assert http.get("/healthz").status_code == 200


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def half_sent_requests_hold_their_places_for_a_while_only(served: Served, port: int) -> None:
    peers = [Peer(port, HALF) for _ in range(3 * CONNECTIONS)]
    began = time.monotonic()
    healthy(served)
    assert time.monotonic() - began < 3, "health does not wait for them"
    answers = [peer.rest() for peer in peers]
    assert {status(answer) for answer in answers} <= {0, 408, 503}
    assert sum(status(answer) == 408 for answer in answers) > 1
    assert any(status(a) == 503 and b"retry-after: 1" in a for a in answers), "who came first gave its place"
    assert time.monotonic() - began < HEAD_S + 8


def half_a_body_is_cut_off(served: Served, port: int) -> None:
    peers = [Peer(port, HALF + b"Content-Length: 500\r\n\r\n{") for _ in range(3 * WAITING)]
    whole = Peer(port, WHOLE.replace(b"Host", b"Connection: close\r\nHost"))
    assert status(whole.rest()) == 200, "requests that are not whole wait for nobody's answer"
    assert [status(peer.rest()) for peer in peers] == [408] * len(peers)


def a_long_head_is_refused(served: Served, port: int) -> None:
    for more in (b"X-Long: " + b"a" * 5_000, b"".join(b"X-%d: a\r\n" % i for i in range(600)), b"a" * 10_000):
        answer = Peer(port, HALF + more).rest()
        assert status(answer) == 431, answer
        assert b"4096 bytes" in answer
    assert status(Peer(port, HALF + b"X: " + b"a" * 5_000 + b"\r\nContent-Length: 0\r\n\r\n").rest()) == 431
    trailers = b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"".join(b"X-%d: a\r\n" % i for i in range(9_000))
    assert status(Peer(port, HALF + trailers).rest()) == 400, "headers behind a body count as well"


def what_is_no_http_is_told_so(served: Served, port: int) -> None:
    assert status(Peer(port, b"\x00\x01\x02 hello\r\n\r\n").rest()) == 400


def a_long_body_is_refused_and_the_connection_goes_on(served: Served, port: int) -> None:
    answer = served.http.post("/v1/rank", content=b"x" * 20_000, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["path"]) == (413, "$")
    assert served.http.post("/v1/rank", json={"user": "U1", "items": ["N1"]}).status_code == 200
    expecting = {"expect": "100-continue"}
    assert served.http.post("/v1/rank", json={"user": "U1", "items": ["N1"]}, headers=expecting).status_code == 200


def requests_in_a_row_are_answered_in_order(served: Served, port: int) -> None:
    last = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    answer = Peer(port, WHOLE * 3 + last).rest()
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200"] * 4


def stopped(pid: int) -> bool:
    """Whether every thread of a process has come to its stop: the signal takes effect some time after it was sent."""
    states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]
    return set(states) == {"T"}


def beyond_what_may_wait_requests_are_told_when_to_come_again(served: Served, port: int) -> None:
    peers = [Peer(port) for _ in range(5 * WAITING)]
    health = Peer(port)
    os.kill(served.process.pid, signal.SIGSTOP)  # so that all of them are there at once
    while not stopped(served.process.pid):
        time.sleep(0.01)
    for peer in peers:
        peer.socket.sendall(WHOLE.replace(b"Host", b"Connection: close\r\nHost"))
    health.socket.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    os.kill(served.process.pid, signal.SIGCONT)
    answers = [peer.rest() for peer in peers]
    assert status(health.rest()) == 200
    refused = [answer for answer in answers if status(answer) == 503]
    assert {status(answer) for answer in answers} == {200, 503}
    assert all(b"retry-after: 1" in answer for answer in refused)
    assert sum(status(answer) == 200 for answer in answers) >= WAITING


def test_no_client_keeps_the_others_or_health_from_their_answers(tmp_path, log, trainer):
    trainer.open()
    trainer.flush()
    served = Served(tmp_path, "--port", "0", "--clock", "off")
    try:
        served.wait_for("/readyz", 200)
        port = served.http.base_url.port
        assert port is not None
        for attack in (
            half_sent_requests_hold_their_places_for_a_while_only,
            half_a_body_is_cut_off,
            a_long_head_is_refused,
            what_is_no_http_is_told_so,
            a_long_body_is_refused_and_the_connection_goes_on,
            requests_in_a_row_are_answered_in_order,
            beyond_what_may_wait_requests_are_told_when_to_come_again,
        ):
            attack(served, port)
            healthy(served)
        page = served.http.get("/metrics").text
        for reason in ("connections", "head_time", "body_time", "head_bytes", "not_http", "waiting"):
            assert f'ouzel_refused_total{{reason="{reason}"}}' in page
    finally:
        out = served.stop()
    assert served.process.returncode == 0, out
    assert "Traceback" not in out
