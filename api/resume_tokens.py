"""Resume tokens: with one, the client of a call proves to any gateway that the call is its own. Stateless."""

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
import uuid
from dataclasses import dataclass

import structlog

from streams.keyfile import KEY_BYTES, kept_key
from streams.settings import Settings

log = structlog.get_logger(__name__)

KEY_FILE = "resume.key"
_PAYLOAD = struct.Struct(">16sQQ")
_MAC_BYTES = 16


@dataclass(frozen=True, slots=True)
class ResumeToken:
    """What a valid token says: which call of which tenant, and when it began (or was announced), in microseconds since
    the epoch.
    """

    session_id: str
    tenant: str
    since_us: int


class ResumeTokens:
    """Mints and reads the tokens of one platform, which is called after its own tenant, under one key."""

    def __init__(self, key: bytes, platform: str) -> None:
        self._key = hmac.digest(key, b"trunkline resume\0" + platform.encode(), hashlib.sha256)

    def mint(self, session_id: str, tenant: str, since_us: int, until_us: int) -> str:
        """A token for the tenant's session, a UUID; URL-safe."""
        payload = _PAYLOAD.pack(uuid.UUID(session_id).bytes, since_us, until_us) + tenant.encode()
        return _encoded(payload + self._mac(payload))

    def read(self, text: str, now_us: int) -> ResumeToken | None:
        """What the token says; None for one that was forged, is from elsewhere, or has expired."""
        try:
            data = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        payload, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        if _encoded(data) != text:  # the decoder takes some spellings that were never minted
            return None
        if len(payload) <= _PAYLOAD.size or not hmac.compare_digest(mac, self._mac(payload)):
            return None
        session, since_us, until_us = _PAYLOAD.unpack_from(payload)
        tenant = payload[_PAYLOAD.size :].decode()
        return ResumeToken(str(uuid.UUID(bytes=session)), tenant, since_us) if now_us < until_us else None

    def _mac(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, payload, hashlib.sha256)[:_MAC_BYTES]


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def resume_tokens(settings: Settings) -> ResumeTokens:
    """With the key of the settings, else that of the data directory, made there the first time (mode 0600)."""
    given = settings.api.resume_key
    key = given.get_secret_value().encode() if given is not None else b""
    return ResumeTokens(key or _kept_key(settings), settings.tenant)


def _kept_key(settings: Settings) -> bytes:
    try:
        return kept_key(settings.data_dir / KEY_FILE)
    except (OSError, ValueError) as error:
        log.warning(
            "api.resume_key is not set, none can be kept; calls will not outlive this process", error=str(error)
        )
    return secrets.token_bytes(KEY_BYTES)
