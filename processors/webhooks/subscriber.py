"""One subscription at work: what it is told of, what is on its way to it, and how far it is."""

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from prometheus_client import Counter, Histogram

from processors.dead_letters import DeadLetters
from processors.privacy import Policies
from processors.webhooks.core import Answer, Condition, Item, Lanes, Rules, Verdict
from processors.webhooks.feed import Backlog, Entry, Positions, Tail, by_topic, positions_in
from processors.webhooks.guard import Guard
from processors.webhooks.message import body_of, headers_of
from processors.webhooks.sender import Sender
from processors.webhooks.subscriptions import (
    Open,
    Progress,
    Subscription,
    disabled_of,
    message_id,
    outcome_id,
    wants,
)
from processors.webhooks.vault import Vault, VaultError
from schemas.event import Event
from schemas.events import Delivery, DeliveryKind
from streams.client import LogError, Partition
from streams.clock import Clock
from streams.codec import Codec
from streams.keys import Position
from streams.settings import Settings

log = structlog.get_logger(__name__)

_RETRY_S = 1.0

attempts = Counter("trunkline_webhooks_attempts", "Attempts to deliver, by what came of them.", ["outcome"])
seconds = Histogram(
    "trunkline_webhooks_seconds", "How long attempts took.", buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
)

_OUTCOMES = {
    Verdict.DELIVERED: DeliveryKind.DELIVERED,
    Verdict.AGAIN: DeliveryKind.ATTEMPTED,
    Verdict.DEAD: DeliveryKind.DEAD,
}


@dataclass(frozen=True, slots=True)
class Tools:
    """What all subscribers share; `number` counts the relay's events."""

    settings: Settings
    codec: Codec
    policies: Policies
    clock: Clock
    chance: random.Random
    vault: Vault
    guard: Guard
    tail: Tail
    backlog: Backlog
    letters: DeadLetters
    publish: Callable[[Event], Awaitable[Any]]
    number: Callable[[], int]


