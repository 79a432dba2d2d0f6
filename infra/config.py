"""One TOML file configures everything: defaults < file < environment `OUZEL_*` < flags.

Sections are frozen structs; each field's comment gives unit, default and trade-off. An unknown key is refused with
its path and the nearest name. `OUZEL_TIME__TICK_S=10` sets `time.tick_s`; a flag `--set time.tick_s=10` does the same.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from infra import ranges
from infra.errors import ConfigError
from infra.speed import replay_speed
from infra.ticks import Timeline

ENV_PREFIX = "OUZEL_"
KAFKA_LEAST_DAYS = 3  # a topic keeps records for as long, so that a process may be stopped over a weekend
# Tables whose keys are somebody else's names: dotted, in whatever nesting TOML or the environment gives them.
FREE = ("log.kafka.client",)
_CREDENTIALS = re.compile(r"([a-z0-9+._-]+://)(?=.*@).*@|()[^/@\s]*:[^/@]*@", re.IGNORECASE | re.DOTALL)
_SECRET = re.compile(r"password|passphrase|secret|key\.pem|oauthbearer\.config")


RuleName = Literal["rowwise-adagrad", "adagrad", "adam", "momentum", "sgd", "ftrl"]
EngagementName = Literal["click", "like", "share", "dwell"]
Precision = Literal["float32", "float16", "int8"]
GROWN = "factors"  # the table of what grows beside the bias


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the configuration; unknown fields are errors."""


