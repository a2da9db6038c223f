"""Undecodable records of every topic become dead letters, of each topic by one reader alone."""

from collections import Counter

from processors.clickhouse.sink import GUARDED
from processors.pipeline import PIPELINE
from schemas.events import EVENTS


def test_each_topic_has_one_guard() -> None:
    guards = Counter([*(event.TOPIC for stage in PIPELINE for event in stage.guards), *GUARDED])
    assert guards == Counter(event.TOPIC for event in EVENTS)
