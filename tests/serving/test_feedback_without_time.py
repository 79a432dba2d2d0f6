"""A post before the run has an event time is refused, not stamped with 1970."""

import pytest

from infra.config import LogConfig, TimeConfig, WireConfig
from infra.errors import RetryableError
from infra.eventlog import create_topics, open_log
from serving.clock import EventClock
from serving.feedback import Feedback
from serving.requests import parse_events


def test_a_post_before_the_first_event_is_refused_and_nothing_is_written(tmp_path) -> None:
    log = open_log(tmp_path / "log", LogConfig())
    create_topics(log, 2)
    feedback = Feedback(log, TimeConfig().build(), EventClock(log))
    feedback.start()
    body = b'{"events": [{"type": "impression", "id": "i", "user": "U1", "items": ["N1"]}]}'
    done = feedback.submit(parse_events(body, WireConfig()))
    with pytest.raises(RetryableError, match="no event time"):
        done.result(timeout=10)
    feedback.stop()
    assert [log.end_offset("events", p) for p in (0, 1)] == [0, 0]
    log.close()