class TimeConfig(Section, frozen=True):
    # Length of a tick, s. The unit of training, publishing and measuring; 60 by default, down to 1. Shorter is
    # fresher and costs more versions.
    tick_s: int = 60
    # How long an impression waits for its engagements, s: a whole number of ticks. Longer joins more and learns later.
    attribution_s: int = 120
    # How far out of order rows may be appended, s of event time.
    disorder_bound_s: float = 5.0
    # How long after a tick closes until every replica holds its version, s; includes the heartbeat interval.
    publish_allowance_s: float = 40.0
    # How far ahead of `ingested_at` an event's own time may lie before it is dropped as `future`, s.
    skew_s: float = 10.0

    def build(self) -> Timeline:
        """The run's clockwork. Raises ConfigError where the numbers do not fit together."""
        ranges.check(msgspec.structs.asdict(self), "time")
        if self.attribution_s < self.tick_s or self.attribution_s % self.tick_s:
            raise ConfigError(
                f"time.attribution_s is {self.attribution_s}, which is no whole number of ticks of {self.tick_s} s; "
                f"choose a multiple of {self.tick_s}"
            )
        tick_ms = self.tick_s * 1000
        ahead_ms = round(self.disorder_bound_s * 1000) + round(self.publish_allowance_s * 1000)
        return Timeline(
            tick_ms=tick_ms,
            attribution_ticks=self.attribution_s // self.tick_s,
            publish_ticks=-(-ahead_ms // tick_ms),
            disorder_bound_ms=round(self.disorder_bound_s * 1000),
            skew_ms=round(self.skew_s * 1000),
        )


class KafkaConfig(Section, frozen=True):
    """What a log at kafka:// needs beyond its address."""

    # Copies of each partition of the topics that ouzel makes; 0: what the cluster does by default. With 3 or more,
    # two of them must hold a record before it counts as durable.
    replication: int = 0
    # Codec of topics that others may read: none, gzip, lz4, snappy or zstd. Every client reads none and gzip without an
    # extra package; gzip makes events 2.7 times smaller for 17 ms of processor time a MB. `versions` are always lz4.
    compression: str = "none"
    # Largest record, bytes: `max.message.bytes` of the topics that ouzel makes; larger versions travel in parts. Hosted
    # clusters often allow 8 MiB and no more.
    max_record_bytes: int = 8 << 20
    # Whether the broker's clock stamps what is appended to the `events` and `items` that ouzel makes. Off, the
    # producers' clocks count, and one that is days ahead drops everybody's events; off is for simulated time that runs
    # ahead of now, and for producers that send past times as their messages' timestamps.
    append_time: bool = True
    # How long the brokers keep `events` and `dead-letters`, days of wall time since they were appended; 0: for ever,
    # 3 or more otherwise. `ouzel verify` and a new join reach back as far as this. `items` and `control` stay for ever.
    events_days: float = 90.0
    # ... and `examples` and `versions`, which the archive and the store's snapshots outlive.
    derived_days: float = 90.0
    # How long a call waits, and says so, while no broker answers, before it gives up, s. Reading and writing wait
    # without end.
    patience_s: float = 300.0
    # Client settings by librdkafka's names, passed on as they are: "security.protocol" = "SASL_SSL", … Secrets come
    # from the environment alone (`OUZEL_LOG__KAFKA__CLIENT__SASL__PASSWORD`); run folders do not keep them.
    client: dict[str, str | int | float | bool] = msgspec.field(default_factory=dict)

    def check(self, join_s: float) -> None:
        """Raises ConfigError where records would go before a restart needs them; `join_s`: what a join reads again."""
        least = max(KAFKA_LEAST_DAYS, 2 + join_s / 86_400)  # the retrain needs a day, and a day to be late
        for name in ("events_days", "derived_days"):
            days = getattr(self, name)
            if 0 < days < least:
                raise ConfigError(
                    f"log.kafka.{name} is {days}; 0 keeps records for ever, a restart needs {least:.1f} days or more"
                )


class LogConfig(Section, frozen=True):
    # Where the run's logs lie: "kafka://host:port/prefix" (more brokers after commas; the prefix begins the name of
    # every topic and group), or "" for the run folder itself.
    url: str = ""
    # Partitions of `events` and `examples`. More let more joiners run side by side; each costs its records in every
    # tick, 1 to 3 ms of processor time over all processes. Measured up to 64; `ouzel run` warns above.
    partitions: int = 2
    # A segment file is closed at this size, bytes.
    segment_bytes: int = 64 << 20
    # How many ticks a writer may run ahead of the slowest reader before it waits (back-pressure). A tick is one record
    # a partition in `events` and `examples`; the bound also limits what a crash has to read again.
    max_lag_records: int = 4_096
    # Records are buffered up to this many bytes before they are written and fsynced together; larger is faster
    # and delays more.
    flush_bytes: int = 4 << 20
    # ... or this long, wall s, whichever comes first.
    flush_s: float = 0.05
    # What a log at kafka:// needs beyond its address; see [log.kafka].
    kafka: KafkaConfig = msgspec.field(default_factory=KafkaConfig)


class ReplayConfig(Section, frozen=True):
    # Seed of the simulated delays.
    seed: int = 1
    # "max", or event seconds a wall second: "60x" or "60".
    speed: str = "max"
    # Median of the log-normal delay from impression to engagement, s; with the default sigma 95 % arrive within
    # 120 s.
    engagement_delay_median_s: float = 20.0
    # Sigma of that delay's logarithm: larger makes more engagements late.
    engagement_delay_sigma: float = 1.0
    # Longest stretch without rows, s of event time. Rows further than this from all others are dead letters while they
    # are few (a wrong clock); where both sides are many the source is refused, for the replay fills every tick between.
    max_gap_s: float = 7 * 86_400.0
    # Rows a record holds at most.
    rows_per_record: int = 2_048


class WireConfig(Section, frozen=True):
    # Limits of what other producers send as JSON or msgpack; what is beyond one is a dead letter with its reason, and
    # comes back by `ouzel dead-letters replay` where the limit is raised. Bytes of a record.
    max_record_bytes: int = 1 << 20
    # Events of a record.
    max_batch_events: int = 10_000
    # Bytes of an id in UTF-8.
    max_id_bytes: int = 128
    # Shown items of an impression.
    max_items: int = 1_000
    # Items of an impression's history.
    max_history: int = 1_000
    # Bytes of a title, a category or a subcategory in UTF-8.
    max_text_bytes: int = 4_096
    # How deep lists and objects may lie in each other, unknown fields included.
    max_depth: int = 16
    # Times before this are no times, ms since 1970: March 1973. Seconds by mistake fall below it.
    min_time_ms: int = 10**11
    # Times after this are no times, ms since 1970: the year 5138. Microseconds by mistake lie above it.
    max_time_ms: int = 10**14
    # False: an event is dead where its user belongs to another partition by murmur2, for its impression or engagements
    # will be in that one. True: for logs of which every producer uses one other partitioner.
    any_partition: bool = False


class JoinConfig(Section, frozen=True):
    # Impressions a record of `examples` holds at most: fixed, so that records do not depend on polling.
    impressions_per_record: int = 1_024
    # ... and bytes, before compression: less than a broker takes (log.kafka.max_record_bytes), whatever users send.
    bytes_per_record: int = 4 << 20
    # How long a closed impression is remembered so that a late engagement is told from an orphan, s of event time.
    late_s: int = 3_600
    # Impressions of one user that are learned of those that close in a tick; what is beyond is dropped and
    # counted (`over_user_cap`). 0: no limit. A person sees a page a second at most; lower leaves a client that
    # posts by machine less weight. Where all visitors share one user id, raise it, or give each visitor an id.
    user_impressions: int = 60
    # ... and of these, such as show the same item (`over_item_cap`); 0: no limit. A person sees the same item a
    # few times a minute.
    user_item_impressions: int = 10
    # Archive: one Parquet file for this many hours of close ticks and a partition.
    archive_hours: int = 1


class SlotConfig(Section, frozen=True):
    # Embedding dimension: the first component is the linear weight (bias), the others the factors.
    dim: int = 16
    # Half-width of the uniform initial vector of a key.
    init_scale: float = 0.1
    # Update rule: "rowwise-adagrad", "adagrad", "adam", "momentum", "sgd", "ftrl" (see rules.md).
    rule: RuleName = "rowwise-adagrad"
    # Update rule of the first component where it is to have its own; "": the same. A bias under "ftrl" starts at
    # 0.
    bias_rule: RuleName | Literal[""] = ""
    # Learning rate online.
    lr: float = 0.1
    # Learning rate in the retrain.
    retrain_lr: float = 0.1
    # Initial accumulator of the Adagrads: it bounds the first step.
    adagrad_init: float = 0.1
    # Decoupled weight decay of touched rows; 0: off.
    weight_decay: float = 0.0
    # Cap of the norm of a row's gradient; 0: off.
    grad_cap: float = 0.0
    # Cap of a row's norm; 0: off.
    row_norm_cap: float = 0.0
    # L1 strength of FTRL-proximal, which has no decay and no row cap.
    ftrl_l1: float = 0.0
    # L2 strength of FTRL-proximal.
    ftrl_l2: float = 0.0
    # Decay of the first moment, of momentum and Adam.
    momentum: float = 0.9
    # Decay of Adam's second moment.
    second_moment: float = 0.999
    # False: learned by the nightly retrain alone (fewer touched rows, smaller versions).
    online: bool = True
    # Admission: a key gets its row at this many occurrences. Until then it reads as zeros and its gradients are
    # dropped and counted. Higher saves memory and learns rare keys later.
    admit_after: int = 1
    # Admission by chance instead: a key gets its row by this chance an occurrence; 1: at once.
    admit_probability: float = 1.0
    # Length of the window in which occurrences count, s of event time (this one and the one before); 0: for ever.
    admit_window_s: int = 0
    # Bytes of the sketch that counts keys without a row; smaller admits some keys too early.
    sketch_bytes: int = 1 << 20
    # A key's factors get their row at this many occurrences since its bias got one: rare keys cost one number and its
    # state. 0: both at once.
    grow_after: int = 0
    # A row is gone once its key was not seen for this long, s of event time; 0: never.
    expiry_s: int = 0
    # Bytes that the slot's rows may take; beyond it rows are evicted. 0: no bound but memory.
    byte_budget: int = 0
    # Which rows go first beyond the budget: "least-recent", "least-frequent" or "smallest-norm".
    evict: Literal["least-recent", "least-frequent", "smallest-norm"] = "least-recent"
    # Precision of served rows, "float32", "float16" or "int8"; "": as `serve.precision` says.
    precision: Precision | Literal[""] = ""

    @property
    def has_bias(self) -> bool:
        """Whether the first component is a segment of its own."""
        return self.dim > 1 and bool(self.bias_rule or self.grow_after)

    def tables(self, slot: str) -> tuple[tuple[str, int], ...]:
        """The slot's tables, (name, columns): one, or the bias and, beside it, what grows when a key is popular."""
        if self.has_bias and self.grow_after:
            return (slot, 1), (f"{slot}.{GROWN}", self.dim - 1)
        return ((slot, self.dim),)

    @property
    def has_policy(self) -> bool:
        """Whether a key may be refused a row or lose it."""
        return bool(
            self.admit_after > 1 or self.admit_probability < 1 or self.grow_after or self.expiry_s or self.byte_budget
        )

    def check(self, slot: str) -> None:
        """Raises ConfigError where an option is out of its range, or two of them contradict each other."""
        where = f"model.slots.{slot}"
        ranges.check(msgspec.structs.asdict(self), where)
        if self.grow_after and (self.dim == 1 or self.grow_after == 1):
            raise ConfigError(
                f"{where}.grow_after is {self.grow_after} at dim {self.dim}; factors grow after the bias: at 2 or more "
                "occurrences, in a slot of dim 2 or more; 0 for both at once"
            )
        if self.admit_after > 1 and self.admit_probability < 1:
            raise ConfigError(f"{where}: admission goes by admit_after or by admit_probability; set one of them")
        if self.rule == "ftrl" and self.init_scale and self.dim > 1:
            raise ConfigError(f"{where}: ftrl starts at 0, so its factors never move; use bias_rule = 'ftrl'")


def _default_slots() -> dict[str, SlotConfig]:
    return {
        "user": SlotConfig(init_scale=0.02),
        "history": SlotConfig(adagrad_init=0.01, online=False),
        "hour": SlotConfig(online=False),
        "read_subcategory": SlotConfig(lr=0.2),
        "item": SlotConfig(init_scale=0.02, lr=0.15, retrain_lr=0.03),
        "category": SlotConfig(),
        "subcategory": SlotConfig(),
        "words": SlotConfig(retrain_lr=0.3, adagrad_init=0.01, online=False),
        "position": SlotConfig(dim=1, init_scale=0.0, online=False),
    }


class ModelConfig(Section, frozen=True):
    # Seed of initial vectors and initial dense weights.
    seed: int = 1
    # The slots, by name; a file may change their options, not add or remove one.
    slots: dict[str, SlotConfig] = msgspec.field(default_factory=_default_slots)
    # Widths of the hidden layers of the deep part.
    hidden: tuple[int, ...] = (32, 16)
    # Rank of the cross between user side and item side. With the slots' dim it starts as a factorization machine.
    rank: int = 16
    # History items used, the most recent ones.
    history_length: int = 50
    # Words of a title used, the first ones.
    title_words: int = 16
    # Positions told apart; deeper ones share the last. The reference position is 0.
    positions: int = 64
    # Half-lives of the counters, s: a fast and a slow view of shown and clicked.
    counter_half_life_s: tuple[int, int] = (1_800, 21_600)


class TrainConfig(Section, frozen=True):
    # Impressions a batch holds at most, online: fixed cuts within a tick.
    batch_impressions: int = 256
    # Kinds of engagement that are learned as positive: "click", "like", "share", "dwell". A shown item is one row: with
    # more kinds more rows are positive, and the score is the chance of any of them.
    positive: tuple[EngagementName, ...] = ("click",)
    # A shown item with engagements of other kinds only: "left-out" of loss, counters and metrics (counted in the
    # report), or "negative", as if the user had passed it over.
    other_engagements: Literal["left-out", "negative"] = "left-out"
    # Share of negatives kept online: a hash of impression and item decides; logits are corrected.
    negative_rate: float = 1.0
    # Share of negatives kept in the retrain, in the same way.
    retrain_negative_rate: float = 0.5
    # Length of the bootstrap: generation 0 is trained on the first hours, h of event time: whole ticks. Where a log is
    # too short for it and the promotion delay, `ouzel run` shrinks both and says so.
    bootstrap_hours: int | float = 6
    # H: a candidate for midnight M is promoted at M + H, s of event time. Must leave the retrain time when live.
    promotion_delay_s: int = 3_600
    # Impressions of a batch of the retrain.
    retrain_batch_impressions: int = 32
    # Passes of the retrain over its day, from the second day on.
    retrain_epochs: int = 1
    # Passes over the bootstrap and over the first day.
    first_epochs: int = 1
    # Learning rate of the net's weights (Adam) in the retrain.
    dense_lr: float = 0.003
    # A snapshot is written at each generation and after this many ticks of deltas.
    snapshot_ticks: int = 1_440
    # Longest embedding row (Euclidean norm) that is served. Beyond it, or with NaN or Inf, learning is held: counters
    # go on, rows stay as they were until the next generation. Sound rows are shorter than 5; lower notices earlier.
    max_row_norm: float = 100.0
    # Most that predicted over observed clicks of a tick may be, and observed over predicted; beyond it learning
    # is held. Lower notices earlier, and can be met by a flood of impressions or clicks.
    max_calibration: float = 50.0
    # Calibration is judged where predicted or observed clicks of a tick are at least this many.
    calibration_clicks: int = 200


class ServeConfig(Section, frozen=True):
    # Address of the HTTP API. A public address is refused (TLS and tokens come first).
    host: str = "127.0.0.1"
    # First port of the API; the n-th replica listens n - 1 above it.
    port: int = 8300
    # Ready only while the served version is at most this many ticks behind what was closed.
    max_lag_ticks: int = 10
    # Bytes of a request body.
    max_body_bytes: int = 1 << 20
    # Candidates of a request.
    max_candidates: int = 1_000
    # Characters of an id.
    max_id_chars: int = 128
    # Open connections; a new one beyond them takes the place of the one that has been without a whole request longest.
    # Each is a file descriptor and its buffers.
    max_connections: int = 512
    # Requests that may wait for their answer; beyond them 503 with Retry-After. More smooths bursts, and the last one
    # of a burst waits longer. Health, readiness and metrics are answered whatever waits.
    max_waiting: int = 64
    # Bytes of a request's line and headers.
    max_head_bytes: int = 16_384
    # How long a request's head may take from its first byte, s. Longer suits slow networks, and keeps half-sent
    # requests longer.
    head_s: float = 5.0
    # How long a body may take after its head, s.
    body_s: float = 10.0
    # How long a connection may rest between two requests, s.
    keep_alive_s: float = 5.0
    # Precision of served rows: "float32" as trained, "float16" (half the memory, rows off by 0.02 % of their norm), or
    # "int8" (a third at dimension 16, rows off by about 0.5 %).
    precision: Precision = "float16"


class MetricsConfig(Section, frozen=True):
    # First port of the metrics endpoints, one a process in a fixed order; 0: none.
    base_port: int = 0


class SuperviseConfig(Section, frozen=True):
    # A process of a run that ends by itself is started again after this wait, s; each further end within the
    # window doubles it. Shorter is back sooner.
    first_wait_s: float = 0.5
    # ... up to this wait, s. Longer spares a machine that is short of memory.
    longest_wait_s: float = 30.0
    # At this many ends within the window (wall s) it stays stopped: a finite run ends with its error, `up` keeps the
    # others and says which. More outlasts longer troubles; fewer tells an operator earlier. 1: never start again.
    max_failures: int = 5
    # Length of that window, wall s.
    window_s: float = 300.0


class Config(Section, frozen=True):
    """The whole configuration, frozen."""

    time: TimeConfig = msgspec.field(default_factory=TimeConfig)
    log: LogConfig = msgspec.field(default_factory=LogConfig)
    replay: ReplayConfig = msgspec.field(default_factory=ReplayConfig)
    wire: WireConfig = msgspec.field(default_factory=WireConfig)
    join: JoinConfig = msgspec.field(default_factory=JoinConfig)
    model: ModelConfig = msgspec.field(default_factory=ModelConfig)
    train: TrainConfig = msgspec.field(default_factory=TrainConfig)
    serve: ServeConfig = msgspec.field(default_factory=ServeConfig)
    metrics: MetricsConfig = msgspec.field(default_factory=MetricsConfig)
    supervise: SuperviseConfig = msgspec.field(default_factory=SuperviseConfig)


def load_config(
    path: Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> Config:
    """The configuration from its four sources.

    `overrides` are "section.key=value" strings, values in TOML syntax (bare words are read as strings).
    Raises ConfigError naming the source and the key.
    """
    tree: dict[str, Any] = msgspec.to_builtins(Config())
    if path is not None:
        _merge(tree, _read_toml(path), where=str(path))
    for name, value in sorted((os.environ if env is None else env).items()):
        if name.startswith(ENV_PREFIX) and "__" in name:
            keys = name[len(ENV_PREFIX) :].lower().split("__")
            free = ".".join(keys).startswith(FREE)  # a password is a text, also where it looks like a number
            _merge(tree, _nest(keys, value if free else _value(value)), where=f"environment {name}", secrets=True)
    for text in overrides:
        key, sep, value = text.partition("=")
        if not sep:
            raise ConfigError(f"--set {text}: write it as section.key=value")
        # The value is not shown: it may be a secret that was meant for the environment.
        _merge(tree, _nest(key.strip().split("."), _value(value.strip())), where=f"--set {key.strip()}=…")
    if isinstance(speed := tree["replay"]["speed"], int | float):  # 60 is "60"
        tree["replay"]["speed"] = repr(speed)
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"configuration: {error}") from error
    ranges.check(msgspec.to_builtins(config))
    refuse_credentials(config.log.url, "log.url")
    config.time.build()
    config.log.kafka.check(3 * config.time.attribution_s + config.join.late_s)
    replay_speed(config.replay.speed)
    for slot, options in config.model.slots.items():
        options.check(slot)
    return config


def refuse_credentials(address: str, where: str) -> None:
    """Raises ConfigError for an address with a user and a password in it, and shows neither."""
    found = _CREDENTIALS.match(address)
    if found is not None:
        sasl = f"{ENV_PREFIX}LOG__KAFKA__CLIENT__SASL__"
        raise ConfigError(
            f"{where}: {found[1] or ''}…@{address[found.end() :]} holds a user and password: an address is shown, "
            f"logged and kept in run folders. Leave them out, and give {sasl}USERNAME and {sasl}PASSWORD in the "
            'environment, with log.kafka.client."security.protocol" and "sasl.mechanism"'
        )


def dump_config(config: Config) -> str:
    """The configuration as TOML, readable by `load_config`: what a run folder keeps of it, so without secrets."""
    lines: list[str] = []
    tree = msgspec.to_builtins(config)
    client = tree["log"]["kafka"]["client"]
    tree["log"]["kafka"]["client"] = {name: value for name, value in client.items() if not _SECRET.search(name)}
    _dump(tree, (), lines)
    return "\n".join(lines) + "\n"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _nest(keys: Sequence[str], value: Any) -> dict[str, Any]:
    return {keys[0]: _nest(keys[1:], value) if len(keys) > 1 else value}


def flatten(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`{"sasl": {"password": x}}` as `{"sasl.password": x}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{path}.{key}" if path else key
        flat.update(flatten(value, name) if isinstance(value, Mapping) else {name: value})
    return flat


def _merge_free(tree: dict[str, Any], more: Mapping[str, Any], *, where: str, path: str, secrets: bool) -> None:
    for name, value in flatten(more).items():
        if _SECRET.search(name) and not secrets:
            variable = ENV_PREFIX + f"{path}.{name}".upper().replace(".", "__")
            raise ConfigError(f'{where}: {path}."{name}" is a secret: give it in the environment, as {variable}')
        tree[name] = value


def _merge(tree: dict[str, Any], more: Mapping[str, Any], *, where: str, path: str = "", secrets: bool = False) -> None:
    for key, value in more.items():
        full = f"{path}.{key}" if path else key
        if key not in tree:
            near = difflib.get_close_matches(key, tree, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(sorted(tree))}"
            raise ConfigError(f"{where}: unknown key {full}{hint}")
        if isinstance(tree[key], dict):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {full} is a section, not a value")
            merge = _merge_free if full in FREE else _merge
            merge(tree[key], value, where=where, path=full, secrets=secrets)
        elif isinstance(value, Mapping):
            raise ConfigError(f"{where}: {full} is a value, not a section")
        else:
            tree[key] = value


def _dump(tree: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    values = {k: v for k, v in tree.items() if not isinstance(v, Mapping)}
    if path and values:
        lines.append(f"\n[{'.'.join(path)}]" if lines else f"[{'.'.join(path)}]")
    lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
    for key, value in tree.items():
        if isinstance(value, Mapping):
            _dump(value, (*path, key), lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
