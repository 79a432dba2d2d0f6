"""The report: exact fields in report.json, a page that stands alone, and words that fit what happened."""

import json
import math
import re

import msgspec
import pytest

from serving.report import plots
from serving.report.build import FIGURES, build_report
from serving.report.page import page

FIELDS = {
    "rows", "shown_items", "events_in", "examples_out", "dropped", "seconds", "stage_seconds", "stage_cpu_seconds",
    "peak_rss_bytes", "digest", "label_wait_s", "sync_s", "arms",
}  # fmt: skip


def test_report_has_every_promised_field(facts):
    report = build_report(facts())
    assert report.keys() >= FIELDS
    assert report["label_wait_s"].keys() >= {"p50", "p99"}
    assert report["sync_s"].keys() >= {"p50", "p99"}
    assert set(report["arms"]) == {"online", "nightly", "frozen", "popularity", "oracle"}
    for arm in report["arms"].values():
        assert arm.keys() >= {*FIGURES, "by_hour", "by_day"}
        for entry in (*arm["by_hour"], *arm["by_day"]):
            assert entry.keys() >= {*FIGURES, "start_ms"}


def test_report_is_plain_json(facts):
    report = build_report(facts(hours=12))
    assert report["arms"]["online"]["later"]["auc_impression"] is None  # one day: nothing later, null and not NaN
    assert json.loads(msgspec.json.encode(report)) == json.loads(json.dumps(report, allow_nan=False))


def test_every_event_is_in_one_line_or_the_page_says_so(facts):
    counts = facts().counts
    assert build_report(facts())["accounted"]
    lost = build_report(facts(counts={**counts, "late": counts["late"] - 1}))
    assert not lost["accounted"]
    assert "do not add up" in page(lost)
    assert "do not add up" not in page(build_report(facts()))


def test_events_that_wait_are_a_line_and_not_lost(facts):
    counts = facts().counts
    waiting = {"impressions": 1, "engagements": 2}
    report = build_report(facts(counts={**counts, "events_in": counts["events_in"] + 3}, waiting=waiting))
    assert report["accounted"]
    assert report["waiting"] == waiting
    assert "3 waiting" in report["account"][0]
    assert "impressions waiting" in page(report)
    assert "do not add up" not in page(report)


def test_dead_rows_are_said_with_how_many_why_and_what_lists_them(facts):
    made = facts(
        counts={},
        stats={"replay": {"notes": {"rows": 100}}},
        dead={"behaviors.tsv": {"bad_label": 100}},
        place="runs/mine",
    )
    report = build_report(made)
    for text in (" ".join(report["account"]), page(report)):
        assert "100 of 200 rows of behaviors.tsv could not be used: bad_label 100" in text
        assert "ouzel dead-letters show --run runs/mine --reason bad_label" in text
    assert report["dead_letters"] == {"bad_label": 100}


def test_page_stands_alone_and_parses(facts):
    html = page(build_report(facts()))
    assert not re.search(r"(?:src|href)=\"(?!#)", html.replace("xlink:href", "href").replace('href="#', "#"))
    assert not re.search(r"url\((?!#)", html)
    assert "<script" not in html
    assert "@import" not in html
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for ref in re.findall(r'(?:url\(#|href="#)([^)"]+)', html):
        assert ref in ids


def test_plots_follow_light_and_dark(facts):
    html = page(build_report(facts()))
    assert "prefers-color-scheme:dark" in html
    assert "#0a0b" not in html  # every stand-in became a variable
    assert "var(--online)" in html


def test_text_from_data_is_escaped(facts):
    evil = "<img src=x onerror=alert(1)>"
    html = page(build_report(facts(name=evil, machine=evil, digest=evil, table_rows={"item": 3})))
    assert "<img" not in html
    assert "&lt;img" in html


@pytest.mark.parametrize("hours", [0, 1, 3, 42, 158])
@pytest.mark.parametrize("arms", [("online", "nightly", "frozen", "popularity", "oracle"), ("online", "popularity")])
def test_page_of_short_runs_and_of_few_arms(facts, hours, arms):
    made = facts(hours=hours, arms=arms) if hours else facts(evaluation={"arms": {}})
    html = page(build_report(made))
    assert html.startswith("<!doctype html>")
    assert "nan" not in re.sub(r"<style>.*?</style>", "", html, flags=re.S).lower().replace("nanum", "")


def test_run_without_anything_still_has_a_page(facts):
    empty = facts(evaluation={}, counts={}, stats={}, sync_s={}, table_rows={}, promotions_ms=())
    assert "nothing scored yet" in page(build_report(empty))


def test_lift_counts_the_days_after_the_first(facts):
    report = build_report(facts())
    later = {name: arm["later"]["auc_impression"] for name, arm in report["arms"].items()}
    gain = report["lift"]
    assert gain["scope"] == "days after the first"
    assert gain["over_nightly_pp"] == pytest.approx(100 * (later["online"] - later["nightly"]), rel=1e-4)
    share = (later["online"] - later["popularity"]) / (later["oracle"] - later["popularity"])
    assert gain["share_of_oracle_lift"] == pytest.approx(share, rel=1e-4)
    assert build_report(facts(hours=10))["lift"]["scope"] == "all scored rows"


def test_page_says_cost_where_online_lost(facts):
    made = facts()
    arms = dict(made.evaluation["arms"])
    arms["online"], arms["nightly"] = arms["nightly"], arms["online"]
    assert "Learning online cost" in page(build_report(facts(evaluation={**made.evaluation, "arms": arms})))


def test_smoothing_is_the_weighted_mean_of_the_window():
    import numpy as np

    y, n = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 1.0, 2.0, 1.0])
    got = plots.smooth(y, n, 3)
    assert got == pytest.approx([1.5, 11 / 4, 18 / 4, 16 / 3])
    assert plots.smooth(np.array([7.0]), np.array([3.0])) == pytest.approx([7.0])
    assert not math.isnan(plots.smooth(y, n * 0, 3)[0])
