"""Makes the cluster's topics what the catalogue says: safe to repeat, and refuses what would break keying.

`python -m streams.provision` does so for the cluster of the environment's settings, and says what it changed.
"""

import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ClusterMetadata,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
    TopicMetadata,
)

from streams.client import LogError, client_config
from streams.settings import Settings
from streams.topics import TOPICS, Topic

_TIMEOUT_S = 30.0
_PAUSE_S = 0.02
_ATTEMPTS = 500


class ProvisionError(RuntimeError):
    """The cluster is not fit for the settings, nothing was changed; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Change:
    """One value of a topic's configuration that was not as the catalogue has it."""

    topic: str
    key: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Report:
    """What provisioning did; `created` and `unchanged` hold topic names."""

    created: tuple[str, ...]
    changed: tuple[Change, ...]
    unchanged: tuple[str, ...]


def ensure_topics(settings: Settings, topics: Mapping[str, Topic] = TOPICS) -> Report:
    """Creates the topics that are missing and corrects the configuration of those that differ.

    Checks everything before it changes anything. Raises ProvisionError for a partition count or replication other
    than that of the settings, and when the cluster cannot be asked. Several processes may do this at once. Blocks.
    """
    admin = AdminClient(client_config(settings, "provision"))
    try:
        before = admin.list_topics(timeout=_TIMEOUT_S)
        _check_cluster(settings, before)
        _check_topics(settings, topics, before)
        missing = [topic for name, topic in topics.items() if name not in before.topics]
        created = _create(admin, settings, missing)
        if len(created) < len(missing):
            # Another process was faster with some; it may have had other settings.
            _check_topics(settings, topics, admin.list_topics(timeout=_TIMEOUT_S))
        _await(lambda: _leaders(admin).issuperset(topics), "the new topics have no leaders yet")
        changes = _correct(admin, settings, [topic for topic in topics.values() if topic.name not in created])
    except KafkaException as error:
        raise ProvisionError(f"the Kafka cluster {settings.kafka.bootstrap_servers} said: {_reason(error)}") from error
    touched = {*created, *(change.topic for change in changes)}
    return Report(tuple(created), tuple(changes), tuple(name for name in topics if name not in touched))


def _check_cluster(settings: Settings, cluster: ClusterMetadata) -> None:
    kafka = settings.kafka
    if kafka.min_insync_replicas > kafka.replication_factor:
        raise ProvisionError(
            f"kafka.min_insync_replicas={kafka.min_insync_replicas} is above "
            f"kafka.replication_factor={kafka.replication_factor}: nothing could ever be written. Lower the first "
            "(TRUNKLINE_KAFKA__MIN_INSYNC_REPLICAS) or raise the second (TRUNKLINE_KAFKA__REPLICATION_FACTOR)"
        )
    if len(cluster.brokers) < kafka.replication_factor:
        raise ProvisionError(
            f"kafka.replication_factor={kafka.replication_factor} needs as many brokers, and the cluster "
            f"{kafka.bootstrap_servers} has {len(cluster.brokers)}. Add brokers, or lower "
            "TRUNKLINE_KAFKA__REPLICATION_FACTOR"
        )


def _check_topics(settings: Settings, topics: Mapping[str, Topic], cluster: ClusterMetadata) -> None:
    existing = [(topic, cluster.topics[name]) for name, topic in topics.items() if name in cluster.topics]
    _check_equal_partitions(existing)
    for topic, metadata in existing:
        wanted, found = topic.partitions(settings), len(metadata.partitions)
        if found != wanted:
            raise ProvisionError(
                f"topic {topic.name} has {found} partitions and the settings ask for {wanted}: sessions that have run "
                "would be looked for in other partitions than those they are in. Set "
                f"TRUNKLINE_KAFKA__PARTITIONS={found}, or use a cluster without these topics"
            )
        replicas = min(len(partition.replicas) for partition in metadata.partitions.values())
        if replicas < settings.kafka.replication_factor:
            raise ProvisionError(
                f"topic {topic.name} has {replicas} replicas and the settings ask for "
                f"{settings.kafka.replication_factor}. Add replicas with kafka-reassign-partitions, or set "
                f"TRUNKLINE_KAFKA__REPLICATION_FACTOR={replicas}"
            )


