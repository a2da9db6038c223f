"""What every Kafka client here shares: its connection, the two places in the log, and the one error."""

from types import TracebackType
from typing import Self

from confluent_kafka import TopicPartition

from streams.keys import Partition as Partition
from streams.keys import Position as Position
from streams.settings import Settings

# Without Nagle's algorithm a small record leaves at once instead of waiting for the previous one's acknowledgement.
_COMMON: dict[str, str | int | float | bool] = {
    "socket.nagle.disable": True,
    # What goes wrong comes back as errors of calls; librdkafka would print it a second time.
    "log_level": 2,
    # A broker that comes back, and a partition's new leader, are found soon: callers hear how long it takes.
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 500,
    "retry.backoff.ms": 50,
    "retry.backoff.max.ms": 250,
    "topic.metadata.refresh.fast.interval.ms": 50,
    "topic.metadata.refresh.interval.ms": 10_000,
    # A broker that was stopped, or cut off, takes connections and answers nothing.
    "socket.timeout.ms": 5_000,
    "socket.connection.setup.timeout.ms": 3_000,
    "socket.keepalive.enable": True,
}


class LogError(Exception):
    """The log could not be written or read; the message says where and why."""


class Closing:
    """What is closed at the end of an `async with`."""

    async def close(self) -> None:
        """Lets go of the cluster."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def client_config(settings: Settings, name: str) -> dict[str, str | int | float | bool]:
    """librdkafka's configuration for the cluster of the settings; `name` appears in the broker's logs and quotas.

    Raises LogError when the settings name no bootstrap servers (an embedded broker hands its address on as a setting).
    """
    kafka = settings.kafka
    if not kafka.bootstrap_servers:
        raise LogError("kafka.bootstrap_servers is empty: TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS=host:port is expected")
    config = _COMMON | {
        "bootstrap.servers": kafka.bootstrap_servers,
        "client.id": name,
        "security.protocol": kafka.security_protocol,
    }
    if kafka.security_protocol.startswith("SASL"):
        config |= {
            "sasl.mechanism": kafka.sasl_mechanism or "SCRAM-SHA-512",
            "sasl.username": kafka.sasl_username,
            "sasl.password": kafka.sasl_password.get_secret_value(),
        }
    if kafka.ssl_ca_location:
        config["ssl.ca.location"] = kafka.ssl_ca_location
    return config


def topic_partition(partition: Partition, offset: int) -> TopicPartition:
    """The pair as confluent-kafka takes it."""
    return TopicPartition(partition.topic, partition.partition, offset)
