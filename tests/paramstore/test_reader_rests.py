"""A reader of versions rests after a look in vain, but an outage does not send it to sleep."""

from typing import Any

import pytest

from infra.config import LogConfig
from infra.eventlog import create_topics, open_log
from infra.paramstore import reader as module
from infra.paramstore.reader import REST_MOST_S, VersionReader


class SlowLog:
    """A log whose questions take as long as it is told, by the clock that the reader looks at."""

    def __init__(self, log: Any) -> None:
        self._log, self.now_s, self.takes_s, self.asked = log, 0.0, 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def end_offset(self, topic: str, partition: int) -> int:
        self.asked += 1
        self.now_s += self.takes_s
        end: int = self._log.end_offset(topic, partition)
        return end


@pytest.mark.parametrize("outage_s", [0.01, 30.0])
def test_after_an_outage_a_reader_asks_again_within_its_rest(tmp_path, monkeypatch, outage_s):
    log = SlowLog(open_log(tmp_path, LogConfig()))
    create_topics(log, 1)
    monkeypatch.setattr(module.time, "perf_counter", lambda: log.now_s)
    reader = VersionReader(log)
    log.takes_s = outage_s
    assert reader.poll() is None
    log.takes_s, asked = 0.0, log.asked
    assert reader.poll() is None
    assert log.asked == asked, "it rests"
    log.now_s += REST_MOST_S + 0.001
    assert reader.poll() is None
    assert log.asked == asked + 1
