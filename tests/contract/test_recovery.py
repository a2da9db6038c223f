"""A stage that dies in the middle of its work, on a real broker with the real cores: the next life finishes it.

The lives share a process; a life ends by being forgotten, after which nothing of it is acknowledged or committed.
"""

import asyncio
import time
import uuid
import wave
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import numpy as np
import pytest

from bench.recovery import Desk, Scripted, embed
from processors.agents import load_agents
from processors.engine import CallTool, EngineClient, Generate, Generated, Reply, Request, Transcribe, Transcribed
from processors.llm.stage import create_core
from processors.llm.tools import HttpTools
from processors.pipeline import STAGES
from processors.runner import Record
from processors.stt import vad
from processors.stt.core import SttCore
from schemas.event import Event
from schemas.events import AudioFrame, Entity, Intent, IntentKind, Response, ResponseKind, Transcript, TranscriptKind
from streams.client import Partition
from streams.consumer import BEGINNING, END, LogReader, read_range
from streams.keys import partition_of
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import REPOSITORY, Settings
from tests.contract.test_erp import Erp, erp
from tests.support.kafka import TestBroker

__all__ = ["erp"]

LIMIT_S = 30.0
FRAME_SAMPLES = 640


class Dying:
    """An engine that stops answering for good, `before` it is asked or after its first reply."""

    def __init__(self, engine: EngineClient, before: bool) -> None:
        self._engine = engine
        self._before = before
        self.reached = asyncio.Event()

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`."""
        if not self._before:
            async for reply in self._engine.ask(request, deadline_s):
                if not isinstance(request, CallTool):
                    yield reply
                break
        self.reached.set()
        await asyncio.Event().wait()

    async def close(self) -> None:
        """See `EngineClient`."""


class Writer:
    """A language model with its own words for each life."""

    def __init__(self, word: str) -> None:
        self._word = word

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`."""
        assert isinstance(request, Generate)
        for number in ("first", "second", "third"):
            yield Generated(f"This is the {number} sentence of the {self._word} life. ", "writer")

    async def close(self) -> None:
        """See `EngineClient`."""


def envelope(session_id: str, turn: int, seq: int = 0) -> dict[str, Any]:
    return {
        "event_id": str(uuid.uuid4()),
        "session_id": session_id,
        "tenant_id": "demo",
        "agent_id": "shop",
        "turn": turn,
        "seq": seq,
        "occurred_at": time.time_ns() // 1000,
    }


async def truth(settings: Settings, kind: type[Event], session_id: str) -> list[Any]:
    """What readers see: the first event with an id."""
    found: dict[str, Event] = {}
    for event in await written(settings, kind, session_id):
        found.setdefault(event.event_id, event)
    return list(found.values())


async def written(settings: Settings, kind: type[Event], session_id: str) -> list[Any]:
    """Everything of the call on the topic, whatever else lies in its partition."""
    codec, found = codec_for(settings), list[Event]()
    where = Partition(kind.TOPIC, partition_of(session_id, settings.kafka.partitions))
    async for record in read_range(settings, {where: (BEGINNING, END)}):
        if record.key == session_id.encode():
            found.append(codec.decode(record.topic, record.value))
    return found


async def nothing_was_repeated(settings: Settings, kind: type[Event], session_id: str) -> None:
    """What the former life wrote was adopted, not made again."""
    ids = [event.event_id for event in await written(settings, kind, session_id)]
    assert len(ids) == len(set(ids))


async def until(settings: Settings, kind: type[Event], session_id: str, wanted: Callable[[list[Any]], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not wanted(await truth(settings, kind, session_id)):  # noqa: ASYNC110  it happens in the log
            await asyncio.sleep(0.05)


async def next_life(desk: Desk, undone: list[Record]) -> None:
    """Reads back what the log knows and redoes the records."""
    first: dict[Partition, int] = {}
    for record in undone:
        first.setdefault(Partition(record.position.topic, record.position.partition), record.position.offset)
    async with LogReader(desk.settings, "test.recovery", note_ends=True) as reader:
        await desk.take_over(reader, await desk.committed(reader, first))
    for record in undone:
        desk.runner.deliver(record)


def conversation(settings: Settings, url: str) -> Any:
    return create_core(settings.model_copy(update={"erp_url": url}), load_agents(settings.agents_dir), embed, {})


def ticket_wanted(session_id: str) -> Intent:
    text = "my lamp is broken, please open a ticket"
    entities = (Entity("problem", "the lamp is broken", "lamp is broken", 3, 17),)
    more: Mapping[str, Any] = {"kind": IntentKind.DETECTED, "intent": "open_ticket", "confidence": 0.95}
    return Intent(**envelope(session_id, 1), **more, text=text, entities=entities)


@pytest.mark.parametrize("before", [True, False], ids=["before the effect", "after the effect"])
async def test_a_tool_call_in_flight_has_one_effect(kafka: TestBroker, erp: Erp, before: bool) -> None:
    settings, session_id = kafka.settings(), str(uuid.uuid4())
    core, stage = conversation(settings, erp.url), STAGES["llm"]
    tools = Dying(HttpTools(), before)
    async with LogProducer(settings, "test.recovery") as producer:
        first = Desk(settings, stage, core, producer, {"llm": Scripted(), "embeddings": Scripted(), "tools": tools})
        record = await first.write(ticket_wanted(session_id))
        first.runner.deliver(record)
        await asyncio.wait_for(tools.reached.wait(), LIMIT_S)
        called = [ResponseKind.TOOL_CALLED]
        await until(settings, Response, session_id, lambda found: [one.kind for one in found][-1:] == called)
        assert len(await asyncio.to_thread(erp.rows, "tickets")) == (0 if before else 1)
        first.runner.forget(record.position.partition)
        engines: dict[str, EngineClient] = {"llm": Scripted(), "embeddings": Scripted(), "tools": HttpTools()}
        second = Desk(settings, stage, core, producer, engines)
        await next_life(second, [record])
        await second.until_done(record.position)
    kinds = [event.kind for event in await truth(settings, Response, session_id)]
    assert kinds.count(ResponseKind.TOOL_CALLED) == kinds.count(ResponseKind.TOOL_RETURNED) == 1
    assert kinds[-1] is ResponseKind.COMPLETED
    assert len(await asyncio.to_thread(erp.rows, "tickets")) == 1
    await nothing_was_repeated(settings, Response, session_id)


async def test_an_answer_half_said_is_finished(kafka: TestBroker) -> None:
    settings, session_id = kafka.settings(), str(uuid.uuid4())
    core, stage = conversation(settings, "http://127.0.0.1:1"), STAGES["llm"]
    intent = Intent(
        **envelope(session_id, 1), kind=IntentKind.DETECTED, intent="", confidence=0.1, text="What is a sentence?"
    )
    dying = Dying(Writer("former"), before=False)
    others = {"embeddings": Scripted(), "tools": Scripted()}
    async with LogProducer(settings, "test.recovery") as producer:
        undisturbed = Desk(settings, stage, core, producer, {"llm": Writer("only"), **others})
        twin = await undisturbed.write(Intent(**{**_fields(intent), **envelope(str(uuid.uuid4()), 1)}))
        undisturbed.runner.deliver(twin)
        await undisturbed.until_done(twin.position)
        usual = _sentences(await truth(settings, Response, twin.event.session_id))
        first = Desk(settings, stage, core, producer, {"llm": dying, **others})
        record = await first.write(intent)
        first.runner.deliver(record)
        await asyncio.wait_for(dying.reached.wait(), LIMIT_S)
        await until(settings, Response, session_id, lambda found: bool(_sentences(found)))
        first.runner.forget(record.position.partition)
        said = _sentences(await truth(settings, Response, session_id))
        second = Desk(settings, stage, core, producer, {"llm": Writer("latter"), **others})
        await next_life(second, [record])
        await second.until_done(record.position)
    found = await truth(settings, Response, session_id)
    sentences = _sentences(found)
    assert sentences[: len(said)] == said
    assert [event.sentence for event in found if event.kind is ResponseKind.SENTENCE] == list(range(len(usual)))
    assert [event.kind for event in found].count(ResponseKind.COMPLETED) == 1
    assert len(set(sentences)) == len(sentences)
    await nothing_was_repeated(settings, Response, session_id)


def _fields(event: Any) -> dict[str, Any]:
    return {name: getattr(event, name) for name in ("kind", "intent", "confidence", "text")}


def _sentences(events: list[Any]) -> list[str]:
    return [event.text for event in events if event.kind is ResponseKind.SENTENCE]


class Ear:
    """Reads how much audio it was given."""

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`."""
        assert isinstance(request, Transcribe)
        yield Transcribed(f"{len(request.pcm)} bytes", (), 0.9, "en", "ear", 1.0)

    async def close(self) -> None:
        """See `EngineClient`."""


