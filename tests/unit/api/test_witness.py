"""What is read over REST is written down first; what is not shown is no access."""

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from api.auth import LOCAL
from api.visit import Visit
from api.witness import Witness
from processors.access.roles import Principal, Role
from schemas.event import Event
from schemas.events import Access, AccessKind
from streams.client import LogError
from streams.clock import SystemClock
from streams.settings import Settings

SESSION = "0b5e7c1a-3d51-4b7e-9d1c-5f0a4a8c2e11"


class Router:
    """What the witness needs of a gateway: a producer that writes, or cannot."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.clock = SystemClock()
        self.written: list[Event] = []
        self.away = False

    @property
    def producer(self) -> "Router":
        return self

    async def publish(self, event: Event) -> None:
        if self.away:
            raise LogError("away")
        self.written.append(event)


async def asked(
    router: Any, path: str, method: str = "GET", asker: Principal = LOCAL
) -> tuple[httpx.Response, list[str]]:
    """The answer, and what was written by the time that the route had answered."""
    shown: list[str] = []

    async def route(request: Request) -> PlainTextResponse:
        shown.append(request.url.path)
        return PlainTextResponse("words", 404 if "missing" in str(request.url) else 200)

    paths = ["/v1/sessions", "/v1/sessions/{id}", "/v1/sessions/{id}/events", "/v1/webhooks/{id}/replay", "/healthz"]
    app = Starlette(routes=[Route(one, route, methods=["GET", "POST"]) for one in paths])
    witness = Witness(app, router)

    async def let_in(scope: Scope, receive: Receive, send: Send) -> None:
        Visit(asker, "", "").begin(scope)
        await witness(scope, receive, send)

    transport = httpx.ASGITransport(let_in)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        return await http.request(method, path), shown


@pytest.mark.parametrize(
    ("method", "path", "kind", "session"),
    [
        ("GET", "/v1/sessions", AccessKind.LISTED, ""),
        ("GET", f"/v1/sessions/{SESSION}", AccessKind.READ, SESSION),
        ("GET", f"/v1/sessions/{SESSION}/events", AccessKind.READ, SESSION),
        ("POST", "/v1/webhooks/crm/replay", AccessKind.REPLAYED, ""),
    ],
)
@pytest.mark.parametrize(
    ("asker", "tenant"), [(LOCAL, Settings().tenant), (Principal("k1", frozenset({Role.AUDITOR}), "acme"), "acme")]
)
async def test_reading_is_an_access(
    method: str, path: str, kind: AccessKind, session: str, asker: Principal, tenant: str
) -> None:
    router = Router()
    answer, _ = await asked(router, path, method, asker)
    assert (answer.status_code, answer.text) == (200, "words")
    (access,) = router.written
    assert isinstance(access, Access)
    assert (access.kind, access.actor, access.tenant_id) == (kind, asker.id, tenant)
    assert (access.via, access.what) == ("rest", path)
    assert access.session_id == session or not session


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/healthz"),
        ("POST", "/v1/sessions"),
        ("GET", f"/v1/sessions/{SESSION}?missing"),
        ("GET", "/v1/sessions/nobody"),
        ("GET", "/v1/webhooks/crm/replay"),
    ],
)
async def test_what_shows_no_call_is_none(method: str, path: str) -> None:
    router = Router()
    await asked(router, path, method)
    assert router.written == []


async def test_nothing_is_shown_that_cannot_be_written_down() -> None:
    router = Router()
    router.away = True
    answer, shown = await asked(router, f"/v1/sessions/{SESSION}")
    assert shown
    assert (answer.status_code, answer.json()["code"]) == (503, "log_unavailable")
    assert "words" not in answer.text
