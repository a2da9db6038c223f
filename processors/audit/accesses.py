"""Who read which call, when: an event for each access, in the log before anything is shown."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from processors.stage import event_id
from schemas.event import Event
from schemas.events import Access, AccessKind
from streams.client import LogError
from streams.clock import Clock

QUERY_CHARS_MAX = 2000
WRITTEN_S = 5.0


class Accesses:
    """Writes accesses by one way: rest, cli or clickhouse."""

    def __init__(self, publish: Callable[[Event], Awaitable[Any]], clock: Clock, via: str) -> None:
        self._publish = publish
        self._clock = clock
        self._via = via

    async def note(
        self,
        kind: AccessKind,
        actor: str,
        *,
        session_id: str = "",
        tenant: str = "",
        agent: str = "",
        what: str = "",
        query: str = "",
    ) -> None:
        """Returns when it is in the log; raises LogError where it cannot be, and then nothing may be shown.

        Without a `session_id` no single call is meant. Neither `what` nor `query` may name persons.
        """
        now_us = self._clock.now_us()
        access = Access(
            event_id=str(uuid.uuid4()),
            session_id=session_id or event_id("actor", f"{self._via}/{actor}"),
            tenant_id=tenant,
            agent_id=agent,
            turn=0,
            seq=now_us,
            occurred_at=now_us,
            kind=kind,
            actor=actor,
            via=self._via,
            what=what,
            query=query[:QUERY_CHARS_MAX],
        )
        try:
            async with asyncio.timeout(WRITTEN_S):
                await self._publish(access)
        except TimeoutError:
            raise LogError(f"{Access.TOPIC}: not written within {WRITTEN_S:g} s") from None
