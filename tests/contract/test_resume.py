"""Calls outlive their connections and their gateways: over real sockets and a real broker."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import websockets

from api.resume_tokens import ResumeTokens, resume_tokens
from schemas.events import (
    AudioFrame,
    Control,
    ControlKind,
    ResponseKind,
    Session,
    SessionKind,
    TranscriptKind,
)
from streams import ready
from streams.settings import Settings
from tests.support.gateway import Caller, Gateway, Peer, running_gateway
from tests.support.kafka import TestBroker

FRAME = 640


@pytest.fixture
def settings(kafka: TestBroker) -> Settings:
    return kafka.settings(api={"port": 0})


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    async with running_gateway(settings) as running:
        yield running


@pytest.fixture
async def peer(settings: Settings) -> AsyncIterator[Peer]:
    log_peer = Peer(settings)
    await log_peer.start()
    yield log_peer
    await log_peer.close()


def beside(settings: Settings, **api: Any) -> Settings:
    """The settings of a second gateway."""
    changed = settings.api.model_copy(update=api)
    return settings.model_copy(update={"worker": "1", "api": changed})


def speech(frames: int) -> bytes:
    """So many frames of 40 ms, no two samples alike within them."""
    return (np.arange(frames * FRAME) % 30_000).astype("<i2").tobytes()


def cut(caller: Caller) -> None:
    """The network is gone: no close frame is sent."""
    caller.socket.transport.abort()


@contextlib.asynccontextmanager
async def calling(url: str) -> AsyncIterator[Caller]:
    async with websockets.connect(f"{url}/v1/calls") as socket:
        yield Caller(socket)


async def resume(caller: Caller, token: str, **fields: Any) -> dict[str, Any]:
    await caller.say(type="resume", resume_token=token, **fields)
    answer = await caller.next()
    assert isinstance(answer, dict)
    return answer


async def heard_audio(caller: Caller, until: str = "end_of_turn") -> list[tuple[int, int, bytes]]:
    """The speech that comes before the message: turn, index of the first sample, samples."""
    pieces = []
    while True:
        message = await caller.next()
        assert isinstance(message, dict)
        if message["type"] == "audio":
            pieces.append((message["turn"], message["sample_index"], await caller.next()))
        elif message["type"] == until:
            return pieces


def in_log(peer: Peer, session_id: str) -> list[AudioFrame]:
    """The caller's frames, the first one with each id."""
    frames: dict[str, AudioFrame] = {}
    for frame in peer.of(session_id, AudioFrame):
        frames.setdefault(frame.event_id, frame)
    return sorted(frames.values(), key=lambda frame: frame.sample_index)


async def have_frames(peer: Peer, session_id: str, count: int) -> list[AudioFrame]:
    """So much of the caller's audio: in frames of any length, for what has come by a beat is one."""
    await peer.seen(lambda _: sum(len(frame.pcm) for frame in in_log(peer, session_id)) >= count * FRAME * 2)
    return in_log(peer, session_id)


async def reasons(peer: Peer, session_id: str, reason: str) -> Session:
    found: Session = await peer.seen(
        lambda event: isinstance(event, Session) and event.session_id == session_id and event.reason == reason
    )
    return found


async def say_turn(peer: Peer, session_id: str, turn: int, pieces: int, first: int = 0, end: bool = True) -> None:
    """A reply of chunks of 100 ms, as the stages write it."""
    if first == 0:
        await peer.publish(peer.response(session_id, ResponseKind.SENTENCE, turn, text="A long reply."))
    for number in range(first, pieces):
        index = number * 1600
        last = end and number == pieces - 1
        await peer.publish(peer.audio(session_id, turn, 100, sample_index=index, last_of_sentence=last))
    if end:
        await peer.publish(peer.response(session_id, ResponseKind.COMPLETED, turn))
        await peer.publish(peer.end_of_turn(session_id, turn))


