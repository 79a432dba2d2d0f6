"""Follows `items`: catalogue records as they become known, and how far in event time the topic is complete.

Rows carry `ingested_at`; the watermark is their running maximum minus the disorder bound, and heartbeats move it where
nothing else does. What lies ahead of a tick is held by the catalogue and read as of the tick: ahead is harmless.
What cannot be read is passed over: the joiner's process writes its dead letters.
"""

import time
from collections.abc import Callable

import numpy as np

from infra.config import WireConfig
from infra.eventlog import EventLog
from infra.ticks import Timeline
from stream.deadletters import Buried
from stream.events import ItemKind
from stream.features.catalogue import Catalogue, ItemRows
from stream.wire.items import read_items
from stream.wire.limits import Rules

POLL_S = 0.002
POLL_MOST_S = 0.5


class ItemsFollower:
    """Adds records of `items` to a catalogue, from the start of the topic or an offset."""

    def __init__(
        self,
        log: EventLog,
        catalogue: Catalogue,
        timeline: Timeline,
        *,
        offset: int = 0,
        wire: WireConfig | None = None,
    ) -> None:
        self._log, self._timeline = log, timeline
        self._rules, self._buried = Rules(wire or WireConfig(), timeline.skew_ms), Buried(log)
        self.catalogue = catalogue
        self.offset = max(offset, log.start_offset("items", 0))
        self._newest_ms = -1

    def reach(self, tick: int, *, stop: Callable[[], bool] = lambda: False) -> bool:
        """Return once every item that counts in `tick` is in the catalogue; False where `stop()` came first."""
        while not self._complete(tick):
            started = time.perf_counter()
            if not self._read():
                if stop():
                    return False
                # On a cluster a look is a request; one that took an outage is no reason to wait as long again.
                time.sleep(min(max(POLL_S, time.perf_counter() - started), POLL_MOST_S))
        return True

    def _complete(self, tick: int) -> bool:
        return self._newest_ms - self._timeline.disorder_bound_ms >= self._timeline.end_ms(tick)

    def _read(self) -> int:
        if self.offset >= self._log.end_offset("items", 0):
            return 0
        records = self._log.read("items", 0, self.offset)
        self._buried.update()
        for record in records:
            rows = read_items(record, self._rules, self._buried.rows("items", 0, record.offset)).items
            if len(rows):
                self._newest_ms = max(self._newest_ms, int(rows.ingested_ms.max()))
            kept = np.flatnonzero(rows.kind == ItemKind.ITEM)
            if len(kept):
                words = rows.words.take(kept)
                self.catalogue.add(
                    ItemRows.of(
                        item=rows.item[kept],
                        category=rows.category[kept],
                        subcategory=rows.subcategory[kept],
                        words=(words.offsets, words.values),
                        published_ms=rows.published_ms[kept],
                        ingested_ms=rows.ingested_ms[kept],
                        timeline=self._timeline,
                    )
                )
            self.offset = record.offset + 1
        return len(records)
