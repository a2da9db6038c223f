"""Every role at every route: the gateway's own gate, and what each role gets written down once more."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute

from api.app import create_app
from api.auth import KEY_OF_SETTINGS, LOCAL, UnauthenticatedError
from api.gate import Gate
from api.permissions import RULES, WEBSOCKET, Rule, rule_of, table
from processors.access import roles
from processors.access.refusals import Refusals
from processors.access.roles import Permission, Principal, Role
from schemas.event import Event
from schemas.events import Refusal, RefusalKind
from streams.clock import SystemClock
from streams.settings import REPOSITORY, Settings

ADMIN, OPERATOR, ANALYST, AUDITOR, SERVICE = Role
ALL = frozenset(Role)
EXPECTED: dict[str, frozenset[Role]] = {
    "WEBSOCKET /v1/calls": frozenset({ADMIN, SERVICE}),
    "GET /v1/agents": ALL,
    "GET /v1/sessions": ALL - {SERVICE},
    "GET /v1/sessions/{session_id}": ALL - {SERVICE},
    "GET /v1/sessions/{session_id}/events": frozenset({ADMIN, ANALYST, AUDITOR}),
    "GET /v1/sessions/{session_id}/keys": frozenset({ADMIN, ANALYST, AUDITOR}),
    "POST /v1/sessions/{session_id}/erase": frozenset({ADMIN}),
    "WEBSOCKET /v1/assist/{session_id}": frozenset({ADMIN, ANALYST, AUDITOR}),
    "POST /v1/sessions/{session_id}/hang_up": frozenset({ADMIN, OPERATOR}),
    "DELETE /v1/sessions/{session_id}": frozenset({ADMIN, OPERATOR}),
    "GET /v1/webhooks": frozenset({ADMIN, OPERATOR, AUDITOR}),
    "POST /v1/webhooks": frozenset({ADMIN}),
    "GET /v1/webhooks/{identity}": frozenset({ADMIN, OPERATOR, AUDITOR}),
    "PATCH /v1/webhooks/{identity}": frozenset({ADMIN}),
    "DELETE /v1/webhooks/{identity}": frozenset({ADMIN}),
    "POST /v1/webhooks/{identity}/secret": frozenset({ADMIN}),
    "POST /v1/webhooks/{identity}/replay": frozenset({ADMIN, OPERATOR}),
    "POST /v1/webhooks/{identity}/test": frozenset({ADMIN, OPERATOR}),
    "GET /v1/keys": frozenset({ADMIN, AUDITOR}),
    "POST /v1/keys": frozenset({ADMIN}),
    "DELETE /v1/keys/{identity}": frozenset({ADMIN}),
    "GET /metrics": frozenset({ADMIN, OPERATOR}),
    "GET /registry/{path:path}": ALL,
    "POST /registry/{path:path}": ALL,
    "GET /openapi.json": ALL,
    "GET /docs": ALL,
    "GET /docs/oauth2-redirect": ALL,
    "GET /redoc": ALL,
}
OPEN = {
    "GET /healthz",
    "GET /readyz",
    "POST /v1/twilio/voice",
    "POST /v1/twilio/after",
    "WEBSOCKET /v1/twilio/media",
}


def routes_of(app: FastAPI) -> Iterator[str]:
    """Every route that the app has, as the table names it."""

    def walk(routes: list[BaseRoute]) -> Iterator[tuple[str, str]]:
        for route in routes:
            if (inner := getattr(route, "original_router", None)) is not None:
                yield from walk(inner.routes)
            else:
                for method in getattr(route, "methods", None) or {WEBSOCKET}:
                    yield method, route.path  # type: ignore[attr-defined]

    yield from (f"{method} {path}" for method, path in walk(app.routes) if method != "HEAD")


def test_every_route_is_in_the_table_and_the_table_has_no_other(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path, kafka={"bootstrap_servers": "127.0.0.1:1"}))
    there = sorted(routes_of(app))
    assert len(there) > 25
    assert sorted(rule.action for rule in RULES) == there


def test_the_roles_of_every_route_are_those_that_are_meant() -> None:
    assert {rule.action for rule in RULES if rule.permission is None} == OPEN
    found = {rule.action: roles.GRANTS[rule.permission].roles for rule in RULES if rule.permission is not None}
    assert found == EXPECTED


def test_the_page_on_access_has_both_tables() -> None:
    page = (REPOSITORY / "docs" / "access.md").read_text(encoding="utf-8")
    for lines in (roles.table(), table()):
        assert "\n".join(lines) in page


class Known:
    """Stands for keys and tokens: whoever asks is this one."""

    def __init__(self, principal: Principal | None) -> None:
        self.one = principal

    async def principal(self, scope: Any) -> Principal:
        if self.one is None:
            raise UnauthenticatedError("no_key")
        return self.one


class Behind:
    """The app behind a gate: notes what reached it, and answers nothing."""

    def __init__(self, principal: Principal | None, **settings: Any) -> None:
        clock = SystemClock()
        given = Settings(**settings)
        self.reached: list[str] = []
        self.events: list[Refusal] = []
        self.answers: list[dict[str, Any]] = []
        self._refusals = Refusals("api.0", "demo", clock)
        known: Any = Known(principal)
        self._gate = Gate(self._app, given, known, self._refusals, clock)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.append(scope["path"])

    async def _publish(self, event: Event) -> None:
        assert isinstance(event, Refusal)
        self.events.append(event)

    async def ask(self, method: str, path: str) -> int:
        """The status of the gate's answer; 0 where the request reached the app."""
        kind = "websocket" if method == WEBSOCKET else "http"
        scope = {"type": kind, "method": method, "path": path, "headers": []}

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            self.answers.append(message)

        if not self.events:
            self._refusals.open(self._publish)
        before = len(self.reached)
        await self._gate(scope, receive, send)
        await self._refusals.close()
        return 0 if len(self.reached) > before else int(self.answers[-2]["status"])


