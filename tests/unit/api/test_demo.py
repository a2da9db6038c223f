"""What the demo counts on the topics, to compare with what ClickHouse says of the same call."""

import uuid
from dataclasses import replace
from typing import Any

import pytest

from api.demo import facts_of
from schemas import json_form
from schemas.event import Event
from schemas.events import Intent, IntentKind, SpeechChunk, SpeechChunkKind, Transcript, TranscriptKind

ENDED_US = 1_800_000_000_000_000


def made(event: type[Event], after_ms: int, **fields: Any) -> Event:
    """An event of the first turn, that long after the caller's last word."""
    at_us = ENDED_US + 1000 * after_ms
    return replace(json_form.examples(event)[0], event_id=str(uuid.uuid4()), turn=1, occurred_at=at_us, **fields)


def final(after_ms: int) -> Event:
    return made(Transcript, after_ms, kind=TranscriptKind.FINAL, revision=2, speech_ended_at=ENDED_US)


def audio(after_ms: int, revision: int) -> Event:
    return made(SpeechChunk, after_ms, kind=SpeechChunkKind.AUDIO, revision=revision)


@pytest.mark.parametrize(
    ("events", "total_ms"),
    [
        ([final(300), audio(420, 2), audio(430, 2)], 420),
        ([audio(210, 2), final(300)], 300),  # made ahead, heard with the final
        ([audio(90, 1), final(300), audio(500, 2)], 500),  # that of a void revision was never heard
    ],
)
def test_a_turns_time_is_until_its_reply_may_be_heard(events: list[Event], total_ms: int) -> None:
    intent = made(Intent, 310, kind=IntentKind.DETECTED, intent="stock")
    facts = facts_of([*events, intent])
    assert facts["turn 1"] == f"stock, {total_ms} ms to first audio"


def test_a_turn_without_a_reply_has_no_time() -> None:
    assert "turn 1" not in facts_of([final(300), audio(90, 1)])
