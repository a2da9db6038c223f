"""Who reads which call over REST: written down before the answer is sent."""

import re
from dataclasses import dataclass

import msgspec
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.session_router import SessionRouter
from api.visit import visit_of
from processors.access.roles import Principal
from processors.audit.accesses import Accesses
from schemas.events import AccessKind
from streams.client import LogError

_SESSION = r"(?P<session>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
_AWAY = msgspec.json.encode(
    {
        "code": "log_unavailable",
        "message": "The access cannot be written down, so nothing is shown.",
        "hint": "Try again; GET /readyz says when the log is there.",
    }
)


@dataclass(frozen=True, slots=True)
class _Rule:
    method: str
    path: re.Pattern[str]
    kind: AccessKind


_RULES = (
    _Rule("GET", re.compile("/v1/sessions"), AccessKind.LISTED),
    _Rule("GET", re.compile(f"/v1/sessions/{_SESSION}(?:/events|/keys)?"), AccessKind.READ),
    _Rule("POST", re.compile("/v1/webhooks/[^/]+/replay"), AccessKind.REPLAYED),
)


class Witness:
    """Middleware, behind the gate: what `_RULES` name is an access, once it is about to be answered."""

    def __init__(self, app: ASGIApp, router: SessionRouter) -> None:
        self._app = app
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or (found := _matched(scope["method"], scope["path"])) is None:
            await self._app(scope, receive, send)
            return
        kind, session_id = found
        refused = False

        async def noted(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and 200 <= message["status"] < 300:
                try:
                    asker = visit_of(HTTPConnection(scope)).principal
                    await note(self._router, asker, kind, session_id, scope["path"])
                except LogError:
                    refused = True
                    await _refuse(send)
            if not refused:
                await send(message)

        await self._app(scope, receive, noted)


async def note(router: SessionRouter, asker: Principal, kind: AccessKind, session_id: str, path: str) -> None:
    """Writes the access down; raises LogError where it cannot be, and then nothing may be shown."""
    accesses = Accesses(router.producer.publish, router.clock, "rest")
    tenant = asker.tenant or router.settings.tenant
    await accesses.note(kind, asker.id, session_id=session_id, tenant=tenant, what=path)


def _matched(method: str, path: str) -> tuple[AccessKind, str] | None:
    for rule in _RULES:
        if rule.method == method and (match := rule.path.fullmatch(path)):
            return rule.kind, match.groupdict().get("session", "")
    return None


async def _refuse(send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"2")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": _AWAY})
