"""API keys, and the compacted topic that holds them as JSON, so that every gateway knows them and they outlive it.

A key is random (256 bits), so that its digest cannot be found by trying; the log holds nothing else of it. Its id is a
part of it, and no secret. Who may write to the topic can make keys: that is the operator, and the gateways.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping

import msgspec
import structlog

from processors.access.roles import Principal, Role
from streams.client import Partition
from streams.consumer import BEGINNING, END, LogReader, Record
from streams.keys import Position
from streams.producer import LogProducer
from streams.settings import Settings
from streams.topics import KEYS

log = structlog.get_logger(__name__)

PREFIX = "tlk"
KEYS_MAX = 10_000
_FORM = re.compile(rf"{PREFIX}_([0-9a-f]{{16}})_[A-Za-z0-9_-]{{43}}")
_NO_DIGEST = bytes(hashlib.sha256().digest_size)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a key; without a tenant it is of all of them. Times are microseconds since the epoch."""

    id: str
    name: str
    role: Role
    tenant: str | None
    digest: bytes
    created_at: int
    created_by: str
    requests_per_s: float | None = None
    expires_at: int | None = None
    revoked_at: int | None = None
    revoked_by: str = ""

    @property
    def principal(self) -> Principal:
        """Who shows it."""
        return Principal(self.id, frozenset({self.role}), self.tenant, self.requests_per_s)

    def refusal(self, now_us: int) -> str:
        """Why it does not let in any more; empty where it does."""
        if self.revoked_at is not None:
            return "revoked_key"
        return "expired_key" if self.expires_at is not None and now_us >= self.expires_at else ""


def new_key(
    name: str,
    role: Role,
    tenant: str | None,
    now_us: int,
    created_by: str,
    requests_per_s: float | None = None,
    expires_at: int | None = None,
) -> tuple[Key, str]:
    """What is kept, and the key itself, which is shown once. It is URL-safe, so that it may be a subprotocol."""
    identity = secrets.token_hex(8)
    text = f"{PREFIX}_{identity}_{secrets.token_urlsafe(32)}"
    key = Key(
        id=identity,
        name=name,
        role=role,
        tenant=tenant,
        digest=_digest(text),
        created_at=now_us,
        created_by=created_by,
        requests_per_s=requests_per_s,
        expires_at=expires_at,
    )
    return key, text


def id_in(text: str) -> str | None:
    """The id of what looks like a key; None for anything else."""
    found = _FORM.fullmatch(text)
    return found[1] if found else None


def opens(key: Key | None, text: str) -> bool:
    """Whether the text is that key; where there is none it takes equally long."""
    return hmac.compare_digest(key.digest if key is not None else _NO_DIGEST, _digest(text)) and key is not None


async def stored_keys(settings: Settings, ends: Mapping[Partition, int] | None = None) -> dict[str, Key]:
    """All keys by id, revoked ones too, as of the given ends or of now; raises LogError."""
    found: dict[str, Key] = {}
    async with LogReader(settings, "trunkline.access.keys", note_ends=True) as reader:
        until = ends or dict.fromkeys(await reader.partitions(KEYS), END)
        async for record in reader.read_to({partition: (BEGINNING, end) for partition, end in until.items()}):
            apply(found, record)
    return found


def apply(keys: dict[str, Key], record: Record) -> None:
    """Changes the keys as the record says; one that cannot be read is logged, and changes nothing."""
    if not record.value:
        keys.pop((record.key or b"").decode(errors="replace"), None)
        return
    try:
        key = msgspec.json.decode(record.value, type=Key)
    except msgspec.MsgspecError:
        log.error("a record of the keys cannot be read", topic=record.topic, offset=record.offset)
    else:
        keys[key.id] = key


def write(producer: LogProducer, key: Key) -> "asyncio.Future[Position]":
    """Makes or replaces it. See `LogProducer.publish`."""
    return producer.publish_raw(KEYS, key.id.encode(), msgspec.json.encode(key))


def revoked(key: Key, now_us: int, by: str) -> Key:
    """The same, which opens nothing from now on; the first revocation counts."""
    return key if key.revoked_at is not None else msgspec.structs.replace(key, revoked_at=now_us, revoked_by=by)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
