"""REST: agents, sessions and their events, health and metrics."""

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api.problems import ProblemError
from api.session_router import SessionRouter, Summary, summary_of
from api.supervisor import failing
from api.visit import Asker
from processors.access.roles import Principal
from processors.stage import event_id
from schemas.event import Event
from schemas.events import Control, ControlKind, RefusalKind, SessionKind
from schemas.events import Session as SessionEvent
from streams.client import client_config
from streams.codec import CodecError
from streams.consumer import Record, session_records
from streams.settings import Settings
from streams.topics import STAGES, consumer_group

LOG_TIMEOUT_S = 3.0
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        "session_id": summary.session_id,
        "tenant": summary.tenant,
        "agent": summary.agent,
        "channel": summary.channel,
        "live": summary.ended_at is None,
        "turn": summary.turn,
        "started_at": summary.started_at,
        "ended_at": summary.ended_at,
        "reason": summary.reason,
        "duration_ms": summary.duration_ms,
    }


def _without_audio(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its bytes replaced by their length: `pcm` by `pcm_bytes`."""
    return {
        (f"{name}_bytes" if isinstance(value, bytes) else name): len(value) if isinstance(value, bytes) else value
        for name, value in record.items()
    }


def _entry(router: SessionRouter, record: Record) -> dict[str, Any]:
    place = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
    }
    try:
        event = router.codec.decode_keyed(record.topic, record.key, record.value)
    except CodecError as error:
        return {**place, "type": "unreadable", "reason": error.reason}
    return {**place, "type": event.ce_type, "event": _without_audio(event.to_record())}


def _unknown_session() -> ProblemError:
    return ProblemError(
        404, "unknown_session", "There is no such session in the log.", "GET /v1/sessions lists the newest."
    )


async def _records(router: SessionRouter, asker: Principal, session_id: str) -> list[Record]:
    """What the log has of the session; another tenant's is not there."""
    if not _UUID.fullmatch(session_id):
        raise _unknown_session()
    records = await session_records(router.settings, session_id)
    if not records:
        raise _unknown_session()
    tenants = {event.tenant_id for event in _events(router, records)}
    if asker.tenant is not None and tenants != {asker.tenant}:
        raise _unknown_session().as_refusal(RefusalKind.FOREIGN, "tenant")
    return records


def _events(router: SessionRouter, records: list[Record]) -> Iterator[Event]:
    for record in records:
        with contextlib.suppress(CodecError):
            yield router.codec.decode_keyed(record.topic, record.key, record.value)


def _from_log(router: SessionRouter, records: list[Record]) -> dict[str, Any]:
    """The summary of a call that another gateway took, or this one before it was restarted."""
    found: dict[str, Any] = {}
    turn = 0
    for event in _events(router, records):
        turn = max(turn, event.turn)
        if isinstance(event, SessionEvent) and event.kind is SessionKind.STARTED:
            found = {**_summary(summary_of(event)), **found}
        elif isinstance(event, SessionEvent) and event.kind is SessionKind.ENDED:
            ended = {"live": False, "ended_at": event.occurred_at, "reason": event.reason}
            found = {**found, **ended, "duration_ms": event.duration_ms}
    return {**found, "turn": turn}


def sessions_routes(router: SessionRouter) -> APIRouter:
    """Agents and sessions."""
    api = APIRouter(prefix="/v1")

    @api.get("/agents", tags=["agents"])
    async def agents(asker: Asker) -> Response:
        """The agents that answer calls."""
        return _json(
            {
                "agents": [
                    {"id": agent.id, "name": agent.name, "description": agent.description, "languages": agent.languages}
                    for agent in router.agents_of(asker).values()
                ]
            }
        )

    @api.get("/sessions", tags=["sessions"])
    async def sessions(asker: Asker) -> Response:
        """The calls going on in this gateway and those that ended lately, newest first."""
        seen = [summary for summary in (*router.live, *router.recent) if asker.sees(summary.tenant)]
        newest = sorted(seen, key=lambda summary: summary.started_at, reverse=True)
        return _json({"sessions": [_summary(summary) for summary in newest]})

    @api.get("/sessions/{session_id}", tags=["sessions"])
    async def session(asker: Asker, session_id: str) -> Response:
        """One call, from memory or from the log."""
        for summary in (*router.live, *router.recent):
            if summary.session_id == session_id and asker.sees(summary.tenant):
                return _json(_summary(summary))
        return _json(_from_log(router, await _records(router, asker, session_id)))

    @api.get("/sessions/{session_id}/events", tags=["sessions"])
    async def events(asker: Asker, session_id: str) -> Response:
        """Everything that is in the log about a call, by time; audio is replaced by its length."""
        records = await _records(router, asker, session_id)
        return _json({"session_id": session_id, "events": [_entry(router, record) for record in records]})

    @api.delete("/sessions/{session_id}", tags=["sessions"])
    @api.post("/sessions/{session_id}/hang_up", tags=["sessions"])
    async def hang_up(asker: Asker, session_id: str) -> Response:
        """Ends a call; one that another gateway serves ends when that reads of it (202)."""
        call = router.find(session_id)
        if call is not None and asker.sees(call.summary.tenant):
            call.end("hung_up")
            return _json(_summary(call.summary))
        if any(summary.session_id == session_id and asker.sees(summary.tenant) for summary in router.recent):
            raise ProblemError(409, "session_ended", "The call has ended already.", "GET /v1/sessions/{id} says when.")
        await _hang_up_elsewhere(router, await _records(router, asker, session_id))
        return _json({"session_id": session_id, "requested": True}, 202)

    return api


async def _hang_up_elsewhere(router: SessionRouter, records: list[Record]) -> None:
    event = next((event for event in _events(router, records) if isinstance(event, SessionEvent)), None)
    if event is None:
        raise ProblemError(404, "unknown_session", "The session's start is not in the log.", "It may be too old.")
    now_us = router.clock.now_us()
    control = Control(
        event_id=event_id(event.session_id, "hang-up-requested"),
        session_id=event.session_id,
        tenant_id=event.tenant_id,
        agent_id=event.agent_id,
        turn=0,
        seq=now_us,
        occurred_at=now_us,
        causation_id=event.event_id,
        kind=ControlKind.HANG_UP,
        reason="requested",
    )
    await router.producer.publish(control)


def health_routes(router: SessionRouter) -> APIRouter:
    """For orchestrators and Prometheus."""
    api = APIRouter(tags=["health"])
    health = LogHealth(router.settings)

    @api.get("/healthz")
    async def healthz() -> Response:
        """The process lives."""
        return _json({"status": "ok"})

    @api.get("/readyz")
    async def readyz() -> Response:
        """Whether calls can be taken: the log is read and written, nothing keeps dying, and there is room."""
        stages = await health.stages() if router.reading else None
        body = {
            "status": "ready",
            "log": stages is not None,
            "stages": stages or {},
            "sessions": len(router.live),
            "sessions_max": router.settings.api.sessions_max,
        }
        if stages is None:
            return _json({**body, "status": "log_unavailable"}, 503, {"Retry-After": "2"})
        if dying := failing(router.settings):
            return _json({**body, "status": "failing", "failing": sorted(dying)}, 503, {"Retry-After": "10"})
        if refusal := router.door.refusal():
            why = {"status": refusal.code, "reason": refusal.reason, "detail": refusal.detail}
            return _json({**body, **why}, 503, {"Retry-After": str(refusal.retry_after_s)})
        return _json(body)

    @api.get("/metrics")
    async def metrics() -> Response:
        """Prometheus."""
        router.measure_queues()
        # The process's own, of its clients of the log among others, and those of this app.
        text = generate_latest() + generate_latest(router.metrics.registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return api


class LogHealth:
    """Asks the cluster which stages have workers."""

    def __init__(self, settings: Settings) -> None:
        self._admin = AdminClient(client_config(settings, "trunkline.api.health"))
        self._groups = {consumer_group(stage): stage for stage in STAGES}

    async def stages(self) -> dict[str, int] | None:
        """Workers of each stage; None when the cluster does not answer."""
        try:
            return await asyncio.to_thread(self._ask)
        except KafkaException:
            return None

    def _ask(self) -> dict[str, int]:
        futures = self._admin.describe_consumer_groups(list(self._groups), request_timeout=LOG_TIMEOUT_S)
        counts = dict.fromkeys(STAGES, 0)
        self._admin.list_topics(topic="voice.sessions", timeout=LOG_TIMEOUT_S)
        for group, future in futures.items():
            try:
                counts[self._groups[group]] = len(future.result(LOG_TIMEOUT_S).members)
            except KafkaException:
                counts[self._groups[group]] = 0
        return counts
