"""The catalogue: every topic of the platform, made from the schemas, plus one compacted topic of snapshots per stage,
those of webhook subscriptions and of how far the relay is with each, that of API keys, that of customers' health, and
that of words in the clear.

Audio is kept for a month, so that last month's calls can be replayed through a new model; words for a little over a
year; dead letters, attempts to tell others and hints for a quarter, time enough to be looked at; checkpoints of the
audit record for ever. `kafka.retention_days` in the settings overrides any.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from schemas.event import Event
from schemas.events import EVENTS
from streams.settings import Settings

STAGES = ("stt", "intent", "llm", "tts")
SUBSCRIPTIONS = "voice.webhooks"
KEYS = "voice.keys"
CLEAR = "voice.clear"
CONVERSATION = (
    "voice.sessions",
    "voice.audio.in",
    "voice.transcripts",
    "voice.intents",
    "voice.responses",
    "voice.audio.out",
    "voice.control",
)

_MINUTE_MS = 60 * 1000
_DAY_MS = 24 * 60 * _MINUTE_MS
_MIB = 1024 * 1024
_RETENTION_DAYS = {
    "voice.audio.in": 32,
    "voice.audio.out": 32,
    "voice.assist": 92,
    "voice.deadletters": 92,
    "voice.deliveries": 92,
}
_TEXT_RETENTION_DAYS = 400
# Each names the one before, down to the first, which auditors may ask for.
_KEPT_FOR_EVER = frozenset({"voice.checkpoints"})
# Nothing there can be erased: it is gone soon by itself.
_CLEAR_RETENTION_DAYS = 7
# A dead letter holds a whole record of another topic and its envelope. Kafka applies the limit to a batch, not to a
# record: none is below librdkafka's default batch of 1,000,000 bytes, or other people's bursts would be refused whole.
_RECORD_BYTES_MAX = {"voice.deadletters": 2 * _MIB}


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic; `event` is None where values are no Avro events: snapshots, subscriptions, keys, words in the clear.

    Events are keyed by session id, and every topic has `kafka.partitions` partitions, so that a session lives in the
    same partition number of each. `retention_ms` is the default, -1 for ever; `config` says what applies.
    """

    name: str
    event: type[Event] | None
    retention_ms: int
    cleanup: Literal["delete", "compact"] = "delete"
    conversation: bool = True
    record_bytes_max: int = _MIB

    def partitions(self, settings: Settings) -> int:
        """How many partitions it has."""
        return settings.kafka.partitions

    def retention_days(self, settings: Settings) -> float:
        """For how long records are kept; infinite: for ever."""
        days = settings.kafka.retention_days.get(self.name, self.retention_ms / _DAY_MS)
        return math.inf if days < 0 else days

    def config(self, settings: Settings) -> dict[str, str]:
        """The topic's configuration, as Kafka's AdminClient takes it."""
        days = settings.kafka.retention_days.get(self.name)
        config = {
            "cleanup.policy": self.cleanup,
            "retention.ms": str(self.retention_ms if days is None else days * _DAY_MS),
            "max.message.bytes": str(self.record_bytes_max),
            "min.insync.replicas": str(settings.kafka.min_insync_replicas),
            # What was written since some moment is looked up by time after a crash. Stamped by its writers, whose
            # clocks differ and step, it would not be found.
            "message.timestamp.type": "LogAppendTime",
        }
        if self.cleanup == "compact":
            # Snapshots are rewritten all the time, and a takeover reads what was not yet compacted: the part being
            # written, which never is, and what the cleaner has not come round to. So parts are small, and a deleted
            # snapshot leaves no trace longer than any reader needs.
            config |= {
                "segment.bytes": str(_MIB),
                "segment.ms": str(_MINUTE_MS),
                "min.cleanable.dirty.ratio": "0.01",
                "delete.retention.ms": str(_MINUTE_MS),
            }
        return config


def state_topic(stage: str) -> str:
    """The compacted topic that holds the stage's snapshots."""
    return f"voice.state.{stage}"


def consumer_group(stage: str) -> str:
    """The consumer group of the stage's workers."""
    return f"trunkline.{stage}"


def _retention_ms(name: str) -> int:
    return -1 if name in _KEPT_FOR_EVER else _RETENTION_DAYS.get(name, _TEXT_RETENTION_DAYS) * _DAY_MS


def _catalogue() -> Mapping[str, Topic]:
    topics = [
        Topic(
            name=event.TOPIC,
            event=event,
            retention_ms=_retention_ms(event.TOPIC),
            conversation=event.TOPIC in CONVERSATION,
            record_bytes_max=_RECORD_BYTES_MAX.get(event.TOPIC, _MIB),
        )
        for event in EVENTS
    ]
    topics += [
        Topic(name=name, event=None, retention_ms=-1, cleanup="compact", conversation=False)
        for name in (*(state_topic(stage) for stage in (*STAGES, "webhooks", "crm")), SUBSCRIPTIONS, KEYS)
    ]
    topics.append(Topic(name=CLEAR, event=None, retention_ms=_CLEAR_RETENTION_DAYS * _DAY_MS, conversation=False))
    return MappingProxyType({topic.name: topic for topic in topics})


TOPICS: Mapping[str, Topic] = _catalogue()
