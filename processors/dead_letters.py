"""Where records go that cannot be processed: whole, with the reason, and never so many that a bug could hide there."""

import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from processors import metrics
from processors.stage import Position
from schemas.event import Event
from schemas.events import DeadLetter
from streams.clock import Clock

_IDS = uuid.UUID("0d1ee7e5-5d0c-5a0b-8d5e-6465616c6574")


class DeadLetterCeilingError(RuntimeError):
    """Too much bad input in a minute: the stage stops, so that a person looks before the topic is drained."""


class DeadLetters:
    """Sends bad records of one stage to voice.deadletters.

    The id of a dead letter derives from where its record lies, so that a repeat after a crash is recognised.
    """

    def __init__(
        self, stage: str, publish: Callable[[DeadLetter], Awaitable[Any]], clock: Clock, per_minute_max: int
    ) -> None:
        self._stage = stage
        self._publish = publish
        self._clock = clock
        self._per_minute_max = per_minute_max
        self._latest_s: deque[float] = deque()

    def send(
        self,
        position: Position,
        key: bytes | None,
        value: bytes | None,
        headers: Mapping[str, bytes],
        reason: str,
        detail: str = "",
        event: Event | None = None,
        addressee: str = "",
    ) -> Awaitable[Any]:
        """Publishes the dead letter; the result resolves when the broker has it. Raises DeadLetterCeilingError.

        `addressee` tells dead letters of one record apart that several systems did not take.
        """
        self._count(reason)
        session_id = event.session_id if event is not None else _session_id(key)
        letter = DeadLetter(
            event_id=str(uuid.uuid5(_IDS, "/".join([*map(str, position), *([addressee] if addressee else [])]))),
            session_id=session_id,
            tenant_id=event.tenant_id if event is not None else "",
            agent_id=event.agent_id if event is not None else "",
            turn=event.turn if event is not None else 0,
            seq=0,
            occurred_at=self._clock.now_us(),
            causation_id=event.event_id if event is not None else None,
            source_topic=position.topic,
            source_partition=position.partition,
            source_offset=position.offset,
            stage=self._stage,
            reason=reason,
            detail=detail,
            record_key=key,
            record_value=value,
            record_headers=headers,
        )
        return self._publish(letter)

    def _count(self, reason: str) -> None:
        now_s = self._clock.monotonic_s()
        while self._latest_s and self._latest_s[0] < now_s - 60:
            self._latest_s.popleft()
        if len(self._latest_s) >= self._per_minute_max:
            raise DeadLetterCeilingError(f"{self._stage}: more than {self._per_minute_max} dead letters in a minute")
        self._latest_s.append(now_s)
        metrics.refused.labels(self._stage, reason).inc()


def _session_id(key: bytes | None) -> str:
    """The key where it is a session id; else the nil UUID, so that foreign keys cannot pose as sessions."""
    try:
        return str(uuid.UUID((key or b"").decode()))
    except ValueError:
        return str(uuid.UUID(int=0))
