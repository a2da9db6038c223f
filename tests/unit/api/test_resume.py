"""A caller comes back, once or twice, while the log answers late or not at all: who has the session then."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest
from pydantic import SecretStr
from starlette.websockets import WebSocket

from api.calls import AHEAD_MS_MAX, Call
from api.connection import START_TIMEOUT_S, Connection
from api.dialects.dialect import Resume
from api.dialects.native import SAMPLES_MAX, NativeDialect
from api.history import History, Marks, Wanted
from api.journal import Journal
from api.metrics import Metrics
from api.resume import take_up
from api.session_router import SessionRouter, Summary, summary_of
from api.waiting import GOING_AWAY, RESUMED_ELSEWHERE, Arrival, Waiting
from schemas.event import Event
from schemas.events import Control, ControlKind, Session, SessionKind
from streams.client import LogError
from streams.settings import ApiSettings, Settings
from tests.simulation.simulated import EPOCH_US, SimulatedClock, simulate

SESSION = "c1a5a8e2-b45f-4d0f-a99c-537e67854882"
GRACE_S = 30.0
BEGUN = Session(
    event_id="begun",
    session_id=SESSION,
    tenant_id="demo",
    agent_id="shop",
    turn=0,
    seq=0,
    occurred_at=EPOCH_US,
    kind=SessionKind.STARTED,
    channel="websocket",
    gateway="api.0",
)


class World:
    """A gateway with a log that answers, and acknowledges, when it is told to."""

    def __init__(self) -> None:
        settings = Settings(api=ApiSettings(resume_grace_s=GRACE_S, resume_key=SecretStr("of the tests")))
        self.router = SessionRouter(settings, {}, Metrics(), SimulatedClock())
        self.router.histories = self  # type: ignore[assignment]
        self.router._producer = MagicMock(publish=self.publish)
        self.readings: list[asyncio.Future[History | None]] = []
        self.written: list[Any] = []
        self.acknowledges = True
        self.open: list[asyncio.Future[None]] = []

    async def of(self, wanted: Wanted) -> History | None:
        """Each reading of the history is one of `readings`."""
        assert wanted.session_id == SESSION
        self.readings.append(asyncio.get_running_loop().create_future())
        return await asyncio.shield(self.readings[-1])

    def publish(self, event: Event) -> asyncio.Future[None]:
        self.written.append(event)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.open.append(future)
        if self.acknowledges:
            future.set_result(None)
        return future

    def acknowledge(self) -> None:
        """What was written, and all that comes."""
        self.acknowledges = True
        for future in self.open:
            if not future.done():
                future.set_result(None)

    def waits(self) -> Waiting:
        """The session waits for its caller here."""
        waiting = Waiting(self.router, Journal(self.router, BEGUN, Marks(session=1)), summary_of(BEGUN))
        waiting.wait()
        return waiting

    def has(self) -> object:
        """Who has the session here."""
        return self.router.find(SESSION)

    @property
    def ends(self) -> list[str]:
        """Why it has ended, each time."""
        return [e.reason for e in self.written if isinstance(e, Session) and e.kind is SessionKind.ENDED]


class Back:
    """A caller who has come back, without a connection that would be closed when its place is another's."""

    def __init__(self, world: World, kept_from: int = 0) -> None:
        self.told: list[dict[str, Any]] = []
        self.why: list[str] = []
        self.stopped: list[tuple[int, str]] = []
        line = MagicMock(send=self.send, stuck=False)
        self.arrival = Arrival(Summary(SESSION, "demo", "", "websocket", EPOCH_US), self.why.append)
        self.task = asyncio.create_task(
            take_up(world.router, NativeDialect(), line, Resume("", kept_from=kept_from), self.arrival, self.stop)
        )

    def send(self, frames: Iterable[str | bytes], **rules: Any) -> None:
        self.told += [msgspec.json.decode(frame) for frame in frames if isinstance(frame, str)]

    def stop(self, code: int, reason: str) -> None:
        self.stopped.append((code, reason))

    async def cancelled(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


def history(sample_index: int = 0, ended: Session | None = None) -> History:
    return History(BEGUN, ended, Marks(session=1, sample_index=sample_index))


async def all_done() -> None:
    """Whatever can go on has done so."""
    await asyncio.sleep(0.001)


def world_of(play: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await play(World())

    simulate(run())


@pytest.mark.parametrize(
    ("kept_from", "begins_at"),
    [(0, 16_000), (15_999, 16_000), (20_000, 20_000), (SAMPLES_MAX, (10_000 + AHEAD_MS_MAX) * 16)],
)
def test_a_client_goes_on_where_it_can_have_spoken(kept_from: int, begins_at: int) -> None:
    async def play(world: World) -> None:
        await asyncio.sleep(10 - 0.001)
        back = Back(world, kept_from)
        await all_done()
        world.readings[0].set_result(history(sample_index=16_000))
        call = await back.task
        assert isinstance(call, Call)
        assert back.told[0]["sample_index"] == begins_at
        assert call.audio(bytes(640)) < 0.1, "it is not made to wait for ever"

    world_of(play)


def test_a_client_whose_call_began_later_by_this_clock_loses_nothing_that_the_log_has() -> None:
    async def play(world: World) -> None:
        back = Back(world, 1_000_000)
        await all_done()
        world.readings[0].set_result(history(sample_index=2_000_000))
        await back.task
        assert back.told[0]["sample_index"] == 2_000_000

    world_of(play)


@pytest.mark.parametrize("first_fails_early", [True, False])
def test_a_failed_attempt_does_not_disturb_a_later_one(first_fails_early: bool) -> None:
    async def play(world: World) -> None:
        world.waits()
        first = Back(world)
        await all_done()
        second = Back(world)
        await all_done()
        assert (first.why, second.why) == ([RESUMED_ELSEWHERE], [])
        if first_fails_early:
            world.readings[0].set_exception(LogError("away"))
            await all_done()
        world.readings[1].set_result(history())
        call = await second.task
        if not first_fails_early:
            world.readings[0].set_exception(LogError("away"))
        with pytest.raises(LogError):
            await first.task
        assert world.has() is call
        await asyncio.sleep(2 * GRACE_S)
        assert (world.has(), world.ends) == (call, [])

    world_of(play)


@pytest.mark.parametrize("answer", [history(), None, LogError("away")])
def test_of_an_attempt_whose_place_is_anothers_nothing_comes(answer: History | LogError | None) -> None:
    async def play(world: World) -> None:
        first = Back(world)
        await all_done()
        second = Back(world)
        await all_done()
        if isinstance(answer, LogError):
            world.readings[0].set_exception(answer)
        else:
            world.readings[0].set_result(answer)
        await asyncio.wait({first.task})
        assert first.task.exception() is answer or first.task.result() is None
        assert (world.has(), first.told) == (second.arrival, [])
        await second.cancelled()

    world_of(play)


def test_a_second_attempt_that_fails_gives_back_what_the_first_had_found() -> None:
    async def play(world: World) -> None:
        waiting = world.waits()
        world.acknowledges = False
        waiting.journal.lost("connection_lost", "away")
        first = Back(world)
        await all_done()
        second = Back(world)
        await all_done()
        assert world.readings == [], "the log does not have all yet"
        await second.cancelled()
        assert isinstance(world.has(), Waiting)
        await first.cancelled()
        assert isinstance(world.has(), Waiting)
        world.acknowledge()
        await asyncio.sleep(GRACE_S + 1)
        assert (world.has(), world.ends) == (None, ["connection_lost"])

    world_of(play)


@pytest.mark.parametrize("moment", ["settling", "reading", "failing", "broken", "claiming"])
def test_however_an_attempt_ends_the_session_waits_on(moment: str) -> None:
    async def play(world: World) -> None:
        waiting = world.waits()
        if moment == "settling":
            world.acknowledges = False
            waiting.journal.lost("connection_lost", "away")
        back = Back(world)
        await all_done()
        if moment == "failing":
            world.readings[0].set_exception(LogError("away"))
        elif moment == "broken":
            world.readings[0].set_exception(ValueError("a bug"))
        elif moment == "claiming":
            world.acknowledges = False
            world.readings[0].set_result(history())
            await all_done()
            assert isinstance(world.has(), Call)
        if moment in ("settling", "reading", "claiming"):
            back.task.cancel()
        await asyncio.wait({back.task})
        assert isinstance(world.has(), Waiting)
        world.acknowledge()
        await asyncio.sleep(GRACE_S + 1)
        assert (world.has(), world.ends) == (None, ["connection_lost"])

    world_of(play)


def heard(kind: str, gateway: str = "api.0") -> Event:
    """An event of the log while the caller's attempt is at work."""
    envelope: dict[str, Any] = {"event_id": kind, "session_id": SESSION, "tenant_id": "demo", "agent_id": "shop"}
    envelope |= {"turn": 0, "seq": 5, "occurred_at": EPOCH_US}
    if kind == "hang_up":
        return Control(**envelope, kind=ControlKind.HANG_UP, reason="requested")
    return Session(**envelope, kind=SessionKind.UPDATED, channel="websocket", reason=kind, gateway=gateway)


@pytest.mark.parametrize(
    ("event", "ends"),
    [
        (heard("hang_up"), ["hung_up"]),
        (heard("resumed", "api.1"), []),
        (heard("resumed"), ["connection_lost"]),
    ],
)
@pytest.mark.parametrize("twice", [False, True])
def test_what_happens_meanwhile_is_not_forgotten_where_the_attempt_fails(
    event: Event, ends: list[str], twice: bool
) -> None:
    """Somebody wants it ended; the caller is at another gateway; a claim of this gateway is read back late."""

    async def play(world: World) -> None:
        world.waits()
        back = Back(world)
        await all_done()
        back.arrival.deliver(event)
        if twice:
            back = Back(world)
            await all_done()
        world.readings[-1].set_exception(LogError("away"))
        with pytest.raises(LogError):
            await back.task
        await asyncio.sleep(GRACE_S + 1)
        assert (world.has(), world.ends) == (None, ends)

    world_of(play)


def test_what_comes_during_a_claim_that_fails_is_not_forgotten() -> None:
    async def play(world: World) -> None:
        world.waits()
        back = Back(world)
        await all_done()
        world.acknowledges = False
        world.readings[0].set_result(history())
        await all_done()
        call = world.has()
        assert isinstance(call, Call)
        call.deliver(heard("hang_up"))
        back.task.cancel()
        await asyncio.wait({back.task})
        world.acknowledge()
        await asyncio.sleep(GRACE_S + 1)
        assert (world.has(), world.ends) == (None, ["hung_up"])

    world_of(play)


class Caller:
    """A socket on which a call is resumed, until it is closed."""

    def __init__(self, world: World) -> None:
        self.told: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None
        token = world.router.resume_token(SESSION, "demo", EPOCH_US)
        first = msgspec.json.encode({"type": "resume", "resume_token": token}).decode()
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._incoming.put_nowait({"type": "websocket.receive", "text": first})
        websocket = MagicMock(spec=WebSocket, scope={}, receive=self._incoming.get, send=self.send, close=self.close)
        self.task = asyncio.create_task(Connection(websocket, NativeDialect(), world.router, MagicMock()).run())

    async def send(self, message: dict[str, Any]) -> None:
        self.told.append(msgspec.json.decode(message["text"]))

    async def close(self, code: int, reason: str) -> None:
        self.closed = code, reason

    @property
    def types(self) -> list[str]:
        return [message["type"] for message in self.told]


@pytest.mark.parametrize("claiming", [False, True])
def test_a_gateway_that_stops_sends_those_who_come_back_on(claiming: bool) -> None:
    async def play(world: World) -> None:
        world.waits()
        caller = Caller(world)
        await all_done()
        world.acknowledges = False
        if claiming:
            world.readings[0].set_result(history())
            await all_done()
        assert isinstance(world.has(), Call if claiming else Arrival)
        async with asyncio.timeout(5):
            await world.router.leave_all()
            assert (caller.types, caller.closed) == ([GOING_AWAY], (1012, GOING_AWAY)), "before the gateway goes on"
            await caller.task
        assert world.has() is None
        await asyncio.sleep(2 * GRACE_S)
        assert world.ends == [], "it is its successor's"

    world_of(play)


@pytest.mark.parametrize("claiming", [False, True])
def test_who_comes_twice_is_told_so_on_the_connection_that_is_not_used(claiming: bool) -> None:
    async def play(world: World) -> None:
        world.waits()
        first = Caller(world)
        await all_done()
        world.acknowledges = not claiming
        if claiming:
            world.readings[0].set_result(history())
            await all_done()
        second = Caller(world)
        await all_done()
        assert (first.types, first.closed) == (["error"], (1008, RESUMED_ELSEWHERE))
        assert first.told[0]["code"] == RESUMED_ELSEWHERE
        world.acknowledge()
        await all_done()
        world.readings[-1].set_result(history())
        await all_done()
        assert (second.types, second.closed) == (["resumed"], None)
        await asyncio.sleep(2 * GRACE_S)
        assert (isinstance(world.has(), Call), world.ends) == (True, [])
        await world.router.leave_all()

    world_of(play)


def test_a_call_that_has_ended_is_told_as_such() -> None:
    async def play(world: World) -> None:
        caller = Caller(world)
        await all_done()
        ended = heard("completed")
        assert isinstance(ended, Session)
        world.readings[0].set_result(history(ended=ended))
        await caller.task
        assert (caller.told, caller.closed) == ([{"type": "ended", "reason": "completed"}], (1000, "completed"))
        assert world.has() is None

    world_of(play)


def test_a_connection_that_gives_up_on_a_resumption_leaves_the_session_waiting() -> None:
    async def play(world: World) -> None:
        world.waits()
        caller = Caller(world)
        await asyncio.sleep(START_TIMEOUT_S + 1)
        await caller.task
        assert caller.closed == (1008, "start_timeout")
        assert isinstance(world.has(), Waiting)
        await asyncio.sleep(GRACE_S + 1)
        assert (world.has(), world.ends) == (None, ["connection_lost"])

    world_of(play)


def test_a_bug_closes_the_connection_so_that_the_caller_comes_back() -> None:
    async def play(world: World) -> None:
        world.waits()
        caller = Caller(world)
        await all_done()
        world.readings[0].set_exception(ValueError("a bug"))
        with pytest.raises(ValueError, match="a bug"):
            await caller.task
        assert caller.closed == (1011, "failed")
        assert isinstance(world.has(), Waiting)

    world_of(play)
