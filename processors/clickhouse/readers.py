"""Who asks ClickHouse: readers of the embedded one, told by name and password or by an API key, and a server's users.

A server has its own users: `infra/clickhouse/server/readers.sql` makes their role. There the tenant is the part of a
user's name behind the last `@`, so that one row policy for each table serves all.
"""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from processors.access.keyring import Keyring
from processors.access.keys import Key, id_in
from processors.access.roles import Permission, Principal
from schemas.events import RefusalKind
from streams.clock import Clock, SystemClock
from streams.settings import Settings

KEY_FILE = "clickhouse.key"
VERIFIED_MAX = 256


@dataclass(frozen=True, slots=True)
class Reader:
    """Who asks; without a tenant, the operator, who sees everything."""

    name: str
    tenant: str | None = None


class Readers:
    """Tells readers by name and password; an API key in the password's place goes under any name."""

    def __init__(self, settings: Settings, keyring: Keyring | None = None, clock: Clock | None = None) -> None:
        clickhouse = settings.clickhouse
        self._keyring = keyring
        self._clock = clock or SystemClock()
        self._operator = clickhouse.username
        self._operator_key = operator_key(settings)
        self._users = clickhouse.users
        # Passwords that were found right, so that not every question costs a hash meant to be slow.
        self._verified: dict[str, bytes] = {}
        self._secret = secrets.token_bytes(32)

    def known(self, name: str, password: str) -> Reader | None:
        """The reader; None where the name or the password is wrong, which takes equally long. Blocks for a moment."""
        if id_in(password) is not None:
            key = self._key(password)
            return Reader(key.id, key.tenant) if key is not None and self._refusal(key) is None else None
        if name in ("", self._operator):
            right = not self._operator_key or hmac.compare_digest(self._operator_key.encode(), password.encode())
            return Reader(self._operator) if right else None
        user = self._users.get(name)
        digest = hmac.digest(self._secret, password.encode(), hashlib.sha256)
        if user is not None and hmac.compare_digest(self._verified.get(name, b""), digest):
            return Reader(name, user.tenant)
        if not _matches(password, user.password_hash if user is not None else _NOBODY) or user is None:
            return None
        if len(self._verified) < VERIFIED_MAX:
            self._verified[name] = digest
        return Reader(name, user.tenant)

    def refusal(self, password: str) -> tuple[RefusalKind, str, Principal | None]:
        """Why the reader is not `known`, for the record: the kind, the reason, and whose key it is."""
        key = self._key(password)
        if key is None:
            return RefusalKind.UNAUTHENTICATED, "unknown_reader", None
        kind, reason = self._refusal(key) or (RefusalKind.UNAUTHENTICATED, "unknown_reader")
        return kind, reason, key.principal

    def _key(self, password: str) -> Key | None:
        return self._keyring.find(password) if self._keyring is not None else None

    def _refusal(self, key: Key) -> tuple[RefusalKind, str] | None:
        if reason := key.refusal(self._clock.now_us()):
            return RefusalKind.UNAUTHENTICATED, reason
        return None if key.principal.may(Permission.SQL_READ) else (RefusalKind.FORBIDDEN, "role")


def password_hash(password: str) -> str:
    """As `clickhouse.users` has it."""
    salt = secrets.token_bytes(16)
    return f"scrypt:{salt.hex()}:{hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32).hex()}"


def _matches(password: str, hashed: str) -> bool:
    _, salt, expected = hashed.split(":")
    found = hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), n=2**14, r=8, p=1, dklen=32)
    return hmac.compare_digest(found, bytes.fromhex(expected))


# Nobody's password is compared with that of nobody.
_NOBODY = f"scrypt:{'0' * 32}:{'0' * 64}"


def operator_key(settings: Settings) -> str:
    """The operator's password; empty where none is asked for, which is while there are no other users.

    That of the settings, else one that is made in the data directory the first time (mode 0600).
    """
    if given := settings.clickhouse.password.get_secret_value():
        return given
    return _kept_key(settings.data_dir / KEY_FILE) if settings.clickhouse.users else ""


def known_operator_key(settings: Settings) -> str:
    """The same for who asks: also of a platform whose users are not in this process's settings."""
    path = settings.data_dir / KEY_FILE
    return settings.clickhouse.password.get_secret_value() or (path.read_text() if path.exists() else "")


def _kept_key(path: Path) -> str:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24))
        # Of processes that start at once, one makes the key and all use it.
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_text()


def create_user(name: str, tenant: str, password: str) -> str:
    """The statement that makes the user; raises ValueError for a name or tenant that cannot be written so."""
    for what, text in (("name", name), ("tenant", tenant)):
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
            raise ValueError(f"{what}: letters, digits, underscores, dots and hyphens are expected, found {text!r}")
    digest = hashlib.sha256(password.encode()).hexdigest()
    return f"CREATE USER `{name}@{tenant}` IDENTIFIED WITH sha256_hash BY '{digest}' DEFAULT ROLE bi"
