"""An OpenID Connect issuer's public keys (a JWKS), from a file or over HTTP, as they are rotated."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import jwt
import msgspec
import structlog

from streams.clock import Clock
from streams.settings import AccessSettings

log = structlog.get_logger(__name__)

DOCUMENT_BYTES_MAX = 1024 * 1024
FETCH_S = 5.0
# An id that is not among the keys may be that of a key just made, or anybody's invention.
AGAIN_S = 5.0
DISCOVERY = "/.well-known/openid-configuration"


class JwksError(Exception):
    """The keys cannot be had; the message says from where and why."""


class Jwks:
    """The keys of one issuer; for one event loop. What was read last counts until something else can be read."""

    def __init__(self, access: AccessSettings, clock: Clock) -> None:
        self._access = access
        self._clock = clock
        self._keys: list[dict[str, Any]] = []
        self._tried_s = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def key(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of that id, for that algorithm; without an id, the issuer's only key. None where there is none.

        Waits for the issuer only where the key is not known.
        """
        self._read_again(self._access.jwks_s)
        found = self._find(key_id)
        if found is None:
            self._read_again(AGAIN_S)
            if self._reading is not None:
                await asyncio.shield(self._reading)
            found = self._find(key_id)
        if found is None or found.get("alg", algorithm) != algorithm:
            return None
        try:
            return jwt.PyJWK(found, algorithm)
        except jwt.PyJWTError:
            return None

    def _find(self, key_id: str | None) -> dict[str, Any] | None:
        if key_id is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.get("kid") == key_id), None)

    def _read_again(self, after_s: float) -> None:
        """Begins to read them, unless that is under way or was tried lately."""
        now_s = self._clock.monotonic_s()
        if self._reading is None and now_s - self._tried_s >= after_s:
            self._tried_s = now_s
            self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            self._keys = _keys_in(await self._document())
        except JwksError as error:
            log.warning("the issuer's keys cannot be read", error=str(error), known=len(self._keys))
        finally:
            self._reading = None

    async def _document(self) -> bytes:
        place = self._access.jwks
        if place and not place.startswith(("http://", "https://")):
            return await asyncio.to_thread(_file, Path(place))
        async with httpx.AsyncClient(timeout=FETCH_S, trust_env=False) as http:
            return await _fetch(http, place or await self._discovered(http))

    async def _discovered(self, http: httpx.AsyncClient) -> str:
        issuer = self._access.issuer
        document = _object(await _fetch(http, issuer.rstrip("/") + DISCOVERY), issuer)
        if document.get("issuer") != issuer or not isinstance(place := document.get("jwks_uri"), str):
            raise JwksError(f"{issuer}{DISCOVERY}: issuer and jwks_uri are expected, of this issuer")
        return place


async def _fetch(http: httpx.AsyncClient, url: str) -> bytes:
    try:
        async with asyncio.timeout(FETCH_S), http.stream("GET", url) as answer:
            answer.raise_for_status()
            found = bytearray()
            async for part in answer.aiter_bytes():
                found += part
                if len(found) > DOCUMENT_BYTES_MAX:
                    raise JwksError(f"{url}: more than {DOCUMENT_BYTES_MAX} bytes")
            return bytes(found)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        raise JwksError(f"{url}: {type(error).__name__} {error}".rstrip()) from error


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise JwksError(f"{path}: {error.strerror}") from error


def _object(data: bytes, place: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise JwksError(f"{place}: a JSON object is expected") from error


def _keys_in(data: bytes) -> list[dict[str, Any]]:
    keys = _object(data, "the issuer's keys").get("keys")
    if not isinstance(keys, list):
        raise JwksError("the issuer's keys: an object with a list named keys is expected")
    return [key for key in keys if isinstance(key, dict) and key.get("use", "sig") == "sig"]