def path_of(rule: Rule) -> str:
    return rule.path.replace("{session_id}", "s-1").replace("{identity}", "i-1").replace("{path:path}", "subjects")


@pytest.mark.parametrize("tenant", [None, "acme"])
@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.action)
async def test_a_role_gets_what_the_table_says_and_nothing_else(rule: Rule, role: Role, tenant: str | None) -> None:
    behind = Behind(Principal("k1", frozenset({role}), tenant))
    may = rule.permission is None or role in EXPECTED[rule.action]
    if rule.permission is Permission.METRICS_READ and tenant is not None:
        may = False
    assert await behind.ask(rule.method, path_of(rule)) == (0 if may else 403)
    if not may:
        (event,) = behind.events
        assert (event.kind, event.key_id, event.role) == ("forbidden", "k1", role)
        assert (event.action, event.permission) == (rule.action, rule.permission)
        assert event.target == ("" if "{" not in rule.path else rule.target(path_of(rule)))
        assert event.tenant_id == (tenant or "demo")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.action)
async def test_nobody_gets_what_is_not_open(rule: Rule) -> None:
    behind = Behind(None)
    assert await behind.ask(rule.method, path_of(rule)) == (0 if rule.action in OPEN else 401)
    assert len(behind.events) == (0 if rule.action in OPEN else 1)


async def test_what_no_route_is_does_not_reach_the_app() -> None:
    behind = Behind(LOCAL)
    assert await behind.ask("GET", "/v1/secrets") == 404
    assert await behind.ask("PUT", "/v1/webhooks") == 405
    assert await behind.ask("GET", "/v1/calls") == 405
    assert await behind.ask("GET", "/v1/sessions/") == 404
    assert await behind.ask("GET", "/v1/sessions/a/b") == 404
    assert await behind.ask("HEAD", "/v1/agents") == 0
    assert rule_of("GET", "/V1/agents") is None
    # Who is not known does not even learn that.
    assert await Behind(None).ask("GET", "/v1/secrets") == 401


async def test_a_key_asks_so_often_and_no_oftener_and_others_do_not_suffer() -> None:
    principal = Principal("k1", frozenset({ADMIN}), "acme", requests_per_s=0.5)
    behind = Behind(principal)
    answers = [await behind.ask("GET", "/v1/agents") for _ in range(3)]
    assert answers == [0, 429, 429]
    start = behind.answers[-2]
    assert (b"retry-after", b"2") in start["headers"]
    assert [event.kind for event in behind.events] == ["limited", "limited"]
    own = Behind(KEY_OF_SETTINGS, access={"requests_per_s": 1})
    assert [await own.ask("GET", "/v1/agents") for _ in range(3)] == [0, 0, 429]
    here = Behind(LOCAL, access={"requests_per_s": 1})
    assert {await here.ask("GET", "/v1/agents") for _ in range(10)} == {0}


async def test_many_refusals_at_once_are_told_by_number() -> None:
    events: list[Refusal] = []

    async def publish(event: Any) -> None:
        events.append(event)

    refusals = Refusals("api.0", "demo", SystemClock())
    refusals.open(publish)
    principal = Principal("k1", frozenset({ADMIN}), "acme")
    for number in range(3000):
        refusals.tell(RefusalKind.LIMITED, "rate", principal, "GET /v1/agents", f"t-{number}")
    await refusals.close()
    assert sum(event.count for event in events) == 3000
    assert len(events) < 700
    assert len({event.event_id for event in events}) == len(events)
    assert events[0].target == "t-0"
    assert (events[-1].target, events[-1].key_id) == ("", "k1")


async def test_a_target_that_looks_like_no_id_is_not_told() -> None:
    behind = Behind(Principal("k1", frozenset({SERVICE})))
    for path in ("/v1/keys/a%20b", "/v1/keys/a b", f"/v1/keys/{'a' * 65}"):
        assert await behind.ask("DELETE", path) == 403
    assert {event.target for event in behind.events} == {""}


async def test_a_log_that_is_away_hurts_nobody() -> None:
    async def publish(event: Any) -> None:
        raise OSError("away")

    refusals = Refusals("api.0", "demo", SystemClock())
    refusals.open(publish)
    refusals.tell(RefusalKind.LIMITED, "rate")
    await refusals.close()
