"""A worker's watch: what it tells, when, and what it asks engines for meanwhile."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest

from processors.engine import EngineError, Generate, Generated, Reply, Request, Speak, Spoken, Transcribe, Transcribed
from processors.load import RAISE_S, REPEAT_S, STEP_S, Board, Level, Meter
from processors.load_watch import SAMPLE_S, LoadAwareEngine, LoadWatch, capacity
from schemas.events import Health, HealthKind
from streams.settings import EngineSettings, Settings


class HandClock:
    """Time as the test sets it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now_us(self) -> int:
        """See `Clock`."""
        return round(self.now_s * 1e6)

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        self.now_s += seconds
        await asyncio.sleep(0)


@dataclass
class Worker:
    """A watch with what it looks at and what it told."""

    component: str = "stt"
    board: Board | None = None
    depth: int = 0
    calls: int = 0
    told: list[tuple[float, HealthKind, int]] = field(default_factory=list)
    clock: HandClock = field(default_factory=HandClock)
    utilisation: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.meter = Meter({"stt": 2}, self.clock.now_s)
        self.watch = LoadWatch(
            self.component,
            self.meter,
            self,
            self.clock,
            depth=lambda: self.depth,
            calls=lambda: self.calls,
            board=self.board,
        )

    def report(
        self, kind: HealthKind, *, level: int = 0, reason: str = "", utilisation: float = 0.0, calls: int = 0
    ) -> None:
        """See `Reports`."""
        self.told.append((self.clock.now_s - 100.0, kind, level))
        if kind is HealthKind.LOAD_MEASURED:
            self.utilisation.append(utilisation)
            assert calls == self.calls
        else:
            assert "depth" in reason

    def run(self, seconds: float) -> None:
        """Samples for so long."""
        for _ in range(round(seconds / SAMPLE_S)):
            self.clock.now_s += SAMPLE_S
            self.watch.sample()


def test_an_idle_worker_says_nothing() -> None:
    worker = Worker()
    worker.run(60)
    assert worker.told == []


def test_a_worker_with_calls_says_how_busy_it_is_and_once_more_when_they_have_ended() -> None:
    worker = Worker(calls=2)
    worker.meter.asked("stt", 100.0, sheddable=True)
    worker.run(3 * REPEAT_S)
    assert [kind for _, kind, _ in worker.told] == [HealthKind.LOAD_MEASURED] * 3
    assert worker.utilisation[0] == 0.5
    worker.calls = 0
    worker.told.clear()
    worker.run(10 * REPEAT_S)
    assert [kind for _, kind, _ in worker.told if kind is HealthKind.LOAD_MEASURED][-1:] == [HealthKind.LOAD_MEASURED]


def test_a_level_is_told_at_once_repeated_while_it_lasts_and_taken_back() -> None:
    worker = Worker(depth=150)
    worker.run(RAISE_S + SAMPLE_S)
    assert [(kind, level) for _, kind, level in worker.told] == [(HealthKind.LOAD_RAISED, 1)]
    worker.depth = 80  # neither too much nor calm
    worker.told.clear()
    worker.run(10 * REPEAT_S)
    repeated = [at_s for at_s, kind, level in worker.told if (kind, level) == (HealthKind.LOAD_RAISED, 1)]
    assert len(repeated) == 10
    worker.depth = 0
    worker.run(30)
    changes = [(kind, level) for _, kind, level in worker.told if kind is HealthKind.LOAD_LOWERED]
    assert changes == [(HealthKind.LOAD_LOWERED, 0)]
    assert worker.watch.level is Level.ORDINARY


def test_a_stage_climbs_no_higher_than_it_can_help() -> None:
    for component, highest in (("stt", Level.SMALL_MODELS), ("intent", Level.REFUSING), ("llm", Level.SHORT_ANSWERS)):
        worker = Worker(component, depth=500)
        worker.run(10 * STEP_S)
        assert worker.watch.level is highest


def test_the_llm_stage_shortens_answers_for_speech_that_is_late_and_heeds_no_other_level() -> None:
    board = Board()
    worker = Worker("llm", board=board)
    levels = []
    for component, level in (("stt", 3), ("stt", 1), ("tts", 4)):
        event = Health(
            event_id="e",
            session_id=component,
            tenant_id="demo",
            agent_id="",
            turn=0,
            seq=1,
            occurred_at=0,
            kind=HealthKind.LOAD_RAISED,
            component=component,
            level=level,
        )
        board.heard(event, worker.clock.now_s)
        levels.append(worker.watch.level)
    assert levels == [Level.ORDINARY, Level.REFUSING, Level.SHORT_ANSWERS]
    worker.clock.now_s += 60
    assert worker.watch.level is Level.ORDINARY


