"""A real Kafka broker on this machine, for tests and for people without a cluster: one node, or a quorum of three.

Each node is broker and controller in one process (KRaft), bound to 127.0.0.1, in a folder of its own:

    FOLDER/node-1/server.properties   written by every start
    FOLDER/node-1/data                formatted once; a restart goes on with it, on the same ports
    FOLDER/node-1/output              what the process printed
    FOLDER/node-1/pid                 while it runs
    FOLDER/lock, FOLDER/watch         who runs it (`broker_folder`)

A shell watches the process that owns the broker and kills the nodes when it has gone: a broken test leaves nothing
running. Not for production: one disk, no replication over machines, no transport security.
"""

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.errors import ConfigError, OuzelError
from infra.supervisor.broker_folder import Held
from infra.supervisor.fleet import ending
from infra.supervisor.kafka_jars import cache_folder, find_java, kafka_jars

READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 10.0  # the last nodes of a quorum cannot leave it in order: there is nobody to tell
ARCHIVE_TIMEOUT_S = 120.0  # ... and one that writes its classes takes its time
HEAP_MB = 512
SAID_LINES = 12
# Small and quick to start: one compiler tier, one collector thread.
JAVA = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Djava.awt.headless=true")
LOGGING = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")

WATCH = (
    'while kill -0 "$1" 2>/dev/null; do sleep 0.5; done; cat "$2"/*/pid | xargs -r kill -9; test -z "$3" || rm -rf "$2"'
)


class BrokerFailed(OuzelError):
    """A broker did not come up; the message holds the end of what it printed."""


def free_ports(count: int) -> list[int]:
    """Distinct ports of 127.0.0.1 that nobody listens on now."""
    with ExitStack() as held:
        found = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


