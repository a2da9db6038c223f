"""Erasing calls: the key first, then the word to everybody, then the certificate once all stores have confirmed."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processors.erasure import CERTIFICATE, STORES, certificate, erase_event, erased_event, survey
from schemas.event import Event
from schemas.events import (
    Control,
    DeadLetter,
    Delivery,
    DeliveryKind,
    Response,
    ResponseKind,
    Session,
    SessionKind,
)
from streams import signing
from streams.client import Partition, Position
from streams.clock import Clock, SystemClock
from streams.codec import CodecError
from streams.consumer import BEGINNING, END, LogReader, Record, read_range, session_records
from streams.keyring import KeyFile
from streams.producer import LogProducer
from streams.registry import codec_for, keyring_for
from streams.settings import Settings
from streams.topics import CLEAR, CONVERSATION

FOLDER = "certificates"
CONFIRMED_S = 120.0
_TOPICS = (*CONVERSATION, DeadLetter.TOPIC, Delivery.TOPIC)
_NAME = "trunkline.erasure"


class ErasureError(Exception):
    """A call cannot be erased, or not be certified yet; the text says why, for people."""


class UnknownSessionError(ErasureError):
    """There is no such call in the log."""


class ForeignSessionError(UnknownSessionError):
    """The call is another tenant's."""


class LiveSessionError(ErasureError):
    """The call is going on."""


@dataclass(frozen=True, slots=True)
class Erased:
    """A certificate with its signature, and where it lies."""

    signed: dict[str, Any]
    path: Path


class Eraser:
    """Erases calls of one platform. Repeating it goes on where it was interrupted, and makes a new certificate."""

    def __init__(self, settings: Settings, clock: Clock | None = None, confirmed_s: float = CONFIRMED_S) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._confirmed_s = confirmed_s
        self._codec = codec_for(settings)
        self._keys = keyring_for(settings)

    async def sessions_of(self, caller: str) -> list[str]:
        """The calls of that caller which are in the log and not erased, oldest first."""
        async with LogReader(self._settings, _NAME) as reader:
            ranges = dict.fromkeys(await reader.partitions(Session.TOPIC), (BEGINNING, END))
        found: dict[str, int] = {}
        async for record in read_range(self._settings, ranges, _NAME):
            event = self._decoded(record)
            if isinstance(event, Session) and event.caller == caller:
                found.setdefault(event.session_id, event.occurred_at)
        return sorted(found, key=lambda session_id: found[session_id])

    async def erase(
        self, session_id: str, reason: str, force: bool = False, sees: Callable[[str], bool] = lambda tenant: True
    ) -> Erased:
        """Erases one call for good and certifies it; with `force` also one that is going on.

        `sees` says whether whoever asks may know of a tenant's calls. Raises UnknownSessionError and LiveSessionError
        before anything has happened, ErasureError where a store has not confirmed in time (the call is unreadable in
        the log by then), SignatureError, LogError, and OSError where the key cannot be destroyed.
        """
        records = await session_records(self._settings, session_id, (Session.TOPIC,), _NAME)
        events = [event for event in map(self._decoded, records) if isinstance(event, Session)]
        if not events:
            raise UnknownSessionError(f"no session {session_id!r} is in the log; `trunkline sessions` lists them")
        if not all(sees(event.tenant_id) for event in events):
            raise ForeignSessionError(f"session {session_id} is another tenant's")
        if not force and not await self._is_over(session_id, events):
            raise LiveSessionError(f"session {session_id} is going on: hang it up first")
        # A platform that cannot sign must not begin.
        signing.public_key(self._settings)
        first = events[0]
        erase = erase_event(session_id, first.tenant_id, first.agent_id, reason, self._clock.now_us())
        tombstone = self._keys.destroy(session_id, erase.tenant_id)
        async with LogProducer(self._settings, _NAME, self._codec) as producer:
            stores = await self._confirmed(erase, await producer.publish(erase))
            return await self._certify(erase, tombstone, stores, producer)

    async def _is_over(self, session_id: str, events: Sequence[Session]) -> bool:
        """It has ended, or nothing came of it for longer than its gateway would let it be silent."""
        if any(event.kind is SessionKind.ENDED for event in events):
            return True
        records = await session_records(self._settings, session_id, CONVERSATION, _NAME)
        silent_s = self._clock.now_us() / 1e6 - max(record.timestamp_ms for record in records) / 1000
        return silent_s > self._settings.api.session_idle_s + self._settings.api.resume_grace_s

    async def _confirmed(self, erase: Control, place: Position) -> dict[str, Any]:
        """What each store says that it erased."""
        found: dict[str, Any] = {}
        try:
            async with asyncio.timeout(self._confirmed_s), LogReader(self._settings, _NAME) as reader:
                await reader.add({Partition(place.topic, place.partition): place.offset})
                async for record in reader:
                    event = self._decoded(record)
                    if isinstance(event, Control) and event.causation_id == erase.event_id and event.target in STORES:
                        found[event.target] = json.loads(event.document)
                    if len(found) == len(STORES):
                        break
        except TimeoutError:
            missing = ", ".join(store for store in STORES if store not in found)
            raise ErasureError(
                f"session {erase.session_id} is unreadable in the log, but {missing} has not confirmed within"
                f" {self._confirmed_s:g} s that it has erased it, too; it will: repeat this for the certificate"
            ) from None
        return found

    async def _certify(
        self, erase: Control, tombstone: KeyFile, stores: dict[str, Any], producer: LogProducer
    ) -> Erased:
        records = await session_records(self._settings, erase.session_id, _TOPICS, _NAME)
        events = [(record.topic, event) for record in records if (event := self._decoded(record)) is not None]
        clear = await session_records(self._settings, erase.session_id, (CLEAR,), _NAME)
        made = certificate(
            erase,
            tombstone.erased_at,
            {"kafka": survey(events), **stores},
            _elsewhere([event for _, event in events]) | {CLEAR: {"records": len(clear)}},
            self._clock.now_us(),
        )
        signed = {"certificate": made, "signature": signing.sign(self._settings, made)}
        path = self._settings.data_dir / FOLDER / f"{erase.session_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(signed, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        await producer.publish(erased_event(erase, CERTIFICATE, signed, self._clock.now_us()))
        return Erased(signed, path)

    def _decoded(self, record: Record) -> Event | None:
        try:
            return self._codec.decode_keyed(record.topic, record.key, record.value)
        except CodecError:
            return None


def _elsewhere(events: Sequence[Event]) -> dict[str, Any]:
    """Whom the platform told of the call while it could be read: they have to erase what they kept."""
    return {
        "webhooks": sorted(
            {e.endpoint_id for e in events if isinstance(e, Delivery) and e.kind is DeliveryKind.DELIVERED}
        ),
        "tools": sorted({e.tool for e in events if isinstance(e, Response) and e.kind is ResponseKind.TOOL_CALLED}),
    }
