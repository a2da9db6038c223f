"""The ladder in simulated time: who is asked, when, and what of it is passed on."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from processors.breaker import Breaker, State
from processors.engine import (
    Embed,
    Embedded,
    EngineError,
    Generate,
    Generated,
    Message,
    Reply,
    Request,
    Speak,
    Spoken,
    Transcribe,
    Transcribed,
)
from processors.ladder import Ladder, Rung
from processors.lane import Lane, Queue
from processors.rungs import MANNERS, _quick
from tests.simulation.simulated import SimulatedClock, simulate

AUDIO = Transcribe(bytes(32_000))
CHAT = Generate((Message("user", "Hello"),))
PIECE = 6400


def loud(seed: int, size: int = PIECE) -> bytes:
    return np.random.default_rng(seed).integers(-9000, 9000, size // 2).astype("<i2").tobytes()


class Engine:
    """An engine as its process looks from outside: does what `does` says at the moment of the ask."""

    def __init__(self, name: str, **does: Any) -> None:
        self.name = name
        self.reachable = True
        self.concurrency = 1
        self.asked: list[tuple[float, Request]] = []
        self.cancelled = 0
        self.does: dict[str, Any] = {"after_s": 0.1, **does}

    async def reach(self) -> None:
        while not self.reachable:  # noqa: ASYNC110 - a test sets the attribute
            await asyncio.sleep(0.05)

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        self.asked.append((asyncio.get_running_loop().time(), request))
        done = False
        try:
            for reply in self._replies(request):
                try:
                    async with asyncio.timeout(deadline_s):
                        await asyncio.sleep(self.does["after_s"])
                except TimeoutError:
                    raise EngineError("timeout", "no answer") from None
                if isinstance(reply, EngineError):
                    raise reply
                yield reply
            done = True
        finally:
            self.cancelled += not done

    def _replies(self, request: Request) -> list[Any]:
        if "fails" in self.does:
            return [EngineError(self.does["fails"])]
        match request:
            case Transcribe():
                reading = Transcribed(self.does.get("text", self.name), (), 0.9, "en", self.name, 1.0)
                made: list[Any] = [replace(reading, provisional=True), reading] if "breaks" in self.does else [reading]
            case Generate():
                made = [Generated(f"{self.name}{index} ") for index in range(4)]
            case Speak():
                voice = self.does.get("voice", "voice")
                made = [Spoken(loud(index + 100 * (voice != "voice")), voice) for index in range(4)]
            case Embed(texts):
                made = [Embedded(np.eye(len(texts), 256, dtype="<f4").tobytes(), 256, self.name, 1.0)]
            case _:
                raise AssertionError(request)
        breaks = self.does.get("breaks", 9)
        return [*made[:breaks], EngineError("crashed")] if breaks < 9 else made

    async def close(self) -> None:
        pass


def ladder(role: str, *engines: Engine, changes: list[tuple[str, State]] | None = None) -> Ladder:
    clock = SimulatedClock()

    def changed(breaker: Breaker, reason: str) -> None:
        if changes is not None:
            changes.append((breaker.name, breaker.state))

    lanes = [Lane(one.name, one, Breaker(one.name, clock, changed)) for one in engines]
    rungs = [Rung(lane) for lane in lanes[:2]]
    rungs += [Rung(lane, 1, model=engines[2].does.get("voice", "")) for lane in lanes[2:]]
    return Ladder(role, rungs, clock, MANNERS[role])


def run(test: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return simulate(test())


async def answers(one: Ladder, request: Request, deadline_s: float = 4.0) -> list[Any]:
    async with aclosing(one.ask(request, deadline_s)) as stream:
        return [reply async for reply in stream]


async def gather(one: Ladder, request: Request, got: list[Reply]) -> None:
    async for reply in one.ask(request, 4.0):
        got.append(reply)


async def text(one: Ladder, request: Request = AUDIO, deadline_s: float = 4.0) -> str:
    return str((await answers(one, request, deadline_s))[0].text)


@pytest.mark.parametrize("reason", ["crashed", "timeout", "refused", "invalid", "out_of_memory"])
def test_the_other_replica_answers_at_once_where_one_fails(reason: str) -> None:
    async def test() -> None:
        one = ladder("stt", Engine("a", fails=reason), Engine("b"))
        assert await text(one) == "b"
        assert SimulatedClock().monotonic_s() == pytest.approx(0.2)
        await one.close()

    run(test)


def test_an_engine_without_memory_is_left_out_unless_it_answers_others() -> None:
    async def test() -> None:
        one = ladder("stt", Engine("a", fails="out_of_memory"), Engine("b"))
        assert [await text(one) for _ in range(3)] == ["b", "b", "b"]
        assert one.lanes[0].breaker.state is State.OPEN
        await one.close()
        a = Engine("a")
        one = ladder("stt", a, Engine("b"))
        for _ in range(6):
            a.does["fails"] = "out_of_memory"
            asked = asyncio.create_task(text(one))
            await asyncio.sleep(0.05)
            one.lanes[0].answered_s = SimulatedClock().monotonic_s()  # another ask, that began later
            assert await asked == "b"
        assert one.lanes[0].breaker.closed
        await one.close()

    run(test)


def test_garbage_is_a_failure_like_any_other() -> None:
    async def test() -> None:
        one = ladder("stt", Engine("a", text="you " * 200), Engine("b"))
        assert [await text(one) for _ in range(3)] == ["b", "b", "b"]
        assert one.lanes[0].breaker.state is State.OPEN
        await one.close()

    run(test)


def test_a_slow_replica_is_hedged_and_its_work_cancelled() -> None:
    async def test() -> None:
        slow, quick = Engine("a", after_s=3.0), Engine("b")
        one = ladder("stt", slow, quick)
        assert await text(one) == "b"
        assert quick.asked[0][0] == pytest.approx(1.0)  # what it waits while it knows no usual time
        assert slow.cancelled == 1
        await one.close()

    run(test)


def test_the_hedge_follows_the_usual_time_within_bounds() -> None:
    async def test() -> None:
        a, b = Engine("a", after_s=0.35), Engine("b")
        one = ladder("stt", a, b)
        for _ in range(10):
            await text(one)
        assert not b.asked
        a.does["after_s"] = 60.0
        began_s = SimulatedClock().monotonic_s()
        await text(one)
        assert b.asked[0][0] - began_s == pytest.approx(0.7)
        await one.close()

    run(test)


def test_a_hung_replica_costs_three_callers_a_hedge_and_no_further_one() -> None:
    async def test() -> None:
        hung, well = Engine("a", after_s=60.0), Engine("b")
        one = ladder("stt", hung, well)
        took_s = []
        for _ in range(5):
            began_s = SimulatedClock().monotonic_s()
            assert await text(one) == "b"
            took_s.append(round(SimulatedClock().monotonic_s() - began_s, 2))
        assert took_s == [1.1, 1.1, 1.1, 0.1, 0.1]
        await one.close()

    run(test)


def test_no_ask_is_put_twice_while_the_other_replica_has_work() -> None:
    """Else overload would double the load."""

    async def test() -> None:
        a, b = Engine("a", after_s=3.0), Engine("b", after_s=3.0)
        one = ladder("stt", a, b)
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(text(one, deadline_s=20.0))
        assert len(a.asked) + len(b.asked) == 6
        await one.close()

    run(test)


def test_asks_put_twice_are_a_bounded_share() -> None:
    async def test() -> None:
        a, b = Engine("a", after_s=1.6), Engine("b", after_s=1.6)
        one = ladder("stt", a, b)
        for _ in range(60):
            await text(one)
        assert 60 < len(a.asked) + len(b.asked) <= 60 + 5 + 6
        assert one.lanes[0].breaker.closed
        await one.close()

    run(test)


def test_nobody_waits_for_a_partial_so_it_is_not_asked_twice() -> None:
    async def test() -> None:
        a, b = Engine("a", after_s=3.0), Engine("b")
        one = ladder("stt", a, b)
        assert await text(one, Transcribe(bytes(32_000), partial=True), 8.0) == "a"
        assert not b.asked
        await one.close()

    run(test)


def test_many_texts_at_once_are_not_asked_twice_and_teach_nothing_about_few() -> None:
    async def test() -> None:
        a, b = Engine("a", after_s=3.0), Engine("b")
        one = ladder("embeddings", a, b)
        for _ in range(10):
            await answers(one, Embed(("text",) * 100), 60.0)
        assert not b.asked
        assert one.usual(Embed(("text",))).hedge_s == MANNERS["embeddings"].hedge_first_s
        await one.close()

    run(test)


def test_a_busy_replica_leaves_the_ask_to_the_other() -> None:
    async def test() -> None:
        a, b = Engine("a", after_s=0.4), Engine("b", after_s=0.4)
        one = ladder("stt", a, b)
        assert set(await asyncio.gather(text(one), text(one))) == {"a", "b"}
        await one.close()

    run(test)


def test_one_that_answers_others_is_busy_and_not_ill() -> None:
    async def test() -> None:
        a = Engine("a")
        one = ladder("stt", a)
        a.does["after_s"] = 60.0
        late = [asyncio.create_task(text(one, deadline_s=1.0)) for _ in range(6)]
        await asyncio.sleep(0.1)
        a.does["after_s"] = 0.1
        await text(one)
        for task in late:
            with pytest.raises(EngineError, match="timeout"):
                await task
        assert one.lanes[0].breaker.closed
        await one.close()

    run(test)


def test_what_is_well_again_is_used_again_without_a_caller_trying_it() -> None:
    async def test() -> None:
        changes: list[tuple[str, State]] = []
        a, b = Engine("a", fails="crashed"), Engine("b")
        one = ladder("stt", a, b, changes=changes)
        for _ in range(3):
            await text(one)
        asked = len(a.asked)
        del a.does["fails"]
        await asyncio.sleep(2.0)
        assert [request.partial for _, request in a.asked[asked:]] == [True]  # type: ignore[union-attr]
        assert await text(one) == "a"
        assert changes == [("a", State.OPEN), ("a", State.HALF_OPEN), ("a", State.CLOSED)]
        await one.close()

    run(test)


def test_a_trial_that_is_answered_with_garbage_does_not_close_the_breaker() -> None:
    async def test() -> None:
        a, b = Engine("a", text="you " * 200), Engine("b")
        one = ladder("stt", a, b)
        for _ in range(3):
            await text(one)
        await asyncio.sleep(30.0)
        assert one.lanes[0].breaker.state is State.OPEN
        a.does["text"] = "a"
        await asyncio.sleep(11.0)
        assert await text(one) == "a"
        await one.close()

    run(test)


def test_both_dead_is_waited_out_for_a_while() -> None:
    async def test() -> None:
        a, b = Engine("a"), Engine("b")
        one = ladder("stt", a, b)
        one.start()
        a.reachable = b.reachable = False
        asyncio.get_running_loop().call_later(1.2, setattr, b, "reachable", True)
        assert await text(one) == "b"
        b.reachable = False
        began_s = SimulatedClock().monotonic_s()
        with pytest.raises(EngineError, match="no stt engine"):
            await text(one, deadline_s=20.0)
        assert SimulatedClock().monotonic_s() - began_s == pytest.approx(1.6, abs=0.1)
        await one.close()

    run(test)


def test_the_smallest_model_reads_what_the_best_one_cannot() -> None:
    class Large(Engine):
        def _replies(self, request: Request) -> list[Any]:
            assert isinstance(request, Transcribe)
            return super()._replies(request) if request.quick else [EngineError("timeout")]

    async def test() -> None:
        clock = SimulatedClock()
        lane = Lane("stt.0", Large("a"), Breaker("stt.0", clock))
        one = Ladder("stt", [Rung(lane), Rung(lane, 1, "stt.0 quick", _quick, 2.0)], clock, MANNERS["stt"])
        assert await text(one) == "a"
        assert await text(one, Transcribe(AUDIO.pcm, quick=True)) == "a"
        await one.close()

    run(test)


def test_a_refusal_is_not_repeated_and_opens_nothing() -> None:
    async def test() -> None:
        a, b = Engine("a", fails="refused"), Engine("b", fails="refused")
        one = ladder("stt", a, b)
        for _ in range(5):
            with pytest.raises(EngineError, match="refused"):
                await text(one)
        assert len(a.asked) == len(b.asked) == 5
        assert all(lane.breaker.closed for lane in one.lanes)
        await one.close()

    run(test)


def test_the_second_endpoint_answers_where_the_first_does_not() -> None:
    async def test() -> None:
        one = ladder("llm", Engine("a", fails="crashed"), Engine("b", fails="crashed"), Engine("second"))
        assert (await answers(one, CHAT))[0].text == "second0 "
        await one.close()

    run(test)


def test_a_reading_that_breaks_off_is_begun_anew_by_another() -> None:
    async def test() -> None:
        got = await answers(ladder("stt", Engine("a", breaks=1), Engine("b")), AUDIO)
        assert [(reply.text, reply.provisional) for reply in got] == [("a", True), ("b", False)]

    run(test)


def test_an_answer_of_the_language_model_that_breaks_off_is_not_gone_on_with_by_another() -> None:
    async def test() -> None:
        a, b = Engine("a", breaks=2), Engine("b")
        one = ladder("llm", a, b)
        got: list[Reply] = []
        with pytest.raises(EngineError, match="crashed"):
            await gather(one, CHAT, got)
        assert len(got) == 2
        assert not b.asked
        await one.close()

    run(test)


def test_a_stream_that_stops_is_given_up_before_its_deadline() -> None:
    async def test() -> None:
        a = Engine("a")
        one = ladder("llm", a)
        asyncio.get_running_loop().call_later(0.15, a.does.update, {"after_s": 50.0})
        with pytest.raises(EngineError, match="paused"):
            await answers(one, CHAT, 60.0)
        assert SimulatedClock().monotonic_s() < 4.0
        await one.close()

    run(test)


class Endpoint(Engine):
    """One that others ask, too."""

    def __init__(self, name: str, told: Queue | None = None, **does: Any) -> None:
        super().__init__(name, **does)
        self.told = told

    async def queue(self) -> Queue | None:
        return self.told


@pytest.mark.parametrize(
    ("told", "open_then", "open_now", "load"),
    [
        (None, 0, 3, (0, 3)),
        (Queue(0, 0), 0, 0, (0, 0)),
        (Queue(0, 5), 2, 2, (0, 5)),
        (Queue(0, 5), 2, 4, (0, 7)),  # two more of ours since
        (Queue(0, 5), 2, 0, (0, 3)),
        (Queue(4, 8), 2, 3, (5, 13)),  # it is full: what came since waits
        (Queue(1, 8), 4, 0, (0, 5)),
        (Queue(0, 1), 3, 3, (0, 3)),  # ours had not arrived when it looked
    ],
)
def test_what_an_endpoint_told_is_corrected_by_what_was_asked_since(
    told: Queue | None, open_then: int, open_now: int, load: tuple[int, int]
) -> None:
    async def test() -> None:
        lane = Lane("a", Endpoint("a", told), Breaker("a", SimulatedClock()), open=open_then)
        assert await lane.look() == (told is not None)
        lane.open = open_now
        assert lane.load == load

    run(test)


@pytest.mark.parametrize(("open_asks", "load"), [(0, (0, 0)), (1, (0, 0)), (2, (1, 0)), (5, (2, 0))])
def test_a_replica_of_ours_has_room_for_some_asks(open_asks: int, load: tuple[int, int]) -> None:
    engine = Engine("a")
    engine.concurrency = 2
    lane = Lane("a", engine, Breaker("a", SimulatedClock()), open=open_asks)
    assert lane.load == load


@pytest.mark.parametrize(
    ("first", "second", "asked"),
    [
        (None, None, "aabb"),
        (Queue(0, 3), Queue(0, 0), "abbb"),
        (Queue(2, 1), Queue(0, 9), "bbbb"),
        (Queue(4, 9), Queue(2, 9), "abbb"),
        (Queue(0, 2), None, "abbb"),
    ],
)
def test_each_ask_goes_to_the_endpoint_with_least_to_do(first: Queue | None, second: Queue | None, asked: str) -> None:
    async def test() -> None:
        a, b = Endpoint("a", first, after_s=2.0), Endpoint("b", second, after_s=2.0)
        one = ladder("llm", a, b)
        one.manner = dataclasses.replace(one.manner, hedge_first_s=9.0)
        one.start()
        await asyncio.sleep(0.5)
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(answers(one, CHAT, 60.0))
        assert "a" * len(a.asked) + "b" * len(b.asked) == asked
        await one.close()

    run(test)


def test_an_endpoint_that_does_not_begin_is_left_for_the_next() -> None:
    async def test() -> None:
        hung, well = Engine("a", after_s=60.0), Engine("b")
        one = ladder("llm", hung, well)
        one.manner = dataclasses.replace(one.manner, hedge_first_s=9.0, first_s=1.5)
        assert (await answers(one, CHAT, 20.0))[0].text == "b0 "
        assert well.asked[0][0] == pytest.approx(1.5)
        assert hung.cancelled == 1
        await one.close()

    run(test)


def test_the_last_endpoint_that_does_not_begin_is_a_timeout() -> None:
    async def test() -> None:
        one = ladder("llm", Engine("a", after_s=60.0))
        one.manner = dataclasses.replace(one.manner, first_s=1.0)
        with pytest.raises(EngineError, match=r"timeout: a had not begun to answer after 1\.0 s"):
            await answers(one, CHAT, 20.0)
        await one.close()

    run(test)


def pcm(replies: list[Any]) -> bytes:
    return b"".join(reply.pcm for reply in replies)


WHOLE = b"".join(loud(index) for index in range(4))
SENTENCE = Speak("one two three four five six seven eight nine ten eleven twelve")


@pytest.mark.parametrize("breaks", [0, 1, 2, 3])
def test_the_same_voice_goes_on_at_the_very_sample(breaks: int) -> None:
    async def test() -> None:
        one = ladder("tts", Engine("a", breaks=breaks), Engine("b"))
        assert pcm(await answers(one, SENTENCE)) == WHOLE
        await one.close()

    run(test)


def test_another_voice_says_the_rest_of_the_words() -> None:
    async def test() -> None:
        second = Engine("second", voice="other")
        one = ladder("tts", Engine("a", breaks=2), Engine("b", fails="crashed"), second)
        replies = await answers(one, SENTENCE)
        assert pcm(replies[:2]) == WHOLE[: 2 * PIECE]
        assert [reply.resumed for reply in replies] == [False, False, True, False, False, False]
        (asked,) = [request.text for _, request in second.asked if isinstance(request, Speak)]
        assert SENTENCE.text.endswith(asked)
        assert asked.startswith("two")  # 0.4 s are six characters
        await one.close()

    run(test)


def test_what_was_heard_before_a_crash_is_not_said_again_by_another_voice() -> None:
    async def test() -> None:
        second = Engine("second", voice="other")
        one = ladder("tts", Engine("a", fails="crashed"), Engine("b", fails="crashed"), second)
        heard = Speak(SENTENCE.text, heard_bytes=32_000, heard_model="voice")
        replies = await answers(one, heard)
        assert replies[0].resumed
        (asked,) = [request.text for _, request in second.asked if isinstance(request, Speak)]
        assert asked.startswith("four")
        await one.close()

    run(test)


def test_what_was_heard_is_left_to_the_asker_where_the_voice_is_the_same() -> None:
    async def test() -> None:
        one = ladder("tts", Engine("a"), Engine("b"))
        replies = await answers(one, Speak(SENTENCE.text, heard_bytes=PIECE, heard_model="voice"))
        assert pcm(replies) == WHOLE
        assert not any(reply.resumed for reply in replies)
        await one.close()

    run(test)


def test_an_asker_who_has_heard_enough_blames_nobody() -> None:
    async def test() -> None:
        a, b = Engine("a"), Engine("b")
        one = ladder("llm", a, b)
        for _ in range(5):
            async with aclosing(one.ask(CHAT, 4.0)) as stream:
                async for _ in stream:
                    break
        assert one.lanes[0].breaker.closed
        assert a.cancelled == 5
        assert one.lanes[0].open == 0
        await one.close()

    run(test)