def check_port(port: int) -> None:
    """Raises ConfigError where something listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} of 127.0.0.1 is taken ({error.strerror}): stop what listens there (`ss -ltnp`), or "
                "choose another --port; a run's own broker keeps its port"
            ) from error


@dataclass
class Node:
    """One broker process: its number, where it listens, and the process while it runs."""

    number: int
    folder: Path
    port: int
    controller_port: int
    directory_id: str
    said_before: int = 0  # bytes of its output that are of earlier lives
    process: "subprocess.Popen[bytes] | None" = None


@dataclass
class Broker:
    """One or three Kafka nodes over a folder. `with Broker(folder) as broker: … broker.address …`"""

    folder: Path
    nodes: int = 1
    port: int | None = None  # of the first node; the others get free ones
    owner_pid: int = field(default_factory=os.getpid)  # the nodes die with this process
    remove: bool = False  # the folder too
    settings: Mapping[str, str] = field(default_factory=dict)  # broker properties over those below
    listeners: Mapping[str, int] = field(default_factory=dict)  # further ones of the first node: "SASL" and its port
    java_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.nodes not in (1, 3):
            raise ConfigError(f"{self.nodes} Kafka nodes; one, or three for a quorum")
        self._java, self._jars = find_java(), kafka_jars()
        self._options = self.java_options or class_archive(self._jars)
        ports = free_ports(2 * self.nodes)
        if self.port is not None:
            ports[0] = self.port
        self._nodes = {
            n + 1: Node(n + 1, self.folder / f"node-{n + 1}", ports[2 * n], ports[2 * n + 1], _random_id())
            for n in range(self.nodes)
        }
        self._cluster_id = _random_id()
        self._watch: subprocess.Popen[bytes] | None = None
        self._held: Held | None = None

    @property
    def address(self) -> str:
        """host:port of every node, separated by commas."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self._nodes.values())

    def __enter__(self) -> "Broker":
        with ExitStack() as undo:  # Ctrl-C, too, may come while it starts
            undo.callback(self.stop)
            self.start()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Format what is not yet formatted, start every node that does not run, wait until all answer.

        Raises BrokerFailed with the end of the output of the node that ended, ConfigError where the folder or the port
        is somebody else's.
        """
        if self._held is None:
            self._held = Held(self.folder, self.nodes)
            if self.port is not None:
                check_port(self.port)
        for node in self._nodes.values():
            node.folder.mkdir(parents=True, exist_ok=True)
            output = node.folder / "output"
            node.said_before = output.stat().st_size if output.exists() else 0
            text = "".join(f"{name}={value}\n" for name, value in self._properties(node).items())
            (node.folder / "server.properties").write_text(text, encoding="utf-8")
        self._format([node for node in self._nodes.values() if not (node.folder / "data" / "meta.properties").exists()])
        for node in self._nodes.values():
            self._launch(node)
        if self._watch is None:
            command = ["sh", "-c", WATCH, "sh", str(self.owner_pid), str(self.folder), "yes" if self.remove else ""]
            quiet = subprocess.DEVNULL
            self._watch = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
            (self.folder / "watch").write_text(f"{self._watch.pid}\n", encoding="ascii")
        self.wait_ready()

    def wait_ready(self, count: int | None = None) -> None:
        """Return once `count` nodes (default: all) are members of the cluster. Raises BrokerFailed."""
        wanted = self.nodes if count is None else count
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0, "reconnect.backoff.max.ms": 200})
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            self.check()
            try:
                if len(admin.list_topics(timeout=1).brokers) >= wanted:
                    return
            except KafkaException:
                pass  # not listening yet
            time.sleep(0.05)
        raise BrokerFailed(
            f"Kafka at {self.address} is not ready after {READY_TIMEOUT_S:.0f} s; {_said(self._nodes[1])}"
        )

    def check(self) -> None:
        """Raises BrokerFailed where a node ended that was not told to."""
        for node in self._nodes.values():
            if node.process is not None and (code := node.process.poll()) is not None:
                raise BrokerFailed(f"Kafka node {node.number} {ending(code)}; {_said(node)}")

    def stop(self) -> None:
        """End every node in order, and the watch; data stays unless the folder is to be removed."""
        for node in self._nodes.values():
            if node.process is not None:
                node.process.terminate()
        for node in self._nodes.values():
            self._end(node, signal.SIGTERM)
        if self._watch is not None:
            self._watch.kill()
            self._watch.wait()
            self._watch = None
            (self.folder / "watch").unlink(missing_ok=True)
        if self.remove:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._held is not None:
            self._held.release()
            self._held = None

    def kill(self, number: int = 1) -> None:
        """SIGKILL one node, as a crash would; `start` brings it back on its data and ports."""
        self._end(self._nodes[number], signal.SIGKILL)

    def pause(self, number: int = 1) -> None:
        """SIGSTOP: connections stay open and nothing answers, as when a network is cut."""
        pid = self._signal(number, signal.SIGSTOP)
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)

    def resume(self, number: int = 1) -> None:
        """The end of a pause."""
        self._signal(number, signal.SIGCONT)

    def _signal(self, number: int, which: signal.Signals) -> int:
        process = self._nodes[number].process
        if process is None:
            raise ValueError(f"Kafka node {number} does not run")
        process.send_signal(which)
        return process.pid

    def _end(self, node: Node, how: signal.Signals) -> None:
        if node.process is None:
            return
        node.process.send_signal(signal.SIGCONT)
        node.process.send_signal(how)
        try:
            node.process.wait(timeout=ARCHIVE_TIMEOUT_S if self.java_options else STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            node.process.kill()
            node.process.wait()
        node.process = None
        (node.folder / "pid").unlink(missing_ok=True)

    def _launch(self, node: Node) -> None:
        if node.process is not None and node.process.poll() is None:
            return
        with open(node.folder / "output", "ab") as output:
            node.process = subprocess.Popen(
                self._java_command("kafka.Kafka", str(node.folder / "server.properties"), heap_mb=HEAP_MB),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        (node.folder / "pid").write_text(f"{node.process.pid}\n", encoding="ascii")

    def _format(self, nodes: Sequence[Node]) -> None:
        """All at once; each is a process of 1-2 s."""
        quorum = ["--standalone"]
        if self.nodes > 1:
            members = (f"{n.number}@127.0.0.1:{n.controller_port}:{n.directory_id}" for n in self._nodes.values())
            quorum = ["--initial-controllers", ",".join(members)]
        running = []
        for node in nodes:
            where = ["format", "-t", self._cluster_id, "-c", str(node.folder / "server.properties"), *quorum]
            command = self._java_command("kafka.tools.StorageTool", *where, heap_mb=128)
            with open(node.folder / "output", "ab") as output:
                running.append((node, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)))
        for node, process in running:
            if process.wait():
                raise BrokerFailed(f"formatting Kafka node {node.number} failed; {_said(node)}")

    def _java_command(self, main: str, *arguments: str, heap_mb: int) -> list[str]:
        options = (f"-Xmx{heap_mb}m", *JAVA, *self._options, *LOGGING)
        return [self._java, *options, "-cp", f"{self._jars}/*", main, *arguments]

    def _properties(self, node: Node) -> dict[str, str]:
        controllers = ",".join(f"127.0.0.1:{n.controller_port}" for n in self._nodes.values())
        copies = str(self.nodes)
        ports = {
            "CLIENT": node.port,
            "CONTROLLER": node.controller_port,
            **(self.listeners if node.number == 1 else {}),
        }
        listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
        return {
            "process.roles": "broker,controller",
            "node.id": str(node.number),
            "listeners": listeners,
            "advertised.listeners": listeners,
            "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT",
            "inter.broker.listener.name": "CLIENT",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.bootstrap.servers": controllers,
            "log.dirs": str((node.folder / "data").absolute()),
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            "min.insync.replicas": "2" if self.nodes > 1 else "1",
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": "2",
            "offsets.retention.minutes": "525600",  # a reader that pauses for less than a year keeps its place
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "broker.session.timeout.ms": "6000",  # how long until a killed node's partitions get another leader
            "log.cleaner.dedupe.buffer.size": str(4 << 20),
            "num.network.threads": "2",
            "num.io.threads": "4",
            **self.settings,
        }


def _said(node: Node) -> str:
    """The end of what a node printed in this life, without the frames of Java's stack traces."""
    output = node.folder / "output"
    text = output.read_bytes()[node.said_before :].decode("utf-8", "replace") if output.exists() else ""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("at ")][-SAID_LINES:]
    return "\n".join([f"the end of {output}:", *(f"  {line}" for line in lines)]) if lines else "it printed nothing"


def class_archive(jars: Path) -> tuple[str, ...]:
    """Options that start Kafka from parsed classes: half the processor time. Made once, by running it once.

    Only beside jars in our own cache; a Java that does not fit the archive ignores it.
    """
    archive = jars.with_name(f"{jars.name}.jsa")
    if jars.parent.parent != cache_folder():
        return ()
    if not archive.exists():
        print("making an archive of Kafka's classes, once, for quicker starts", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix=".classes-", dir=jars.parent) as scratch:
            made = Path(scratch) / "classes.jsa"
            with Broker(Path(scratch) / "broker", java_options=(f"-XX:ArchiveClassesAtExit={made}",)):
                pass
            if made.exists():
                os.replace(made, archive)
    return (f"-XX:SharedArchiveFile={archive}",) if archive.exists() else ()


def _random_id() -> str:
    """As Kafka's Uuid.randomUuid: 22 characters, not beginning with a dash."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text