def frames(session_id: str) -> list[AudioFrame]:
    with wave.open(str(sorted((REPOSITORY / "infra" / "demo").glob("*.wav"))[0])) as file:
        spoken = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        at_16k = np.arange(0, len(spoken), file.getframerate() / 16000)
    audio = np.interp(at_16k, np.arange(len(spoken)), spoken).astype(np.int16).tobytes() + bytes(2 * 32000)
    size = 2 * FRAME_SAMPLES
    return [
        AudioFrame(
            **envelope(session_id, 0, at // size),
            captured_at=time.time_ns() // 1000,
            sample_index=at // 2,
            pcm=audio[at : at + size],
        )
        for at in range(0, len(audio) - size, size)
    ]


async def test_an_utterance_half_heard_is_heard_whole(kafka: TestBroker) -> None:
    settings, stage = kafka.settings(), STAGES["stt"]
    core = SttCore(vad.create(settings))
    undisturbed, session_id = str(uuid.uuid4()), str(uuid.uuid4())
    async with LogProducer(settings, "test.recovery") as producer:
        desk = Desk(settings, stage, core, producer, {"stt": Ear()})
        for frame in frames(undisturbed):
            desk.runner.deliver(await desk.write(frame))
        await until(settings, Transcript, undisturbed, lambda found: bool(_finals(found)))
        expected = _finals(await truth(settings, Transcript, undisturbed))
        first = Desk(settings, stage, core, producer, {"stt": Ear()})
        records = [await first.write(frame) for frame in frames(session_id)]
        heard = next(index for index, frame in enumerate(records) if frame.event.sample_index >= 2 * 16000)  # type: ignore[attr-defined]
        for record in records[:heard]:
            first.runner.deliver(record)
        started = [TranscriptKind.SPEECH_STARTED]
        await until(settings, Transcript, session_id, lambda found: [one.kind for one in found][:1] == started)
        await first.runner.drain(5)
        first.runner.forget(records[0].position.partition)
        undone = [record for record in records if record.position not in first.done]
        assert len(records) - len(undone) < heard
        second = Desk(settings, stage, core, producer, {"stt": Ear()})
        await next_life(second, undone)
        await until(settings, Transcript, session_id, lambda found: len(_finals(found)) >= len(expected))
    found = await truth(settings, Transcript, session_id)
    assert _finals(found) == expected
    assert [event.kind for event in found].count(TranscriptKind.SPEECH_STARTED) == len(expected)
    await nothing_was_repeated(settings, Transcript, session_id)


def _finals(events: list[Any]) -> list[tuple[int, int, int, str]]:
    return [
        (event.turn, event.audio_start_ms, event.audio_end_ms, event.text)
        for event in events
        if event.kind is TranscriptKind.FINAL
    ]
