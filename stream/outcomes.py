"""What training and evaluation make of the engagements with a shown item: positive, negative, or left out.

`examples` keep one bit for each kind of engagement that joined. `train.positive` says which kinds count as positive. A
shown item with other engagements only (liked, say, where clicks are learned) is neither: the user did respond, so
calling it a negative would teach the net to hide what people like. It is left out of the loss, of the counters and of
every metric, unless `train.other_engagements` says "negative". The archive keeps the bits: a retrain can be told
otherwise.
"""

from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from infra.config import TrainConfig
from stream.columns import Lists
from stream.events import ActionKind
from stream.examples import ExampleColumns

POSITIVE = 1  # of an outcome (uint8); 0 is a negative
LEFT_OUT = 2


@cache
def outcome_of_bits(positive: tuple[str, ...], others: str) -> NDArray[np.uint8]:
    """Outcome (256,) of every label byte. `positive` and `others` as `train.positive`, `train.other_engagements`."""
    mask = 0
    for name in positive:
        mask |= 1 << ActionKind[name.upper()]
    bits = np.arange(256)
    other = LEFT_OUT if others == "left-out" else 0
    table = np.where(bits & mask, POSITIVE, np.where(bits > 0, other, 0)).astype(np.uint8)
    table.flags.writeable = False
    return table


def with_outcomes(examples: ExampleColumns, train: TrainConfig) -> ExampleColumns:
    """The examples with outcomes in place of their label bytes, aligned with the shown items."""
    table = outcome_of_bits(train.positive, train.other_engagements)
    labels = Lists(examples.labels.offsets, table[examples.labels.values])
    return replace(examples, labels=labels)


def left_out(examples: ExampleColumns, train: TrainConfig) -> int:
    """How many shown items of examples, as joined, are left out."""
    table = outcome_of_bits(train.positive, train.other_engagements)
    return int(np.count_nonzero(table[examples.labels.values] == LEFT_OUT))
