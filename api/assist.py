"""`/v1/assist/{session_id}`: a socket over which a person who follows a call gets its hints, the earlier ones first."""

import asyncio
import contextlib
import uuid
from typing import Any

import msgspec
import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.session_router import SessionRouter
from api.visit import Visit
from api.witness import note
from schemas.event import Event
from schemas.events import AccessKind, RefusalKind, Session, SessionKind, Suggestion
from schemas.json_form import to_json
from streams.client import LogError, Partition
from streams.codec import CodecError
from streams.consumer import LogReader, Record
from streams.keys import partition_of

log = structlog.get_logger(__name__)

FOLLOWERS_MAX = 20
# A call that began earlier shows what was suggested since.
BACK_S = 3600
_NAME = "trunkline.api.assist"


class Followers:
    """The sockets of one gateway; each reads the partition of its call."""

    def __init__(self, router: SessionRouter) -> None:
        self._router = router
        self._open = 0

    async def serve(self, websocket: WebSocket, session_id: str, visit: Visit) -> None:
        """Sends hints until the call ends (1000), or the follower leaves; of another tenant's call nothing comes."""
        offered = websocket.scope.get("subprotocols", [])
        await websocket.accept(subprotocol="trunkline" if "trunkline" in offered else None)
        if not _is_uuid(session_id):
            await websocket.close(1008, "unknown_session")
            return
        if self._open >= FOLLOWERS_MAX:
            await websocket.close(1013, "overloaded")
            return
        self._open += 1
        self._router.connected(1)
        try:
            await self._follow(websocket, session_id, visit)
        finally:
            self._router.connected(-1)
            self._open -= 1

    async def _follow(self, websocket: WebSocket, session_id: str, visit: Visit) -> None:
        """Until either side ends it; what the follower sends is not looked at."""
        sending = asyncio.create_task(self._send(websocket, session_id, visit))
        leaving = asyncio.create_task(_left(websocket))
        done, pending = await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        if sending not in done:
            return
        try:
            sending.result()
        except LogError as error:
            log.warning("hints cannot be read", error=str(error))
            await websocket.close(1011, "log_away")
        except (WebSocketDisconnect, RuntimeError):
            return  # it left while something was on its way to it
        else:
            await websocket.close(1000, "ended")

    async def _send(self, websocket: WebSocket, session_id: str, visit: Visit) -> None:
        """Returns when the call has ended."""
        settings, key, seen = self._router.settings, session_id.encode(), set[str]()
        is_foreign = False
        number = partition_of(session_id, settings.kafka.partitions)
        partitions = [Partition(topic, number) for topic in (Suggestion.TOPIC, Session.TOPIC)]
        since_ms = self._router.clock.now_us() // 1000 - BACK_S * 1000
        async with LogReader(settings, _NAME) as reader:
            await reader.add(await reader.offsets_at(partitions, since_ms))
            async for record in reader:
                event = self._event(record) if record.key == key else None
                if event is None or event.event_id in seen:
                    continue
                if not visit.principal.sees(event.tenant_id):
                    if not is_foreign:
                        is_foreign = True
                        self._refused(visit)
                    continue
                if not seen:
                    await note(self._router, visit.principal, AccessKind.FOLLOWED, session_id, websocket.url.path)
                seen.add(event.event_id)
                if isinstance(event, Suggestion):
                    await websocket.send_text(_message({"type": "suggestion", **to_json(event)}))
                elif isinstance(event, Session) and event.kind is SessionKind.ENDED:
                    await websocket.send_text(_message({"type": "ended", "reason": event.reason}))
                    return

    def _event(self, record: Record) -> Event | None:
        try:
            return self._router.codec.decode(record.topic, record.value)
        except CodecError:
            return None

    def _refused(self, visit: Visit) -> None:
        self._router.refusals.tell(RefusalKind.FOREIGN, "tenant", visit.principal, visit.action, visit.target)


async def _left(websocket: WebSocket) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass


def _message(value: dict[str, Any]) -> str:
    return msgspec.json.encode(value).decode()


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
