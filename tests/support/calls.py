"""What became of a call: its events, and whether each turn was answered, once."""

from collections.abc import Sequence

from api.client import CallResult
from schemas.event import Event
from schemas.events import (
    Response,
    ResponseKind,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)
from streams.consumer import session_records
from streams.registry import codec_for
from tests.support.platform import Platform


async def events_of(platform: Platform, session_id: str) -> list[Event]:
    """All events of the session, in the order in which they lie in each partition."""
    codec = codec_for(platform.settings)
    return [codec.decode(record.topic, record.value) for record in await session_records(platform.settings, session_id)]


def check_answered_once(result: CallResult, events: Sequence[Event]) -> None:
    """Every turn was transcribed, answered and spoken, none twice: what was heard and what lies in the log."""
    assert not any(turn.error for turn in result.turns)
    assert all(turn.transcript and turn.reply for turn in result.turns)
    ids = [event.event_id for event in events]
    assert len(ids) == len(set(ids))
    finals = [e.turn for e in events if isinstance(e, Transcript) and e.kind is TranscriptKind.FINAL]
    assert finals == list(range(1, len(finals) + 1))
    assert len(finals) >= len(result.turns)
    completed = [e.turn for e in events if isinstance(e, Response) and e.kind is ResponseKind.COMPLETED]
    assert len(completed) == len(set(completed))
    ends = [e.turn for e in events if isinstance(e, SpeechChunk) and e.kind is SpeechChunkKind.END_OF_TURN]
    assert len(ends) == len(set(ends))
    assert {turn.turn for turn in result.turns} <= set(completed) & set(ends)
    heard = [
        (e.message["turn"], e.message["sentence"], e.message["sample_index"])
        for e in result.events
        if e.message["type"] == "audio"
    ]
    assert len(heard) == len(set(heard))
