"""Who asks: told by an API key or a token, which may be shown in several ways; over loopback, whoever is there.

The local default is open: without any key or issuer, a gateway that listens on loopback takes whoever comes from this
machine for an admin, but for pages of other sites in its browsers.
"""

import base64
import binascii
import hmac
from urllib.parse import urlsplit

import structlog
from starlette.types import Scope

from processors.access.keyring import Keyring
from processors.access.keys import id_in
from processors.access.roles import Principal, Role
from processors.access.tokens import TokenError, Tokens, looks_like_token
from streams.clock import Clock
from streams.settings import Settings

log = structlog.get_logger(__name__)

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
SUBPROTOCOL_PREFIX = "key."
CREDENTIALS_MAX = 4

GUEST = Principal("", frozenset())
LOCAL = Principal("local", frozenset({Role.ADMIN}))
KEY_OF_SETTINGS = Principal("api.key", frozenset({Role.ADMIN}))


class UnauthenticatedError(Exception):
    """Nothing that was shown lets in; `reason` and `principal` are for the record, not for who asks."""

    def __init__(self, reason: str, principal: Principal | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.principal = principal


class Authenticator:
    """Knows keys and tokens; for one event loop."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._keyring = Keyring(settings, clock)
        self._tokens = Tokens(settings.access, clock) if settings.access.issuer else None
        key = settings.api.key.get_secret_value() if settings.api.key is not None else ""
        self._key = key.encode()

    def begin(self) -> None:
        """Begins to read the keys; see `Keyring`."""
        self._keyring.begin()

    async def open(self) -> None:
        """Returns when the keys are known, however long the log takes."""
        await self._keyring.open()
        settings = self._settings
        if self.is_open:
            log.info("open to everybody on this machine, since there is no key", host=settings.api.host)
        elif not (self._key or self._tokens or len(self._keyring)):
            log.warning("nobody can come in: make a key with `trunkline keys create`", host=settings.api.host)

    async def close(self) -> None:
        """Follows the keys no more."""
        await self._keyring.close()

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for: on loopback, as long as there has never been one."""
        settings = self._settings
        is_local = settings.api.host in LOOPBACK and not settings.access.closed
        return is_local and not self._key and self._tokens is None and not len(self._keyring)

    async def principal(self, scope: Scope) -> Principal:
        """Who asks; raises UnauthenticatedError."""
        if self.is_open:
            if not _is_from_here(scope):
                raise UnauthenticatedError("foreign_site")
            return LOCAL
        failure = UnauthenticatedError("no_key")
        for credential in _credentials(scope)[:CREDENTIALS_MAX]:
            try:
                return await self._known(credential)
            except UnauthenticatedError as error:
                failure = error
        raise failure

    async def _known(self, credential: str) -> Principal:
        if self._key and hmac.compare_digest(credential.encode(), self._key):
            return KEY_OF_SETTINGS
        if id_in(credential) is not None:
            return self._holder(credential)
        if self._tokens is not None and looks_like_token(credential):
            try:
                return await self._tokens.principal(credential)
            except TokenError as error:
                raise UnauthenticatedError(error.reason) from None
        raise UnauthenticatedError("unknown_key")

    def _holder(self, credential: str) -> Principal:
        key = self._keyring.find(credential)
        if key is None:
            raise UnauthenticatedError("unknown_key")
        if reason := key.refusal(self._clock.now_us()):
            raise UnauthenticatedError(reason, key.principal)
        return key.principal


def _is_from_here(scope: Scope) -> bool:
    """Whether no page of another site asks: neither by its own name, nor by a name that it lets point to us."""
    headers = dict(scope["headers"])
    origin, host = (headers.get(name, b"").decode("latin-1") for name in (b"origin", b"host"))
    try:
        names = [urlsplit(origin).hostname if origin else None, urlsplit(f"//{host}").hostname]
    except ValueError:
        return False
    return (not origin or names[0] in LOOPBACK) and (not host or names[1] in LOOPBACK)


def _credentials(scope: Scope) -> list[str]:
    """What was shown, in whichever way."""
    found = []
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            found.append(value.strip())
        elif name == b"authorization":
            found.append(_credential(value))
    for protocol in scope.get("subprotocols", ()):
        if protocol.startswith(SUBPROTOCOL_PREFIX):
            found.append(protocol.removeprefix(SUBPROTOCOL_PREFIX).encode())
    return [credential.decode("utf-8", "replace") for credential in found if credential]


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
