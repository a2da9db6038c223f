"""Performs what cores decide, in order, and says when a record is done. Knows the log and engines, not Faust.

A record is done when its outcomes are: its events acknowledged by the broker, its asks ended, its holds released, and
its effect on the session's state kept in a snapshot. Only then may its offset be committed, so a crash at any moment
repeats work and never skips it. What the repeated work already put into the log is read back (`Restored.recorded`) and
adopted, so that repeating is harmless.
"""

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import structlog

from processors import metrics
from processors.choices import History
from processors.engine import CallTool, Embed, EngineClient, EngineError, Reply, Request, Transcribe, is_provisional
from processors.generations import ForTurns
from processors.pipeline import Stage
from processors.session import Live, Seen, Unit, read_snapshot
from processors.stage import (
    LOADED,
    Answered,
    Ask,
    Cancel,
    Core,
    Drop,
    Emit,
    End,
    Failed,
    Happening,
    Hold,
    Outcome,
    Position,
    Received,
    Refuse,
    Release,
    Speculated,
    Wake,
    Woken,
)
from schemas.event import Event
from schemas.events import AudioFrame
from streams.clock import Clock

log = structlog.get_logger(__name__)

StateT = TypeVar("StateT")

ENDED_MAX = 10_000
# After a crash, records of an ended session come again until their offsets are committed in every topic: so long it is
# remembered that it ended.
ENDED_KEPT_S = 30.0
# So much of a timer's time begins only once the process has seen the rest of it pass.
LAST_LEG = 0.1
# Of the interval, in which a snapshot waits for what follows at once, as the rest of a turn does.
_FOLLOWS = 1 / 8
# The runner's own timer of a session; those of cores have names of one word.
_KEPT = "kept for"
_LOADED = Woken(LOADED)


