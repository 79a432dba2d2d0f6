"""A synthetic run, whole enough for every part of the report."""

import math

import numpy as np
import pytest

from infra.config import Config
from serving.report.build import RunFacts

DAY_MS = 86_400_000
START = 18_209 * DAY_MS + 9 * 3_600_000  # 9 Nov 2019, 09:00
LEVEL = {"online": 0.688, "nightly": 0.676, "frozen": 0.651, "popularity": 0.629, "oracle": 0.719}


def _figures(arm, auc, rng, impressions):
    calibration = {"online": 1.0, "nightly": 1.03, "frozen": 1.12, "popularity": 1.2, "oracle": 1.0}[arm]
    return {
        "auc_impression": auc, "mrr": auc - 0.34, "ndcg5": auc - 0.31, "ndcg10": auc - 0.25, "auc": auc + 0.02,
        "log_loss": 0.165 - 0.1 * (auc - 0.6), "ne": 0.98 - 0.5 * (auc - 0.6),
        "calibration": calibration + float(rng.normal(0, 0.05)), "impressions": impressions, "ranked": impressions,
        "shown_items": 37 * impressions, "clicks": int(1.5 * impressions), "unscored": 0,
    }  # fmt: skip


def make_facts(hours=158, arms=tuple(LEVEL), seed=1, **changes):
    rng = np.random.default_rng(seed)
    evaluation = {"arms": {}, "shown_items": 8_584_442, "first_version": {"generation": 0, "tick": 26_220_000}}
    start = [START + h * 3_600_000 for h in range(hours)]
    traffic = [int(1400 * (1.1 + math.sin((h + 3) / 24 * 2 * math.pi))) + 60 for h in range(hours)]
    wave = rng.normal(0, 0.006, hours)
    for arm in arms:
        drop = {"nightly": 0.012, "frozen": 0.035}.get(arm, 0.0)
        by_hour = []
        for i in range(hours):
            since = ((start[i] - 3_600_000) % DAY_MS) / DAY_MS
            auc = LEVEL[arm] + wave[i] + float(rng.normal(0, 0.004)) + drop * (0.4 - since) + 0.01 * min(i / 24, 2)
            by_hour.append({"start_ms": start[i], **_figures(arm, auc, rng, traffic[i])})
        days = sorted({t // DAY_MS for t in start})
        by_day = []
        for day in days:
            part = [h for h in by_hour if h["start_ms"] // DAY_MS == day]
            auc = sum(h["auc_impression"] for h in part) / len(part)
            by_day.append({"start_ms": day * DAY_MS, **_figures(arm, auc, rng, sum(h["impressions"] for h in part))})
        mean = sum(h["auc_impression"] for h in by_hour) / max(len(by_hour), 1)
        whole = _figures(arm, mean, rng, sum(traffic))
        later = whole if len(days) > 1 else {**whole, "impressions": 0, "auc_impression": math.nan}
        evaluation["arms"][arm] = {**whole, "later": later, "by_day": by_day, "by_hour": by_hour}
    wait = 185 - np.minimum(rng.lognormal(3.0, 1.0, 4000), 119) - rng.random(4000) * 60
    counts, edges = np.histogram(wait, np.arange(0, 200, 5))
    evaluation["label_wait_s"] = {
        "p50": float(np.median(wait)), "p99": float(np.percentile(wait, 99)),
        "edges": edges.tolist(), "counts": counts.tolist(),
    }  # fmt: skip
    sync = rng.lognormal(-2.6, 0.6, 4000)
    sync_counts, sync_edges = np.histogram(sync, np.geomspace(0.005, 2, 32))
    cpu = {"replay": 4.1, "joiner": 8.3, "trainer": 31.0, "retrain": 27.4, "replica": 9.2, "evaluator": 22.6}
    facts = {
        "name": "mind-small", "config": Config(), "evaluation": evaluation,
        "counts": {
            "events_in": 580_172, "impressions": 230_117, "engagements": 350_055, "joined_impressions": 230_101,
            "joined_engagements": 332_541, "late": 17_498, "orphan": 0, "duplicate_impression": 12,
            "late_impression": 4, "duplicate_engagement": 16, "future": 0, "unknown_item": 0, "malformed": 0,
        },
        "stats": {
            **{n: {"wall_s": 62.0 + 0.5 * i, "cpu_s": c, "peak_pss_bytes": 3e8}
               for i, (n, c) in enumerate(cpu.items())},
            "run": {"wall_s": 68.4, "peak_pss_bytes": 1_910_000_000},
        },
        "digest": "7f3c9b1e" * 8, "generation": 7, "tick": 26_230_300,
        "versions": 9_842, "version_bytes": 1_200_000_000,
        "promotions_ms": [START + 16 * 3_600_000 + d * DAY_MS for d in range(6)],
        "sync_s": {
            "p50": float(np.median(sync)), "p99": float(np.percentile(sync, 99)),
            "edges": sync_edges.tolist(), "counts": sync_counts.tolist(), "measured_by": "replica",
        },
        "table_rows": {
            "user": 94_057, "history": 51_282, "item": 23_811, "words": 34_200, "subcategory": 264, "category": 17,
            "hour": 24, "position": 64,
        },
        "machine": "2 cores, x86_64, Python 3.11",
        **changes,
    }  # fmt: skip
    return RunFacts(**facts)


@pytest.fixture
def facts():
    """Makes the facts of a synthetic run."""
    return make_facts
