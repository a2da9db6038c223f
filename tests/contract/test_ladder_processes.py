"""The ladder over real engine processes that are killed, stopped, hung, slowed and made to answer garbage.

What the caller gets must be what an undisturbed engine gives, and the engine must be asked again once it is well.
"""

import asyncio
import signal
import wave
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.faults.faulty_engine import Order, give_order, take_order_back
from processors.breaker import Breaker, State
from processors.engine import (
    Embed,
    Embedded,
    EngineError,
    Generate,
    Message,
    Reply,
    Request,
    Speak,
    Spoken,
    Transcribe,
    Transcribed,
)
from processors.ladder import Ladder
from processors.rungs import ladder
from streams.clock import SystemClock
from streams.settings import Settings
from tests.support.engines import HostProcess, replies, settings_in, start_host

SPEECH = Path(__file__).parent.parent / "data" / "speech" / "librivox_0880.wav"
PAUSE_S = 20.0  # a machine that is busy with other tests stalls an engine that is well
TEXT = "Your order is on its way. It left our shop this morning. You will have it on Friday. Is there anything else?"


class Replicas:
    """The two processes of a role, replaced when they are gone, as a supervisor would."""

    def __init__(self, settings: Settings, role: str) -> None:
        self.settings = settings
        self.role = role
        self.hosts: list[HostProcess] = [start_host(settings, role, replica=number) for number in (0, 1)]
        for host in self.hosts:
            host.wait_ready()

    async def replaced(self, number: int) -> None:
        """Returns when a new process serves in place of one that has died or is told to."""
        await asyncio.to_thread(self.hosts[number].process.wait)
        self.hosts[number] = start_host(self.settings, self.role, replica=number)
        await asyncio.to_thread(self.hosts[number].wait_ready)

    def signal(self, number: int, what: signal.Signals) -> None:
        self.hosts[number].process.send_signal(what)

    def do(self, order: str, number: int | None = None) -> None:
        """One of the processes, or both and their successors, obey."""
        give_order(self.settings.data_dir, self._whose(number), order)

    def let_be(self, number: int | None = None) -> None:
        """The order is taken back."""
        take_order_back(self.settings.data_dir, self._whose(number))

    def _whose(self, number: int | None) -> int | str:
        return self.role if number is None else self.hosts[number].process.pid

    async def heal(self) -> None:
        """Every process there, running and well."""
        for number in (None, 0, 1):
            self.let_be(number)
        for number, host in enumerate(self.hosts):
            self.signal(number, signal.SIGCONT) if host.process.poll() is None else await self.replaced(number)

    def stop(self) -> None:
        for host in self.hosts:
            host.stop()


def _replicas(role: str, folder: Path) -> Iterator[Replicas]:
    pair = Replicas(settings_in(folder, **{role: f"bench.faults.faulty_engine:{role}"}), role)
    try:
        yield pair
    finally:
        pair.stop()


@pytest.fixture(scope="module")
def tts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    yield from _replicas("tts", tmp_path_factory.mktemp("tts"))


@pytest.fixture(scope="module")
def stt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    yield from _replicas("stt", tmp_path_factory.mktemp("stt"))


@asynccontextmanager
async def climbing(pair: Replicas, changes: list[tuple[str, State]] | None = None) -> AsyncIterator[Ladder]:
    """A ladder whose both replicas are connected; afterwards the processes are whole again."""

    def changed(breaker: Breaker, reason: str) -> None:
        if changes is not None:
            changes.append((breaker.name, breaker.state))

    await pair.heal()
    one = ladder(pair.settings, pair.role, SystemClock(), changed)
    one.manner = replace(one.manner, stall_s=PAUSE_S)
    one.start()
    try:
        await until(lambda: all(lane.reachable for lane in one.lanes))
        yield one
    finally:
        await one.close()
        await pair.heal()