class Log(Protocol):
    """The part of the log that a runner writes to; futures resolve when the broker has acknowledged, in order."""

    def publish(self, event: Event) -> Awaitable[Any]:
        """Appends an event to its topic, at the partition of its session."""
        ...

    def publish_state(self, stage: str, session_id: str, snapshot: bytes | None) -> Awaitable[Any]:
        """Replaces the session's snapshot; None deletes it."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it lies in the log, with its event decoded; the raw parts are for the dead letters."""

    position: Position
    event: Event
    key: bytes | None
    value: bytes
    headers: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Restored:
    """What a new owner of a partition knows of it before the first record arrives."""

    snapshots: Mapping[str, bytes] = field(default_factory=dict)
    recorded: Iterable[Event] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one runner; what happens at each is in ARCHITECTURE.md's table.

    A session that may go on after a silence of `session_silent_s` is kept for `session_kept_s` more. What is in no
    snapshot yet comes again after a crash: with one each `snapshot_interval_s`, so much of a call at most.
    """

    open_units_max: int = 2000
    snapshot_interval_s: float = 4.0
    session_silent_s: float = 0.0
    session_kept_s: float = math.inf


class Runner(Generic[StateT]):
    """Runs one stage for the sessions of its partitions, on one event loop.

    `on_done` is called with the position of each record that is done, in no particular order. `on_bug` is called with
    an exception that is nobody's bad input; the process should stop, since going on could lose records. From then on
    nothing is called done that was not, and no snapshot is written: the record it came with was not processed.
    """

    def __init__(
        self,
        stage: Stage,
        core: Core[StateT],
        engines: Mapping[str, EngineClient],
        log_: Log,
        clock: Clock,
        *,
        on_done: Callable[[Position], None],
        on_refused: Callable[[Record, Refuse], Awaitable[Any]],
        on_bug: Callable[[BaseException], None],
        limits: Limits = Limits(),
    ) -> None:
        self._stage = stage
        self._core = core
        self._engines = engines
        self._log = log_
        self._clock = clock
        self._on_done = on_done
        self._on_refused = on_refused
        self._on_bug = on_bug
        self._limits = limits
        self._live: dict[str, Live[StateT]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._epitaphs: dict[str, tuple[int, asyncio.TimerHandle]] = {}
        self._restored: dict[int, dict[str, tuple[list[Event], set[str]]]] = {}
        self._open = 0
        self._broken = False
        self._hurried = False
        self._room = asyncio.Event()
        self._room.set()
        self._tasks: set[asyncio.Future[Any]] = set()

    @property
    def sessions(self) -> int:
        """Sessions in memory."""
        return len(self._live)

    @property
    def open(self) -> int:
        """Asks and unacknowledged events, over all sessions."""
        return self._open

    def knows(self, session_id: str) -> bool:
        """Whether the session is in memory and has not ended."""
        live = self._live.get(session_id)
        return live is not None and not live.ended

    def histories(self, role: str) -> list[History]:
        """What the sessions in memory asked of the role."""
        return [live.history(role) for live in self._live.values() if not live.ended]

    @property
    def held(self) -> int:
        """Records that are processed but needed again if this process dies."""
        return sum(len(units) for live in self._live.values() for units in live.held.values())

    async def room(self) -> None:
        """Waits while too much is open: the caller reads no further record before this returns."""
        await self._room.wait()

    # ---- partitions

    def restore(self, partition: int, restored: Restored) -> None:
        """Takes over a partition; to be called before its first record is delivered."""
        recorded: dict[str, tuple[list[Event], set[str]]] = {}
        for event in restored.recorded:
            events, ids = recorded.setdefault(event.session_id, ([], set()))
            if event.event_id not in ids:
                events.append(event)
                ids.add(event.event_id)
        self._restored[partition] = recorded
        for session_id, data in restored.snapshots.items():
            self._load(session_id, partition, data)

    def _load(self, session_id: str, partition: int, data: bytes) -> None:
        snapshot = read_snapshot(data)
        if snapshot.ended:
            self._bury(session_id, partition)
            return
        live = Live(session_id, partition, self._core.load(session_id, snapshot.state), snapshot.seq)
        live.seen = Seen(snapshot.seen)
        live.saved, live.saved_seq = snapshot.state, snapshot.seq
        live.applied = dict(snapshot.applied)
        live.began_us, live.agent_id = snapshot.began_us, snapshot.agent_id
        live.histories = {role: History(snapshot.began_us, dict(turns)) for role, turns in snapshot.turns.items()}
        silent_s = (self._clock.now_us() - snapshot.at_us) / 1e6 if snapshot.at_us else 0.0
        self._take_in(live, max(0.0, silent_s))
        self._step(live, _LOADED, None)

    def _take_in(self, live: Live[StateT], silent_s: float = 0.0) -> None:
        self._adopt_recorded(live)
        self._live[live.session_id] = live
        live.heard_s = self._clock.monotonic_s() - silent_s
        # Whatever time has passed meanwhile, its caller may come back now.
        self._keep(live, max(self._limits.session_silent_s, self._silence_s_max - silent_s))

    def _adopt_recorded(self, live: Live[StateT]) -> None:
        events, ids = self._restored.get(live.partition, {}).pop(live.session_id, ([], set()))
        live.recorded_ids = ids
        for event in events:
            live.seq = max(live.seq, event.seq)
            if event.causation_id is not None:
                live.recorded.setdefault(event.causation_id, []).append(event)

    def forget(self, partition: int) -> None:
        """Gives a partition up: what is open for it is cancelled and none of it will be called done."""
        self._restored.pop(partition, None)
        for live in [live for live in self._live.values() if live.partition == partition]:
            live.close()
            del self._live[live.session_id]
        for session_id in [key for key, (number, _) in self._epitaphs.items() if number == partition]:
            self._epitaphs.pop(session_id)[1].cancel()
            self._ended.pop(session_id, None)
        metrics.sessions.labels(self._stage.name).set(len(self._live))

    async def drain(self, timeout_s: float) -> None:
        """Waits, no longer than that, until nothing is open and snapshots are written that else would wait a while."""
        if self._broken:
            return
        self._hurried = True
        for live in [live for live in self._live.values() if live.due is not None]:
            self._save(live)
        deadline_s = self._clock.monotonic_s() + timeout_s
        while (self._open or any(live.saving for live in self._live.values())) and (
            self._clock.monotonic_s() < deadline_s and not self._broken
        ):
            await self._clock.sleep(0.01)
        self._hurried = False

    # ---- records

    def deliver(self, record: Record) -> None:
        """Applies a record. Records of a session come in offset order for each topic."""
        event, position = record.event, record.position
        live = self._live.get(event.session_id)
        if event.session_id in self._ended or (live is not None and live.ended):
            self._drop(record, "session_ended")
            return
        if live is None:
            live = self._begin(event.session_id, position.partition)
        live.heard_s = self._clock.monotonic_s()
        live.began_us = min(live.began_us or event.occurred_at, event.occurred_at)
        live.agent_id = live.agent_id or event.agent_id
        if position.offset <= live.applied.get(position.topic, -1):
            self._drop(record, "applied")
            return
        live.applied[position.topic] = position.offset
        if not isinstance(event, AudioFrame) and not live.seen.add(event.event_id):
            self._drop(record, "repeated")
            return
        unit = Unit(position, event.event_id)
        recorded = tuple(live.recorded.pop(event.event_id, ()))
        self._step(live, Received(event, position, recorded), unit, record)
        self._check(live, unit)

    def _begin(self, session_id: str, partition: int) -> Live[StateT]:
        live = Live(session_id, partition, self._core.start(session_id))
        self._take_in(live)
        metrics.sessions.labels(self._stage.name).set(len(self._live))
        return live

    def _drop(self, record: Record, reason: str) -> None:
        metrics.dropped.labels(self._stage.name, reason).inc()
        self._on_done(record.position)

    def _step(self, live: Live[StateT], happening: Happening, unit: Unit | None, record: Record | None = None) -> None:
        """One step of the core. A bug in it ends the process, and the record stays open: it comes again."""
        try:
            step = self._core.apply(live.state, happening, self._clock.now_us())
        except Exception as bug:
            log.exception("core_failed", stage=self._stage.name, session_id=live.session_id)
            self._break(bug)
            return
        live.state = step.state
        live.stirred |= unit is None and happening != _LOADED
        try:
            for outcome in step.outcomes:
                self._perform(live, outcome, unit, record)
        except Exception as bug:  # as where there are more dead letters than may be
            self._break(bug)

    def _break(self, bug: BaseException) -> None:
        self._broken = True
        self._on_bug(bug)

    def _perform(self, live: Live[StateT], outcome: Outcome, unit: Unit | None, record: Record | None) -> None:
        match outcome:
            case Emit(event):
                self._emit(live, event, unit)
            case Ask():
                self._ask(live, outcome, unit)
            case Cancel(ask_id):
                self._cancel(live, ask_id)
            case Wake(name, at_us):
                self._wake(live, name, at_us)
            case Hold():
                assert unit is not None, "only a record can be held"
                unit.held = True
                live.held.setdefault(unit.position.topic, deque()).append(unit)
            case Release(topic, before):
                self._release(live, topic, before)
            case Refuse():
                assert record is not None, "only a record can be refused"
                self._watch(live, unit, self._on_refused(record, outcome))
            case Drop() | Speculated():
                self._count(outcome)
            case End():
                live.ended = True
                for timer in live.timers.values():
                    timer.cancel()
                for ask_id in list(live.asks):
                    self._cancel(live, ask_id)

    # ---- outcomes

    def _count(self, outcome: Drop | Speculated) -> None:
        if isinstance(outcome, Drop):
            metrics.dropped.labels(self._stage.name, outcome.reason).inc()
            return
        metrics.speculations.labels(self._stage.name, outcome.what).inc()
        metrics.speculated_ms.labels(self._stage.name, outcome.what).inc(outcome.engine_ms)

    def _emit(self, live: Live[StateT], event: Event, unit: Unit | None) -> None:
        if event.event_id in live.recorded_ids:
            return
        live.seq += 1
        metrics.emitted.labels(self._stage.name, event.ce_type).inc()
        self._watch(live, unit, self._log.publish(replace(event, seq=live.seq)))

    def _ask(self, live: Live[StateT], ask: Ask, unit: Unit | None) -> None:
        task = asyncio.get_running_loop().create_task(
            self._converse(live, ask, unit), name=f"{self._stage.name}:{ask.role}"
        )
        live.asks[ask.ask_id] = task
        self._opened(live, unit)

        def finished(done: asyncio.Task[None]) -> None:
            if live.asks.get(ask.ask_id) is done:
                del live.asks[ask.ask_id]
            if not done.cancelled() and (bug := done.exception()) is not None:
                self._break(bug)
            self._closed(live, unit)

        task.add_done_callback(finished)

    def _engine(self, live: Live[StateT], ask: Ask) -> EngineClient:
        engine = self._engines[ask.role]
        return engine.for_turn(live.history(ask.role), ask.turn) if isinstance(engine, ForTurns) else engine

    async def _converse(self, live: Live[StateT], ask: Ask, unit: Unit | None) -> None:
        started_s = self._clock.monotonic_s()
        try:
            async with aclosing(self._engine(live, ask).ask(ask.request, ask.deadline_s)) as replies:
                async for reply in replies:
                    last = _is_last(ask.request, reply)
                    self._step(live, Answered(ask.ask_id, reply, last), unit)
                    if last or live.asks.get(ask.ask_id) is not asyncio.current_task():
                        return
            self._step(live, Answered(ask.ask_id, None, last=True), unit)
        except EngineError as error:
            metrics.engine_errors.labels(self._stage.name, ask.role, error.reason).inc()
            log.warning("ask_failed", role=ask.role, reason=error.reason, session_id=live.session_id)
            self._step(live, Failed(ask.ask_id, error.reason, error.detail), unit)
        finally:
            metrics.ask_seconds.labels(self._stage.name, ask.role).observe(self._clock.monotonic_s() - started_s)

    def _cancel(self, live: Live[StateT], ask_id: str) -> None:
        task = live.asks.pop(ask_id, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def _wake(self, live: Live[StateT], name: str, at_us: int | None) -> None:
        previous = live.timers.pop(name, None)
        if previous is not None:
            previous.cancel()
        if at_us is not None:
            self._set_timer(live, name, max(0.0, (at_us - self._clock.now_us()) / 1e6), lambda: self._woken(live, name))

    def _woken(self, live: Live[StateT], name: str) -> None:
        self._step(live, Woken(name), None)
        self._settle(live)

    def _set_timer(self, live: Live[StateT], name: str, delay_s: float, action: Callable[[], None]) -> None:
        """A process that was stopped meanwhile reads what came for it before it believes in silence."""
        due_s = self._clock.monotonic_s() + delay_s
        loop = asyncio.get_running_loop()

        def ring() -> None:
            rest_s = max(due_s - self._clock.monotonic_s(), LAST_LEG * delay_s)
            live.timers[name] = loop.call_later(rest_s, rung)

        def rung() -> None:
            live.timers.pop(name, None)
            if not live.gone and not live.ended:
                action()

        live.timers[name] = loop.call_later((1 - LAST_LEG) * delay_s, ring)

    def _release(self, live: Live[StateT], topic: str, before: int) -> None:
        units = live.held.get(topic)
        while units and units[0].position.offset < before:
            unit = units.popleft()
            unit.held = False
            self._check(live, unit)

    # ---- when is a record done?

    def _watch(self, live: Live[StateT], unit: Unit | None, sent: Awaitable[Any]) -> None:
        self._opened(live, unit)
        self._then(sent, lambda: self._closed(live, unit))

    def _then(self, sent: Awaitable[Any], action: Callable[[], None]) -> None:
        """Does it once the broker has acknowledged; a broker that refuses ends the process."""
        future = asyncio.ensure_future(sent)
        self._tasks.add(future)

        def acknowledged(done: asyncio.Future[Any]) -> None:
            self._tasks.discard(done)
            if done.cancelled():
                return
            if (error := done.exception()) is not None:
                self._break(error)
                return
            action()

        future.add_done_callback(acknowledged)

    def _opened(self, live: Live[StateT], unit: Unit | None) -> None:
        live.open += 1
        self._open += 1
        if unit is not None:
            unit.open += 1
        if self._open >= self._limits.open_units_max:
            self._room.clear()
        metrics.open_units.labels(self._stage.name).set(self._open)

    def _closed(self, live: Live[StateT], unit: Unit | None) -> None:
        live.open -= 1
        self._open -= 1
        if self._open < self._limits.open_units_max:
            self._room.set()
        metrics.open_units.labels(self._stage.name).set(self._open)
        if unit is None:
            self._settle(live)
        else:
            unit.open -= 1
            self._check(live, unit)

    def _check(self, live: Live[StateT], unit: Unit) -> None:
        if unit.open == 0 and not unit.held and not unit.settled:
            unit.settled = True
            live.settled.append(unit)
        self._settle(live)

    def _settle(self, live: Live[StateT]) -> None:
        """Calls settled records done once the session's state, which holds their effect, is safe in a snapshot.

        While every record is still held there is none to write: those records come again after a crash, and with them
        what they did to the state.
        """
        if live.ended and live.due is not None:
            self._save(live)
        if self._broken or live.gone or live.open or live.saving:
            return
        if live.ended:
            self._finish(live)
            return
        if not live.settled and not live.stirred:
            return
        state = self._core.save(live.state)
        if state == live.saved and live.seq == live.saved_seq:
            covered, live.settled, live.stirred, live.overdue = live.settled, [], False, False
            self._done(covered)
            return
        if live.overdue:
            self._save(live)
            return
        interval_s = self._limits.snapshot_interval_s
        wait_s = max(interval_s * _FOLLOWS, live.saved_at_s + interval_s - self._clock.monotonic_s())
        live.saving = True
        live.due = asyncio.get_running_loop().call_later(0 if self._hurried else wait_s, self._save, live)

    def _save(self, live: Live[StateT]) -> None:
        if live.due is not None:
            live.due.cancel()
        live.due, live.saving, live.overdue = None, False, bool(live.open)
        if self._broken or live.gone or live.open:
            return
        if live.ended:
            self._finish(live)
            return
        state = self._core.save(live.state)
        covered, live.settled, live.stirred = live.settled, [], False
        live.saved, live.saved_seq, live.saved_at_s, live.saving = state, live.seq, self._clock.monotonic_s(), True

        def saved() -> None:
            live.saving = False
            if not live.gone:
                self._done(covered)
                self._settle(live)

        snapshot = live.snapshot(state, self._clock.now_us())
        self._then(self._log.publish_state(self._stage.name, live.session_id, snapshot), saved)

    def _finish(self, live: Live[StateT]) -> None:
        """The session is over and all of it is done: its snapshot says so, then its records are done."""
        live.saving = True

        def kept() -> None:
            if live.gone:
                return
            live.close()
            self._live.pop(live.session_id, None)
            self._bury(live.session_id, live.partition)
            held = [unit for units in live.held.values() for unit in units]
            self._done([*live.settled, *held])
            metrics.sessions.labels(self._stage.name).set(len(self._live))

        self._then(self._log.publish_state(self._stage.name, live.session_id, live.epitaph()), kept)

    def _bury(self, session_id: str, partition: int) -> None:
        """Remembers that the session is over, in the log only for a while."""
        self._ended[session_id] = None
        if len(self._ended) > ENDED_MAX:
            self._ended.popitem(last=False)

        def forget() -> None:
            del self._epitaphs[session_id]
            self._then(self._log.publish_state(self._stage.name, session_id, None), lambda: None)

        timer = asyncio.get_running_loop().call_later(ENDED_KEPT_S, forget)
        self._epitaphs[session_id] = partition, timer

    # ---- when is a session over that nobody ends?

    @property
    def _silence_s_max(self) -> float:
        return self._limits.session_silent_s + self._limits.session_kept_s

    def _keep(self, live: Live[StateT], for_s: float) -> None:
        if math.isfinite(for_s):
            self._set_timer(live, _KEPT, for_s, lambda: self._tend(live))

    def _tend(self, live: Live[StateT]) -> None:
        """Lets go of a session of which nothing came for so long that its end must have been lost."""
        silent_s = self._clock.monotonic_s() - live.heard_s
        if silent_s < self._silence_s_max:
            self._keep(live, self._silence_s_max - silent_s)
            return
        if live.open or live.saving or live.settled or any(live.held.values()):
            self._keep(live, self._silence_s_max)
            return
        log.info("session_let_go", stage=self._stage.name, session_id=live.session_id, silent_s=round(silent_s))
        live.close()
        del self._live[live.session_id]
        metrics.let_go.labels(self._stage.name).inc()
        metrics.sessions.labels(self._stage.name).set(len(self._live))
        # Before any snapshot of a session of that id that begins now.
        self._then(self._log.publish_state(self._stage.name, live.session_id, None), lambda: None)

    def _done(self, units: list[Unit]) -> None:
        for unit in units:
            self._on_done(unit.position)


def _is_last(request: Request, reply: Reply) -> bool:
    """Whether nothing follows, so that nobody need wait for the engine to say so."""
    if isinstance(request, Transcribe):
        return not is_provisional(reply)
    return isinstance(request, Embed | CallTool)
