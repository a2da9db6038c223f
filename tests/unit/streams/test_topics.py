"""The catalogue agrees with the schemas and gives what Kafka is to be told."""

import pytest

from schemas.events import EVENTS
from streams.settings import KafkaSettings, Settings
from streams.topics import CONVERSATION, STAGES, TOPICS, consumer_group, state_topic

SETTINGS = Settings(kafka=KafkaSettings(partitions=16, min_insync_replicas=2, retention_days={"voice.audio.in": 2}))


def test_every_event_has_its_topic() -> None:
    assert {topic.event for topic in TOPICS.values()} - {None} == set(EVENTS)
    assert all(TOPICS[event.TOPIC].event is event for event in EVENTS)
    assert all(name == topic.name for name, topic in TOPICS.items())


def test_the_conversation_is_what_a_session_is_made_of() -> None:
    assert {name for name, topic in TOPICS.items() if topic.conversation} == set(CONVERSATION)


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_keeps_snapshots_in_a_compacted_topic(stage: str) -> None:
    topic = TOPICS[state_topic(stage)]
    assert topic.event is None
    assert topic.config(SETTINGS)["cleanup.policy"] == "compact"
    assert consumer_group(stage) == f"trunkline.{stage}"


def test_all_topics_have_the_settings_partitions() -> None:
    assert {topic.partitions(SETTINGS) for topic in TOPICS.values()} == {16}


def test_audio_is_kept_shorter_than_words() -> None:
    assert TOPICS["voice.audio.in"].retention_ms < TOPICS["voice.transcripts"].retention_ms
    assert TOPICS["voice.audio.out"].retention_ms < TOPICS["voice.responses"].retention_ms


def test_settings_override_retention_and_demand_replicas() -> None:
    config = TOPICS["voice.audio.in"].config(SETTINGS)
    assert config["retention.ms"] == str(2 * 24 * 60 * 60 * 1000)
    assert config["min.insync.replicas"] == "2"
    assert TOPICS["voice.audio.out"].config(SETTINGS)["retention.ms"] == str(TOPICS["voice.audio.out"].retention_ms)


def test_the_broker_stamps_records_since_clocks_of_writers_differ() -> None:
    assert {topic.config(SETTINGS)["message.timestamp.type"] for topic in TOPICS.values()} == {"LogAppendTime"}


def test_a_dead_letter_has_room_for_any_record() -> None:
    largest = max(topic.record_bytes_max for name, topic in TOPICS.items() if name != "voice.deadletters")
    assert TOPICS["voice.deadletters"].record_bytes_max > largest


def test_no_topic_refuses_another_clients_default_batch() -> None:
    assert min(topic.record_bytes_max for topic in TOPICS.values()) > 1_000_000
