"""`make bench-kafka`: three Python clients over one broker in one run, messages/s and processor time per message; then
the joiner's two engines over the same events in every format (`join_engines`).

Each (client, direction, size) is a process of its own. A producer makes its message, sends one and waits, then
measures; a consumer measures from its assignment on, since all of them fetch ahead of the first call.
200-byte messages stand for single events, 64 KiB ones for batches of events in a record. All clients ask for `acks=all`
and, where they have it, idempotence; no compression. The broker shares the machine, so that messages/s say how fast the
pair is, and processor time per message what a client costs. Ratios over absolutes: the machine is noisy. Writes
`build/bench/kafka.json`. It does not show latency, many partitions, or a broker over a network.
"""

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import join_engines

BUILD = Path("build/bench")
CLIENTS = ("confluent-kafka", "kafka-python", "aiokafka")
SIZES = {"200 B": (200, 200_000), "64 KiB": (65_536, 4_000)}  # bytes, messages; the slower clients get a tenth
BATCH_BYTES = 256 << 10
JOINED = 400_000  # impressions in columns that the joiners join
Run = Callable[[str, str, bytes, int], "tuple[float, float]"]


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of an action, all threads of this process included."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def confluent_produce(address: str, topic: str, value: bytes, count: int) -> tuple[float, float]:
    from confluent_kafka import Producer

    settings = {"acks": "all", "enable.idempotence": True, "max.in.flight": 1, "linger.ms": 5}
    producer = Producer({"bootstrap.servers": address, "batch.size": BATCH_BYTES, **settings})
    producer.produce(topic, value)
    producer.flush()

    def send() -> None:
        for _ in range(count):
            while True:
                try:
                    producer.produce(topic, value)
                    break
                except BufferError:
                    producer.poll(0.1)
        producer.flush()

    return timed(send)


def confluent_consume(address: str, topic: str, _value: bytes, count: int) -> tuple[float, float]:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": address, "group.id": topic, "enable.auto.commit": False})

    def receive() -> None:
        consumer.assign([TopicPartition(topic, 0, 0)])
        got = 0
        while got < count:
            for message in consumer.consume(1_000, 1.0):
                message.value()
                got += 1

    measured = timed(receive)
    consumer.close()
    return measured


def python_produce(address: str, topic: str, value: bytes, count: int) -> tuple[float, float]:
    from kafka import KafkaProducer

    producer = KafkaProducer(
        bootstrap_servers=address, acks="all", enable_idempotence=True, linger_ms=5, batch_size=BATCH_BYTES
    )
    producer.send(topic, value).get(30)

    def send() -> None:
        for _ in range(count):
            producer.send(topic, value)
        producer.flush()

    measured = timed(send)
    producer.close()
    return measured


def python_consume(address: str, topic: str, _value: bytes, count: int) -> tuple[float, float]:
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(bootstrap_servers=address, enable_auto_commit=False, max_poll_records=1_000)

    def receive() -> None:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek(TopicPartition(topic, 0), 0)
        got = 0
        while got < count:
            got += sum(map(len, consumer.poll(timeout_ms=1_000).values()))

    measured = timed(receive)
    consumer.close()
    return measured


def aio_produce(address: str, topic: str, value: bytes, count: int) -> tuple[float, float]:
    from aiokafka import AIOKafkaProducer

    async def run() -> tuple[float, float]:
        settings = {"acks": "all", "enable_idempotence": True, "linger_ms": 5, "max_batch_size": BATCH_BYTES}
        async with AIOKafkaProducer(bootstrap_servers=address, **settings) as producer:
            await producer.send_and_wait(topic, value)
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(count):
                await producer.send(topic, value)
            await producer.flush()
            return time.perf_counter() - wall, time.process_time() - cpu

    return asyncio.run(run())


def aio_consume(address: str, topic: str, _value: bytes, count: int) -> tuple[float, float]:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    async def run() -> tuple[float, float]:
        consumer = AIOKafkaConsumer(bootstrap_servers=address, enable_auto_commit=False, max_poll_records=1_000)
        await consumer.start()
        wall, cpu, got = time.perf_counter(), time.process_time(), 0
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek(TopicPartition(topic, 0), 0)
        while got < count:
            got += sum(map(len, (await consumer.getmany(timeout_ms=1_000)).values()))
        measured = time.perf_counter() - wall, time.process_time() - cpu
        await consumer.stop()
        return measured

    return asyncio.run(run())


RUNS: dict[str, tuple[Run, Run]] = {
    "confluent-kafka": (confluent_produce, confluent_consume),
    "kafka-python": (python_produce, python_consume),
    "aiokafka": (aio_produce, aio_consume),
}


def worker(client: str, direction: str, address: str, topic: str, size: int, count: int) -> None:
    """One measurement, printed as JSON."""
    value = (uuid.uuid4().bytes * (size // 16 + 1))[:size]
    wall, cpu = RUNS[client][direction == "consume"](address, topic, value, count)
    print(json.dumps({"messages_per_s": count / wall, "cpu_us_per_message": cpu / count * 1e6, "messages": count}))


def measure(address: str, scale: float) -> list[dict[str, Any]]:
    """Every client, size and direction; what a client wrote, it reads."""
    from confluent_kafka.admin import AdminClient, NewTopic

    admin, results = AdminClient({"bootstrap.servers": address}), []
    for name, (size, messages) in SIZES.items():
        for client in CLIENTS:
            topic = f"bench-{uuid.uuid4().hex}"
            admin.create_topics([NewTopic(topic, 1, 1)])[topic].result()
            count = int(messages * scale * (0.25 if client != "confluent-kafka" else 1))
            for direction in ("produce", "consume"):
                command = [sys.executable, "-W", "ignore", "-m", "tests.bench.kafka_clients", "--worker", client]
                command += [direction, address, topic, str(size), str(count)]
                done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
                results.append(
                    {"client": client, "size": name, "direction": direction, **json.loads(done.stdout.splitlines()[-1])}
                )
            admin.delete_topics([topic])[topic].result()
    return results


def show(console: Console, results: list[dict[str, Any]]) -> None:
    table = Table("client", "size", "direction", "messages/s", "CPU µs a message", "CPU against confluent-kafka")
    base = {(r["size"], r["direction"]): r["cpu_us_per_message"] for r in results if r["client"] == CLIENTS[0]}
    for r in sorted(results, key=lambda r: (r["size"], r["direction"], r["cpu_us_per_message"])):
        ratio = r["cpu_us_per_message"] / base[r["size"], r["direction"]]
        row = (f"{r['messages_per_s']:,.0f}", f"{r['cpu_us_per_message']:.2f}", f"{ratio:.1f} ×")
        table.add_row(r["client"], r["size"], r["direction"], *row)
    console.print(table)


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["--worker"]:
        client, direction, address, topic, size, count = sys.argv[2:]
        worker(client, direction, address, topic, int(size), int(count))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the messages")
    options = parser.parse_args()
    from infra.supervisor.broker import Broker

    with tempfile.TemporaryDirectory(prefix="ouzel-kafka-") as folder, Broker(Path(folder) / "broker") as broker:
        results = measure(broker.address, options.scale)
        show(Console(), results)
        joiners = join_engines.compare(broker.address, round(JOINED * options.scale))
        join_engines.show(joiners)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    out = {
        "command": "make bench-kafka",
        "commit": head.stdout.strip(),
        "machine": f"{platform.machine()}, {platform.processor() or platform.system()}",
        "versions": {client: version(client) for client in CLIENTS},
        "clients": results,
        "joiners": joiners,
    }
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "kafka.json").write_text(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
