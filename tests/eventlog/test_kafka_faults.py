"""A broker that restarts or is cut off, a writer that is killed: nothing acknowledged is lost, nothing is doubled."""

import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest
from confluent_kafka import KafkaError, TopicPartition

from infra.config import KafkaConfig, LogConfig, load_config
from infra.errors import ConfigError, CorruptStateError, RetryableError
from infra.eventlog import open_log
from infra.eventlog.kafka import log as kafka_log
from infra.eventlog.kafka.address import parse_address
from infra.eventlog.kafka.link import SAY_AFTER_S
from tests.eventlog.kafka_writer import numbers_in

# Requests give up early, so that a cut shorter than librdkafka's minute makes it send again what was written.
IMPATIENT = KafkaConfig(client={"socket.timeout.ms": 1_500, "request.timeout.ms": 1_000})
ROOT = Path(__file__).parents[2]


class Traffic:
    """A writer and a reader of one topic, each in a thread and a log of its own, until told to stop."""

    def __init__(self, url, config):
        self.url, self.config = url, config
        self.stop, self.written = threading.Event(), threading.Event()
        self.acknowledged, self.read, self.errors = 0, [], []
        self.logs = [open_log(url, config) for _ in range(2)]
        self.threads = [threading.Thread(target=run) for run in (self._write, self._read)]
        for thread in self.threads:
            thread.start()

    def _write(self):
        writer = self.logs[0].writer("t")
        number = 0
        while not self.stop.is_set():
            for _ in range(5):
                writer.append(0, b"%d" % number, timestamp_ms=number)
                number += 1
            while writer.pending_bytes:
                try:
                    writer.flush()
                except RetryableError as error:
                    self.errors.append(str(error))
            self.acknowledged = number
            time.sleep(0.002)

    def _read(self):
        reader = self.logs[1].reader("t", "r")
        while not self.written.is_set() or len(self.read) < self.acknowledged:
            self.read += [int(bytes(record.value)) for _, record in reader.poll(64, timeout_s=0.02)]

    def grows(self, timeout_s=30.0):
        """Wait until more is written and read than now."""
        written, read, deadline = self.acknowledged, len(self.read), time.monotonic() + timeout_s
        while self.acknowledged <= written + 50 or len(self.read) <= read + 50:
            assert time.monotonic() < deadline, (written, self.acknowledged, read, len(self.read), self.errors)
            time.sleep(0.01)

    def finish(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()
            self.written.set()
        whole = list(range(self.acknowledged))
        assert self.read == whole
        assert numbers_in(self.logs[0]) == whole
        for log in self.logs:
            log.close()


@pytest.fixture
def url(own_broker):
    url = f"kafka://{own_broker.address}/f{uuid.uuid4().hex}"
    log = open_log(url, LogConfig())
    log.create_topic("t", 1)
    log.close()
    return url


def test_a_broker_that_is_killed_and_restarted_loses_and_doubles_nothing(own_broker, url, capfd):
    traffic = Traffic(url, LogConfig())
    traffic.grows()
    own_broker.kill()
    until(lambda: all(log.waiting_s for log in traffic.logs))
    own_broker.start()
    traffic.grows()
    assert [log.waiting_s for log in traffic.logs] == [0.0, 0.0]
    traffic.finish()
    said = capfd.readouterr().err
    assert 2 <= said.count("no answer") == said.count("answers again") <= 6


def test_calls_and_commits_wait_out_a_restart_of_the_broker(own_broker, url):
    """The broker that starts is one that librdkafka no longer knows: it went on asking the old one for its groups."""
    log = open_log(url, LogConfig(kafka=KafkaConfig(patience_s=25.0)))
    writer = log.writer("t")
    writer.append(0, b"x", timestamp_ms=1)
    writer.close()
    reader = log.reader("t", "r")
    assert len(reader.poll()) == 1
    assert log.reader_lag("t") == {"r": 0}
    own_broker.kill()
    threads = [threading.Thread(target=call) for call in (reader.commit, lambda: log.reader_lag("t"))]
    for thread in threads:
        thread.start()
    until(lambda: log.waiting_s > 0)
    own_broker.start()
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()
    log.close()
    again = open_log(url, LogConfig())
    assert again.reader("t", "r").position(0) == 1
    again.close()


def test_a_commit_that_nobody_answers_is_said(own_broker, url, capfd):
    log = open_log(url, LogConfig())
    reader = log.reader("t", "r")
    own_broker.pause()
    committing = threading.Thread(target=reader.commit)
    committing.start()
    until(lambda: log.waiting_s > SAY_AFTER_S)
    own_broker.resume()
    committing.join(20.0)
    assert not committing.is_alive()
    assert log.waiting_s == 0
    assert capfd.readouterr().err.count("committing") == 1
    log.close()


def test_a_commit_that_a_broker_took_with_it_is_sent_again(own_broker, url, monkeypatch):
    """As seen in 1 of 2 restarts: librdkafka tries twice, and says that it waits for the coordinator."""
    log = open_log(url, LogConfig())
    log.writer("t").close()
    reader = log.reader("t", "r")
    publish, sent = reader._publish, []

    def publish_and_lose_the_first_answer():
        sent.append(publish())
        if len(sent) == 1:
            reader._settle(10.0)
            reader._answer = KafkaError(KafkaError._WAIT_COORD)

    monkeypatch.setattr(reader, "_publish", publish_and_lose_the_first_answer)
    reader.commit()
    assert len(sent) == 2
    log.close()


def until(condition, timeout_s=20.0):
    """Wait for something that comes by itself."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_many_kills_of_the_broker_double_nothing_though_the_records_carry_times_of_years_ago(own_broker, url):
    """A broker that comes back drops what it knows of producers whose records are old: see `records`."""
    traffic = Traffic(url, LogConfig())
    for _ in range(8):
        traffic.grows(60)
        own_broker.kill()
        own_broker.start()
    traffic.grows(60)
    traffic.finish()


def test_a_cut_loses_and_doubles_nothing_though_requests_are_sent_again(own_broker, url, capfd):
    traffic = Traffic(url, LogConfig(kafka=IMPATIENT))
    for cut_s in (4.0, 0.5):
        traffic.grows()
        own_broker.pause()
        time.sleep(cut_s)
        own_broker.resume()
        traffic.grows()
    traffic.finish()
    assert capfd.readouterr().err.count("answers again") >= 2


def test_calls_give_up_after_their_patience_and_say_what_to_do(own_broker, url, monkeypatch):
    monkeypatch.setattr(kafka_log, "CONNECT_S", 0.5)
    config = LogConfig(kafka=KafkaConfig(patience_s=0.5))
    log = open_log(url, config)
    log.partitions("t")
    own_broker.pause()
    try:
        for call in (lambda: log.end_offset("t", 0), lambda: log.reader_lag("t"), lambda: open_log(url, config)):
            with pytest.raises(RetryableError, match="check that the brokers run"):
                call()
    finally:
        own_broker.resume()
    assert log.end_offset("t", 0) == 0
    log.close()


def until_heard_out(broker, ports):
    """Return once the broker has closed what came from these ports: it then has read, and answered, all of it."""
    pid, deadline = broker._nodes[1].process.pid, time.monotonic() + 60
    while any(each.raddr and each.raddr.port in ports for each in psutil.Process(pid).net_connections("tcp")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_writer_that_is_killed_leaves_what_it_was_told_is_durable_once_and_in_order(own_broker, url):
    log = open_log(url, LogConfig())
    first = 0
    for round_ in range(3):
        command = [sys.executable, "-m", "tests.eventlog.kafka_writer", url, str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
            for _ in range(20 + 13 * round_):
                acknowledged = int(process.stdout.readline())
            ports = {each.laddr.port for each in psutil.Process(process.pid).net_connections("tcp")}
            process.kill()
            acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        assert process.returncode == -signal.SIGKILL
        until_heard_out(own_broker, ports)
        found = numbers_in(log)
        assert found == list(range(len(found)))
        assert len(found) >= acknowledged
        first = len(found)
    log.close()


def test_the_first_records_of_a_new_partition_are_not_mistaken_for_doubles(own_broker, url):
    log = open_log(url, LogConfig())
    value = bytes(1_500_000)
    for number in range(12):
        log.create_topic(f"new{number}", 2)
        writer = log.writer(f"new{number}")
        for each in (b"first", value, b"last"):
            writer.append(0, each, timestamp_ms=1)
        writer.close()
        assert [len(record.value) for record in log.read(f"new{number}", 0, 0)] == [5, len(value), 4]
    log.close()


def test_a_partition_whose_first_answer_is_late_still_has_its_share_of_the_first_poll(own_broker, url):
    log = open_log(url, LogConfig())
    log.create_topic("pair", 2)
    writer = log.writer("pair")
    for number in (0,) * 100 + (1,) * 4:
        writer.append(number, b"x", timestamp_ms=1)
    writer.close()
    reader = log.reader("pair", "r")
    fetch, late = reader._fetch, [TopicPartition(parse_address(url).topic("pair"), 1, 0)]
    assign, pump, until = fetch.assign, fetch.pump, time.monotonic() + 0.4

    def assign_one():
        assign()
        fetch.consumer.incremental_unassign(late)

    def pump_and_assign_the_other(timeout_s):
        if late and time.monotonic() > until:
            fetch.consumer.incremental_assign([late.pop()])
        pump(timeout_s)

    fetch.assign, fetch.pump = assign_one, pump_and_assign_the_other
    assert sorted(partition for partition, _ in reader.poll(8)) == [0] * 4 + [1] * 4
    log.close()


def test_a_reader_that_retention_overtook_says_so_and_skips_nothing(own_broker, url):
    log = open_log(url, LogConfig())
    writer = log.writer("t")
    for number in range(10):
        writer.append(0, b"%d" % number, timestamp_ms=1)
    writer.flush()
    reader = log.reader("t", "r")
    assert len(reader.poll(4)) == 4
    reader.commit()
    log.forget_reader("t", "r")
    assert log.retain("t", before_ms=1 << 60) == 9
    late = log.reader("t", "late")
    assert late.position(0) == 9
    reader.seek(0, 9)
    log.close()
    with pytest.raises(ValueError, match="the log holds 9 to 10"):
        open_log(url, LogConfig()).read("t", 0, 4)


def test_a_reader_that_comes_back_behind_the_start_says_so(own_broker, url):
    log = open_log(url, LogConfig())
    writer = log.writer("t")
    for _ in range(10):
        writer.append(0, b"x", timestamp_ms=1)
    writer.flush()
    reader = log.reader("t", "r")
    reader.commit({0: 3})
    behind = open_log(url, LogConfig())
    reader_behind = behind.reader("t", "r")
    log.forget_reader("t", "r")
    log.retain("t", before_ms=1 << 60)
    with pytest.raises(CorruptStateError, match="retention"):
        reader_behind.poll(timeout_s=60.0)
    reader_behind.close()  # publishes nothing: it was told that its place is gone
    log.close()
    behind.close()


def test_a_topic_that_takes_smaller_records_is_named_with_what_to_change(own_broker, url):
    small = open_log(url, LogConfig(kafka=KafkaConfig(max_record_bytes=100_000)))
    small.create_topic("small", 1)
    small.close()
    log = open_log(url, LogConfig())
    writer = log.writer("small")
    writer.append(0, bytes(200_000), timestamp_ms=1)
    with pytest.raises(ConfigError, match=r"max\.message\.bytes"):
        writer.flush()
    log.close()


def test_a_password_from_the_environment_opens_the_log_and_a_wrong_one_is_said_at_once(own_broker):
    url = f"kafka://127.0.0.1:{own_broker.listeners['SASL']}/s{uuid.uuid4().hex}"
    client = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "ouzel"}

    def config(password):
        overrides = [f"log.kafka.client.{name}={value}" for name, value in client.items()]
        return load_config(env={"OUZEL_LOG__KAFKA__CLIENT__SASL__PASSWORD": password}, overrides=overrides).log

    log = open_log(url, config("right"))
    log.create_topic("t", 1)
    writer = log.writer("t")
    writer.append(0, b"x", timestamp_ms=1)
    writer.flush()
    assert len(log.reader("t", "r").poll()) == 1
    log.close()
    with pytest.raises(ConfigError, match="password"):
        open_log(url, config("wrong"))


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_a_batch_that_is_damaged_on_the_brokers_disk_is_said_and_nothing_behind_it_is_read(url, own_broker, codec):
    """librdkafka checks no sum unless told to, and goes on behind what it cannot read: a loss that nobody counts.

    Kafka's sum leaves out the offset and the length that begin a batch: what is damaged there shows as a gap at most.
    """
    log = open_log(url, LogConfig(kafka=KafkaConfig(compression=codec)))
    log.create_topic("t", 1)
    writer = log.writer("t")
    for number in range(6):
        writer.append(0, b"%d" % number + b"abcdefgh" * 50, timestamp_ms=1)
        writer.flush()
    writer.close()
    (segment,) = own_broker.folder.glob(f"*/data/{parse_address(url).prefix}.t-0/*.log")
    data = segment.read_bytes()
    at = len(data) // 2 + 70  # batches are of one size: behind the header of number 3
    with open(segment, "r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 0xFF]))
    reader = log.reader("t", "r")
    read = [record.offset for _, record in reader.poll(64, timeout_s=5.0)]
    assert read == [0, 1, 2][: len(read)]
    with pytest.raises(CorruptStateError, match="from offset 3 on are damaged"):
        drain(reader)
    log.close()


def drain(reader):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert all(record.offset < 3 for _, record in reader.poll(64, timeout_s=0.1))
