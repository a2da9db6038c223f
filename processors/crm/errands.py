"""What is to be done in one system: each errand until it is done or dead, those of a call one after another."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from prometheus_client import Counter

from processors.adapters.client import Adapters
from processors.crm.workflows import Workflow
from processors.dead_letters import DeadLetters
from processors.engine import EngineError
from processors.webhooks.core import Answer, Item, Lanes, Rules, Verdict
from processors.webhooks.feed import Entry
from processors.webhooks.subscriptions import outcome_id
from schemas.event import Event
from schemas.events import Delivery, DeliveryKind
from streams.clock import Clock
from streams.keys import Position

log = structlog.get_logger(__name__)

ENDPOINT = "workflow."

errands = Counter("trunkline_crm_errands", "Attempts at workflows, by what came of them.", ["outcome"])

_OUTCOMES = {
    Verdict.DELIVERED: DeliveryKind.DELIVERED,
    Verdict.AGAIN: DeliveryKind.ATTEMPTED,
    Verdict.DEAD: DeliveryKind.DEAD,
}


@dataclass(frozen=True, slots=True)
class Errand:
    """One workflow to be carried out for one event; `entry` is the record that led to it.

    `id` stands for it in the log, `key` in the other system.
    """

    id: str
    workflow: Workflow
    key: str
    arguments: Mapping[str, Any] = field(repr=False)
    event: Event
    entry: Entry = field(repr=False)


@dataclass(frozen=True, slots=True)
class Office:
    """What the errands of all systems share; `number` counts the process's events, `is_erased` tells of a session."""

    adapters: Adapters
    clock: Clock
    chance: random.Random
    letters: DeadLetters
    publish: Callable[[Event], Awaitable[Any]]
    number: Callable[[], int]
    is_erased: Callable[[str], bool]
    retry_s: tuple[float, ...]
    open_max: int


class Errands:
    """The errands to one system. `over` is told of each that is done or dead, with what must be in the log before it
    may be forgotten.
    """

    def __init__(self, adapter: str, office: Office, over: Callable[[Errand, list[Awaitable[Any]]], None]) -> None:
        concurrency = office.adapters.known[adapter].limits.concurrency
        rules = Rules(office.retry_s, concurrency, office.open_max, disable_after_s=float("inf"))
        self._office = office
        self._over = over
        self._lanes = Lanes(rules, office.chance)
        self._wake = asyncio.Event()

    @property
    def open_count(self) -> int:
        """Those that are neither done nor dead."""
        return self._lanes.open_count

    def add(self, errand: Errand) -> None:
        """Takes it, behind those of its call."""
        position = Position(*errand.entry.partition, errand.entry.record.offset)
        self._lanes.offer(Item(errand.event.session_id, position, 0, errand))
        self._wake.set()

    async def run(self) -> None:
        """Carries them out until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                while (item := self._lanes.take(self._office.clock.now_us())) is not None:
                    group.create_task(self._attempt(item))
                next_us = self._lanes.next_us()
                wait_s = None if next_us is None else max(0.0, (next_us - self._office.clock.now_us()) / 1_000_000)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()

    async def _attempt(self, item: Item) -> None:
        errand: Errand = item.payload
        answer, status = await self._performed(errand)
        verdict = self._lanes.settle(item, answer, self._office.clock.now_us())
        errands.labels(_OUTCOMES[verdict]).inc()
        told = [self._office.publish(self._delivery(item, answer, status, _OUTCOMES[verdict]))]
        if verdict is Verdict.DEAD:
            log.warning("workflow given up", workflow=errand.workflow.name, why=answer.reason)
            told.append(self._bury(item, answer))
        if verdict is not Verdict.AGAIN:
            self._over(errand, told)
        self._wake.set()

    async def _performed(self, errand: Errand) -> tuple[Answer, int]:
        """What is to become of the errand, and the HTTP status as it was."""
        if self._office.is_erased(errand.event.session_id):
            return Answer(400, "the call was erased", final=True), 0
        began_s = self._office.clock.monotonic_s()
        try:
            done = await self._office.adapters.perform(errand.workflow.operation, errand.arguments, errand.key)
        except EngineError as error:
            duration_ms = (self._office.clock.monotonic_s() - began_s) * 1000
            invalid = error.reason == "invalid"
            return Answer(400 if invalid else 0, str(error), duration_ms=duration_ms, final=invalid), 0
        if done.outcome == "ok":
            return Answer(200, duration_ms=done.duration_ms), done.status
        reason = f"{done.outcome}, status {done.status}"
        status = done.status if done.may_pass else 400
        return Answer(status, reason, duration_ms=done.duration_ms, final=not done.may_pass), done.status

    def _delivery(self, item: Item, answer: Answer, status: int, kind: DeliveryKind) -> Delivery:
        errand: Errand = item.payload
        event = errand.event
        return Delivery(
            event_id=outcome_id(errand.id, item.attempts, kind),
            session_id=event.session_id,
            tenant_id=event.tenant_id,
            agent_id=event.agent_id,
            turn=event.turn,
            seq=self._office.number(),
            occurred_at=self._office.clock.now_us(),
            causation_id=event.event_id,
            kind=kind,
            endpoint_id=ENDPOINT + errand.workflow.name,
            message_id=errand.id,
            source_topic=item.position.topic,
            source_partition=item.position.partition,
            source_offset=item.position.offset,
            attempt=item.attempts,
            status_code=status,
            duration_ms=answer.duration_ms,
            reason=answer.reason,
        )

    def _bury(self, item: Item, answer: Answer) -> Awaitable[Any]:
        errand: Errand = item.payload
        record = errand.entry.record
        headers = {name: value for name, value in record.headers if value is not None}
        name = errand.workflow.name
        detail = f"workflow {name}, attempt {item.attempts}: {answer.reason}"
        return self._office.letters.send(
            item.position, record.key, record.value, headers, "undelivered", detail, errand.event, f"workflow {name}"
        )
