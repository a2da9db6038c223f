"""A call as it may be seen by those who are not to see what its tenant masks: the words, and their sound. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from processors.privacy import Policies
from processors.redaction import hidden_ms, silenced
from schemas.event import Event
from schemas.events import AudioFrame, Response, SpeechChunk, Transcript, TranscriptKind

_Sentence = tuple[int, int]  # turn, number


def masked(events: Sequence[Event], policies: Policies) -> list[Event]:
    """The events of one call in the same order. Of masked words the caller's sound is silence from the beginning of
    the first to the end of the last; of a sentence of the agent that holds some, all of it.
    """
    shown = [policies.redacted(event) for event in events]
    hidden = list(_said(events, policies))
    sentences = set(_spoken(events, shown))
    return [_silenced(event, hidden, sentences) for event in shown]


def _said(events: Iterable[Event], policies: Policies) -> Iterable[tuple[int, int]]:
    for event in events:
        if isinstance(event, Transcript) and event.kind is TranscriptKind.FINAL:
            yield from hidden_ms(event.words, policies.of(event.tenant_id).redaction)


def _spoken(events: Iterable[Event], shown: Iterable[Event]) -> Iterable[_Sentence]:
    for event, other in zip(events, shown, strict=True):
        if isinstance(event, Response | SpeechChunk) and other != event:
            yield event.turn, event.sentence


def _silenced(shown: Event, hidden: Sequence[tuple[int, int]], sentences: set[_Sentence]) -> Event:
    if isinstance(shown, AudioFrame):
        start_ms = 1000 * shown.sample_index / shown.sample_rate_hz
        return replace(shown, pcm=silenced(shown.pcm, start_ms, shown.sample_rate_hz, hidden))
    if isinstance(shown, SpeechChunk) and (shown.turn, shown.sentence) in sentences:
        return replace(shown, pcm=bytes(len(shown.pcm)))
    return shown