async def test_a_cut_in_the_callers_sentence_loses_and_doubles_nothing(gateway: Gateway, peer: Peer) -> None:
    pcm = speech(20)
    async with calling(gateway.ws) as caller:
        token = (await caller.start())["resume_token"]
        await caller.socket.send(pcm[: 7 * FRAME * 2 + 500])
        written = await have_frames(peer, caller.session_id, 7)
        cut(caller)
        await reasons(peer, caller.session_id, "connection_lost")
    async with calling(gateway.ws) as again:
        answer = await resume(again, token)
        assert (answer["type"], answer["session_id"]) == ("resumed", caller.session_id)
        assert answer["sample_index"] == sum(len(frame.pcm) // 2 for frame in written)
        await again.socket.send(pcm[answer["sample_index"] * 2 :])
        frames = await have_frames(peer, caller.session_id, 20)
    assert b"".join(frame.pcm for frame in frames) == pcm
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert len(peer.of(caller.session_id, AudioFrame)) == len(frames)


async def test_a_cut_in_the_agents_sentence_loses_and_doubles_nothing(gateway: Gateway, peer: Peer) -> None:
    async with calling(gateway.ws) as caller:
        token = (await caller.start())["resume_token"]
        await peer.publish(peer.transcript(caller.session_id, TranscriptKind.FINAL, 0, 1, "tell me"))
        known = [(await caller.heard("final"))["event_id"]]
        await say_turn(peer, caller.session_id, 1, 4, end=False)
        known.append((await caller.heard("sentence"))["event_id"])
        pieces = []
        for _ in range(3):
            message = await caller.heard("audio")
            pieces.append((1, message["sample_index"], await caller.next()))
        cut(caller)
        await reasons(peer, caller.session_id, "connection_lost")
        await say_turn(peer, caller.session_id, 1, 8, first=4)
    async with calling(gateway.ws) as again:
        # Of the third chunk the caller's side kept but a part.
        received = {"turn": 1, "sample_index": 3 * 1600 - 100}
        answer = await resume(again, token, received=received, event_ids=known)
        assert answer["type"] == "resumed"
        pieces[-1] = (1, 3200, pieces[-1][2][:-200])
        rest = await heard_audio(again)
    assert rest[0][1] == received["sample_index"]
    whole = b"".join(pcm for _, _, pcm in [*pieces, *rest])
    assert len(whole) == 8 * 3200
    position = 0
    for _, index, pcm in [*pieces, *rest]:
        assert index == position
        position += len(pcm) // 2


async def test_events_that_were_missed_come_once(gateway: Gateway, peer: Peer) -> None:
    async with calling(gateway.ws) as caller:
        token = (await caller.start())["resume_token"]
        await peer.publish(peer.transcript(caller.session_id, TranscriptKind.FINAL, 0, 1, "first"))
        known = (await caller.heard("final"))["event_id"]
        cut(caller)
        await reasons(peer, caller.session_id, "connection_lost")
        await peer.publish(peer.transcript(caller.session_id, TranscriptKind.FINAL, 1, 2, "second"))
        await say_turn(peer, caller.session_id, 2, 1)
    async with calling(gateway.ws) as again:
        await resume(again, token, received={"turn": 0, "sample_index": 0}, event_ids=[known])
        kinds: list[str] = []
        while not kinds or kinds[-1] != "end_of_turn":
            message = await again.next()
            if isinstance(message, dict):
                kinds.append(str(message["text"] if message["type"] == "final" else message["type"]))
    assert kinds == ["second", "sentence", "completed", "audio", "end_of_turn"]


async def test_another_gateway_takes_the_call_over_and_the_first_lets_go(
    gateway: Gateway, peer: Peer, settings: Settings
) -> None:
    pcm = speech(12)
    async with calling(gateway.ws) as caller, running_gateway(beside(settings, partitions=(0,))) as other:
        token = (await caller.start())["resume_token"]
        await say_turn(peer, caller.session_id, 0, 3, end=False)
        await caller.socket.send(pcm[: 5 * FRAME * 2])
        await have_frames(peer, caller.session_id, 5)
        async with calling(other.ws) as again:
            answer = await resume(again, token, received={"turn": 0, "sample_index": 1600})
            assert answer["sample_index"] == 5 * FRAME
            # The first gateway's connection, alive or not, is no longer the call's.
            assert (await caller.heard("error"))["code"] == "resumed_elsewhere"
            assert await caller.closed() == 1008
            await again.socket.send(pcm[5 * FRAME * 2 :])
            await say_turn(peer, caller.session_id, 0, 5, first=3)
            pieces = await heard_audio(again)
            assert [index for _, index, _ in pieces] == [1600, 3200, 4800, 6400]
            frames = await have_frames(peer, caller.session_id, 12)
            await again.say(type="hang_up")
            assert (await again.heard("ended"))["reason"] == "hung_up"
    assert b"".join(frame.pcm for frame in frames) == pcm
    life = [(event.kind, event.reason, event.gateway) for event in peer.of(caller.session_id, Session)]
    assert life == [
        (SessionKind.STARTED, "", "api.0"),
        (SessionKind.UPDATED, "resumed", "api.1"),
        (SessionKind.ENDED, "hung_up", "api.1"),
    ]


async def test_a_call_that_nobody_comes_back_to_ends_with_its_reason(kafka: TestBroker, peer: Peer) -> None:
    settings = kafka.settings(api={"port": 0, "resume_grace_s": 0.5})
    async with running_gateway(settings) as gateway:
        async with calling(gateway.ws) as caller:
            token = (await caller.start())["resume_token"]
            cut(caller)
            ended = await peer.seen(lambda event: isinstance(event, Session) and event.kind is SessionKind.ENDED)
        assert (ended.session_id, ended.reason) == (caller.session_id, "connection_lost")
        async with calling(gateway.ws) as late:
            answer = await resume(late, token)
            assert answer == {"type": "ended", "reason": "connection_lost"}
            assert await late.closed() == 1000


async def test_tokens_that_are_forged_foreign_or_expired_are_refused_alike(
    gateway: Gateway, peer: Peer, settings: Settings
) -> None:
    async with calling(gateway.ws) as caller:
        token = (await caller.start())["resume_token"]
        own = resume_tokens(settings)
        read = own.read(token, 0)
        assert read is not None
        foreign = ResumeTokens(b"another key" * 4, settings.tenant).mint(
            read.session_id, read.tenant, read.since_us, 2**62
        )
        expired = own.mint(read.session_id, read.tenant, read.since_us, 1)
        forged = token[:-4] + ("aaaa" if token[-4:] != "aaaa" else "bbbb")
        answers = []
        for bad in (forged, foreign, expired, "", "x" * 500, "ä"):
            async with calling(gateway.ws) as thief:
                answers.append(await resume(thief, bad))
                assert await thief.closed() == 1008
        assert {answer["code"] for answer in answers} == {"bad_resume_token"}
        assert all(answer == answers[0] for answer in answers)
        assert caller.session_id not in str(answers)
        # The call has not noticed.
        await peer.publish(peer.transcript(caller.session_id, TranscriptKind.FINAL, 0, 1, "still there"))
        assert (await caller.heard("final"))["text"] == "still there"


async def test_a_restart_sends_callers_away_and_they_go_on(peer: Peer, settings: Settings) -> None:
    async with running_gateway(beside(settings)) as other:
        async with running_gateway(settings) as leaving, calling(leaving.ws) as caller:
            token = (await caller.start())["resume_token"]
            leaving.server.handle_exit(signal.SIGTERM, None)
            await caller.heard("going_away")
            assert await caller.closed() == 1012
        async with calling(other.ws) as again:
            assert (await resume(again, token))["session_id"] == caller.session_id
            assert not [e for e in peer.of(caller.session_id, Session) if e.kind is SessionKind.ENDED]


async def test_a_successor_ends_what_nobody_comes_back_to(kafka: TestBroker, peer: Peer) -> None:
    settings = kafka.settings(api={"port": 0, "resume_grace_s": 6.0})
    async with running_gateway(settings) as first, calling(first.ws) as caller, calling(first.ws) as faithful:
        await caller.start()
        token = (await faithful.start())["resume_token"]
        first.server.handle_exit(signal.SIGTERM, None)
        # Before this side closes in order, which would be a caller who hangs up.
        assert [await caller.closed(), await faithful.closed()] == [1012, 1012]
    async with running_gateway(settings) as second, calling(second.ws) as again:
        answer = await resume(again, token)
        assert answer["type"] == "resumed", answer
        assert (await reasons(peer, caller.session_id, "connection_lost")).kind is SessionKind.ENDED
        await again.socket.send(speech(1))
        await have_frames(peer, faithful.session_id, 1)


async def test_barge_ins_marks_and_turns_survive(gateway: Gateway, peer: Peer, settings: Settings) -> None:
    async with calling(gateway.ws) as caller:
        token = (await caller.start())["resume_token"]
        session_id = caller.session_id
        await say_turn(peer, session_id, 0, 2)
        await caller.heard("end_of_turn")
        await caller.say(type="playout", turn=0, heard_ms=200)
        await peer.seen(lambda event: isinstance(event, Control) and event.reason == "end_of_turn")
        await peer.publish(peer.transcript(session_id, TranscriptKind.FINAL, 0, 1, "go on"))
        await say_turn(peer, session_id, 1, 30, end=False)
        await caller.heard("audio")
        await peer.publish(peer.transcript(session_id, TranscriptKind.PARTIAL, 1, 2, "stop"))
        assert (await caller.heard("clear"))["turn"] == 1
        await peer.seen(lambda event: isinstance(event, Control) and event.kind is ControlKind.BARGE_IN)
        cut(caller)
    async with running_gateway(beside(settings)) as other, calling(other.ws) as again:
        answer = await resume(again, token, received={"turn": 1, "sample_index": 1600})
        assert answer["type"] == "resumed"
        assert (await again.heard("clear"))["turn"] == 1
        await say_turn(peer, session_id, 1, 32, first=30, end=False)
        await peer.publish(peer.transcript(session_id, TranscriptKind.FINAL, 1, 2, "stop it"))
        await say_turn(peer, session_id, 2, 2)
        assert {turn for turn, _, _ in await heard_audio(again)} == {2}
        await again.say(type="playout", turn=2, heard_ms=200)
        await peer.seen(
            lambda event: isinstance(event, Control) and event.turn == 2 and event.kind is ControlKind.PLAYOUT
        )
    controls = peer.of(session_id, Control)
    assert [event.seq for event in controls] == list(range(len(controls)))
    assert len({event.event_id for event in controls}) == len(controls)


class GatewayProcess:
    """A gateway in a process of its own, to be killed."""

    def __init__(self, settings: Settings, data_dir: Any, worker: str) -> None:
        self._settings = settings.model_copy(update={"data_dir": data_dir, "worker": worker})
        self._process: asyncio.subprocess.Process | None = None
        self.ws = ""

    async def start(self) -> None:
        environment = os.environ | {
            "TRUNKLINE_DATA_DIR": str(self._settings.data_dir),
            "TRUNKLINE_WORKER": self._settings.worker,
            "TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS": self._settings.kafka.bootstrap_servers,
            "TRUNKLINE_API__PORT": "0",
            "TRUNKLINE_API__RESUME_KEY": "shared by both",
        }
        self._process = await asyncio.create_subprocess_exec(sys.executable, "-m", "api.server", env=environment)
        async with asyncio.timeout(60):
            while (state := ready.read(self._settings, "api")) is None or state["pid"] != self._process.pid:
                assert self._process.returncode is None, "the gateway ended"
                await asyncio.sleep(0.02)
        self.ws = f"ws://127.0.0.1:{state['http_port']}"

    async def end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


async def _one_life(peer: Peer, first: GatewayProcess, second: GatewayProcess, restarted: bool) -> None:
    pcm = speech(30)
    async with calling(first.ws) as caller:
        token = (await caller.start())["resume_token"]
        session_id = caller.session_id
        await peer.publish(peer.transcript(session_id, TranscriptKind.FINAL, 0, 1, "tell me"))
        final = (await caller.heard("final"))["event_id"]
        await say_turn(peer, session_id, 1, 5, end=False)
        message = await caller.heard("audio")
        pieces = [(1, message["sample_index"], await caller.next())]
        await caller.socket.send(pcm[: 11 * FRAME * 2])
        await first.end()
        await caller.closed()
    await say_turn(peer, session_id, 1, 9, first=5)
    if restarted:
        await first.start()
    async with calling(second.ws) as again:
        answer = await resume(again, token, received={"turn": 1, "sample_index": 1600}, event_ids=[final])
        assert answer["type"] == "resumed"
        await again.socket.send(pcm[answer["sample_index"] * 2 :])
        pieces += await heard_audio(again)
        frames = await have_frames(peer, session_id, 30)
        await again.say(type="hang_up")
        assert (await again.heard("ended"))["reason"] == "hung_up"
    assert b"".join(frame.pcm for frame in frames) == pcm
    assert [index for _, index, _ in pieces] == [number * 1600 for number in range(9)]
    await reasons(peer, session_id, "hung_up")
    assert [event.kind for event in peer.of(session_id, Session)].count(SessionKind.ENDED) == 1


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_killed_gateways_call_goes_on_at_its_successor_and_at_another(
    peer: Peer, settings: Settings, tmp_path: Any, restarted: bool
) -> None:
    first = GatewayProcess(settings, tmp_path / "0", "0")
    second = first if restarted else GatewayProcess(settings, tmp_path / "1", "1")
    try:
        await first.start()
        if not restarted:
            await second.start()
        await _one_life(peer, first, second, restarted)
    finally:
        await first.end()
        await second.end()
