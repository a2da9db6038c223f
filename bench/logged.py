"""What the log says about bench calls: when each step of an answer was written, and what was understood."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from schemas.event import Event
from schemas.events import (
    Intent,
    Response,
    Session,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)
from streams.client import Partition
from streams.consumer import BEGINNING, END, read_range
from streams.registry import codec_for
from streams.settings import Settings

_TOPICS = ("voice.sessions", "voice.transcripts", "voice.intents", "voice.responses", "voice.audio.out")
_CAUSES_MAX = 200


@dataclass(slots=True)
class Logged:
    """One session's events, in the log's order."""

    events: list[Event] = field(default_factory=list)

    def finals(self, from_s: float, to_s: float) -> list[Transcript]:
        """Utterances that were taken for finished, by when that was written."""
        return [
            one
            for one in self.events
            if isinstance(one, Transcript) and one.kind is TranscriptKind.FINAL and from_s <= _at_s(one) < to_s
        ]

    def parts_s(self, final: Transcript) -> Mapping[str, float]:
        """When the steps were written that led to the first audio which answers this final; seconds since the epoch.

        The steps are those that the audio names as its causes: with speculation they may be older than the final.
        """
        by_id = {one.event_id: one for one in self.events}
        found = {"final": _at_s(final)}
        first = next((one for one in self.events if _answers(one, final) and not _void(one, self.events)), None)
        cause: Event | None = first
        for _ in range(_CAUSES_MAX):
            if cause is None:
                break
            name = _STEPS.get(type(cause))
            if name is not None:
                found[name] = _at_s(cause)
            cause = by_id.get(cause.causation_id or "")
        return found


_STEPS: Mapping[type[Event], str] = {
    Intent: "intent",
    Response: "first sentence",
    SpeechChunk: "first audio in the log",
    Transcript: "transcript worked on",
}


def _answers(one: Event, final: Transcript) -> bool:
    return isinstance(one, SpeechChunk) and one.kind is SpeechChunkKind.AUDIO and one.turn == final.turn


def _void(chunk: Event, events: Sequence[Event]) -> bool:
    """Whether a later revision's audio took the chunk's place."""
    assert isinstance(chunk, SpeechChunk)
    rivals = (one for one in events if isinstance(one, SpeechChunk) and one.turn == chunk.turn)
    return any(one.revision > chunk.revision and one.kind is SpeechChunkKind.AUDIO for one in rivals)


def read_sessions(settings: Settings, callers: Sequence[str]) -> dict[str, Logged]:
    """The sessions of those callers, by caller; a caller without a session is missing."""
    return asyncio.run(_read(settings, frozenset(callers)))


async def _read(settings: Settings, callers: frozenset[str]) -> dict[str, Logged]:
    codec = codec_for(settings)
    ranges = {
        Partition(topic, number): (BEGINNING, END) for topic in _TOPICS for number in range(settings.kafka.partitions)
    }
    by_session: dict[str, list[Event]] = defaultdict(list)
    async for record in read_range(settings, ranges, "bench.logged"):
        event = codec.decode(record.topic, record.value)
        by_session[event.session_id].append(event)
    found = {}
    for events in by_session.values():
        names = {one.caller for one in events if isinstance(one, Session)} & callers
        for name in names:
            if name is not None:
                found[name] = Logged(sorted(events, key=lambda one: one.occurred_at))
    return found


def _at_s(event: Event) -> float:
    return event.occurred_at / 1e6
