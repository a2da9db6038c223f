"""Tenants' keys, which wrap the data keys of their calls: files of the data directory, or a KMS of your own."""

import secrets
from importlib import import_module
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from streams.keyfile import kept_key
from streams.settings import Settings

LOCAL = "local"
NONCE_BYTES = 12


class KeyManagementError(RuntimeError):
    """A key cannot be wrapped or unwrapped; the text names the tenant and never a key."""


class WrongKeyError(KeyManagementError):
    """What is to be unwrapped was not wrapped so: trying again will not help."""


class KeyManagement(Protocol):
    """Keeps a key for each tenant and never hands it out. Called from several threads; may block."""

    def wrap(self, tenant_id: str, key: bytes, context: bytes) -> bytes:
        """The key as it may be stored, bound to the context; raises KeyManagementError."""
        ...

    def unwrap(self, tenant_id: str, wrapped: bytes, context: bytes) -> bytes:
        """The inverse; raises WrongKeyError for another tenant, another context, or altered bytes."""
        ...


class LocalKeys:
    """A file for each tenant below a directory, mode 0600, made at its first use; AES-256-GCM wraps."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ciphers: dict[str, AESGCM] = {}

    def wrap(self, tenant_id: str, key: bytes, context: bytes) -> bytes:
        """See `KeyManagement`."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._cipher(tenant_id).encrypt(nonce, key, context)

    def unwrap(self, tenant_id: str, wrapped: bytes, context: bytes) -> bytes:
        """See `KeyManagement`."""
        try:
            return self._cipher(tenant_id).decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise WrongKeyError(f"a data key is not one that tenant {tenant_id!r} wrapped") from None

    def _cipher(self, tenant_id: str) -> AESGCM:
        cipher = self._ciphers.get(tenant_id)
        if cipher is None:
            try:
                key = kept_key(self._directory / f"tenant-{quote(tenant_id, safe='')}.key")
            except (OSError, ValueError) as error:
                raise KeyManagementError(f"the key of tenant {tenant_id!r} cannot be had: {error}") from error
            cipher = self._ciphers[tenant_id] = AESGCM(key)
        return cipher


def key_management(settings: Settings) -> KeyManagement:
    """What the settings name. Raises KeyManagementError where that is nothing."""
    name = settings.privacy.kms
    if name == LOCAL:
        return LocalKeys(settings.keys_dir)
    module, _, factory = name.partition(":")
    try:
        made: KeyManagement = getattr(import_module(module), factory)(settings)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise KeyManagementError(f"privacy.kms: {LOCAL} or package.module:factory is expected ({error})") from error
    return made
