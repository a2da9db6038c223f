"""A real call over vLLM and Coqui: the platform in Coqui's environment, vLLM's server in its own.

The caller speaks over the first answer, and hears the second one to its end.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("TTS", reason="needs the environment of `make test-engines-call`")

from api.client import CallEvent, CallResult, load_turns, place_call
from bench.faults.checks import check_heard, check_sentences, check_turns, counted, distinct
from processors.tts.core import SENTENCE_PAUSE_MS
from schemas.event import Event
from schemas.events import (
    Control,
    ControlKind,
    Response,
    ResponseKind,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)
from tests.engines.mountain import LONG_S, PATIENCE, QUESTIONS, environment
from tests.engines.tiny_coqui import make_xtts
from tests.engines.tiny_llm import ANSWER
from tests.support.calls import events_of
from tests.support.paced import PacedWay, paced_way
from tests.support.platform import Platform, in_thread, running_platform
from tests.support.vllm_server import VllmServer

VOICE = "xtts-tiny"
LISTENS_MS = 500
SAID_BEFORE = 2  # the answer stops there: it has begun, and is not over before the caller speaks


@pytest.fixture
async def way(vllm: VllmServer) -> AsyncIterator[PacedWay]:
    async with paced_way(vllm.url) as way:
        yield way


@pytest.fixture
async def platform(way: PacedWay, tmp_path: Path) -> AsyncIterator[Platform]:
    coqui = {
        "TRUNKLINE_ENGINES__TTS": "coqui",
        "TRUNKLINE_ENGINES__TTS_DIR": str(make_xtts(tmp_path / VOICE)),
        "TRUNKLINE_ENGINES__REPLICAS": "1",
    }
    # In a thread, since the way to the server is in this one.
    async with in_thread(running_platform(**environment(tmp_path, way.url), **coqui)) as running:
        yield running


class Held:
    """The server's first answer, which comes to its middle and no further."""

    def __init__(self, way: PacedWay) -> None:
        self._way = way
        self._said = 0

    def on_event(self, event: CallEvent) -> None:
        """Follows the first turn; the second answer comes as it is made."""
        match event.type, event.message.get("turn"):
            case "speech_started", 1:
                self._way.slow()
            case "sentence", 1:
                self._said += 1
                if self._said == SAID_BEFORE:
                    self._way.hold()
            case "final", 2:
                self._way.fast()


async def test_a_caller_speaks_over_one_answer_and_hears_the_next(
    platform: Platform, way: PacedWay, vllm: VllmServer
) -> None:
    first, second = load_turns(QUESTIONS)
    result = await place_call(
        platform.url,
        [replace(first, listens_ms=LISTENS_MS), second],
        agent="mountain",
        on_event=Held(way).on_event,
        patience=PATIENCE,
    )
    events = counted(distinct(await events_of(platform, result.session_id)))
    findings = [*check_turns(result, events), *check_sentences(events)]
    assert [finding.detail for finding in findings] == ["a completed at the client: 1 is missing"]  # it was cut short
    check_first_answer(result, events)
    check_second_answer(result, events)
    chunks = [
        event for event in events if isinstance(event, SpeechChunk) and event.kind is not SpeechChunkKind.END_OF_TURN
    ]
    pauses = [chunk for chunk in chunks if chunk.last_of_sentence and len(chunk.pcm) == 32 * SENTENCE_PAUSE_MS]
    assert {chunk.model for chunk in chunks if chunk not in pauses} == {VOICE}  # a pause by itself is nobody's
    rows = {row["engine"]: row["model"] for row in await asyncio.to_thread(platform.rows, "engines") if "engine" in row}
    assert rows["tts.0"] == VOICE
    async with asyncio.timeout(LONG_S):
        while await asyncio.to_thread(vllm.metric, "vllm:num_requests_running"):  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.1)


def check_first_answer(result: CallResult, events: Sequence[Event]) -> None:
    """It ended where the caller spoke: for the model, in the log, and at the caller's ear."""
    (barge_in,) = [event for event in events if isinstance(event, Control) and event.kind is ControlKind.BARGE_IN]
    assert barge_in.turn == 1
    assert barge_in.heard_ms >= LISTENS_MS
    said, end = answer(events, 1)
    assert end.kind is ResponseKind.CANCELLED
    assert said == list(ANSWER[: len(said)])
    assert 0 < len(said) < len(ANSWER)
    cut = max(at for at, event in enumerate(result.events) if event.type == "clear")
    assert result.events[cut].message["turn"] == 1
    assert [event for event in result.events[cut:] if event.type == "audio" and event.message["turn"] == 1] == []
    (finding,) = check_heard(result, events)
    assert finding.detail.startswith("turns ['1'] were cut short")


def check_second_answer(result: CallResult, events: Sequence[Event]) -> None:
    """It is whole, in the log and at the caller's ear."""
    finals = [e.turn for e in events if isinstance(e, Transcript) and e.kind is TranscriptKind.FINAL]
    assert finals == [1, 2]
    said, end = answer(events, 2)
    assert said == list(ANSWER)
    assert (end.kind, end.outcome, end.source) == (ResponseKind.COMPLETED, "answered", "model")
    assert end.text == result.turns[1].reply == " ".join(ANSWER)


def answer(events: Sequence[Event], turn: int) -> tuple[list[str], Response]:
    """The turn's sentences in their order, and its end."""
    responses = [event for event in events if isinstance(event, Response) and event.turn == turn]
    said = [event.text for event in responses if event.kind is ResponseKind.SENTENCE]
    (end,) = [event for event in responses if event.kind in (ResponseKind.COMPLETED, ResponseKind.CANCELLED)]
    return said, end
