"""A gateway that stops, or starts where another one died: which sessions it takes, and which it leaves alone."""

from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import MagicMock

from api.metrics import Metrics
from api.session_router import SessionRouter, Summary
from api.waiting import GOING_AWAY, Arrival, Waiting, adopt
from schemas.events import Session, SessionKind
from streams.settings import ApiSettings, Settings

NUMBERS = iter(range(1000))


def begun(gateway: str = "api.0") -> Session:
    """A session that the gateway of that name has begun."""
    name = f"session-{next(NUMBERS)}"
    envelope: dict[str, Any] = {"event_id": name, "session_id": name, "tenant_id": "demo", "agent_id": "shop"}
    return Session(**envelope, turn=0, seq=0, occurred_at=1, kind=SessionKind.STARTED, channel="test", gateway=gateway)


class Histories:
    """What the log says of sessions, one answer after the other, and `then` happens meanwhile."""

    def __init__(self, *answers: list[Session], alive: set[str] | None = None) -> None:
        self._answers = list(answers)
        self._alive = alive or set()
        self.then: Callable[[], Awaitable[None]] | None = None

    async def open_sessions(self, numbers: Any, since_us: int) -> list[tuple[Session, Session]]:
        found = [(session, session) for session in self._answers.pop(0)]
        if self.then is not None:
            await self.then()
        return found

    async def active_since(self, session_ids: Any, since_ms: int, topics: Any) -> set[str]:
        return self._alive & set(session_ids)


def a_router(histories: Histories | None = None) -> tuple[SessionRouter, list[Session]]:
    """A gateway without callers that waits for none, and what it writes."""
    written: list[Any] = []
    settings = Settings(api=ApiSettings(resume_grace_s=0, session_idle_s=0.01))
    router = SessionRouter(settings, {}, Metrics())

    def publish(event: Any) -> MagicMock:
        written.append(event)
        return MagicMock()

    router._producer = MagicMock(publish=publish)
    if histories is not None:
        router.histories = histories  # type: ignore[assignment]
    return router, written


async def test_sessions_of_a_predecessor_end_when_nobody_comes_back() -> None:
    own, foreign, alive = begun(), begun("api.1"), begun("api.1")
    found = [own, foreign, alive]
    router, written = a_router(Histories(found, found, found, alive={alive.session_id}))
    await adopt(router)
    assert [(event.session_id, event.reason) for event in written] == [
        (own.session_id, "connection_lost"),
        (foreign.session_id, "connection_lost"),
    ]
    assert router.live == []


async def test_a_gateway_that_leaves_while_it_looks_for_open_sessions_leaves_them_to_its_successor() -> None:
    histories = Histories([begun()])
    router, written = a_router(histories)
    histories.then = router.leave_all
    await adopt(router)
    assert (router.live, written) == ([], [])


async def test_a_session_that_ended_while_open_ones_were_read_is_let_go() -> None:
    router, written = a_router(Histories([begun()], []))
    await adopt(router)
    assert (router.live, written) == ([], [])


async def test_a_stopped_gateway_ends_no_call_that_was_not_ended_before() -> None:
    """A caller may come back, or lose the connection, between the farewell and the end of the process."""
    router, written = a_router()
    router._producer = None
    session = begun()
    summary = Summary(session.session_id, "demo", "shop", "test", 1)
    waiting = Waiting(router, MagicMock(), summary)
    waiting.hold()
    why: list[str] = []
    arrival = Arrival(Summary("another", "demo", "shop", "test", 1), why.append)
    arrival.finished()
    router.put(arrival)
    await router.stop()
    assert waiting.over
    assert (arrival.gone, why) == (True, [GOING_AWAY])
    assert (waiting.journal.mock_calls, written) == ([], [])  # type: ignore[attr-defined]
