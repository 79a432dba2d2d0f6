"""A slot's rules, one a segment, over the rows of a batch.

A row whose gradient is not finite in any segment that it has is refused in all of them: half a step would leave a bias
and a vector that were never learned together.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from infra.embedding.segments import GroupRows, SegmentedTable
from trainer.rules.kernels import Floats
from trainer.rules.rule import Rule


def apply(
    rules: Mapping[str, Rule], table: SegmentedTable, rows: GroupRows, grads: Floats, lr: float | None = None
) -> int:
    """One step of each segment in place; how many rows were refused.

    `rules` by segment name, each with the state its segment keeps; `rows` as `table.assign` returned them, each key
    once; `grads (n, dim)` summed, segments side by side in the table's order. Columns of a segment that a key has not
    are dropped. `lr` overrides every rule's own. Raises ValueError where rules, shapes or rows do not fit.
    """
    if grads.shape != (len(rows[""]), table.dim):
        raise ValueError(f"grads {grads.shape} of {len(rows[''])} rows of dim {table.dim}")
    _fit(rules, table)
    rows, refused = _finite(table, rows, grads)
    grads_at = 0
    for segment in table.segments:
        group, at, dim, state_at, _ = table.columns(segment.name)
        slabs = table.tables[group]
        rules[segment.name].apply(
            slabs.values, slabs.state, rows[group], grads,
            at=at, dim=dim, state_at=state_at, grads_at=grads_at, lr=lr,
        )  # fmt: skip
        grads_at += dim
    return refused


def _fit(rules: Mapping[str, Rule], table: SegmentedTable) -> None:
    names = [segment.name for segment in table.segments]
    if set(rules) != set(names):
        raise ValueError(f"slot {table.slot!r} has segments {names}, rules for {sorted(rules)}")
    for segment in table.segments:
        if (want := rules[segment.name].state_dim(segment.dim)) != segment.state_dim:
            raise ValueError(f"segment {segment.name!r} keeps {segment.state_dim} numbers of state, its rule {want}")


def _finite(table: SegmentedTable, rows: GroupRows, grads: Floats) -> tuple[GroupRows, int]:
    """The rows, those refused made -1 in every group, and how many of them there are."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.vdot(grads, grads)):  # then every part of it is
            return rows, 0
        bad, at = np.zeros(len(grads), np.bool_), 0
        for segment in table.segments:
            columns = grads[:, at : at + segment.dim]
            here = rows[table.columns(segment.name).group] >= 0
            bad |= here & ~np.isfinite(_squares(columns))
            at += segment.dim
    return {group: np.where(bad, np.int32(-1), r) for group, r in rows.items()}, int(bad.sum())


def _squares(grads: Floats) -> NDArray[np.float32]:
    """Sums of squares (n,), added as the kernels add them, so that both judge alike."""
    total = np.zeros(len(grads), np.float32)
    for column in grads.T:
        total += column * column
    return total