async def until(condition: Callable[[], bool]) -> None:
    """For what takes as long as the machine needs."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - other processes set it
            await asyncio.sleep(0.02)


def pcm(pieces: list[Reply]) -> bytes:
    return b"".join(piece.pcm for piece in pieces if isinstance(piece, Spoken))


def rungs(one: Ladder, rank: int) -> None:
    """Leaves the ladder the replicas alone: no espeak, no other voice."""
    one.rungs = tuple(rung for rung in one.rungs if rung.rank <= rank)


async def said(one: Ladder, text: str = TEXT) -> bytes:
    return pcm(await replies(one, Speak(text)))


async def disturbed(one: Ladder, request: Request, strike: Callable[[], Any]) -> list[Reply]:
    """The replies, with something done to an engine after the first."""
    found: list[Reply] = []
    async with aclosing(one.ask(request, 20.0)) as stream:
        async for reply in stream:
            if not found:
                strike()
            found.append(reply)
    return found


async def test_a_voice_that_is_killed_in_mid_sentence_is_gone_on_with_at_the_sample(tts: Replicas) -> None:
    changes: list[tuple[str, State]] = []
    async with climbing(tts, changes) as one:
        rungs(one, 0)
        whole = await said(one)
        for number in (0, 1):
            got = await disturbed(one, Speak(TEXT), partial(tts.signal, number, signal.SIGKILL))
            assert pcm(got) == whole
            await tts.replaced(number)
            await until(lambda: all(lane.reachable and lane.breaker.closed for lane in one.lanes))
            if number == 0:
                one.rungs = tuple(reversed(one.rungs))  # the other one speaks first now
    opened = [name for name, state in changes if state is State.OPEN]
    assert set(opened) == {"tts.0", "tts.1"}
    assert changes[-1][1] is State.CLOSED


async def test_a_voice_that_is_stopped_in_mid_sentence_is_gone_on_with(tts: Replicas) -> None:
    async with climbing(tts) as one:
        rungs(one, 0)
        whole = await said(one)
        assert pcm(await disturbed(one, Speak(TEXT), lambda: tts.signal(0, signal.SIGSTOP))) == whole
        assert await said(one) == whole
        tts.signal(0, signal.SIGCONT)
        await until(lambda: all(lane.reachable and lane.breaker.closed for lane in one.lanes))


@pytest.mark.parametrize("order", ["hang", "crash", "slow 100", "garbage", "nothing", "raise", "memory"])
async def test_a_voice_that_goes_wrong_is_passed_over_and_taken_back(tts: Replicas, order: str) -> None:
    changes: list[tuple[str, State]] = []
    async with climbing(tts, changes) as one:
        rungs(one, 0)
        whole = await said(one)
        tts.do(order, 0)
        for _ in range(4):
            assert await said(one) == whole
        assert ("tts.0", State.OPEN) in changes
        if order in (Order.HANG, Order.CRASH):
            await tts.replaced(0)  # it leaves by itself, and the order was its own
        else:
            tts.let_be(0)
        await until(lambda: one.lanes[0].reachable and one.lanes[0].breaker.closed)
        asked = one.lanes[0].answered_s
        assert await said(one) == whole
        assert one.lanes[0].answered_s > asked, "the first replica is asked first again"


async def test_both_voices_dead_and_back(tts: Replicas) -> None:
    async with climbing(tts) as one:
        rungs(one, 0)
        whole = await said(one)
        tts.signal(0, signal.SIGKILL)
        tts.signal(1, signal.SIGKILL)
        await until(lambda: not any(lane.reachable for lane in one.lanes))
        with pytest.raises(EngineError):
            await replies(one, Speak(TEXT), 0.3)
        await asyncio.gather(tts.replaced(0), tts.replaced(1))
        await one.reach()
        assert await said(one) == whole


def is_right(text: str) -> bool:
    """Whether it is what the recording says."""
    return text.startswith("He was not an") and text.rstrip(".").endswith("young man")


async def test_speech_is_read_right_whatever_happens_to_one_engine(stt: Replicas) -> None:
    with wave.open(str(SPEECH)) as file:
        request = Transcribe(file.readframes(file.getnframes()))

    async def heard(one: Ladder) -> str:
        *_, reply = await replies(one, request, 20.0)
        assert isinstance(reply, Transcribed)
        return reply.text

    async with climbing(stt) as one:
        # Which of its models have the time to read decides how it hears what lies between.
        assert is_right(await heard(one))
        for order in (Order.GARBAGE, Order.NOTHING, "slow 30"):
            stt.do(order, 0)
            assert is_right(await heard(one))
        stt.let_be(0)
        reading = asyncio.create_task(heard(one))
        await asyncio.sleep(0.05)
        stt.signal(0, signal.SIGKILL)
        assert is_right(await reading)


async def test_vectors_of_the_wrong_kind_are_never_passed_on(tmp_path: Path) -> None:
    for pair in _replicas("embeddings", tmp_path):
        async with climbing(pair) as one:
            request = Embed(("Where is my order?",))
            (first,) = await replies(one, request)
            assert isinstance(first, Embedded)
            pair.do(Order.GARBAGE, 0)
            (second,) = await replies(one, request)
            assert isinstance(second, Embedded)
            assert np.allclose(np.frombuffer(second.vectors, "<f4"), np.frombuffer(first.vectors, "<f4"), atol=1e-5)
            pair.do(Order.GARBAGE)
            with pytest.raises(EngineError, match="invalid"):
                await replies(one, request)


async def test_an_answer_of_a_language_model_that_is_killed_can_be_gone_on_with(tmp_path: Path) -> None:
    for pair in _replicas("llm", tmp_path):
        async with climbing(pair) as one:
            chat = (Message("user", "Tell me a long story about a river."),)
            with pytest.raises(EngineError, match="crashed"):
                await disturbed(one, Generate(chat, max_tokens=120), partial(pair.signal, 0, signal.SIGKILL))
            rest = await replies(one, Generate((*chat, Message("assistant", "There was a river.")), max_tokens=40))
            assert rest
