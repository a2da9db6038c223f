"""Before every route: who asks, how often, and whether their role allows it. Refusals are recorded.

The answer to who is not known is the same whatever they showed; what is another tenant's is not there at all (404, from
the routes themselves: `foreign`).
"""

import math

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth import GUEST, LOCAL, Authenticator, UnauthenticatedError
from api.permissions import WEBSOCKET, Rule, is_known, rule_of
from api.problems import ProblemError
from api.visit import Visit
from processors.access.limits import Buckets
from processors.access.refusals import Refusals
from processors.access.roles import GRANTS, Permission, Principal
from schemas.events import RefusalKind
from streams.clock import Clock
from streams.settings import Settings


class Gate:
    """Middleware of the whole gateway. It keeps the table of `permissions.py`, and knows no route beside it."""

    def __init__(
        self, app: ASGIApp, settings: Settings, authenticator: Authenticator, refusals: Refusals, clock: Clock
    ) -> None:
        self._app = app
        self._requests_per_s = settings.access.requests_per_s
        self._authenticator = authenticator
        self._refusals = refusals
        self._clock = clock
        self._buckets = Buckets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        method = WEBSOCKET if scope["type"] == "websocket" else scope["method"]
        rule = rule_of(method, scope["path"])
        try:
            principal = await self._admitted(scope, rule)
        except ProblemError as problem:
            await _answer(scope, receive, send, problem)
            return
        assert rule is not None
        Visit(principal, rule.action, rule.target(scope["path"])).begin(scope)
        await self._app(scope, receive, send)

    async def _admitted(self, scope: Scope, rule: Rule | None) -> Principal:
        """Who may go on; raises ProblemError."""
        if rule is not None and rule.permission is None:
            return GUEST
        asked = {"action": rule.action, "target": rule.target(scope["path"])} if rule is not None else {}
        try:
            principal = await self._authenticator.principal(scope)
        except UnauthenticatedError as error:
            self._refusals.tell(RefusalKind.UNAUTHENTICATED, error.reason, error.principal, **asked)
            raise _unauthenticated() from None
        rate_per_s = principal.requests_per_s or self._requests_per_s
        if principal is not LOCAL and not self._buckets.take(principal.id, rate_per_s, self._clock.monotonic_s()):
            self._refusals.tell(RefusalKind.LIMITED, "rate", principal, **asked)
            raise _limited(rate_per_s)
        if rule is None or rule.permission is None:
            raise _nowhere(scope["path"])
        if not principal.may(rule.permission):
            self._refusals.tell(RefusalKind.FORBIDDEN, "role", principal, **asked, permission=rule.permission)
            raise _forbidden(rule.permission, principal)
        return principal


def _unauthenticated() -> ProblemError:
    return ProblemError(
        401,
        "unauthorized",
        "An API key is needed.",
        "Send Authorization: Bearer KEY, or X-API-Key: KEY, or WebSocket subprotocols trunkline and key.KEY.",
        {"www-authenticate": "Bearer"},
    )


def _limited(rate_per_s: float) -> ProblemError:
    return ProblemError(
        429,
        "rate_limited",
        "This key asks too often.",
        f"Send at most {rate_per_s:g} requests a second.",
        {"retry-after": str(max(1, math.ceil(1 / rate_per_s)))},
    )


def _forbidden(permission: Permission, principal: Principal) -> ProblemError:
    if GRANTS[permission].platform and principal.tenant is not None:
        hint = "It shows all tenants together, and this key is of one."
    else:
        hint = f"This key's role is {', '.join(sorted(principal.roles))}; docs/access.md says which have it."
    return ProblemError(403, "forbidden", f"This needs the permission {permission}.", hint)


def _nowhere(path: str) -> ProblemError:
    if is_known(path):
        return ProblemError(405, "method_not_allowed", "Method Not Allowed", "See /docs.")
    return ProblemError(404, "not_found", "Not Found", "See /docs.")


async def _answer(scope: Scope, receive: Receive, send: Send, problem: ProblemError) -> None:
    prefix = "http.response"
    if scope["type"] == "websocket":
        prefix = "websocket.http.response"
        await receive()
    body = msgspec.json.encode(problem.body)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **(problem.headers or {})}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": f"{prefix}.start", "status": problem.status, "headers": encoded})
    await send({"type": f"{prefix}.body", "body": body})
