"""The caller's connection breaks and comes back, against a small server that keeps what it got of a call."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve

from api.client import CallError, Patience, Spoken, place_call
from api.link import EVENT_IDS_MAX, Inbox

SPEECH = (8000 * np.sin(np.arange(48_000) / 5)).astype(np.int16)
REPLY = np.arange(1, 32_001, dtype=np.int16)


class Server:
    """Breaks the first connection when the caller has said `break_after` samples, and takes the call up again."""

    def __init__(self, break_after: int, breaks: int = 1, answer: dict[str, Any] | None = None) -> None:
        self.pcm = b""
        self.resumes: list[dict[str, Any]] = []
        self._break_after = break_after
        self._breaks = breaks
        self._answer = answer
        self._refusals = 2

    async def __call__(self, socket: ServerConnection) -> None:
        first = json.loads(await socket.recv())
        if first["type"] == "resume":
            if self._refusals:
                self._refusals -= 1
                socket.transport.abort()
                return
            self.resumes.append(first)
            if self._answer is not None:
                await self._say(socket, **self._answer)
                return
            # The log has all but the last 500 samples.
            self.pcm = self.pcm[:-1000]
            await self._say(socket, type="resumed", session_id="s", agent="shop", sample_index=len(self.pcm) // 2)
            await self._say(socket, type="final", turn=1, text="words", event_id="final-1")
            await self._speak(socket, first["received"]["sample_index"], len(REPLY))
            await self._say(socket, type="end_of_turn", turn=1, event_id="end-1")
            await self._say(socket, type="completed", turn=1, event_id="completed-1")
        else:
            await self._say(socket, type="started", session_id="s", agent="shop", resume_token="secret")
        async for data in socket:
            if isinstance(data, str):
                if json.loads(data)["type"] == "hang_up":
                    await self._say(socket, type="ended", reason="hung_up")
                    return
                continue
            self.pcm += data
            if self._breaks and len(self.pcm) >= 2 * self._break_after:
                await self._break(socket)
                return

    async def _break(self, socket: ServerConnection) -> None:
        self._breaks -= 1
        await self._say(socket, type="speech_started", turn=1, event_id="started-1")
        await self._say(socket, type="final", turn=1, text="words", event_id="final-1")
        await self._speak(socket, 0, 8000)
        await asyncio.sleep(0.05)
        socket.transport.abort()

    async def _speak(self, socket: ServerConnection, start: int, end: int) -> None:
        for at in range(start, end, 1000):
            await self._say(socket, type="audio", turn=1, sentence=0, sample_index=at)
            await socket.send(REPLY[at : min(at + 1000, end)].astype("<i2").tobytes())

    async def _say(self, socket: ServerConnection, **message: Any) -> None:
        await socket.send(json.dumps(message))


async def call(server: Server, **patience: float) -> Any:
    spoken = Spoken("a.wav", SPEECH, last_speech_frame=10)
    async with serve(server, "127.0.0.1", 0) as running:
        port = next(iter(running.sockets)).getsockname()[1]
        limits = Patience(**{"greeting_s": 0.1, **patience})
        return await place_call(f"http://127.0.0.1:{port}", [spoken], pause_ms=0, patience=limits)


async def test_a_broken_call_goes_on_and_both_hear_all_of_it_once() -> None:
    server = Server(break_after=20_000)
    result = await call(server)
    assert result.reconnects == 1
    assert server.pcm == result.caller[: len(server.pcm) // 2].astype("<i2").tobytes()
    assert len(server.pcm) >= 2 * len(SPEECH)
    heard = result.reply[np.flatnonzero(result.reply)]
    assert np.array_equal(heard, REPLY)
    kinds = [event.type for event in result.events if event.type != "audio"]
    assert kinds.index("reconnecting") < kinds.index("resumed")
    assert kinds.count("final") == 1
    (resume,) = server.resumes
    assert resume["resume_token"] == "secret"
    assert resume["received"]["turn"] == (1 if resume["received"]["sample_index"] else 0)
    assert resume["received"]["sample_index"] % 1000 == 0


async def test_a_call_that_has_ended_meanwhile_ends_with_its_reason() -> None:
    result = await call(Server(20_000, answer={"type": "ended", "reason": "completed"}))
    assert result.ended == "completed"


async def test_a_refused_resumption_is_not_tried_again() -> None:
    server = Server(
        20_000, answer={"type": "error", "code": "bad_resume_token", "message": "No.", "hint": "Call anew."}
    )
    with pytest.raises(CallError, match=r"cannot be resumed: No\. Call anew\."):
        await call(server)
    assert len(server.resumes) == 1


async def test_nobody_to_come_back_to_is_an_error_after_the_grace() -> None:
    server = Server(20_000, answer={"type": "error", "code": "shutting_down", "message": "Later.", "hint": "Later."})
    with pytest.raises(CallError, match=r"did not come back within 0\.5 s \(Later\.\)"):
        await call(server, resume_s=0.5)
    assert len(server.resumes) > 1


def test_the_inbox_tells_what_came() -> None:
    inbox = Inbox()
    assert inbox.event({"type": "final", "event_id": "a"})
    assert not inbox.event({"type": "final", "event_id": "a"})
    assert inbox.event({"type": "resumed"})
    inbox.audio({"turn": 1, "sample_index": 0}, 100)
    inbox.audio({"turn": 2, "sample_index": 0}, 50)
    inbox.audio({"turn": 1, "sample_index": 100}, 100)
    assert inbox.told() == {"received": {"turn": 2, "sample_index": 50}, "event_ids": ["a"]}


def test_the_inbox_keeps_no_more_ids_than_it_tells() -> None:
    inbox = Inbox()
    ids = [f"e{number}" for number in range(3 * EVENT_IDS_MAX)]
    assert all(inbox.event({"type": "final", "event_id": event_id}) for event_id in ids)
    assert inbox.told()["event_ids"] == ids[-EVENT_IDS_MAX:]
    assert not inbox.event({"type": "final", "event_id": ids[-EVENT_IDS_MAX]})
    assert inbox.event({"type": "final", "event_id": ids[0]}), "it is not kept"
