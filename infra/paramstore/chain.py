"""Which version may follow: the law that both ends of the store check. Pure: records in, verdicts out.

    DUPLICATE   at or before where the chain stands: dropped, so applying twice equals applying once
    APPLY       its predecessor is where the chain stands, and its digest is right
    GAP         its predecessor is something else: refused; the reader catches up from the log or a snapshot

Two versions with the same number and different content are a fork: someone wrote beside the trainer. That is no gap.
"""

from enum import Enum

from infra.errors import CorruptStateError
from infra.paramstore.version import ROOT_DIGEST, Kind, VersionId, VersionMeta, digest_of


class Verdict(Enum):
    APPLY = "apply"
    DUPLICATE = "duplicate"
    GAP = "gap"


class Chain:
    """Where a reader or the publisher stands in the chain of versions."""

    def __init__(self) -> None:
        self.id: VersionId | None = None  # newest version that changed something
        self.digest = ROOT_DIGEST
        self.through = -1  # the state is known through this tick, published or not (in log order)

    def judge(self, meta: VersionMeta, value: bytes | memoryview, *, verify: bool = True) -> Verdict:
        """What to do with a record. Raises CorruptStateError for a fork or a wrong digest."""
        verdict = self._place(meta)
        if verdict is Verdict.APPLY and verify and (got := digest_of(meta, value)) != meta.digest:
            raise CorruptStateError(
                f"version {meta.generation}.{meta.tick}: content has digest {got[:16]}, its record says "
                f"{meta.digest[:16]}; it is not served; restore the versions log or derive it again from the examples"
            )
        return verdict

    def _place(self, meta: VersionMeta) -> Verdict:
        if self.id is None:
            starts = meta.kind is Kind.GENERATION or meta.predecessor == ROOT_DIGEST
            return Verdict.APPLY if starts else Verdict.GAP
        if meta.kind is Kind.PROGRESS:
            if meta.predecessor == self.digest:
                news = meta.tick > self.through or (meta.end and meta.tick == self.through)
                return Verdict.APPLY if news else Verdict.DUPLICATE
            return Verdict.DUPLICATE if meta.id <= self.id else Verdict.GAP
        if meta.id == self.id and meta.digest != self.digest:
            raise CorruptStateError(
                f"version {meta.generation}.{meta.tick} exists twice with different content; two trainers wrote "
                f"to this log: stop one, then restore the log or derive it again from the examples"
            )
        if meta.id <= self.id:
            return Verdict.DUPLICATE
        return Verdict.APPLY if meta.predecessor == self.digest else Verdict.GAP

    def advance(self, meta: VersionMeta) -> None:
        """Record that a version with verdict APPLY was applied."""
        if meta.kind is not Kind.PROGRESS:
            self.id, self.digest = meta.id, meta.digest
        self.through = max(self.through, meta.tick)

    def stand_at(self, version: VersionId, digest: str, through: int) -> None:
        """Continue from a snapshot of this version."""
        self.id, self.digest, self.through = version, digest, through
