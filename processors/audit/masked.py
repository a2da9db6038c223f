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
    hidden = list(_said(events, policies))
    sentences = set(_spoken(events, policies))
    return [_masked(event, policies, hidden, sentences) for event in events]


def _said(events: Iterable[Event], policies: Policies) -> Iterable[tuple[int, int]]:
    for event in events:
        if isinstance(event, Transcript) and event.kind is TranscriptKind.FINAL:
            yield from hidden_ms(event.words, policies.of(event.tenant_id).redaction)


def _spoken(events: Iterable[Event], policies: Policies) -> Iterable[_Sentence]:
    for event in events:
        if isinstance(event, Response | SpeechChunk) and policies.redacted(event) != event:
            yield event.turn, event.sentence


def _masked(event: Event, policies: Policies, hidden: Sequence[tuple[int, int]], sentences: set[_Sentence]) -> Event:
    shown = policies.redacted(event)
    if isinstance(shown, AudioFrame):
        start_ms = 1000 * shown.sample_index / shown.sample_rate_hz
        return replace(shown, pcm=silenced(shown.pcm, start_ms, shown.sample_rate_hz, hidden))
    if isinstance(shown, SpeechChunk) and (shown.turn, shown.sentence) in sentences:
        return replace(shown, pcm=bytes(len(shown.pcm)))
    return shown
