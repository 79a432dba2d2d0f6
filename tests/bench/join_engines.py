"""The own joiner and the Faust engine over the same records on one broker: events/s and CPU, a fresh process each.

`python -m tests.bench.join_engines` starts a broker of its own; `make bench-kafka` calls `compare`.
Impressions of `tests.bench.wire`: 37 shown items, a history of 32; batches of 256 in columns and in msgpack, and single
msgpack and JSON records. Measured is the backlog of one partition from the first joined record on, so that neither the
start of a client nor the compilation counts; CPU is that of the whole process, all its threads. The broker shares the
machine, so CPU an event says what an engine costs. It does not show latency, nor many partitions.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

CASES = tuple((engine, form) for form in ("columns", "msgpack-batch", "msgpack", "json") for engine in ("own", "faust"))
SINGLE = 10  # in formats other than columns there are so many times fewer events
BUILD = Path("build/bench")
GIVE_UP_S = 300.0
WARM_EVENTS = 512


def compare(address: str, events: int) -> list[dict[str, Any]]:
    """Costs by engine and format, over so many events in columns and a tenth in every other format."""
    found = []
    for engine, form in CASES:
        said = ""
        for count in (WARM_EVENTS, events if form == "columns" else events // SINGLE):  # the first fills numba's cache
            url = f"kafka://{address}/bench-{uuid.uuid4().hex[:12]}"
            command = [sys.executable, "-W", "ignore", "-m", "tests.bench.join_engines", "--worker"]
            command += [engine, form, url, str(count)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=GIVE_UP_S)
            said = done.stdout.splitlines()[-1]
        found.append({"engine": engine, "form": form, **json.loads(said)})
    return found


def show(found: list[dict[str, Any]]) -> None:
    """A line an engine and format."""
    for cost in found:
        speed = f"{cost['events_per_s']:>10,.0f} events/s {cost['cpu_us_per_event']:>8.2f} us CPU an event"
        print(f"{cost['engine']:<6} {cost['form']:<14} {speed}")


def worker(engine: str, form: str, url: str, events: int) -> None:
    """Write the records, join them with an engine, print what it cost."""
    from infra.config import Config, KafkaConfig, LogConfig
    from infra.eventlog import create_topics
    from infra.eventlog.kafka import KafkaLog
    from stream.join.core import JoinSettings
    from stream.join.faust.engine import FaustWorker, start_faust
    from stream.join.worker import JoinWorker
    from tests.bench.wire import write

    log, settings = KafkaLog(url, LogConfig(partitions=1)), JoinSettings.of(Config())
    create_topics(log, 1)
    count, size = write(log, form, events)
    joiner: JoinWorker | FaustWorker
    with tempfile.TemporaryDirectory(prefix="ouzel-bench-faust-") as folder:
        if engine == "own":
            joiner = JoinWorker(log, settings)
        else:
            joiner = FaustWorker(log, settings, start_faust(log, KafkaConfig(), Path(folder) / "faust"))
        first = 0
        while not first:
            first = joiner.step(0.1)
        read, wall, cpu = first, time.perf_counter(), time.process_time()
        while read < count:
            read += joiner.step(0.1)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        joined = joiner.counts()["joined_impressions"]
        reread = joiner.reread if isinstance(joiner, FaustWorker) else 0
        joiner.close()
    if joined != events:
        raise RuntimeError(f"{engine}, {form}: {joined} of {events} impressions")
    timed = max(events * (count - first) / count, 1)  # the small run may be read in one step
    costs = {"events_per_s": timed / wall, "cpu_us_per_event": cpu / timed * 1e6, "reread": reread}
    print(json.dumps({"events": events, "records": count, "bytes_per_event": size / events, **costs}))


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["--worker"]:
        engine, form, url, events = sys.argv[2:]
        worker(engine, form, url, int(events))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=400_000, help="in columns; a tenth in other formats")
    options = parser.parse_args()
    from infra.supervisor.broker import Broker

    with tempfile.TemporaryDirectory(prefix="ouzel-kafka-") as folder, Broker(Path(folder) / "broker") as broker:
        found = compare(broker.address, options.events)
    show(found)
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "join_engines.json").write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
