"""What one call puts on each topic, and who reads it there."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from processors.capacity.profile import Profile, Records, Traffic
from processors.pipeline import PIPELINE
from processors.webhooks.subscriptions import TOPICS as RELAYED
from schemas.events import EVENTS, AudioFrame, Control, Session, SpeechChunk
from streams.topics import state_topic

# Readers that are no stages; a test holds the gateway's against its own list.
GATEWAY_READS = (
    "voice.sessions",
    "voice.transcripts",
    "voice.intents",
    "voice.responses",
    "voice.audio.out",
    "voice.control",
)
GATEWAY_WRITES = (Session.TOPIC, AudioFrame.TOPIC, Control.TOPIC)
SUNK = tuple(event.TOPIC for event in EVENTS)
READS: Mapping[str, tuple[str, ...]] = {
    **{stage.name: tuple(event.TOPIC for event in stage.consumes) for stage in PIPELINE},
    "gateway": GATEWAY_READS,
    "sink": SUNK,
    "relay": RELAYED,
}
WRITES: Mapping[str, tuple[str, ...]] = {
    **{stage.name: (stage.produces.TOPIC, state_topic(stage.name)) for stage in PIPELINE},
    "gateway": GATEWAY_WRITES,
}


@dataclass(frozen=True, slots=True)
class Flow:
    """Of one topic, from one call: `record_bytes` without sound."""

    topic: str
    records_s: float
    bytes_s: float
    record_bytes: float
    readers: int


Flows = Mapping[str, Flow]


def flows(profile: Profile) -> Flows:
    """By topic."""
    return {topic: _flow(topic, records, profile.traffic) for topic, records in profile.records.items()}


def _flow(topic: str, records: Records, traffic: Traffic) -> Flow:
    records_s, sound_s = _rates(topic, records, traffic)
    readers = sum(topic in read for read in READS.values())
    size = records.size.value
    return Flow(topic, records_s, records_s * size + sound_s, size, readers)


def _rates(topic: str, records: Records, traffic: Traffic) -> tuple[float, float]:
    """Records, and bytes of sound, in a second."""
    turn_s, a_second = traffic.turn.value, 1000 * traffic.sound.value
    if topic == AudioFrame.TOPIC:
        loud_s = traffic.speech.value + traffic.pause.value
        frames = 1000 * (loud_s / traffic.frame.value + (turn_s - loud_s) / traffic.quiet_frame.value)
        return frames / turn_s, a_second
    if topic == SpeechChunk.TOPIC:
        # The last record of a turn says that it is over.
        return (1000 * traffic.reply.value / traffic.chunk.value + 1) / turn_s, a_second * traffic.reply.value / turn_s
    assert records.each is not None
    return records.each.value / turn_s, 0.0


def rate(flowing: Flows, topics: Iterable[str]) -> float:
    """Records a second of one call on those topics together."""
    return sum(flowing[topic].records_s for topic in topics if topic in flowing)
