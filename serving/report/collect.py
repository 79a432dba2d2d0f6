"""Reads the facts of a run from its folder: logs, store, the processes' own accounts, the evaluator's books.

Only reads, and only what each owner has made durable; a part that a run does not have (no replica, no versions yet)
is left out, so that an interrupted run has a report too.
"""

import os
import platform
from collections.abc import Mapping
from typing import Any

from infra import checked
from infra.errors import ConfigError, InputError
from infra.eventlog import EventLog, create_topics
from infra.paramstore.configuration import hold_to_configuration
from infra.paramstore.store import ParamStore
from infra.paramstore.version import Kind
from infra.process import STATS_ADVICE, RunFolder
from infra.ticks import Timeline
from serving.evaluator.distribution import distribution
from serving.report.build import RunFacts
from stream.deadletters import count_dead
from stream.join.standing import standing_of

_ADVICE = {"evaluation": "delete the folder `evaluation` and let `ouzel evaluate --run RUN` make it again"}


def collect(folder: RunFolder) -> RunFacts:
    """The facts of a run. Raises InputError where the folder holds no run."""
    config = folder.load_config()
    if not config.log.url and not folder.log.is_dir():
        raise InputError(f"{folder.path}: a run that has not started; run it with `ouzel run`")
    log = folder.open_log(config)
    try:
        check_started(folder, log)
        create_topics(log, config.log.partitions)
        hold_to_configuration(log, config)
        stats = _stats(folder)
        versions = _versions(folder, log, config.time.build())
        standing = standing_of(log, config)
        return RunFacts(
            name=folder.path.resolve().name,
            place=str(folder.path),
            config=config,
            evaluation=_json(folder, "evaluation/evaluation.json"),
            counts=standing.counts,
            waiting=standing.waiting,
            dead=_dead(log, stats),
            stats=stats,
            table_rows=_table_rows(stats),
            machine=machine(),
            **(versions | _sync(stats, versions)),
        )
    finally:
        log.close()


def _dead(log: EventLog, stats: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """What could not be used; of a catalogue's rows beyond those that have a dead letter the replay's note knows."""
    dead = count_dead(log)
    name = next((place for place in dead if place.startswith("news.tsv")), "news.tsv")
    noted: dict[str, int] = stats.get("replay", {}).get("notes", {}).get("dead_items", {})
    if sum(noted.values()) > sum(dead.get(name, {}).values()):
        dead[name] = dict(noted)
    return dead


def check_started(folder: RunFolder, log: EventLog) -> None:
    """Raises InputError where the log has no topics: nothing has run, or they were dropped."""
    try:
        log.partitions("events")
    except ConfigError as error:
        raise InputError(f"{folder.path}: a run that has not started, or whose log is gone ({error})") from error


def machine() -> str:
    """The machine that writes the report, in words."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def _json(folder: RunFolder, name: str) -> dict[str, Any]:
    path = folder.path / name
    if not path.is_file():
        return {}
    return checked.from_json(path, dict[str, Any], _ADVICE.get(name.partition("/")[0], STATS_ADVICE))


def _stats(folder: RunFolder) -> dict[str, Mapping[str, Any]]:
    if not folder.stats.is_dir():
        return {}
    names = sorted(p.name for p in folder.stats.glob("*.json") if not p.name.endswith(".live.json"))
    return {name.removesuffix(".json"): _json(folder, f"stats/{name}") for name in names}


def _versions(folder: RunFolder, log: EventLog, timeline: Timeline) -> dict[str, Any]:
    """What the versions log says: how many, how large, when generations opened, publication delays."""
    published, size, opened, delays = 0, 0, [], []
    last = None
    for version in ParamStore(folder.path, log).reader():
        last = version.meta
        if last.kind is Kind.PROGRESS:
            continue
        published += 1
        size += len(version.value)
        if last.kind is Kind.GENERATION and last.generation > 0:  # generation 0 is the bootstrap
            opened.append(timeline.end_ms(last.tick))
        if last.closed_wall_ms and last.published_wall_ms:
            delays.append(max(0.0, (last.published_wall_ms - last.closed_wall_ms) / 1000))
    out: dict[str, Any] = {
        "versions": published,
        "version_bytes": size,
        "promotions_ms": opened,
        "publish_s": distribution(delays, measured_by="trainer: tick closed to version durable"),
    }
    if last is not None:
        out |= {"digest": last.digest, "generation": last.generation, "tick": last.tick}
    return out


def _sync(stats: Mapping[str, Mapping[str, Any]], versions: Mapping[str, Any]) -> dict[str, Any]:
    """Closed to served, as the replica measured it; the trainer's closed to durable where no replica ran."""
    measured = stats.get("replica", {}).get("notes", {}).get("sync_s", {})
    if not measured.get("p50"):
        return {"sync_s": versions["publish_s"]}
    return {"sync_s": measured}


def _table_rows(stats: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Rows by slot, as the trainer noted them, else the replica."""
    for process in ("trainer", "replica"):
        rows = stats.get(process, {}).get("notes", {}).get("table_rows")
        if rows:
            return {str(slot): int(n) for slot, n in rows.items()}
    return {}
