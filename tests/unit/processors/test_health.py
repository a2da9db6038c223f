"""Health events: ids that name process and number, one key for each process, and no exception ever."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from processors.health import Health
from processors.stage import event_id
from schemas.event import Event
from schemas.events import HealthKind
from streams.clock import SystemClock


class Stopped(SystemClock):
    """A clock that stands."""

    def now_us(self) -> int:
        return 1_700_000_000_000_000


def reported(*kinds: HealthKind) -> list[Event]:
    events: list[Event] = []

    async def run() -> None:
        def publish(event: Event) -> Awaitable[Any]:
            events.append(event)
            return asyncio.sleep(0)

        health = Health(publish, "stt", "0", "demo", Stopped())
        for kind in kinds:
            health.report(kind, engine="stt.1", reason="x" * 500)

    asyncio.run(run())
    return events


def test_events_share_the_key_of_their_process_and_are_numbered() -> None:
    first, second = reported(HealthKind.BREAKER_OPENED, HealthKind.BREAKER_CLOSED)
    assert first.session_id == second.session_id == event_id("health", "stt.0")
    assert (first.seq, second.seq) == (1, 2)
    assert first.event_id != second.event_id
    assert [event.event_id for event in reported(HealthKind.BREAKER_OPENED)] == [first.event_id]


def test_reasons_are_bounded() -> None:
    (event,) = reported(HealthKind.BREAKER_OPENED)
    assert len(event.reason) == 200  # type: ignore[attr-defined]


def test_a_log_that_is_away_hurts_nobody() -> None:
    async def run() -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: told.append(context))

        async def fail() -> None:
            raise OSError("away")

        def refuse(event: Event) -> Awaitable[Any]:
            raise RuntimeError("closed")

        Health(lambda event: fail(), "stt", "0", "demo", Stopped()).report(HealthKind.LOAD_RAISED, level=1)
        Health(refuse, "stt", "0", "demo", Stopped()).report(HealthKind.LOAD_RAISED, level=1)
        await asyncio.sleep(0.01)
        return told

    assert asyncio.run(run()) == []
