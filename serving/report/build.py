"""From the facts of a run to `report.json`: a pure function, so that a report can be tested without a run.

Every figure here is either counted by the process that did the work or derived from such counts in this file.
NaN becomes null: a figure that a scope does not define is absent, never zero.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.config import Config
from serving.report.account import account
from serving.report.lift import lift, sentences
from stream.deadletters import by_reason

Report = dict[str, Any]
FIGURES = ("auc_impression", "mrr", "ndcg5", "ndcg10", "auc", "log_loss", "ne", "calibration")
# Counters of a joiner's partition that are not drops.
NOT_DROPS = ("events_in", "impressions", "engagements", "joined_impressions", "joined_engagements", "shown_items")
STAGES = ("replay", "joiner", "trainer", "retrain", "replica", "evaluator")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a run leaves behind, read from its folder by `collect`."""

    name: str
    config: Config
    evaluation: Mapping[str, Any]  # evaluation.json of the evaluator
    counts: Mapping[str, int]  # cumulative counts of the joiner, summed over partitions, up to the end of the log
    stats: Mapping[str, Mapping[str, Any]]  # stats/<process>.json by process, "run" for the whole
    waiting: Mapping[str, int] = field(default_factory=dict)  # impressions and engagements that are still to be joined
    dead: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # what could not be used: place, reason, rows
    place: str = "RUN"  # the run folder, as its commands name it
    digest: str = ""
    generation: int = -1
    tick: int = -1
    versions: int = 0
    version_bytes: int = 0
    promotions_ms: Sequence[int] = ()  # event times at which a generation opened
    sync_s: Mapping[str, Any] = field(default_factory=dict)  # tick closed to served: p50, p99, measured_by, …
    publish_s: Mapping[str, Any] = field(default_factory=dict)  # tick closed to durable: p50, p99, edges, counts
    table_rows: Mapping[str, int] = field(default_factory=dict)  # embedding rows by slot
    machine: str = ""


def build_report(facts: RunFacts) -> Report:
    """report.json as a dict."""
    evaluation, counts = facts.evaluation, facts.counts
    dropped = {k: v for k, v in counts.items() if k not in NOT_DROPS}
    events_in = counts.get("events_in", 0)
    joined = {
        "impressions": counts.get("joined_impressions", 0),
        "engagements": counts.get("joined_engagements", 0),
    }
    waiting = {kind: facts.waiting.get(kind, 0) for kind in joined}
    arms = {name: _clean(arm) for name, arm in evaluation.get("arms", {}).items()}
    gain = lift(evaluation.get("arms", {}))
    run = facts.stats.get("run", {})
    stages = [n for n in (*STAGES, *sorted(set(facts.stats) - {*STAGES, "run"})) if n in facts.stats]
    report: Report = {
        "run": facts.name,
        "machine": facts.machine,
        "rows": int(_note(facts, "replay", "rows", counts.get("impressions", 0))),
        "shown_items": int(evaluation.get("shown_items", 0)),
        "events_in": events_in,
        "examples_out": joined["impressions"],
        "joined": joined,
        "waiting": waiting,
        "dropped": dropped,
        "dead_letters": by_reason(facts.dead),
        "dead": {place: dict(reasons) for place, reasons in facts.dead.items()},
        "accounted": events_in == sum(joined.values()) + sum(waiting.values()) + sum(dropped.values()),
        "seconds": _number(run.get("wall_s", max((s.get("wall_s", 0.0) for s in facts.stats.values()), default=0.0))),
        "stage_seconds": {n: _number(facts.stats[n].get("wall_s", 0.0)) for n in stages},
        "stage_cpu_seconds": {n: _number(facts.stats[n].get("cpu_s", 0.0)) for n in stages},
        "peak_rss_bytes": int(run.get("peak_pss_bytes", 0) or sum(_pss(facts, n) for n in stages)),
        "digest": facts.digest,
        "version": {
            "generation": facts.generation,
            "tick": facts.tick,
            "published": facts.versions,
            "bytes": facts.version_bytes,
        },
        "label_wait_s": {"p50": None, "p99": None, **_clean(evaluation.get("label_wait_s", {}))},
        "sync_s": {"p50": None, "p99": None, **_clean(facts.sync_s)},
        "publish_s": {"p50": None, "p99": None, **_clean(facts.publish_s)},
        "version_lag_ticks": 1 + facts.config.time.build().publish_ticks,
        "promotions_ms": list(facts.promotions_ms),
        "replayed": "replay" in facts.stats,
        "table_rows": dict(facts.table_rows),
        "scored": {k: v for k, v in evaluation.items() if k not in ("arms", "label_wait_s")},
        "config": {
            "tick_s": facts.config.time.tick_s,
            "attribution_s": facts.config.time.attribution_s,
            "promotion_delay_s": facts.config.train.promotion_delay_s,
            "bootstrap_hours": facts.config.train.bootstrap_hours,
            "positive": list(facts.config.train.positive),
            "precision": facts.config.serve.precision,
        },
        "lift": _clean(gain),
        "compared": sentences(gain) if gain.get("intervals_pp") is not None else [],
        "arms": arms,
    }
    report["account"] = account(report, facts.dead, facts.place)
    return report


def _note(facts: RunFacts, process: str, name: str, default: Any) -> Any:
    return facts.stats.get(process, {}).get("notes", {}).get(name, default)


def _pss(facts: RunFacts, name: str) -> int:
    return int(facts.stats[name].get("peak_pss_bytes", 0))


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _clean(value: Any) -> Any:
    """The same structure with NaN and infinities as None, and six significant digits."""
    if isinstance(value, Mapping):
        return {k: _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(v) for v in value]
    return _number(value) if isinstance(value, float) else value
