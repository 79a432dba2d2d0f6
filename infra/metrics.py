"""The one list of Prometheus metrics, and the endpoint that each process exports its share on.

A metric that is not declared here cannot be set; names carry the prefix `ouzel_`, base units, and `_total` for
counters; labels come from small closed sets and never hold an id. Each process has a registry of its own.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server

from infra.errors import ConfigError

Kind = Literal["counter", "gauge", "histogram"]

# Order fixes the ports: metrics.base_port + index; the second of a name has base_port + PORTS + index, and so on.
PROCESSES = ("replay", "joiner", "trainer", "retrain", "replica", "evaluator", "archive")
PORTS = 16
LATENCY_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(frozen=True, slots=True)
class Metric:
    """One declared metric."""

    process: str  # who sets it; "*" for all
    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = LATENCY_S


METRICS: tuple[Metric, ...] = (
    Metric("*", "gauge", "ouzel_event_time_seconds", "Event time this process has reached, s since the epoch."),
    Metric("*", "gauge", "ouzel_tick", "Newest tick this process has completed."),
    Metric("*", "gauge", "ouzel_lag_records", "Records this process has still to read, over its input topics."),
    Metric(
        "*",
        "gauge",
        "ouzel_log_waiting_seconds",
        "How long no broker of the event log has answered; 0 while all is well.",
    ),
    Metric(
        "*",
        "gauge",
        "ouzel_kernels_compiled",
        "Kernels that were in no cache and were compiled since this process began; 0 on a warm machine.",
    ),
    Metric("replay", "counter", "ouzel_replay_rows_total", "Log rows replayed, by kind.", ("kind",)),
    Metric("replay", "counter", "ouzel_dead_letters_total", "Rows that could not be used, by reason.", ("reason",)),
    Metric(
        "replay", "counter", "ouzel_replay_waits_total", "Times the replay waited for a reader that was too far behind."
    ),
    Metric("joiner", "counter", "ouzel_join_events_total", "Events read by the joiner."),
    Metric("joiner", "counter", "ouzel_join_impressions_total", "Impressions that left as examples."),
    Metric("joiner", "counter", "ouzel_join_engagements_total", "Engagements that joined an example."),
    Metric("joiner", "counter", "ouzel_join_dropped_total", "Events dropped, by reason.", ("reason",)),
    Metric(
        "joiner",
        "counter",
        "ouzel_dead_letters_total",
        "Events and items that could not be used, by reason.",
        ("reason",),
    ),
    Metric("joiner", "gauge", "ouzel_archive_tick", "Newest close tick that the archive holds on disk."),
    Metric("joiner", "counter", "ouzel_faust_messages_total", "Messages that Faust has read (engine faust)."),
    Metric("joiner", "counter", "ouzel_faust_buffer_full_total", "Times Faust's buffer before its agent was full."),
    Metric("joiner", "counter", "ouzel_faust_rebalances_total", "Times Faust's consumer group was rebalanced."),
    Metric("joiner", "histogram", "ouzel_faust_rebalance_seconds", "Wall time of a rebalance, s."),
    Metric("joiner", "histogram", "ouzel_faust_commit_seconds", "Wall time of a commit of Faust's offsets, s."),
    Metric(
        "joiner",
        "counter",
        "ouzel_faust_reread_total",
        "Records that Faust did not hand on in their turn, and that were read from the log again.",
    ),
    Metric("archive", "gauge", "ouzel_archive_tick", "Newest close tick that the archive holds on disk."),
    Metric("trainer", "counter", "ouzel_train_impressions_total", "Impressions learned online."),
    Metric("trainer", "counter", "ouzel_train_shown_items_total", "Shown items learned online."),
    Metric(
        "trainer",
        "counter",
        "ouzel_train_left_out_total",
        "Shown items with engagements of kinds that are not learned as positive only: neither positive nor negative.",
    ),
    Metric("trainer", "counter", "ouzel_versions_total", "Versions published."),
    Metric("trainer", "counter", "ouzel_version_bytes_total", "Bytes of published versions."),
    Metric("trainer", "gauge", "ouzel_generation", "Generation being trained."),
    Metric("trainer", "gauge", "ouzel_held", "1 while learning is held: a version was not fit to be served."),
    Metric("trainer", "gauge", "ouzel_table_rows", "Embedding rows, by slot.", ("slot",)),
    Metric("trainer", "gauge", "ouzel_table_bytes", "Memory of embedding rows and their index, by slot.", ("slot",)),
    Metric(
        "trainer",
        "counter",
        "ouzel_table_keys_total",
        "What became of keys: inserted, rejected and refused (occurrences without a row), expired, evicted.",
        ("slot", "fate"),
    ),
    Metric("trainer", "counter", "ouzel_refused_gradients_total", "Row gradients that were not finite.", ("slot",)),
    Metric("trainer", "histogram", "ouzel_tick_seconds", "Wall time to learn and publish one tick, s."),
    Metric("retrain", "counter", "ouzel_retrains_total", "Retrains finished, by outcome.", ("outcome",)),
    Metric("retrain", "gauge", "ouzel_retrain_seconds", "Wall time of the last retrain, s."),
    Metric("replica", "gauge", "ouzel_served_generation", "Generation of the served version."),
    Metric("replica", "gauge", "ouzel_served_tick", "Tick of the served version."),
    Metric("replica", "gauge", "ouzel_served_lag_ticks", "Ticks between what was closed and what is served."),
    Metric("replica", "gauge", "ouzel_ready", "1 while the replica answers as ready."),
    Metric("replica", "gauge", "ouzel_member_up", "1 while this process of the run runs; 0 while not.", ("member",)),
    Metric("replica", "gauge", "ouzel_member_restarts", "Times it was started again, by process.", ("member",)),
    Metric("replica", "counter", "ouzel_requests_total", "HTTP requests, by route and status.", ("route", "status")),
    Metric("replica", "counter", "ouzel_refused_total", "Connections and requests cut off, by reason.", ("reason",)),
    Metric("replica", "histogram", "ouzel_request_seconds", "HTTP request latency, s, by route.", ("route",)),
    Metric("replica", "histogram", "ouzel_sync_seconds", "Tick closed to served by this replica, wall s."),
    Metric("evaluator", "gauge", "ouzel_auc_impression", "Mean impression AUC, last event hour, by arm.", ("arm",)),
    Metric("evaluator", "gauge", "ouzel_calibration", "Predicted over observed clicks, last hour, by arm.", ("arm",)),
)


class Metrics:
    """The declared metrics of one process; setting any other is a KeyError."""

    def __init__(self, process: str, declared: Sequence[Metric] = METRICS) -> None:
        self.registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for m in declared:
            if m.process not in ("*", process):
                continue
            if m.kind == "counter":
                self._counters[m.name] = Counter(m.name, m.help, m.labels, registry=self.registry)
            elif m.kind == "gauge":
                self._gauges[m.name] = Gauge(m.name, m.help, m.labels, registry=self.registry)
            else:
                self._histograms[m.name] = Histogram(
                    m.name, m.help, m.labels, registry=self.registry, buckets=m.buckets
                )
        self._served: tuple[WSGIServer, threading.Thread] | None = None

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        counter = self._counters[name]
        (counter.labels(**labels) if labels else counter).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        gauge = self._gauges[name]
        (gauge.labels(**labels) if labels else gauge).set(value)

    def follow(self, name: str, value: Callable[[], float]) -> None:
        """Have a gauge ask for its value whenever it is read: also while the process waits for something."""
        self._gauges[name].set_function(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add an observation to a histogram."""
        histogram = self._histograms[name]
        (histogram.labels(**labels) if labels else histogram).observe(value)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def serve(self, port: int) -> None:
        """Export on 127.0.0.1:port until `close`. Raises ConfigError where the port is taken."""
        try:
            self._served = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        except OSError as error:
            raise ConfigError(f"metrics: cannot listen on 127.0.0.1:{port} ({error}); set metrics.base_port") from error

    def close(self) -> None:
        """Stop the endpoint, if one runs."""
        if self._served is not None:
            server, thread = self._served
            server.shutdown()
            server.server_close()
            thread.join()
            self._served = None
