"""The page's first sentence: what the run shows about learning online, and nothing that it does not show."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from serving.report.lift import compared, name_of, outcome, points

PLAIN = "A recommender that kept learning while it served"


def statement(gain: Mapping[str, Any]) -> str:
    """As HTML: gains first, then losses, then what cannot be told."""
    rivals = compared(gain)
    better, worse, even = ([r for r in rivals if outcome(gain, r) == sign] for sign in (1, -1, 0))
    if not better + worse + even:
        return PLAIN
    told = []
    if better:
        told.append("gained " + _and([f"{_amount(gain, r)} over {name_of(gain, r)}" for r in better]))
    if worse:
        told.append("lost " + _and([f"{_amount(gain, r)} to {name_of(gain, r)}" for r in worse]))
    unsure = _and([name_of(gain, r) for r in even])
    if not told:
        return escape(f"This log can show no difference between learning online and {unsure}.")
    text = f"Learning online {', but '.join(told)}."
    text = text.replace("</b>", "</b> of AUC", 1)
    return text + (f" Against {escape(unsure)} this log can show no difference." if even else "")


def _amount(gain: Mapping[str, Any], rival: str) -> str:
    return f"<b>{abs(gain[f'over_{rival}_pp']):.2f} pp</b>"


def _and(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def substatement(gain: Mapping[str, Any]) -> str:
    """How it was measured, each difference with its interval, and how near the bound it comes."""
    text = f"Mean impression AUC, {gain['scope']}; each impression scored by the version that was certain to serve it."
    if gain.get("intervals_pp"):
        text += f" In brackets 95 % intervals: {gain['resamples']:,} paired draws of the {gain['hours']} scored hours."
    elif compared(gain):
        text += f" {gain['hours']} scored hours are too few to say how sure a difference is."
    share, sure = gain.get("share_of_oracle_lift"), gain.get("share_of_oracle_interval")
    if share is not None and sure is not None and sure[0] > 0:
        text += (
            f" It reaches {100 * share:.0f} % ({100 * sure[0]:.0f} to {100 * sure[1]:.0f}) of the lift over popularity "
            "that knowing the true click probabilities would give."
        )
    lines = "".join(
        f'<li><i style="background:var(--{r})"></i>over {r} <b>{escape(points(gain, r))}</b>{_doubt(gain, r)}</li>'
        for r in compared(gain)
    )
    return f'<p class="lede">{escape(text)}</p>' + (f'<ul class="legend">{lines}</ul>' if lines else "")


def _doubt(gain: Mapping[str, Any], rival: str) -> str:
    return " no difference that this log can show" if outcome(gain, rival) == 0 else ""
