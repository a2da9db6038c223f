"""A stage's way to its engines: the replicas of a role and what stands in for them, tried in order.

An ask goes to the best rung that is well. Where that has not begun to answer in the time it usually needs, the next
one is asked too; the first answer wins, the others are cancelled. A rung that fails is followed by the next at once,
one that keeps failing is left alone (`breaker.py`) and tried in the background until it is well again.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog
from msgspec.structs import replace
from prometheus_client import Counter, Histogram

from processors.breaker import State
from processors.engine import Embed, EngineError, Reply, Request, Speak, Spoken, Transcribe, is_provisional
from processors.lane import Lane, Reachable, Shared
from processors.memory import OUT_OF_MEMORY
from processors.replies import Checker, GarbageError, sounds
from streams.clock import Clock

log = structlog.get_logger(__name__)

USUAL_SAMPLES = 64
USUAL_SAMPLES_MIN = 8
USUAL_FACTOR = 2.0
HEDGES_AN_ASK = 0.1  # on average: a slow machine must not be given twice the work
HEDGES_BURST = 5.0
CALLERS_TEXTS_MAX = 16  # what a caller says has fewer sentences
TRIES_MAX = 2  # of one rung for one ask
RETURN_POLL_S = 0.05
TEND_S = 0.2
SHOW_S = 1.0
LOOK_S = 1.0  # at the queue of a shared engine
LOOK_AGAIN_S = 30.0  # where it told nothing
TRIAL_S = 8.0
BYTES_A_SECOND = 32_000
_OF_LOAD = ("timeout", "slow", OUT_OF_MEMORY)  # what may come of too much to do
SPEECH_CHARS_A_SECOND = 15.0  # of ordinary English at speed 1

_answers = Counter("trunkline_engine_answers", "Asks answered, by the rung that answered.", ["role", "rung"])
_hedges = Counter("trunkline_engine_hedges", "Asks put to a further rung, because the first was slow.", ["role"])
_failures = Counter("trunkline_engine_failures", "Asks that an engine failed.", ["engine", "reason"])
_first_reply = Histogram(
    "trunkline_engine_first_reply_seconds",
    "Time to the first reply that was used, where a caller waited for it.",
    ["engine"],
    buckets=(0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2, 3.2, 5, 10),
)


@dataclass(frozen=True, slots=True)
class Manner:
    """How a role's asks are treated.

    A further rung is asked after twice the usual time (95th percentile) to the first reply, between `hedge_min_s` and
    `hedge_max_s`, or `hedge_first_s` while too few are known. An engine that has not begun after `first_s`, or pauses
    for `stall_s`, has failed. Where no rung can be asked, one is waited for during `return_s`. `trial` is what an
    engine that was ill is tried with.
    """

    hedge_min_s: float
    hedge_first_s: float
    hedge_max_s: float
    stall_s: float
    return_s: float
    trial: Request
    first_s: float = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Rung:
    """One way to an answer; rungs of equal `rank` are replicas of each other, lower ranks are better.

    `adapt` makes a request one for this rung, or None where it cannot serve it. As a hedge it is asked no earlier than
    `late_s` after the ask began. `model` is what its replies name, where that differs from the role's own.
    """

    lane: Lane
    rank: int = 0
    name: str = ""
    adapt: Callable[[Request], Request | None] = lambda request: request
    late_s: float = 0.0
    model: str = ""


@dataclass(slots=True)
class Usual:
    """The times to the first reply that were seen lately."""

    manner: Manner
    seen_s: deque[float] = field(default_factory=lambda: deque(maxlen=USUAL_SAMPLES))

    @property
    def hedge_s(self) -> float:
        """How long to wait for a first reply before another rung is asked too."""
        if len(self.seen_s) < USUAL_SAMPLES_MIN:
            return self.manner.hedge_first_s
        ranked = sorted(self.seen_s)
        p95_s = ranked[math.ceil(0.95 * len(ranked)) - 1]
        return min(max(USUAL_FACTOR * p95_s, self.manner.hedge_min_s), self.manner.hedge_max_s)


class Ladder:
    """An `EngineClient` over the rungs of one role, to be used from one event loop."""

    def __init__(self, role: str, rungs: Sequence[Rung], clock: Clock, manner: Manner) -> None:
        self.role = role
        self.rungs = tuple(rungs)
        self.clock = clock
        self.manner = manner
        self.checker = Checker()
        self._usual: dict[tuple[bool, bool], Usual] = {}
        self._hedges = HEDGES_BURST
        self._tending: list[asyncio.Task[None]] = []

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The engines behind the rungs."""
        return tuple(dict.fromkeys(rung.lane for rung in self.rungs))

    @property
    def stands(self) -> bool:
        """Whether an engine of the role itself can be asked now, not just what stands in for it."""
        return any(rung.lane.reachable and rung.lane.breaker.closed for rung in self.rungs if rung.rank == 0)

    def start(self) -> None:
        """Begins to look after the engines: connections are kept, and those that are ill are tried. Safe to repeat."""
        if not self._tending:
            shared = [lane for lane in self.lanes if isinstance(lane.client, Shared)]
            work = [self._show(), *(self._tend(lane) for lane in self.lanes)]
            work += [self._look(lane) for lane in shared if len(shared) > 1]
            self._tending = [asyncio.create_task(one) for one in work]

    async def reach(self) -> None:
        """Returns when an engine can be asked."""
        self.start()
        while not any(lane.reachable and lane.breaker.closed for lane in self.lanes):
            await self.clock.sleep(RETURN_POLL_S)

    async def close(self) -> None:
        """See `EngineClient`."""
        for task in self._tending:
            task.cancel()
        await asyncio.gather(*self._tending, return_exceptions=True)
        for lane in self.lanes:
            await lane.client.close()

    async def retire(self) -> None:
        """Closes it for good: its engines are not shown as engines that are asked any more."""
        await self.close()
        for lane in self.lanes:
            lane.hide()

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`. Fails with the last engine's error once no rung is left.

        Speech that breaks off is gone on with by the next rung; a reading that was provisional is begun anew. An answer
        of the language model is not gone on with, since another would go on differently: who asked knows what was said
        of it, and may ask for the rest.
        """
        self.start()
        self._hedges = min(HEDGES_BURST, self._hedges + HEDGES_AN_ASK)
        async with aclosing(_Ask(self, request, deadline_s).replies()) as replies:
            async for reply in replies:
                yield reply

    def usual(self, request: Request) -> Usual:
        """The times of requests of that kind: a rough reading takes less than the best one, many texts take more."""
        rough = isinstance(request, Transcribe) and (request.partial or request.quick)
        return self._usual.setdefault((rough, _nobody_waits(request)), Usual(self.manner))

    def may_hedge(self, lane: Lane) -> bool:
        """Whether that engine has time to spare, and not too much was asked twice already."""
        return lane.spare and self._hedges >= 1.0

    def hedged(self) -> None:
        """An ask was put twice."""
        self._hedges -= 1.0
        _hedges.labels(self.role).inc()

    # ---- looking after the engines

    async def _tend(self, lane: Lane) -> None:
        """Keeps the engine connected, and tries it out whenever its breaker has rested."""
        while True:
            if isinstance(lane.client, Reachable):
                await lane.client.reach()
            if lane.breaker.state is State.OPEN:
                await self.clock.sleep(lane.breaker.rest_left_s)
                await self._try_out(lane)
            await self.clock.sleep(TEND_S)

    async def _show(self) -> None:
        while True:
            for lane in self.lanes:
                lane.show(self.role)
            await self.clock.sleep(SHOW_S)

    async def _look(self, lane: Lane) -> None:
        """Keeps fresh what a shared engine says of its queue."""
        while True:
            told = await lane.look()
            await self.clock.sleep(LOOK_S if told or not lane.reachable else LOOK_AGAIN_S)

    async def _try_out(self, lane: Lane) -> None:
        """Puts a trial to a rested engine, so that no caller has to wait for one that is still ill."""
        if not lane.reachable or not lane.breaker.trial():
            return
        try:
            trial = self.manner.trial
            async with (
                asyncio.timeout(TRIAL_S),
                aclosing(self.checker.checked(trial, lane.client.ask(trial, TRIAL_S))) as replies,
            ):
                async for _ in replies:
                    pass
        except TimeoutError:
            lane.breaker.failed("timeout")
        except EngineError as error:
            # One that is too busy to be tried is alive; the next ask will show how well.
            if error.reason == "refused":
                lane.breaker.succeeded()
            else:
                lane.breaker.failed(_told(error))
        except BaseException:
            lane.breaker.released()
            raise
        else:
            lane.breaker.succeeded()


class _Attempt:
    """One rung at work on an ask: a task waits for its first reply, the rest is read by who chose it."""

    def __init__(self, rung: Rung, request: Request, ladder: Ladder, deadline_s: float) -> None:
        self.rung = rung
        self.began_s = ladder.clock.monotonic_s()
        self.seen = False
        self._ladder = ladder
        self._told = False
        self._stream = ladder.checker.checked(request, rung.lane.client.ask(request, deadline_s))
        rung.lane.open += 1
        self.first: asyncio.Task[Reply | None] = asyncio.create_task(
            self._within(ladder.manner.first_s, "had not begun to answer after")
        )

    async def following(self, stall_s: float) -> Reply | None:
        """The next reply, None at the end; raises EngineError, also where none comes within `stall_s`."""
        return await self._within(stall_s, "paused in its answer for")

    async def _within(self, limit_s: float, late: str) -> Reply | None:
        try:
            async with asyncio.timeout(limit_s if limit_s < math.inf else None):
                return await anext(self._stream, None)
        except TimeoutError:
            raise EngineError("timeout", f"{self.rung.lane.name} {late} {limit_s:.1f} s") from None

    def answered(self) -> None:
        """It did well so far; the first verdict is the one that counts."""
        self.seen = True
        self.rung.lane.answered_s = self._ladder.clock.monotonic_s()

    def succeeded(self) -> None:
        """It answered in full, or as much as was wanted."""
        if not self._told:
            self._told = True
            self.rung.lane.breaker.succeeded()
            _answers.labels(self._ladder.role, self.rung.name or self.rung.lane.name).inc()

    def failed(self, reason: str, gone: bool = False) -> None:
        """It did not. One that answered others meanwhile is busy rather than ill, and not blamed for that."""
        lane = self.rung.lane
        if self._told:
            return
        self._told = True
        _failures.labels(lane.name, reason.partition(":")[0]).inc()
        if reason not in _OF_LOAD or lane.answered_s < self.began_s:
            lane.breaker.failed(reason, gone)

    async def close(self) -> None:
        """Cancels what is under way."""
        self.rung.lane.open -= 1
        if not self.first.done():
            self.first.cancel()
            await asyncio.wait((self.first,))
        if not self.first.cancelled():
            self.first.exception()  # looked at, or the loop complains
        await self._stream.aclose()


class _Ask:
    """One ask on its way up the ladder."""

    def __init__(self, ladder: Ladder, request: Request, deadline_s: float) -> None:
        self._ladder = ladder
        self._clock = ladder.clock
        self._request = request
        self._began_s = ladder.clock.monotonic_s()
        self._until_s = self._began_s + deadline_s
        self._progress = _Progress(request, tuple(rung.model for rung in ladder.rungs if rung.model))
        self._hedge_s = ladder.usual(request).hedge_s
        self._hedge_at_s = math.inf
        self._running: list[_Attempt] = []
        self._tries: dict[Rung, int] = {}
        self._error = EngineError("crashed", f"no {ladder.role} engine can be asked")

    async def replies(self) -> AsyncGenerator[Reply, None]:
        """The winner's replies; where speech or a reading breaks off, those of the next winner."""
        try:
            while not self._progress.complete:
                attempt = await self._won()
                try:
                    async for reply in self._followed(attempt):
                        yield reply
                    attempt.succeeded()
                    return
                except EngineError as error:
                    self._note(attempt, error)
                    if not isinstance(self._request, Speak | Transcribe) or self._left_s <= 0:
                        raise
                    await self._drop(attempt)
        finally:
            for attempt in list(self._running):
                self._judge_cancelled(attempt)
                await self._drop(attempt)

    async def _followed(self, attempt: _Attempt) -> AsyncGenerator[Reply, None]:
        """The attempt's replies from the first on, less what was passed on before."""
        reply = attempt.first.result()
        skip = self._progress.begin(attempt.rung)
        while reply is not None:
            skip, fresh = self._progress.passed(reply, skip)
            self._seen(attempt, reply)
            if fresh is not None:
                yield fresh
            reply = await attempt.following(max(0.0, min(self._ladder.manner.stall_s, self._left_s)))

    @property
    def _left_s(self) -> float:
        return self._until_s - self._clock.monotonic_s()

    # ---- who answers first

    async def _won(self) -> _Attempt:
        """The attempt whose first reply came first; all others are cancelled. Raises EngineError when none is left."""
        while True:
            if not self._running and not self._start(hedge=False):
                await self._returned()
                continue
            wait_s = min(self._hedge_at_s - self._clock.monotonic_s(), self._left_s)
            firsts = [attempt.first for attempt in self._running]
            await asyncio.wait(firsts, timeout=max(0.0, wait_s), return_when=asyncio.FIRST_COMPLETED)
            winner = await self._finished()
            if winner is not None:
                await self._settle(winner)
                return winner
            if self._left_s <= 0:
                self._give_up()
            if self._running and self._clock.monotonic_s() >= self._hedge_at_s:
                self._start(hedge=True)

    async def _finished(self) -> _Attempt | None:
        """An attempt that has its first reply; those that failed are dropped."""
        for attempt in list(self._running):
            if not attempt.first.done():
                continue
            error = attempt.first.exception()
            if error is None:
                return attempt
            if not isinstance(error, EngineError):
                raise error
            self._note(attempt, error)
            await self._drop(attempt)
        return None

    async def _settle(self, winner: _Attempt) -> None:
        for other in list(self._running):
            if other is not winner:
                if other.began_s < winner.began_s:
                    other.failed("slow")
                await self._drop(other)

    def _seen(self, attempt: _Attempt, reply: Reply) -> None:
        """What the engine's first reply tells of its times; a provisional reading tells little of those that count."""
        if attempt.seen or is_provisional(reply):
            return
        attempt.answered()
        took_s = self._clock.monotonic_s() - attempt.began_s
        self._ladder.usual(self._request).seen_s.append(took_s)
        if not _nobody_waits(self._request):
            _first_reply.labels(attempt.rung.lane.name).observe(took_s)

    def _start(self, hedge: bool) -> bool:
        """Asks the best rung that is left; as a hedge only where that does no harm."""
        now_s = self._clock.monotonic_s()
        self._hedge_at_s = math.inf if _nobody_waits(self._request) else now_s + self._hedge_s
        for rung, request in self._ranked():
            lane = rung.lane
            if hedge and (now_s - self._began_s < rung.late_s or not self._ladder.may_hedge(lane)):
                continue
            if hedge:
                self._ladder.hedged()
                log.info("engine_hedged", engine=lane.name, after_s=round(now_s - self._began_s, 2))
            self._tries[rung] = self._tries.get(rung, 0) + 1
            self._running.append(_Attempt(rung, request, self._ladder, self._left_s))
            return True
        return False

    def _ranked(self) -> list[tuple[Rung, Request]]:
        """The rungs that can be asked now, best first, each with its request.

        Among replicas the first with room goes first, so that one's caches stay warm; among shared engines the one with
        least to do. What nobody waits for does not take the second one's time.
        """
        busy = {attempt.rung.lane for attempt in self._running}
        spread = not _nobody_waits(self._request)
        rungs = [
            rung
            for rung in self._ladder.rungs
            if rung.lane not in busy and rung.lane.reachable and rung.lane.breaker.closed and self._may_try(rung)
        ]
        rungs.sort(key=lambda rung: (self._tries.get(rung, 0), rung.rank, rung.lane.load if spread else (0, 0)))
        adapted = ((rung, rung.adapt(self._progress.request_for(rung))) for rung in rungs)
        return [(rung, request) for rung, request in adapted if request is not None]

    def _may_try(self, rung: Rung) -> bool:
        return self._tries.get(rung, 0) < TRIES_MAX

    async def _returned(self) -> None:
        """Waits for a rung that can be asked; raises the last error when none comes back in time."""
        until_s = min(self._until_s, self._clock.monotonic_s() + self._ladder.manner.return_s)
        while self._clock.monotonic_s() < until_s and any(self._may_try(rung) for rung in self._ladder.rungs):
            if self._ranked():
                return
            await self._clock.sleep(RETURN_POLL_S)
        raise self._error

    # ---- what is learnt of a rung

    def _note(self, attempt: _Attempt, error: EngineError) -> None:
        """Blames the engine, unless the request was at fault or it had no room: then it is not asked again.

        Nor is one that had no memory: its process has tried twice.
        """
        self._error = error
        lane = attempt.rung.lane
        if isinstance(error, GarbageError) or error.reason in ("timeout", "crashed"):
            attempt.failed(_told(error), gone=error.reason == "crashed" and not lane.reachable)
        else:
            self._tries[attempt.rung] = TRIES_MAX
            if error.reason == OUT_OF_MEMORY:
                attempt.failed(error.reason)
        log.warning("engine_failed", engine=lane.name, reason=error.reason, detail=error.detail)

    def _judge_cancelled(self, attempt: _Attempt) -> None:
        """Who asked has heard enough, or waited in vain."""
        first = attempt.first
        if first.done() and not first.cancelled() and first.exception() is None:
            attempt.succeeded()
        elif self._clock.monotonic_s() - attempt.began_s > 2 * self._hedge_s:
            attempt.failed("slow")

    def _give_up(self) -> None:
        for attempt in self._running:
            attempt.failed("timeout")
        raise EngineError("timeout", f"no answer within {self._until_s - self._began_s:g} s")

    async def _drop(self, attempt: _Attempt) -> None:
        self._running.remove(attempt)
        await attempt.close()


class _Progress:
    """How far a sentence was spoken, so that another engine goes on there; of other requests it knows nothing.

    The same voice makes the same sound again, of which what was passed on is left out. Another voice is asked for the
    rest of the words, as far as their number tells where that begins.
    """

    def __init__(self, request: Request, models: tuple[str, ...]) -> None:
        self._request = request
        self._models = models
        self._model = request.heard_model if isinstance(request, Speak) else ""
        self._heard = request.heard_bytes if isinstance(request, Speak) else 0
        self._passed = 0
        self._resumed = False

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be said."""
        return isinstance(self._request, Speak) and self._passed > 0 and not sounds(self._rest().text)

    def request_for(self, rung: Rung) -> Request:
        """The whole sentence, or its rest where the rung's voice is another than the one that began."""
        return self._request if self._same_voice(rung) else self._rest()

    def begin(self, rung: Rung) -> int:
        """A rung was chosen; how many bytes of its speech were passed on already."""
        if self._same_voice(rung):
            return self._passed
        self._resumed = True
        self._heard = self._said
        self._passed = 0
        return 0

    def passed(self, reply: Reply, skip: int) -> tuple[int, Reply | None]:
        """What is left to skip, and the part of the reply that is to be passed on."""
        if not isinstance(reply, Spoken):
            return 0, reply
        fresh = reply.pcm[skip:]
        skip = max(0, skip - len(reply.pcm))
        self._model = reply.model
        first = self._resumed and self._passed == 0
        self._passed += len(fresh)
        return skip, replace(reply, pcm=fresh, resumed=first) if fresh else None

    @property
    def _said(self) -> int:
        return self._heard + self._passed if self._resumed else max(self._heard, self._passed)

    def _same_voice(self, rung: Rung) -> bool:
        if not isinstance(self._request, Speak) or not self._said or not self._model:
            return True
        return not self._resumed and rung.model == (self._model if self._model in self._models else "")

    def _rest(self) -> Speak:
        assert isinstance(self._request, Speak)
        chars = int(self._said / BYTES_A_SECOND * SPEECH_CHARS_A_SECOND * self._request.speed)
        text = self._request.text
        if chars and (space := text.rfind(" ", 0, chars + 1)) >= 0:
            text = text[space + 1 :] if chars < len(text) else ""
        return replace(self._request, text=text, heard_bytes=0, heard_model="")


def _nobody_waits(request: Request) -> bool:
    """Whether no caller does: for a partial reading, and for the many texts that a stage embeds when it starts."""
    if isinstance(request, Embed):
        return len(request.texts) > CALLERS_TEXTS_MAX
    return isinstance(request, Transcribe) and request.partial


def _told(error: EngineError) -> str:
    return f"{error.reason}: {error.detail}" if isinstance(error, GarbageError) else error.reason