class Scripted:
    """An engine's client that answers after a time on the clock."""

    def __init__(self, clock: HandClock, waits_s: float = 0.0, fails: str = "") -> None:
        self.asked: list[Request] = []
        self.closed = False
        self._clock = clock
        self._waits_s = waits_s
        self._fails = fails

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`."""
        self.asked.append(request)
        await self._clock.sleep(self._waits_s)
        if self._fails:
            raise EngineError(self._fails)
        if isinstance(request, Transcribe):
            await self._clock.sleep(0.2)
            yield Transcribed("hello", (), 0.9, "en", "small", 200.0)
            return
        for _ in range(3):
            await self._clock.sleep(0.1)
            yield Spoken(b"\0\0", "voice", 100.0)

    async def close(self) -> None:
        """See `EngineClient`."""
        self.closed = True


async def ask(engine: LoadAwareEngine, request: Request, replies: int = 99) -> int:
    """Reads so many replies as the runner does; returns how many there were."""
    count = 0
    async with aclosing(engine.ask(request, 5.0)) as answers:
        async for _ in answers:
            count += 1
            if count == replies:
                break
    return count


@pytest.mark.parametrize(("level", "quick"), [(level, level >= Level.SMALL_MODELS) for level in Level])
async def test_the_smallest_model_reads_from_level_3_on(level: Level, quick: bool) -> None:
    clock = HandClock()
    client = Scripted(clock)
    engine = LoadAwareEngine(client, "stt", Meter({"stt": 1}, clock.now_s), lambda: level, clock)
    await ask(engine, Transcribe(b"\0\0", vocabulary=("tent",)))
    await ask(engine, Speak("Hello."))
    assert client.asked == [Transcribe(b"\0\0", vocabulary=("tent",), quick=quick), Speak("Hello.")]


@pytest.mark.parametrize(
    ("request_", "replies", "waiting_s"),
    [
        (Transcribe(b"\0\0"), 99, 0.4),
        (Transcribe(b"\0\0"), 1, 0.4),
        (Transcribe(b"\0\0", partial=True), 99, 0.0),
        (Speak("Hello."), 99, 0.4),
    ],
)
async def test_what_engines_do_not_spend_is_waiting(request_: Any, replies: int, waiting_s: float) -> None:
    clock = HandClock()
    meter = Meter({"stt": 1}, clock.now_s)
    await ask(
        LoadAwareEngine(Scripted(clock, waits_s=0.4), "stt", meter, lambda: Level.ORDINARY, clock), request_, replies
    )
    sample = meter.sample(clock.now_s, 0, depth=0)
    assert sample.waiting_s == pytest.approx(waiting_s, abs=1e-6)
    assert sample.utilisation == 1.0  # of the time since the meter began


async def test_an_ask_that_fails_has_waited_and_one_that_is_withdrawn_has_not() -> None:
    for fails, waiting_s in (("timeout", 0.4), ("", 0.0)):
        clock = HandClock()
        meter = Meter({"stt": 1}, clock.now_s)
        engine = LoadAwareEngine(Scripted(clock, 0.4, fails), "stt", meter, lambda: Level.ORDINARY, clock)
        if fails:
            with pytest.raises(EngineError):
                await ask(engine, Transcribe(b"\0\0"))
        else:
            task = asyncio.create_task(ask(engine, Transcribe(b"\0\0")))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert meter.sample(clock.now_s, 0, depth=0).waiting_s == pytest.approx(waiting_s)
        clock.now_s += 60
        assert meter.sample(clock.now_s, 0, depth=0).waiting_s == 0.0  # nothing is left open
        await engine.close()


async def test_an_answer_that_nobody_wants_any_more_has_not_waited_though_its_cost_was_not_told() -> None:
    class Streaming(Scripted):
        async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
            for _ in range(3):
                await self._clock.sleep(2.0)
                yield Generated("word ")

    clock = HandClock()
    meter = Meter({"llm": 1}, clock.now_s)
    engine = LoadAwareEngine(Streaming(clock), "llm", meter, lambda: Level.ORDINARY, clock)
    await ask(engine, Generate(()), replies=2)
    assert meter.sample(clock.now_s, 0, depth=0).waiting_s == 0.0


def test_capacity_is_of_the_replicas_and_of_a_remote_service_what_may_be_under_way() -> None:
    settings = Settings(engines=EngineSettings(replicas=3, llm="openai", queue_depth_max=20))
    assert (capacity(settings, "stt"), capacity(settings, "llm")) == (3, 20)


@pytest.mark.parametrize(("device", "batch_max", "stt"), [("cpu", 4, 2), ("cuda", 0, 32), ("cuda", 8, 16)])
def test_readings_that_share_a_call_of_a_gpu_do_not_fill_it(device: str, batch_max: int, stt: int) -> None:
    settings = Settings(engines=EngineSettings(replicas=2, device=device, batch_max=batch_max))
    assert (capacity(settings, "stt"), capacity(settings, "tts")) == (stt, 2)
