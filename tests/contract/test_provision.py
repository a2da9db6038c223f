"""Provisioning against a real broker."""

import pytest
from confluent_kafka.admin import AdminClient

from streams.provision import ProvisionError, ensure_topics
from streams.topics import TOPICS
from tests.support.kafka import TestBroker


def test_every_topic_of_the_catalogue_is_there_with_equal_partitions(kafka: TestBroker) -> None:
    found = AdminClient({"bootstrap.servers": kafka.bootstrap_servers}).list_topics(timeout=10).topics
    partitions = kafka.settings().kafka.partitions
    assert {name: len(found[name].partitions) for name in TOPICS} == dict.fromkeys(TOPICS, partitions)


def test_a_second_time_changes_nothing(kafka: TestBroker) -> None:
    report = ensure_topics(kafka.settings())
    assert report.created == ()
    assert report.changed == ()
    assert set(report.unchanged) == set(TOPICS)


def test_a_changed_retention_is_applied_and_reported(kafka: TestBroker) -> None:
    day_ms = 24 * 60 * 60 * 1000
    changed = kafka.settings(kafka={"retention_days": {"voice.deliveries": 3}})
    report = ensure_topics(changed)
    assert [(change.topic, change.key, change.after) for change in report.changed] == [
        ("voice.deliveries", "retention.ms", str(3 * day_ms))
    ]
    assert ensure_topics(changed).changed == ()
    assert [change.before for change in ensure_topics(kafka.settings()).changed] == [str(3 * day_ms)]


def test_another_partition_count_is_refused(kafka: TestBroker) -> None:
    with pytest.raises(ProvisionError, match=r"has 8 partitions and the settings ask for 16.*PARTITIONS=8"):
        ensure_topics(kafka.settings(kafka={"partitions": 16}))


def test_more_replicas_than_brokers_are_refused(kafka: TestBroker) -> None:
    with pytest.raises(ProvisionError, match=r"replication_factor=3 needs as many brokers.*has 1"):
        ensure_topics(kafka.settings(kafka={"replication_factor": 3}))


def test_min_insync_above_replication_is_refused(kafka: TestBroker) -> None:
    with pytest.raises(ProvisionError, match="min_insync_replicas=2 is above"):
        ensure_topics(kafka.settings(kafka={"min_insync_replicas": 2}))


def test_an_unreachable_cluster_is_named(kafka: TestBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.provision._TIMEOUT_S", 1.0)
    with pytest.raises(ProvisionError, match=r"127\.0\.0\.1:1 said"):
        ensure_topics(kafka.settings(kafka={"bootstrap_servers": "127.0.0.1:1"}))
