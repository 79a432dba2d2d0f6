"""The report: exact fields in report.json, a page that stands alone, and words that fit what happened."""

import json
import math
import re

import msgspec
import numpy as np
import pytest

from serving.report import intervals, plots
from serving.report.build import FIGURES, build_report
from serving.report.headline import statement, substatement
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
    lost = build_report(facts(hours=2, counts={**counts, "late": counts["late"] - 1}))
    assert not lost["accounted"]
    assert "do not add up" in page(lost)


def test_events_that_wait_are_a_line_and_not_lost(facts):
    counts = facts().counts
    waiting = {"impressions": 1, "engagements": 2}
    report = build_report(facts(hours=2, counts={**counts, "events_in": counts["events_in"] + 3}, waiting=waiting))
    html = page(report)
    assert report["accounted"]
    assert report["waiting"] == waiting
    assert "3 waiting" in report["account"][0]
    assert "impressions waiting" in html
    assert "do not add up" not in html


def test_shown_items_that_are_neither_positive_nor_negative_are_said(facts):
    some = facts(hours=2)
    some.evaluation["left_out_items"] = 12
    report = build_report(some)
    assert "12 shown items have engagements other than click only" in report["account"][1]
    assert "12 shown items have engagements other than click only" in page(report)
    assert "other than click" not in page(build_report(facts(hours=2)))


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


def _renamed(facts, **names):
    """The facts with arms under each other's names."""
    made = facts()
    arms = {names.get(name, name): arm for name, arm in made.evaluation["arms"].items()}
    return build_report(facts(evaluation={**made.evaluation, "arms": arms}))


def _headline(report):
    return re.sub(r"</?b>", "", statement(report["lift"]))


def test_headline_names_every_rival_and_on_which_side_of_it_online_is(facts):
    won = _headline(build_report(facts()))
    assert re.fullmatch(
        r"Learning online gained \d\.\d\d pp of AUC over the same net retrained each night, \d\.\d\d pp over a nightly "
        r"batch pipeline and \d\.\d\d pp over popularity\.",
        won,
    )
    lost = _headline(_renamed(facts, online="popularity", popularity="online"))
    assert re.search(r"Learning online lost .* to popularity\.", lost)
    assert "gained" not in lost
    between = _headline(_renamed(facts, online="nightly", nightly="online"))
    assert re.search(r"gained .* and .* over popularity, but lost \S+ pp to the same net", between)


def test_a_difference_that_the_log_cannot_show_is_not_claimed(facts):
    made = facts(hours=60)
    arms = dict(made.evaluation["arms"])
    rng = np.random.default_rng(3)
    hours = [
        {**h, "auc_impression": h["auc_impression"] + float(rng.normal(0, 0.02))} for h in arms["online"]["by_hour"]
    ]
    arms["popularity"] = {**arms["online"], "by_hour": hours}
    report = build_report(facts(evaluation={**made.evaluation, "arms": arms}))
    low, high = report["lift"]["intervals_pp"]["popularity"]
    assert low < 0 < high
    assert "Against popularity this log can show no difference" in _headline(report)
    assert "no difference that this log can show" in " ".join(report["compared"])
    few = build_report(facts(hours=5))
    assert few["lift"]["intervals_pp"] == {}
    assert "gained" not in _headline(few)
    assert "too few" in substatement(few["lift"])


def test_intervals_are_paired_by_hour_and_the_same_each_time(facts):
    rng = np.random.default_rng(1)
    auc = 0.6 + 0.1 * rng.random(40)  # hours differ a lot, the arms by the same in each
    hours = [
        [{"start_ms": i, "ranked": 100 + i, "auc_impression": a + d} for i, a in enumerate(auc)] for d in (0, 0.02)
    ]
    draws, n = intervals.resampled({"online": hours[1], "nightly": hours[0]})
    assert n == 40
    assert intervals.interval(draws["online"] - draws["nightly"]) == pytest.approx((0.02, 0.02))
    low, high = intervals.interval(draws["online"])
    spread = 2 * 1.96 * np.std(auc) / math.sqrt(40)
    assert high - low == pytest.approx(spread, rel=0.15)
    assert build_report(facts())["lift"] == build_report(facts())["lift"]


def test_line_ends_are_named_in_their_order_and_carry_no_mean(facts):
    report = build_report(facts())
    drawn = plots.auc_over_time(report)
    texts = re.findall(r'<text[^>]*? y="([\d.]+)"[^>]*>([^<]*)</text>', drawn)
    at = {text: float(y) for y, text in texts if text in report["arms"]}
    last = {}
    for arm in report["arms"]:
        _, y, n = plots.series(report, arm, "auc_impression")
        last[arm] = plots.smooth(y, n)[-1]
    assert sorted(at, key=at.__getitem__) == sorted(last, key=last.__getitem__, reverse=True)


def test_a_narrow_page_has_plots_of_its_own_whose_text_can_be_read(facts):
    html = page(build_report(facts()))
    slim = re.findall(r'<div class="slim">(<svg.*?</svg>)</div>', html, re.S)
    assert len(slim) == html.count('<div class="broad">') == 7
    for drawn in slim:
        (width,) = re.findall(r'viewBox="0 0 ([\d.]+) ', drawn)
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", drawn)]
        assert min(sizes) * 320 / float(width) > 9.5  # px, on a screen of 390 px


def test_words_of_a_replay_are_left_out_of_a_run_without_one(facts):
    made = facts()
    stats = {name: s for name, s in made.stats.items() if name != "replay"}
    live = page(build_report(facts(hours=2, stats=stats)))
    assert "Simulated delays" in page(build_report(facts(hours=2)))
    assert "Simulated delays" not in live
    assert "Replayed, not live" not in live


def test_smoothing_is_the_weighted_mean_of_the_window():
    y, n = np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 1.0, 2.0, 1.0])
    got = plots.smooth(y, n, 3)
    assert got == pytest.approx([1.5, 11 / 4, 18 / 4, 16 / 3])
    assert plots.smooth(np.array([7.0]), np.array([3.0])) == pytest.approx([7.0])
    assert not math.isnan(plots.smooth(y, n * 0, 3)[0])
