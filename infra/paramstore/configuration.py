"""Holds a run to the configuration that its content depends on: another tick, another model, another join is refused.

The first process of a run that writes (replay, joiner, trainer) puts the values into `control`, a record of kind
"configuration"; every process that starts later compares its own. Each version carries their digest as well, for a log
whose `control` is lost. A run of an older release has neither: it is taken as it is, and held from then on.

What counts is `CONTENT` without `APART`; nothing else changes a record of `examples` or `versions`. A key that a newer
release added counts only where it is not at its default, under which older releases worked.
"""

import hashlib
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

import msgspec

from infra.config import ENV_PREFIX, Config, flatten
from infra.errors import ConfigError, CorruptStateError
from infra.eventlog.base import EventLog
from infra.paramstore.publisher import last_whole

TOPIC = "control"
CONTENT = ("time", "replay", "join", "model", "train")
APART = (
    "replay.speed",  # when, not what
    "train.snapshot_ticks",  # where a restart begins
    "model.slots.*.precision",  # of what replicas serve
)
# The other sections, for the record: log (where it lies; partitions are checked with the topics), wire (a limit may be
# raised and `ouzel dead-letters replay` run; what is dead stays dead), serve, metrics and supervise (the outside of a
# process).
OTHER = ("log", "wire", "serve", "metrics", "supervise")
MOST_NAMED = 8


class Kept(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="configuration"):
    """The record in `control`."""

    v: Literal[1] = 1
    values: dict[str, Any]  # of every key that counts
    digest: str


def content_of(config: Config) -> dict[str, Any]:
    """The values that the content of a run depends on, by key, as JSON has them."""
    flat = flatten(msgspec.json.decode(msgspec.json.encode(config)))
    return {
        key: value
        for key, value in sorted(flat.items())
        if key.partition(".")[0] in CONTENT and not any(fnmatchcase(key, pattern) for pattern in APART)
    }


def configuration_digest(config: Config) -> str:
    """blake2b-128 over the values that count, hex: what a version carries."""
    return hashlib.blake2b(msgspec.json.encode(content_of(config)), digest_size=16).hexdigest()


def hold_to_configuration(log: EventLog, config: Config, *, first: bool = False) -> None:
    """Return where the run's configuration is this one. `first`: write it down where the run has none yet.

    Raises ConfigError with the keys that differ.
    """
    kept = _kept(log)
    if kept is not None:
        if differences := _differences(kept.values, content_of(config)):
            raise ConfigError(_refusal(differences))
        return
    head = last_whole(log)
    if head is not None and head.configuration not in ("", configuration_digest(config)):
        raise ConfigError(
            "this run's versions were made with another configuration, and its `control` log, which would say which "
            "keys differ, is gone: restore config.toml and the environment as they were, or start a new run"
        )
    if first:
        _write(log, config)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    default = content_of(Config())
    found = [(key, then.get(key, default.get(key)), value) for key, value in now.items()]
    return [(key, before, value) for key, before, value in found if before != value]


def _refusal(differences: list[tuple[str, Any, Any]]) -> str:
    named = []
    for key, before, now in differences[:MOST_NAMED]:
        variable = ENV_PREFIX + key.upper().replace(".", "__")
        where = f" (by {variable} in the environment)" if variable in os.environ else ""
        named.append(f"{key} is {now!r}{where}, the run has {before!r}")
    more = f"; and {len(differences) - MOST_NAMED} more" if len(differences) > MOST_NAMED else ""
    return (
        f"another configuration than the one that this run was made with: {'; '.join(named)}{more}. Its content "
        "depends on them: set them back, in its config.toml or the environment, or start a new run with another --out"
    )


def _kept(log: EventLog) -> Kept | None:
    """The run's configuration: the first record of the kind in `control`."""
    at, end = log.start_offset(TOPIC, 0), log.end_offset(TOPIC, 0)
    while at < end:
        for record in log.read(TOPIC, 0, at):
            at = record.offset + 1
            if b'"kind":"configuration"' in bytes(record.value):
                try:
                    return msgspec.json.decode(record.value, type=Kept)
                except msgspec.MsgspecError as error:
                    raise CorruptStateError(f"control, offset {record.offset}: {error}; restore the log") from error
    return None


def _write(log: EventLog, config: Config) -> None:
    """Several that start at once write the same; the first counts."""
    writer = log.writer(TOPIC)
    kept = Kept(values=content_of(config), digest=configuration_digest(config))
    writer.append(0, msgspec.json.encode(kept), timestamp_ms=0)
    writer.close()