class Subscriber:
    """Runs until it is cancelled, or switched off by what the endpoint does; `told` and `progress` are to be kept."""

    def __init__(self, subscription: Subscription, before: Progress | None, tools: Tools) -> None:
        self.subscription = subscription
        self._before = before
        self._tools = tools
        webhooks = tools.settings.webhooks
        rules = Rules(webhooks.retry_s, webhooks.concurrency, webhooks.open_max, webhooks.disable_after_s)
        self._lanes = Lanes(rules, tools.chance, _condition(subscription, before))
        self._positions: Positions = {}
        self._told: list[Awaitable[Any]] = []
        self._sender: Sender | None = None
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self.changed = False

    @property
    def is_on(self) -> bool:
        """Whether anything is sent."""
        return self.subscription.enabled and not self._lanes.condition.disabled

    @property
    def is_failing(self) -> bool:
        """Whether the endpoint has not taken anything since it last failed."""
        return bool(self._lanes.condition.failing_since_us)

    @property
    def open_count(self) -> int:
        """Messages that are neither delivered nor dead."""
        return self._lanes.open_count

    async def run(self) -> None:
        """Reads and sends."""
        while not await self._restored():
            await self._tools.clock.sleep(_RETRY_S)
        webhooks = self._tools.settings.webhooks
        self._sender = Sender(
            self.subscription.url, self._tools.guard, self._tools.clock, webhooks.timeout_s, webhooks.concurrency
        )
        try:
            async with asyncio.TaskGroup() as group:
                pulling = group.create_task(self._pull())
                await self._dispatch(group)
                pulling.cancel()
        finally:
            await self._sender.close()

    def take_told(self) -> tuple[list[Awaitable[Any]], Progress]:
        """The progress as of now, and the events that must be in the log before it."""
        told, self._told = self._told, []
        self.changed = False
        return told, self._progress()

    def _progress(self) -> Progress:
        condition = self._lanes.condition
        open_items = tuple(Open(*item.position, item.attempts, item.due_us) for item in self._lanes.open_items())
        if not self._positions and self._before is not None:
            return self._before  # it has not begun
        return Progress(
            start=self.subscription.start.number,
            positions=by_topic(self._positions),
            open=open_items,
            enablings=self.subscription.enablings,
            disabled=condition.disabled,
            failures=condition.failures,
            failing_since=condition.failing_since_us,
            delivered_at=condition.delivered_at_us,
            delivered=condition.delivered,
            dead=condition.dead,
            status=condition.status,
            reason=condition.reason,
        )

    # ---- where it was

    async def _restored(self) -> bool:
        """Finds the place to go on from; False while the log cannot be read."""
        try:
            positions = await self._place()
            kept = [one for one in (self._before.open if self._before else ()) if _is_below(one, positions)]
            offsets: dict[Partition, list[int]] = defaultdict(list)
            for one in kept:
                offsets[Partition(one.topic, one.partition)].append(one.offset)
            found = await self._tools.backlog.at(list(offsets), offsets) if offsets else []
        except LogError as error:
            log.warning("reading the log failed, trying again", webhook=self.subscription.id, error=str(error))
            return False
        entries = {Position(*entry.partition, entry.record.offset): entry for entry in found}
        for one in kept:
            entry = entries.get(Position(one.topic, one.partition, one.offset))
            if entry is not None:
                self._offer(entry, one.attempts, one.due_us)
        if len(entries) < len(kept):
            log.error("messages are no longer in the log", webhook=self.subscription.id, count=len(kept) - len(entries))
        self._positions = positions
        self.changed = True
        return True

    async def _place(self) -> Positions:
        """The positions of before, moved back by a replay that was asked for since."""
        start = self.subscription.start
        now = positions_in(self._before.positions) if self._before is not None else {}
        if self._before is not None and self._before.start == start.number:
            return now
        wanted = await self._tools.backlog.positions_of(start, now)
        return {partition: min(offset, now.get(partition, offset)) for partition, offset in wanted.items()}

    # ---- reading

    async def _pull(self) -> None:
        tail, seen = self._tools.tail, 0
        while True:
            try:
                if not tail.starts:
                    await tail.grown()
                elif tail.covers(self._positions):
                    seen = max(seen, tail.first)
                    seen += self._consider(await tail.after(seen))
                else:
                    chunk = await self._tools.backlog.read(self._positions, tail.ends)
                    if self._consider(chunk.entries) == len(chunk.entries):
                        self._positions |= chunk.after
                        self.changed = True
            except LogError as error:
                log.warning("reading the log failed, trying again", webhook=self.subscription.id, error=str(error))
                await self._tools.clock.sleep(_RETRY_S)
            if not self._lanes.has_room:
                await self._room()

    async def _room(self) -> None:
        while not self._lanes.is_half_empty:
            self._moved.clear()
            await self._moved.wait()

    def _consider(self, entries: Sequence[Entry]) -> int:
        """Takes what is wanted of these; returns how many it dealt with before there was no room."""
        for count, entry in enumerate(entries):
            if entry.record.offset < self._positions.get(entry.partition, 0):
                continue
            if wants(self.subscription, entry.event):
                if not self._lanes.has_room:
                    return count
                self._offer(entry)
            self._positions[entry.partition] = entry.record.offset + 1
            self.changed = True
        return len(entries)

    def _offer(self, entry: Entry, made: int = 0, due_us: int = 0) -> None:
        position = Position(*entry.partition, entry.record.offset)
        self._lanes.offer(Item(entry.event.session_id, position, entry.size_bytes, entry, made, due_us))
        self._wake.set()

    # ---- sending

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        """Sends what is due, until the endpoint is switched off."""
        while self.is_on:
            self._wake.clear()
            while (item := self._lanes.take(self._tools.clock.now_us())) is not None:
                group.create_task(self._attempt(item))
            next_us = self._lanes.next_us()
            wait_s = None if next_us is None else max(0.0, (next_us - self._tools.clock.now_us()) / 1_000_000)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _attempt(self, item: Item) -> None:
        answer = await self._sent(item)
        was_on = self.is_on
        verdict = self._lanes.settle(item, answer, self._tools.clock.now_us())
        seconds.observe(answer.duration_ms / 1000)
        attempts.labels(_OUTCOMES[verdict]).inc()
        self._tell(item, answer, _OUTCOMES[verdict])
        if verdict is Verdict.DEAD:
            self._bury(item, answer)
        if was_on and not self.is_on:
            self._tell(item, answer, DeliveryKind.DISABLED)
            log.warning("webhook switched off", webhook=self.subscription.id, why=self._lanes.condition.disabled)
        self.changed = True
        self._wake.set()
        self._moved.set()

    def _body(self, entry: Entry, position: Position) -> bytes:
        """Read anew for each attempt: a call may have been erased since the first."""
        record = entry.record
        event = self._tools.policies.redacted(self._tools.codec.decode_keyed(record.topic, record.key, record.value))
        return body_of(event, position, self._tools.settings.webhooks.payload_bytes_max)

    async def _sent(self, item: Item) -> Answer:
        assert self._sender is not None, "it runs"
        entry: Entry = item.payload
        now_us = self._tools.clock.now_us()
        try:
            secrets = open_secrets(self.subscription, self._tools.vault, now_us)
        except VaultError as error:
            return Answer(0, str(error))
        body = self._body(entry, item.position)
        message = message_id(self.subscription.id, entry.event.event_id)
        return await self._sender.post(body, headers_of(message, body, secrets, now_us))

    def _tell(self, item: Item, answer: Answer, kind: DeliveryKind) -> None:
        """What came of it, as an event."""
        event: Event = item.payload.event
        message = message_id(self.subscription.id, event.event_id)
        reason = self._lanes.condition.disabled if kind is DeliveryKind.DISABLED else answer.reason
        delivery = Delivery(
            event_id=outcome_id(message, item.attempts, kind),
            session_id=event.session_id,
            tenant_id=event.tenant_id,
            agent_id=event.agent_id,
            turn=event.turn,
            seq=self._tools.number(),
            occurred_at=self._tools.clock.now_us(),
            causation_id=event.event_id,
            kind=kind,
            endpoint_id=self.subscription.id,
            message_id=message,
            source_topic=item.position.topic,
            source_partition=item.position.partition,
            source_offset=item.position.offset,
            attempt=item.attempts,
            status_code=answer.status,
            duration_ms=answer.duration_ms,
            reason=reason,
        )
        self._told.append(self._tools.publish(delivery))

    def _bury(self, item: Item, answer: Answer) -> None:
        entry: Entry = item.payload
        headers = {name: value for name, value in entry.record.headers if value is not None}
        detail = f"webhook {self.subscription.id}, attempt {item.attempts}: {answer.reason}"
        self._told.append(
            self._tools.letters.send(
                item.position,
                entry.record.key,
                entry.record.value,
                headers,
                "undelivered",
                detail,
                entry.event,
                self.subscription.id,
            )
        )


def open_secrets(subscription: Subscription, vault: Vault, now_us: int) -> list[str]:
    """Those that sign now, the newest first; raises VaultError."""
    current = [one for one in subscription.secrets if one.until_us is None or now_us < one.until_us]
    return [vault.open(one.sealed, subscription.id) for one in current]


def _condition(subscription: Subscription, before: Progress | None) -> Condition:
    """How the endpoint fared; switched on again, it has a fresh start."""
    if before is None:
        return Condition()
    if before.enablings != subscription.enablings:
        return Condition(delivered_at_us=before.delivered_at, delivered=before.delivered, dead=before.dead)
    return Condition(
        failures=before.failures,
        failing_since_us=before.failing_since,
        delivered_at_us=before.delivered_at,
        delivered=before.delivered,
        dead=before.dead,
        status=before.status,
        reason=before.reason,
        disabled=disabled_of(subscription, before),
    )


def _is_below(one: Open, positions: Positions) -> bool:
    """Whether the message comes no more by itself."""
    return one.offset < positions.get(Partition(one.topic, one.partition), 0)
