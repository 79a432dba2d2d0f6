"""The collisionless table with an expiry, so that its rows keep when they were last seen. Nothing expires here."""

from infra.embedding import Policy
from tests.bench.table.ours import Ours


class Expiring(Ours):
    """What a slot with `expiry_s` is."""

    policy = Policy(expiry_ticks=1_000)


CONTENDER = Expiring
