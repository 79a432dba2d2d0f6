"""What the online arm gained or lost against each rival, with how sure that is, as numbers and in words."""

from collections.abc import Mapping
from typing import Any

from serving.report.intervals import LEVEL, RESAMPLES, interval, later_hours, resampled

RIVALS = ("nightly", "frozen", "popularity", "oracle")
LATER, ALL = "days after the first", "all scored rows"
_NAMES = {
    "nightly": "the same net retrained each night",
    "frozen": "a nightly batch pipeline",
    "popularity": "popularity",
}
# Before the first midnight has passed nothing was retrained.
_NAMES_OF_A_DAY = {
    "nightly": "the same net trained once",
    "frozen": "the same net trained once, with the counters of that time",
    "popularity": "popularity",
}


def lift(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Percentage points of mean impression AUC of `online` over each rival, over the days after the first where there
    are any (on the first day nothing has had a night yet), and their intervals; a rival that did not run is left out.
    """
    later = bool(arms) and all(a.get("later", {}).get("impressions") for a in arms.values())
    auc = {name: (arm["later"] if later else arm).get("auc_impression") for name, arm in arms.items()}
    out: dict[str, Any] = {"scope": LATER if later else ALL}
    online = auc.get("online")
    if online is None:
        return out
    hours = {name: later_hours(a) if later else a.get("by_hour", ()) for name, a in arms.items() if auc[name]}
    draws, n = resampled(hours)
    out |= {"hours": n, "level": LEVEL, "resamples": RESAMPLES if draws else 0, "intervals_pp": {}}
    for rival in RIVALS:
        if auc.get(rival) is not None:
            out[f"over_{rival}_pp"] = 100 * (online - auc[rival])
            if draws:
                out["intervals_pp"][rival] = interval(100 * (draws["online"] - draws[rival]))
    popular, oracle = auc.get("popularity"), auc.get("oracle")
    if popular is not None and oracle is not None and oracle > popular:
        out["share_of_oracle_lift"] = (online - popular) / (oracle - popular)
        if draws:
            room = draws["oracle"] - draws["popularity"]
            out["share_of_oracle_interval"] = interval(
                (draws["online"] - draws["popularity"])[room > 0] / room[room > 0]
            )
    return out


def outcome(gain: Mapping[str, Any], rival: str) -> int | None:
    """1: online is better, −1: worse, 0: no difference that this log can show; None where it cannot be told."""
    found = gain.get("intervals_pp", {}).get(rival)
    if found is None:
        return None
    return 1 if found[0] > 0 else -1 if found[1] < 0 else 0


def compared(gain: Mapping[str, Any]) -> list[str]:
    """The rivals that online is compared with; the oracle is a bound, not a rival."""
    return [rival for rival in RIVALS if rival != "oracle" and gain.get(f"over_{rival}_pp") is not None]


def name_of(gain: Mapping[str, Any], rival: str) -> str:
    """A rival in words that fit the scope."""
    return (_NAMES if gain["scope"] == LATER else _NAMES_OF_A_DAY)[rival]


def points(gain: Mapping[str, Any], rival: str) -> str:
    """`+4.17 pp (3.75 to 4.59)`."""
    text = f"{gain[f'over_{rival}_pp']:+.2f} pp"
    found = gain["intervals_pp"].get(rival)
    return text if found is None else f"{text} ({found[0]:+.2f} to {found[1]:+.2f})"


def sentences(gain: Mapping[str, Any]) -> list[str]:
    """One line a rival, for the terminal; none where nothing was scored."""
    what = {
        1: "",
        0: ": no difference that this log can show",
        -1: ": online loses",
        None: ": too few hours to be sure",
    }
    lines = [f"online over {rival}: {points(gain, rival)}{what[outcome(gain, rival)]}" for rival in compared(gain)]
    if lines and gain["intervals_pp"]:
        lines.append(f"points of AUC, {gain['scope']}; 95 % intervals, bootstrapped over {gain['hours']} hours")
    return lines
