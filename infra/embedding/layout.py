"""Segments of a slot's row: which table each lies in, and in which of its columns."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from infra.embedding.life.policy import Policy

BASE = ""  # the group that every admitted key has a row in
MOST = 1 << 24  # occurrences up to which a float32 counts by one
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Segment:
    """Columns of a slot's row that belong together: one initializer, one update rule."""

    name: str
    dim: int
    init_scale: float
    state_dim: int
    state_init: tuple[float, ...]  # (state_dim,)
    admit_after: int = 1  # occurrences of a key that has its base row before these columns are made; 1: with the row

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"segment {self.name!r}: a name is a to z, digits, - and _, and begins with a letter")
        if self.dim < 1 or self.state_dim < 0 or len(self.state_init) != self.state_dim:
            raise ValueError(f"segment {self.name!r}: dim {self.dim}, state {self.state_init} of {self.state_dim}")
        if not 1 <= self.admit_after <= MOST:
            raise ValueError(f"segment {self.name!r}: admit_after is {self.admit_after}; it must be in [1, {MOST}]")


class Columns(NamedTuple):
    """Where a segment lies: values[:, at : at + dim] and state[:, state_at : state_at + state_dim] of a group."""

    group: str
    at: int
    dim: int
    state_at: int
    state_dim: int


def groups_of(slot: str, segments: Sequence[Segment]) -> dict[str, list[Segment]]:
    """Segments by group, the base first; a grown group is all segments of one threshold."""
    by_threshold: dict[int, list[Segment]] = {1: []}
    for segment in segments:
        by_threshold.setdefault(segment.admit_after, []).append(segment)
    if not by_threshold[1]:
        raise ValueError(f"slot {slot!r} has no segment with admit_after 1; when keys get a row is its policy's to say")
    if len({s.name for s in segments}) < len(segments):
        raise ValueError(f"slot {slot!r}: segments {[s.name for s in segments]}; names are used once")
    return {(members[0].name if n > 1 else BASE): members for n, members in sorted(by_threshold.items())}


def place_of(group: str, members: list[Segment], i: int) -> Columns:
    """Where the i-th of a group's segments lies."""
    before = members[:i]
    at, state_at = sum(s.dim for s in before), sum(s.state_dim for s in before)
    return Columns(group, at, members[i].dim, state_at, members[i].state_dim)


def options_of(members: list[Segment], *, counted: bool) -> dict[str, Any]:
    """Shape of a group's table; where it is `counted`, the last column of its state is the occurrences."""
    return {
        "dim": sum(s.dim for s in members),
        "init_scale": tuple(s.init_scale for s in members for _ in range(s.dim)),
        "state_dim": sum(s.state_dim for s in members) + counted,
        "state_init": tuple(x for s in members for x in s.state_init) + (0.0,) * counted,
    }


def policies_of(policy: Policy, grown: list[str], share: float) -> dict[str, Policy]:
    """A policy for each group: the base rows' own, and what grown rows take over of it, with `share` of the bytes."""
    if not grown:
        return {BASE: policy}
    each = max(1, int(policy.byte_budget * share / len(grown))) if policy.byte_budget else 0  # 0 would be no bound
    bounded = Policy(expiry_ticks=policy.expiry_ticks, evict=policy.evict, byte_budget=each)
    base = replace(policy, byte_budget=policy.byte_budget - each * len(grown))
    return {BASE: base} | dict.fromkeys(grown, bounded)