def _check_equal_partitions(existing: list[tuple[Topic, TopicMetadata]]) -> None:
    counts = {topic.name: len(metadata.partitions) for topic, metadata in existing if topic.conversation}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ProvisionError(
            f"the conversation topics have different partition counts ({listed}): a session's events would not share "
            "a partition number, and no worker could own a session. Make them equal by deleting and recreating those "
            "that hold nothing of worth"
        )


def _create(admin: AdminClient, settings: Settings, missing: list[Topic]) -> list[str]:
    """The names of those that this call created; the others had been created meanwhile."""
    if not missing:
        return []
    requests = [
        NewTopic(
            topic.name,
            num_partitions=topic.partitions(settings),
            replication_factor=settings.kafka.replication_factor,
            config=topic.config(settings),
        )
        for topic in missing
    ]
    created: list[str] = []
    futures: dict[str, Future[None]] = admin.create_topics(requests, operation_timeout=_TIMEOUT_S)
    for name, future in futures.items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise ProvisionError(f"topic {name} could not be created: {_reason(error)}") from error
        else:
            created.append(name)
    return created


def _correct(admin: AdminClient, settings: Settings, topics: list[Topic]) -> list[Change]:
    """Sets what differs from the catalogue and leaves every other setting of the topics as it is."""
    if not topics:
        return []
    changes = _differences(admin, settings, topics)
    if changes:
        edits = [
            ConfigResource(
                ResourceType.TOPIC,
                name,
                incremental_configs=[
                    ConfigEntry(change.key, change.after, incremental_operation=AlterConfigOpType.SET)
                    for change in changes
                    if change.topic == name
                ],
            )
            for name in dict.fromkeys(change.topic for change in changes)
        ]
        for future in admin.incremental_alter_configs(edits, request_timeout=_TIMEOUT_S).values():
            future.result()
        _await(lambda: not _differences(admin, settings, topics), "the new configuration does not show yet")
    return changes


def _differences(admin: AdminClient, settings: Settings, topics: list[Topic]) -> list[Change]:
    resources = [ConfigResource(ResourceType.TOPIC, topic.name) for topic in topics]
    found: dict[str, Mapping[str, Any]] = {
        resource.name: future.result()
        for resource, future in admin.describe_configs(resources, request_timeout=_TIMEOUT_S).items()
    }
    return [
        Change(topic.name, key, str(found[topic.name][key].value), wanted)
        for topic in topics
        for key, wanted in topic.config(settings).items()
        if str(found[topic.name][key].value) != wanted
    ]


def _leaders(admin: AdminClient) -> set[str]:
    """The topics of which every partition has a leader."""
    topics = admin.list_topics(timeout=_TIMEOUT_S).topics.items()
    return {name for name, topic in topics if all(one.leader >= 0 for one in topic.partitions.values())}


def _await(done: Callable[[], bool], otherwise: str) -> None:
    """Brokers learn of what the controller has acknowledged some milliseconds later; callers are to find it there."""
    for _ in range(_ATTEMPTS):
        if done():
            return
        time.sleep(_PAUSE_S)
    raise ProvisionError(f"the cluster acknowledged the change, but {otherwise}: is a broker down?")


def _reason(error: KafkaException) -> str:
    cause = error.args[0]
    return cause.str() if isinstance(cause, KafkaError) else str(cause)


def main() -> None:
    """Provisions once; exits with 1 and a message when the cluster is not fit."""
    try:
        report = ensure_topics(Settings())
    except (ProvisionError, LogError) as error:
        sys.exit(f"trunkline: {error}")
    for name in report.created:
        print(f"{name} created")
    for change in report.changed:
        print(f"{change.topic} {change.key} {change.before} -> {change.after}")
    print(f"{len(report.created)} created, {len(report.changed)} changed, {len(report.unchanged)} as they should be")


if __name__ == "__main__":
    main()
