"""The API key: demanded of every request and socket, except where the path has its own proof or tells nothing."""

import base64
import binascii
import hmac

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from streams.settings import Settings

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# Health tells nothing about calls; Twilio proves itself by its signature (see twilio.py).
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v1/twilio/voice", "/v1/twilio/after", "/v1/twilio/media"})
SUBPROTOCOL_PREFIX = "key."

_REFUSAL = msgspec.json.encode(
    {
        "code": "unauthorized",
        "message": "An API key is needed.",
        "hint": "Send Authorization: Bearer KEY, or X-API-Key: KEY, or WebSocket subprotocols trunkline and key.KEY.",
    }
)


class ExposedError(Exception):
    """The gateway would be reachable by others without a key."""


def require_key_if_exposed(settings: Settings) -> None:
    """Raises ExposedError unless the gateway is bound to loopback or has a key."""
    if settings.api.host not in LOOPBACK and not key_of(settings):
        raise ExposedError(
            f"api.host is {settings.api.host}, which others can reach: set TRUNKLINE_API__KEY to a secret of your own,"
            " or api.host to 127.0.0.1"
        )


def key_of(settings: Settings) -> str:
    """The key, empty when none is set."""
    return settings.api.key.get_secret_value() if settings.api.key is not None else ""


class KeyMiddleware:
    """Refuses with 401, sockets too, whoever does not show the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._shown(scope):
            await self._app(scope, receive, send)
            return
        prefix = "http.response" if scope["type"] == "http" else "websocket.http.response"
        if scope["type"] == "websocket":
            await receive()
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        await send({"type": f"{prefix}.start", "status": 401, "headers": headers})
        await send({"type": f"{prefix}.body", "body": _REFUSAL})

    def _shown(self, scope: Scope) -> bool:
        return any(hmac.compare_digest(candidate, self._key) for candidate in _candidates(scope))


def _candidates(scope: Scope) -> list[bytes]:
    found = []
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            found.append(value.strip())
        elif name == b"authorization":
            found.append(_credential(value))
    for protocol in scope.get("subprotocols", ()):
        if protocol.startswith(SUBPROTOCOL_PREFIX):
            found.append(protocol.removeprefix(SUBPROTOCOL_PREFIX).encode())
    return found


def _credential(authorization: bytes) -> bytes:
    """A bearer token, or the password of basic authentication (schema registry clients know only that)."""
    scheme, _, rest = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""
