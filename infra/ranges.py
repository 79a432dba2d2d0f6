"""The range of every numeric setting, in one table: `check` refuses what lies outside, and NaN and infinity everywhere.

Ranges are written as intervals: "[1, 16]" holds its ends, "(0, 1]" not its lower one; "inf" means any finite number.
Bounds only keep out what cannot work or is surely a mistake of unit; what several settings must be together is said by
their sections. A numeric setting without a row here is an error of ours, which a test finds.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from infra.errors import ConfigError

DAY = 86_400
BYTES = 1 << 40
SLOT = "model.slots.*"

RANGES: dict[str, str] = {
    "time.tick_s": f"[1, {DAY}]",
    "time.attribution_s": f"[1, {30 * DAY}]",
    "time.disorder_bound_s": f"[0, {DAY}]",
    "time.publish_allowance_s": f"[0, {DAY}]",
    "time.skew_s": f"[0, {DAY}]",
    "log.partitions": "[1, 1024]",
    "log.segment_bytes": f"[4096, {BYTES}]",
    "log.max_lag_records": "[1, 1000000000]",
    "log.flush_bytes": f"[1, {1 << 31}]",
    "log.flush_s": "[0, 60]",
    "log.kafka.replication": "[0, 100]",
    "log.kafka.max_record_bytes": f"[65536, {1 << 30}]",
    "log.kafka.events_days": "[0, 36500]",
    "log.kafka.derived_days": "[0, 36500]",
    "log.kafka.patience_s": "[0, inf]",
    "replay.seed": f"[0, {2**63 - 1}]",
    "replay.engagement_delay_median_s": f"(0, {30 * DAY}]",
    "replay.engagement_delay_sigma": "[0, 10]",
    "replay.max_gap_s": "(0, inf]",
    "replay.rows_per_record": "[1, 1000000]",
    "wire.max_record_bytes": f"[1, {1 << 30}]",
    "wire.max_batch_events": "[1, 10000000]",
    "wire.max_id_bytes": "[1, 65536]",
    "wire.max_items": "[1, 1000000]",
    "wire.max_history": "[0, 1000000]",
    "wire.max_text_bytes": f"[0, {1 << 30}]",
    "wire.max_depth": "[1, 256]",
    "wire.min_time_ms": f"[{-(2**52)}, {2**52}]",
    "wire.max_time_ms": f"[{-(2**52)}, {2**52}]",
    "join.impressions_per_record": "[1, 1000000]",
    "join.bytes_per_record": f"[1024, {1 << 30}]",
    "join.late_s": f"[0, {365 * DAY}]",
    "join.user_impressions": "[0, 1000000000]",
    "join.user_item_impressions": "[0, 1000000000]",
    "join.archive_hours": "[1, 24]",
    "model.seed": f"[0, {2**63 - 1}]",
    "model.hidden": "[1, 65536]",
    "model.rank": "[1, 65536]",
    "model.history_length": "[1, 100000]",
    "model.title_words": "[0, 10000]",
    "model.positions": "[1, 100000]",
    "model.counter_half_life_s": f"[1, {3650 * DAY}]",
    f"{SLOT}.dim": "[1, 65536]",
    f"{SLOT}.init_scale": "[0, 1000]",
    f"{SLOT}.lr": "[0, inf]",
    f"{SLOT}.retrain_lr": "[0, inf]",
    f"{SLOT}.adagrad_init": "[0, inf]",
    f"{SLOT}.weight_decay": "[0, inf]",
    f"{SLOT}.grad_cap": "[0, inf]",
    f"{SLOT}.row_norm_cap": "[0, inf]",
    f"{SLOT}.ftrl_l1": "[0, inf]",
    f"{SLOT}.ftrl_l2": "[0, inf]",
    f"{SLOT}.momentum": "[0, 1]",
    f"{SLOT}.second_moment": "[0, 1]",
    f"{SLOT}.admit_after": f"[1, {2**31 - 1}]",
    f"{SLOT}.admit_probability": "(0, 1]",
    f"{SLOT}.admit_window_s": f"[0, {3650 * DAY}]",
    f"{SLOT}.sketch_bytes": f"[4096, {BYTES}]",
    f"{SLOT}.grow_after": f"[0, {2**31 - 1}]",
    f"{SLOT}.expiry_s": f"[0, {3650 * DAY}]",
    f"{SLOT}.byte_budget": f"[0, {BYTES}]",
    "train.batch_impressions": "[1, 1000000]",
    "train.negative_rate": "(0, 1]",
    "train.retrain_negative_rate": "(0, 1]",
    "train.bootstrap_hours": "(0, 8760]",
    "train.promotion_delay_s": f"[0, {DAY}]",
    "train.retrain_batch_impressions": "[1, 1000000]",
    "train.retrain_epochs": "[1, 1000]",
    "train.first_epochs": "[1, 1000]",
    "train.dense_lr": "[0, inf]",
    "train.snapshot_ticks": "[1, 1000000000]",
    "train.max_row_norm": "[0, inf]",
    "train.max_calibration": "[0, inf]",
    "train.calibration_clicks": "[0, 1000000000]",
    "serve.port": "[0, 65535]",
    "serve.max_lag_ticks": "[0, 1000000000]",
    "serve.max_body_bytes": f"[1, {1 << 30}]",
    "serve.max_candidates": "[1, 1000000]",
    "serve.max_id_chars": "[1, 65536]",
    "serve.max_connections": "[2, 100000]",
    "serve.max_waiting": "[1, 100000]",
    "serve.max_head_bytes": "[1024, 1048576]",
    "serve.head_s": "(0, 3600]",
    "serve.body_s": "(0, 3600]",
    "serve.keep_alive_s": "(0, 3600]",
    "metrics.base_port": "[0, 64511]",  # 1,024 ports above it for the processes and their numbers
    "supervise.first_wait_s": "[0, 86400]",
    "supervise.longest_wait_s": "[0, 86400]",
    "supervise.max_failures": "[1, 1000000]",
    "supervise.window_s": "[0, 31536000]",
}


class Interval(NamedTuple):
    """What `RANGES` says of one setting."""

    low: float
    high: float
    open_low: bool

    @classmethod
    def of(cls, text: str) -> "Interval":
        low, high = text[1:-1].split(",")
        return cls(float(low), float(high), text[0] == "(")

    def holds(self, value: float) -> bool:
        """False for NaN and infinity, whatever the ends."""
        return math.isfinite(value) and self.low <= value <= self.high and not (self.open_low and value == self.low)


def check(section: Mapping[str, Any], path: str = "") -> None:
    """Raises ConfigError for the first number of a (nested) section that lies outside its range."""
    for name, value in section.items():
        full = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            if full != "log.kafka.client":  # another library's settings
                check(value, full)
        else:
            for number in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    _check_number(full, number)


def range_of(path: str) -> str:
    """The interval of a setting, "model.slots.item.lr" for example. Raises KeyError where it has none."""
    parts = path.split(".")
    if parts[:2] == ["model", "slots"]:
        parts[2] = "*"
    return RANGES[".".join(parts)]


def _check_number(path: str, number: float) -> None:
    wanted = range_of(path)
    if not Interval.of(wanted).holds(number):
        raise ConfigError(f"{path} is {number}; it must be {_words(wanted)}")


def _words(wanted: str) -> str:
    low, high = wanted[1:-1].split(", ")
    if high == "inf":
        return f"a finite number {'above' if wanted[0] == '(' else 'of at least'} {low}"
    return f"in {wanted}"
