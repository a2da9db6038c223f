"""The platform's signature: Ed25519, with a key that is given or made at its first use."""

import base64
import binascii
import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from streams.settings import Settings

KEY_FILE = "signing.key"
ALGORITHM = "Ed25519"


class SignatureError(ValueError):
    """A document is not what was signed, or a key is none; the text says which, for people."""


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8 (RFC 8785, for values without exponents)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sign(settings: Settings, document: Mapping[str, Any]) -> dict[str, str]:
    """The document's signature, with the public key that it can be verified with."""
    key = _private_key(settings)
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    value = key.sign(canonical(document))
    return {"algorithm": ALGORITHM, "public_key": _text(public), "value": _text(value)}


def verify(document: Any, signature: Any, trusted: Ed25519PublicKey) -> None:
    """Raises SignatureError unless the holder of the trusted key signed exactly this document."""
    try:
        algorithm, public, value = (signature[name] for name in ("algorithm", "public_key", "value"))
        decoded = base64.b64decode(value, validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise SignatureError("no signature is there: algorithm, public_key and value are expected") from None
    if algorithm != ALGORITHM:
        raise SignatureError(f"the signature is of kind {algorithm!r}, {ALGORITHM} is expected")
    if public != _text(trusted.public_bytes(Encoding.Raw, PublicFormat.Raw)):
        raise SignatureError("it was signed with another key than the one that is trusted")
    try:
        trusted.verify(decoded, canonical(document))
    except (InvalidSignature, ValueError):
        raise SignatureError("the content is not what was signed") from None


def public_key(settings: Settings) -> Ed25519PublicKey:
    """That of the platform; raises SignatureError where no key can be had."""
    return _private_key(settings).public_key()


def public_pem(settings: Settings) -> str:
    """The same as PEM, to be handed to those who verify."""
    return public_key(settings).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def read_public_key(path: Path) -> Ed25519PublicKey:
    """The Ed25519 public key in a PEM file; raises SignatureError."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SignatureError(f"{path}: a public key in PEM is expected ({error})") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{path}: an {ALGORITHM} key is expected")
    return key


def _private_key(settings: Settings) -> Ed25519PrivateKey:
    """The given one, else that of the data directory, made there the first time (mode 0600)."""
    path = settings.signing_key_file or settings.data_dir / KEY_FILE
    try:
        if settings.signing_key_file is None and not path.exists():
            _make(path)
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise SignatureError(f"{path}: a private key in PEM without a password is expected ({error})") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path}: an {ALGORITHM} key is expected")
    return key


def _make(path: Path) -> None:
    """Of processes that come at once, one makes the key and all use it."""
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
    with contextlib.suppress(FileExistsError):
        os.link(fresh, path)
    fresh.unlink()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
