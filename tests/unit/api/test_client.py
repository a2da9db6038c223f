"""The WAV caller against a small server that speaks the native dialect."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve

from api.client import (
    CallError,
    CallEvent,
    Ear,
    Onset,
    Patience,
    Spoken,
    calls_url,
    load_turns,
    place_call,
    summarise,
)
from api.wav import Pcm, write_stereo

SPEECH = (8000 * np.sin(np.arange(3200) / 5)).astype(np.int16)
Handler = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    async with serve(handler, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield f"http://127.0.0.1:{port}"


async def say(socket: ServerConnection, **message: Any) -> None:
    await socket.send(json.dumps(message))


async def speak(socket: ServerConnection, turn: int, pcm: Pcm) -> None:
    await say(socket, type="sentence", turn=turn, sentence=0, text=f"reply {turn}")
    await say(socket, type="audio", turn=turn, sentence=0, last_of_sentence=True)
    await socket.send(pcm.astype("<i2").tobytes())
    await say(socket, type="end_of_turn", turn=turn)
    await say(socket, type="completed", turn=turn, outcome="answered")


class Agent:
    """Greets, then answers each stretch of non-silent frames, over which it is silent; remembers what it got."""

    def __init__(self, greets: bool = True, reply: Pcm = SPEECH) -> None:
        self.greets = greets
        self.reply = reply
        self.messages: list[dict[str, Any]] = []
        self.frames: list[bytes] = []

    async def __call__(self, socket: ServerConnection) -> None:
        self.messages.append(json.loads(await socket.recv()))
        await say(socket, type="started", session_id="s", agent="shop", sample_rate_hz=16000, resume_token="r")
        if self.greets:
            await speak(socket, 0, SPEECH)
        turn, talking = 0, False
        async for data in socket:
            if isinstance(data, str):
                self.messages.append(json.loads(data))
                if self.messages[-1]["type"] == "hang_up":
                    await say(socket, type="ended", reason="caller")
                    return
                continue
            self.frames.append(data)
            loud = any(data)
            if loud and not talking:
                turn, talking = turn + 1, True
                await say(socket, type="speech_started", turn=turn)
                await say(socket, type="clear", turn=turn - 1, heard_ms=0)
            elif talking and not loud:
                talking = False
                await say(socket, type="final", turn=turn, text=f"words {turn}")
                await say(socket, type="intent", turn=turn, intent="order_status", confidence=0.9)
                await speak(socket, turn, np.concatenate([np.zeros(160, np.int16), self.reply]))


def spoken(name: str) -> Spoken:
    return Spoken(name, SPEECH, last_speech_frame=9)


async def test_each_turn_is_said_after_the_reply_before_it_has_been_heard() -> None:
    agent, seen = Agent(), list[CallEvent]()
    async with serving(agent) as url:
        result = await place_call(url, [spoken("a.wav"), spoken("b.wav")], agent="shop", on_event=seen.append)
    assert agent.messages[0] == {"type": "start", "agent": "shop", "sample_rate_hz": 16000, "context": {}}
    assert (result.session_id, result.agent, result.ended) == ("s", "shop", "caller")
    assert [(turn.turn, turn.transcript, turn.reply, turn.error) for turn in result.turns] == [
        (1, "words 1", "reply 1", ""),
        (2, "words 2", "reply 2", ""),
    ]
    kinds = [(event.type, event.message.get("turn")) for event in seen]
    assert kinds.index(("end_of_turn", 0)) < kinds.index(("speech_started", 1))
    assert kinds.index(("end_of_turn", 1)) < kinds.index(("speech_started", 2))
    audio = next(event for event in seen if event.type == "audio")
    assert audio.message["size_bytes"] == 2 * len(SPEECH)


async def test_how_the_last_turn_ended_is_waited_for_though_its_speech_is_over() -> None:
    async def hasty(socket: ServerConnection) -> None:
        """Tells it only after all speech was heard, unless the caller hangs up before."""
        await socket.recv()
        await say(socket, type="started", session_id="s", agent="shop", sample_rate_hz=16000, resume_token="r")
        ended = None
        async for data in socket:
            if isinstance(data, str) and json.loads(data)["type"] == "hang_up":
                await say(socket, type="ended", reason="caller")
                return
            if isinstance(data, bytes) and any(data) and ended is None:
                await say(socket, type="final", turn=1, text="words")
                await say(socket, type="end_of_turn", turn=1)
                ended = 0
            elif ended is not None:
                ended += 1
                if ended == 40:  # frames of 20 ms
                    await say(socket, type="completed", turn=1, outcome="answered")

    async with serving(hasty) as url:
        result = await place_call(url, [spoken("a.wav")], patience=Patience(greeting_s=0.1, told_s=60.0))
    assert [event.type for event in result.events][-2:] == ["completed", "ended"]


async def test_a_caller_who_listens_to_a_part_of_the_reply_speaks_over_the_rest() -> None:
    agent = Agent(reply=np.tile(SPEECH, 100))  # 20 s
    impatient = [replace(spoken(name), listens_ms=100) for name in ("a.wav", "b.wav")]
    async with serving(agent) as url:
        result = await place_call(url, impatient)
    assert [(turn.turn, turn.reply, turn.error) for turn in result.turns] == [(1, "reply 1", ""), (2, "reply 2", "")]
    assert [event.message["turn"] for event in result.events if event.type == "clear"] == [0, 1]
    assert len(result.reply) > 100 * 16


async def test_times_are_measured_by_the_caller_and_tracks_are_aligned() -> None:
    agent = Agent()
    async with serving(agent) as url:
        result = await place_call(url, [spoken("a.wav")])
    (turn,) = result.turns
    assert turn.final_ms is not None
    assert turn.first_audio_ms is not None
    assert turn.end_of_speech_ms <= turn.final_ms <= turn.first_audio_ms
    assert turn.voice_to_voice_ms == pytest.approx(turn.first_audio_ms - turn.end_of_speech_ms, abs=0.11)
    assert turn.audible_after_ms == pytest.approx(10.0, abs=0.2)
    said = np.flatnonzero(result.caller)
    heard = np.flatnonzero(result.reply)
    assert heard[0] < said[0] < said[-1] < heard[-1]
    assert said[-1] / 16 == pytest.approx(turn.end_of_speech_ms + 20, abs=60)
    assert b"".join(agent.frames) == result.caller[: len(b"".join(agent.frames)) // 2].astype("<i2").tobytes()


async def test_the_server_is_told_what_was_heard() -> None:
    agent = Agent()
    async with serving(agent) as url:
        await place_call(url, [spoken("a.wav")], pause_ms=500)
    told = [message for message in agent.messages if message["type"] == "playout"]
    assert {"type": "playout", "turn": 0, "sentence": 0, "heard_ms": 200} in told
    assert all(message["heard_ms"] <= 210 for message in told)


async def test_an_agent_that_does_not_greet_is_spoken_to() -> None:
    async with serving(Agent(greets=False)) as url:
        result = await place_call(url, [spoken("a.wav")], patience=Patience(greeting_s=0.1))
    assert result.turns[0].transcript == "words 1"


async def test_a_turn_without_an_answer_is_reported_and_the_call_goes_on() -> None:
    async def deaf(socket: ServerConnection) -> None:
        await socket.recv()
        await say(socket, type="started", session_id="s", agent="shop")
        async for data in socket:
            if data == '{"type": "hang_up"}':
                await say(socket, type="ended", reason="caller")

    async with serving(deaf) as url:
        patience = Patience(greeting_s=0.1, final_s=0.2)
        result = await place_call(url, [spoken("a.wav"), spoken("b.wav")], patience=patience)
    assert [turn.error for turn in result.turns] == ["no final transcript within 0.2 s of the end of speech"] * 2


async def test_a_refused_call_says_why() -> None:
    async def refuse(socket: ServerConnection) -> None:
        await socket.recv()
        await say(socket, type="error", code="unknown_agent", message="No agent is called x.", hint="Try shop.")

    async with serving(refuse) as url:
        with pytest.raises(CallError, match=r"refused: No agent is called x\. Try shop\."):
            await place_call(url, [], agent="x")


async def test_a_call_that_the_agent_ends_leaves_the_rest_unsaid() -> None:
    async def brief(socket: ServerConnection) -> None:
        await socket.recv()
        await say(socket, type="started", session_id="s", agent="shop")
        await say(socket, type="ended", reason="agent")
        await socket.wait_closed()

    async with serving(brief) as url:
        result = await place_call(url, [spoken("a.wav")], patience=Patience(greeting_s=0.1))
    assert result.turns[0].error == "the call had ended before (agent)"


async def test_a_connection_that_breaks_is_an_error() -> None:
    async def hang(socket: ServerConnection) -> None:
        await socket.recv()
        await say(socket, type="started", session_id="s", agent="shop")
        await asyncio.sleep(0.1)

    async with serving(hang) as url:
        with pytest.raises(CallError, match="connection"):
            await place_call(url, [spoken("a.wav")])


async def test_nobody_there_is_said_with_what_to_try() -> None:
    with pytest.raises(CallError, match=r"nothing answers at .*trunkline up"):
        await place_call("http://127.0.0.1:1", [])


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://h:1", "ws://h:1/v1/calls"),
        ("https://h/", "wss://h/v1/calls"),
        ("ws://h:1/v1/calls", "ws://h:1/v1/calls"),
    ],
)
def test_calls_url(base: str, url: str) -> None:
    assert calls_url(base) == url


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(CallError, match="expected http://host:port"):
        calls_url("localhost:8080")


def test_files_without_speech_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "quiet.wav"
    write_stereo(path, np.zeros(8000, np.int16), np.zeros(8000, np.int16))
    with pytest.raises(CallError, match=r"quiet\.wav: is silent"):
        load_turns([path])


def test_the_ear_plays_in_order_and_forgets_what_was_cleared() -> None:
    ear = Ear()
    ear.add(100, np.full(50, 1, np.int16), turn=1, sentence=0, sample_index=0)
    ear.add(110, np.full(50, 2, np.int16), turn=1, sentence=1, sample_index=50)
    assert ear.quiet_from == 200
    assert ear.heard(100) is None
    assert ear.heard(180) == (1, 1, 80 // 16)
    ear.clear(160)
    ear.add(300, np.full(10, 3, np.int16), turn=2, sentence=0, sample_index=0)
    track = ear.track()
    assert [int(track[at]) for at in (99, 100, 149, 150, 159, 160, 299, 300, 309)] == [0, 1, 1, 2, 2, 0, 0, 3, 3]
    assert len(track) == 310


def test_what_goes_on_after_a_clear_counts_from_where_it_goes_on() -> None:
    ear = Ear()
    ear.add(0, np.full(1600, 1, np.int16), turn=1, sentence=0, sample_index=0)
    ear.clear(800)
    ear.add(2000, np.full(900, 2, np.int16), turn=1, sentence=0, sample_index=700)
    assert ear.heard(2320) == (1, 0, (700 + 320) // 16)


def test_onset_counts_silence_across_pieces() -> None:
    onset = Onset()
    onset.add(np.zeros(100, np.int16))
    onset.add(np.array([0, 5000, 0], np.int16))
    onset.add(np.zeros(100, np.int16))
    assert (onset.silent, onset.found) == (101, True)


def test_several_utterances_in_one_file_make_one_summary() -> None:
    def event(at_ms: float, **message: Any) -> CallEvent:
        return CallEvent(at_ms, message)

    events = [
        event(100, type="final", turn=1, text="I have"),
        event(150, type="sentence", turn=1, text="Yes?"),
        event(900, type="final", turn=2, text="a question"),
        event(950, type="intent", turn=2, intent="faq", confidence=0.7),
        event(960, type="sentence", turn=2, text="Ask."),
        event(1000, type="audio", turn=2, size_bytes=640),
    ]
    summary = summarise("a.wav", events, 600.0, {})
    assert (summary.turn, summary.transcript, summary.reply) == (2, "I have a question", "Yes? Ask.")
    assert (summary.final_ms, summary.voice_to_voice_ms, summary.intent) == (900, 400.0, "faq")
