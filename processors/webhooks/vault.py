"""Signing secrets at rest: sealed with a key that is not in the log (AES-256-GCM), bound to their subscription."""

import base64
import binascii
import hashlib
import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from streams.keyfile import kept_key
from streams.settings import Settings

KEY_FILE = "webhooks.key"
PREFIX = "whsec_"
SECRET_BYTES_MIN = 24
SECRET_BYTES_MAX = 64
_SECRET_BYTES = 32
_NONCE_BYTES = 12


class VaultError(Exception):
    """A secret cannot be sealed or opened; the message says what to do."""


class Vault:
    """Seals and opens under one key."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(hmac.digest(key, b"trunkline webhook secrets", hashlib.sha256))

    def seal(self, secret: str, subscription_id: str) -> bytes:
        """The secret as it may be stored."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret.encode(), subscription_id.encode())

    def open(self, sealed: bytes, subscription_id: str) -> str:
        """The inverse; raises VaultError for another key, another subscription, or altered bytes."""
        try:
            plain = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], subscription_id.encode())
        except (InvalidTag, ValueError):
            raise VaultError("its secret cannot be opened: webhooks.key is not the key that sealed it") from None
        return plain.decode()


def vault_of(settings: Settings) -> Vault:
    """With the key of the settings, else that of the data directory, made there the first time. Raises VaultError."""
    given = settings.webhooks.key
    if given is not None and given.get_secret_value():
        return Vault(given.get_secret_value().encode())
    try:
        return Vault(kept_key(settings.data_dir / KEY_FILE))
    except (OSError, ValueError) as error:
        raise VaultError(f"webhooks.key is not set, and none can be kept in the data directory: {error}") from error


def new_secret() -> str:
    """A secret as Standard Webhooks writes it."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def check_secret(text: str) -> None:
    """Raises ValueError, without quoting it, for what is no secret of Standard Webhooks."""
    expected = f"{PREFIX} and base64 of {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} random bytes is expected"
    if not text.startswith(PREFIX):
        raise ValueError(expected)
    try:
        size = len(base64.b64decode(text.removeprefix(PREFIX), validate=True))
    except (binascii.Error, ValueError):
        raise ValueError(expected) from None
    if not SECRET_BYTES_MIN <= size <= SECRET_BYTES_MAX:
        raise ValueError(expected)
