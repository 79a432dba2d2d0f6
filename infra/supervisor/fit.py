"""Short logs: the bootstrap and the promotion delay shrink so that something of a log is left to serve and score.

Decided once, when a run is prepared, from the span of its source; `config.toml` then holds what is used and
`source.json` what was asked for, so that the same command later finds the same decision instead of taking it again.
"""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from infra.config import Config, TrainConfig
from infra.errors import InputError
from infra.supervisor.child import ouzel

LEFT = 0.25  # share of the log that must be left after the first version; where it is not, the two shrink
SHARE = 0.25  # of the log that each of them is shrunk to
HOUR_MS = 3_600_000
MEASURED_PARTITIONS = 64
PARTITION_TICK_S = 0.002  # processor time of all processes for one partition in one tick: 0.8 ms at 64, 2.8 at 300


class Span(msgspec.Struct, frozen=True):
    """What `ouzel inspect --json` says of a source."""

    rows: int
    first_ms: int  # event time of the first and the last usable row
    last_ms: int


def inspect(mind: Sequence[Path], config: Config) -> Span:
    """Look at a source before anything is made. Raises InputError where it cannot be used, in the reader's words."""
    command = ouzel("inspect", "--json", "--max-gap-s", str(config.replay.max_gap_s))
    command += [part for place in mind for part in ("--mind", str(place))]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(done.stderr.strip().removeprefix("ouzel inspect: ") or f"{command}: exit {done.returncode}")
    return msgspec.json.decode(done.stdout, type=Span)


def fitted(config: Config, span: Span) -> Config:
    """The configuration, with the bootstrap and the promotion delay shrunk where the log is too short for them."""
    timeline, train = config.time.build(), config.train
    first = span.first_ms // HOUR_MS * HOUR_MS  # what the bootstrap is counted from
    length_ms = span.last_ms - span.first_ms
    served_ms = first + round(train.bootstrap_hours * HOUR_MS) + train.promotion_delay_s * 1000
    if span.last_ms - served_ms >= LEFT * length_ms:
        return config
    ticks = max(1, int(SHARE * length_ms) // timeline.tick_ms)
    boot_ticks = -(-(span.first_ms - first) // timeline.tick_ms) + ticks
    hours = boot_ticks * timeline.tick_ms / HOUR_MS
    hours = min(train.bootstrap_hours, int(hours) if hours == int(hours) else hours)
    delay_s = min(train.promotion_delay_s, ticks * timeline.tick_ms // 1000)
    shrunk = msgspec.structs.replace(train, bootstrap_hours=hours, promotion_delay_s=delay_s)
    return msgspec.structs.replace(config, train=shrunk)


def many_partitions(config: Config, span: Span) -> str:
    """A warning where a log has more partitions than were measured; "" where it does not."""
    n, ticks = config.log.partitions, (span.last_ms - span.first_ms) // config.time.build().tick_ms
    if n <= MEASURED_PARTITIONS:
        return ""
    return (
        f"log.partitions is {n}: measured are up to {MEASURED_PARTITIONS}. Every partition has its records in every "
        f"tick: those of this log's {ticks:,} ticks take some {n * ticks * PARTITION_TICK_S:,.0f} core-seconds"
    )


def asked_for(before: TrainConfig, after: TrainConfig) -> dict[str, float]:
    """What was shrunk, as it was before; {} where nothing was."""
    names = ("bootstrap_hours", "promotion_delay_s")
    return {name: getattr(before, name) for name in names if getattr(before, name) != getattr(after, name)}


def again(config: Config, kept: TrainConfig, asked: Mapping[str, float]) -> Config:
    """The same decision for the same wish: what a run was asked for before becomes what it was given."""
    same = {name: getattr(kept, name) for name, was in asked.items() if getattr(config.train, name) == was}
    return msgspec.structs.replace(config, train=msgspec.structs.replace(config.train, **same))


def said(config: Config, asked: Mapping[str, float], span: Span) -> str:
    """For the terminal; "" where nothing was shrunk."""
    if not asked:
        return ""
    changes = (f"train.{name} is {getattr(config.train, name):.4g} instead of {was:g}" for name, was in asked.items())
    hours = (span.last_ms - span.first_ms) / HOUR_MS
    return f"the log spans {hours:.1f} hours: {' and '.join(changes)}, so that there is something left to score"
