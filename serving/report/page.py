"""`report.html`: one file that a person would rather look at than read. Nothing is fetched from anywhere.

Everything that came from data is escaped. The plots follow the reader's light or dark setting (see theme.py).
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

from serving.report import plots
from serving.report.account import left_out_of
from serving.report.build import FIGURES
from serving.report.headline import statement, substatement
from serving.report.style import STYLE
from serving.report.theme import css_variables
from serving.report.words import ARM_MEANING, DEAD_MEANING, DROP_MEANING, LIMITS, READING, REPLAY_LIMITS

Report = Mapping[str, Any]
HEAD = {
    "auc_impression": "AUC",
    "mrr": "MRR",
    "ndcg5": "nDCG@5",
    "ndcg10": "nDCG@10",
    "auc": "pooled AUC",
    "log_loss": "log-loss",
    "ne": "NE",
    "calibration": "calibration",
}
LOWER_IS_BETTER = ("log_loss", "ne")


def page(report: Report) -> str:
    """The whole page."""
    body = "".join(
        (_header(report), _cards(report), _quality(report), _table(report), _freshness(report), _work(report),
         _account(report), _reading(report), _footer(report))
    )  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>ouzel · {escape(report['run'])}</title><style>{css_variables()}{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _header(report: Report) -> str:
    arms = plots.arms_of(report)
    days = report["arms"][arms[0]]["by_hour"] if arms else []
    span = (
        f"{_day(days[0]['start_ms'])} to {_day(days[-1]['start_ms'])} (event time, UTC)"
        if days
        else "nothing scored yet"
    )
    return (
        f'<header><p class="kicker">ouzel · {escape(report["run"])} · {span}</p>'
        f"<h1>{statement(report['lift'])}</h1>{substatement(report['lift'])}</header>"
    )


def _cards(report: Report) -> str:
    online = report["arms"].get("online", {})
    seconds = report["seconds"] or 0.0
    rate = report["events_in"] / seconds if seconds else None
    cards = (
        ("AUC, online", _fixed(online.get("auc_impression"), 4), "mean over impressions"),
        ("calibration", _fixed(online.get("calibration"), 3), "predicted ÷ observed clicks"),
        ("label wait", _seconds(report["label_wait_s"]["p50"]), f"p99 {_seconds(report['label_wait_s']['p99'])}"),
        ("sync", _seconds(report["sync_s"]["p50"]), f"p99 {_seconds(report['sync_s']['p99'])}"),
        ("throughput", f"{_count(rate)}/s", f"{report['events_in']:,} events in {_seconds(seconds)}"),
        ("memory", f"{report['peak_rss_bytes'] / 1e9:.2f} GB", "peak, all processes, shared pages once"),
    )
    inner = "".join(
        f'<div class="card"><p class="name">{escape(n)}</p><p class="value">{escape(v)}</p>'
        f'<p class="note">{escape(d)}</p></div>'
        for n, v, d in cards
    )
    return f'<section class="cards">{inner}</section>'


def _quality(report: Report) -> str:
    if not plots.arms_of(report):
        return (
            '<section class="panel"><h2>Quality</h2>'
            "<p>No impression has been scored: no version was served yet.</p></section>"
        )
    legend = "".join(
        f'<li><i style="background:var(--{arm})"></i><b>{arm}</b> {escape(ARM_MEANING[arm])}</li>'
        for arm in plots.arms_of(report)
    )
    return (
        '<section class="panel"><h2>Quality over time</h2>'
        f'<p class="sub">Mean impression AUC by event hour, averaged over {plots.SMOOTH_H} hours; dots are single '
        f"hours of <i>online</i>.</p>"
        f'<div>{_both(plots.auc_over_time, report)}</div><ul class="legend">{legend}</ul></section>'
        '<div class="two"><section class="panel"><h2>Day by day</h2><p class="sub">Mean impression AUC of each day.</p>'
        f"{_both(plots.auc_by_day, report)}</section>"
        '<section class="panel"><h2>Calibration</h2><p class="sub">1 means that as many clicks come as were predicted; '
        f"the band is 0.9 to 1.1.</p>{_both(plots.calibration_over_time, report)}</section></div>"
    )


def _both(draw: Callable[..., str | None], report: Report) -> str:
    """A plot for a broad page, and the same for a narrow one, where its text would be too small; "" for none."""
    broad, slim = draw(report), draw(report, slim=True)
    return "" if broad is None else f'<div class="broad">{broad}</div><div class="slim">{slim}</div>'


def _table(report: Report) -> str:
    arms = plots.arms_of(report)
    if not arms:
        return ""
    best = {name: _best(report, name) for name in FIGURES}
    rows = ""
    for arm in arms:
        cells = "".join(
            f'<td class="{"best" if best[f] == arm else ""}">{_fixed(report["arms"][arm][f], 4)}</td>' for f in FIGURES
        )
        rows += f'<tr><th scope="row"><i style="background:var(--{arm})"></i>{arm}</th>{cells}</tr>'
    head = "".join(f'<th scope="col">{HEAD[f]}{" ↓" if f in LOWER_IS_BETTER else ""}</th>' for f in FIGURES)
    counted = report["arms"][arms[0]]
    return (
        '<section class="panel"><h2>All figures</h2>'
        f'<p class="sub">Over all {counted["impressions"]:,} scored impressions ({counted["shown_items"]:,} shown '
        f"items, {counted['clicks']:,} clicks). The best of the arms that do not know the truth is "
        "marked, also where another is as good within what this log can tell.</p>"
        f'<div class="scroll"><table class="figures"><thead><tr><th scope="col">arm</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _best(report: Report, name: str) -> str:
    def badness(arm: str) -> float:
        value: float | None = report["arms"][arm][name]
        if value is None:
            return float("inf")
        return abs(value - 1) if name == "calibration" else value if name in LOWER_IS_BETTER else -value

    rivals = [a for a in plots.arms_of(report) if a != "oracle"]
    return min(rivals, key=badness) if rivals else ""


def _freshness(report: Report) -> str:
    panels = "".join(
        f"<div>{plot}</div>" for draw in (plots.label_wait, plots.sync_time) if (plot := _both(draw, report))
    )
    if not panels:
        return ""
    tick, lag = report["config"]["tick_s"], report["version_lag_ticks"]
    text = (
        f"A click waits for its impression to close ({report['config']['attribution_s']} s after it was shown, in "
        f"ticks of {tick} s); then the tick is learned, published and served. Scores here use only versions at least "
        f"{lag} ticks old, the newest that every replica is certain to hold."
    )
    return (
        '<section class="panel"><h2>Freshness: from click to served</h2>'
        f'<p class="sub">{escape(text)}</p><div class="pair">{panels}</div></section>'
    )


def _work(report: Report) -> str:
    out = ""
    if report["stage_seconds"]:
        cpu = sum(v or 0.0 for v in report["stage_cpu_seconds"].values())
        out += (
            f'<section class="panel"><h2>Where the time went</h2><p class="sub">{_seconds(report["seconds"])} of wall '
            f"time, {cpu:.0f} core-seconds: CPU (dark) within each process' life.</p>"
            f"{_both(plots.stages, report)}</section>"
        )
    tables = _both(plots.tables, report)
    if tables:
        total = sum(report["table_rows"].values())
        out += (
            f'<section class="panel"><h2>What it remembers</h2><p class="sub">{total:,} embedding rows, one key each, '
            f"none shared.</p>{tables}</section>"
        )
    return f'<div class="two">{out}</div>' if out else ""


def _account(report: Report) -> str:
    events = max(report["events_in"], 1)
    rows = [
        ("impressions in examples", "each became an example with its labels", report["joined"]["impressions"], "good"),
        ("engagements in examples", "each became a label", report["joined"]["engagements"], "good"),
    ]
    rows += [
        (f"{kind} waiting", "shown or clicked last: learned once their window has closed", n, "muted")
        for kind, n in report["waiting"].items()
        if n
    ]
    reasons = sorted(((k, n) for k, n in report["dropped"].items() if n), key=lambda kv: -kv[1])
    never = ", ".join(k.replace("_", " ") for k, n in report["dropped"].items() if not n)
    rows += [(f"dropped: {k.replace('_', ' ')}", DROP_MEANING.get(k, ""), n, "bad") for k, n in reasons]
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}<span>{escape(meaning)}</span></th><td>{n:,}</td>'
        f'<td>{_share(n / events)}</td><td class="bar">{_bar(n / events, ink)}</td></tr>'
        for name, meaning, n, ink in rows
    )
    left_out = "".join(f'<p class="sub">{escape(sentence)}</p>' for sentence in left_out_of(report))
    whole = report["accounted"]
    verdict = (
        f"{report['events_in']:,} events came in, and each is in exactly one line below."
        if whole
        else f"{report['events_in']:,} events came in; the lines below do not add up to them: some are lost or counted "
        "twice."
    )
    return (
        f'<section class="panel"><h2>{"Every event accounted for" if whole else "Where the events went"}</h2>'
        f'<p class="sub{"" if whole else " alarm"}">{verdict}</p>'
        f'<table class="account"><tbody>{lines}</tbody></table>'
        f"{f'<p class=sub>No event was dropped as {escape(never)}.</p>' if never else ''}"
        f"{left_out}</section>{_dead(report)}"
    )


def _dead(report: Report) -> str:
    """Rows that never became an event: how many, why, and the command that lists them."""
    if not report["dead"]:
        return ""
    lines = "".join(
        f'<tr><th scope="row">{escape(reason.replace("_", " "))}<span>{escape(DEAD_MEANING.get(reason, ""))} · '
        f"{escape(place)}</span></th><td>{n:,}</td></tr>"
        for place, reasons in report["dead"].items()
        for reason, n in sorted(reasons.items(), key=lambda item: -item[1])
    )
    said = " ".join(report["account"][1:])
    return (
        '<section class="panel"><h2>What could not be read</h2>'
        f'<p class="sub alarm">{escape(said)}</p><table class="account"><tbody>{lines}</tbody></table></section>'
    )


def _bar(share: float, ink: str) -> str:
    return f'<i style="width:{100 * share:.3f}%;background:var(--{ink})"></i>' if share else ""


def _reading(report: Report) -> str:
    limits = LIMITS if report["replayed"] else tuple(entry for entry in LIMITS if entry not in REPLAY_LIMITS)

    def items(entries: tuple[tuple[str, str], ...]) -> str:
        return "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries)

    return (
        f'<div class="two"><section class="panel"><h2>How to read this</h2><dl>{items(READING)}</dl></section>'
        f'<section class="panel"><h2>What it does not show</h2><dl>{items(limits)}</dl></section></div>'
    )


def _footer(report: Report) -> str:
    version, config = report["version"], report["config"]
    facts = (
        ("digest", report["digest"] or "none"),
        (
            "last version",
            f"generation {version['generation']}, tick {version['tick']}; {version['published']:,} published",
        ),
        ("configuration", ", ".join(f"{k} {v}" for k, v in config.items())),
        ("machine", report["machine"] or "not recorded"),
    )
    lines = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts)
    return (
        f"<footer><dl>{lines}</dl><p>The same logs give the same digest: <code>ouzel verify</code> derives it again. "
        "All numbers of this page, and those behind the plots, are in <code>report.json</code>.</p></footer>"
    )


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%-d %b %Y %H:%M}"


def _fixed(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def _count(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1000:.1f} k" if value >= 10_000 else f"{value:,.0f}"


def _share(value: float) -> str:
    return f"{100 * value:.2f} %" if value >= 0.0001 or value == 0 else "< 0.01 %"
