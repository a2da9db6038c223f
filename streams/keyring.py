"""The data keys of calls: they seal what is personal in their call, and erasing the call is destroying them.

One small file for each call holds a key for each class of data, wrapped by the tenant's key; all processes that see the
directory share it. Of processes that come at once one makes the keys. An erased call has a tombstone in their place, so
that nobody makes it others.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from schemas import files
from streams.clock import Clock, SystemClock
from streams.kms import NONCE_BYTES, KeyManagement, WrongKeyError

log = structlog.get_logger(__name__)

KEY_BYTES = 32
OPEN_MAX = 4096
# After so long a key's file is looked at again: a process that does not read `erase` forgets a key no later.
LOOKED_S = 30.0


class AlteredError(ValueError):
    """Sealed bytes are not what was sealed under the call's key, for that place."""


class KeyFile(msgspec.Struct, frozen=True):
    """What lies in a call's file: its wrapped keys by class of data, and when it was erased (microseconds)."""

    session_id: str
    tenant_id: str
    made_at: int
    wrapped: dict[str, bytes]
    erased_at: int = 0


Keys = Mapping[str, "DataKey"]


class DataKey:
    """Seals and opens for one class of a call's data. `context` says which place in the call the bytes belong to."""

    __slots__ = ("_cipher", "_session", "value")

    def __init__(self, session_id: str, value: bytes) -> None:
        self.value = value
        self._cipher = AESGCM(value)
        self._session = session_id.encode() + b"/"

    def seal(self, plain: bytes, context: str) -> bytes:
        """Nonce and ciphertext. The nonce is random: one place may be sealed twice, with different words."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, self._session + context.encode())

    def open(self, sealed: bytes, context: str) -> bytes:
        """The inverse; raises AlteredError."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._session + context.encode())
        except (InvalidTag, ValueError):
            raise AlteredError("the sealed bytes are not what the call's key sealed there") from None


class Keyring:
    """The keys below one directory. Safe to use from several threads.

    Raises OSError where the directory cannot be used, and KeyManagementError where keys cannot be wrapped.
    """

    def __init__(self, directory: Path, management: KeyManagement, clock: Clock | None = None) -> None:
        self._directory = directory
        self._management = management
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._opened: OrderedDict[str, tuple[Keys, float]] = OrderedDict()

    def keys(self, session_id: str, tenant_id: str) -> Keys:
        """The call's keys by class, made now if it has none; those that were destroyed are not among them."""
        cached = self._cached(session_id)
        if cached is not None:
            return cached
        path = self._path(session_id)
        found = _read(path)
        if found is None:
            wrapped = {
                name: self._management.wrap(tenant_id, secrets.token_bytes(KEY_BYTES), _context(session_id, name))
                for name in files.CLASSES
            }
            _place(path, KeyFile(session_id, tenant_id, self._clock.now_us(), wrapped))
            found = _read(path)
        return self._keep(session_id, found)

    def known(self, session_id: str) -> Keys:
        """The call's keys, as far as it has them: none where it was erased, or has none here that can be opened."""
        cached = self._cached(session_id)
        if cached is not None:
            return cached
        try:
            return self._keep(session_id, _read(self._path(session_id)))
        except WrongKeyError as error:
            log.error("keys_not_opened", session_id=session_id, error=str(error))
            return {}

    def file(self, session_id: str) -> KeyFile | None:
        """What is kept of the call; None where there is nothing."""
        return _read(self._path(session_id))

    def every(self) -> Iterator[KeyFile]:
        """What is kept of every call, in no order."""
        for path in self._directory.glob("calls/*/*.key"):
            found = _read(path)
            if found is not None:
                yield found

    def forget(self, session_id: str) -> None:
        """Drops the opened keys; their file is looked at when they are next needed."""
        with self._lock:
            self._opened.pop(session_id, None)

    def destroy(self, session_id: str, tenant_id: str, classes: Collection[str] = files.CLASSES) -> KeyFile:
        """Destroys the call's keys of those classes for good, everywhere once others forget theirs.

        Returns what is left: a tombstone once all are destroyed. Repeating it changes nothing. The file is overwritten
        where it lies and flushed before what is left gets its name.
        """
        path = self._path(session_id)
        with _locked(path.parent):
            rest = self._destroy(path, session_id, tenant_id, classes)
        self.forget(session_id)
        return rest

    def _destroy(self, path: Path, session_id: str, tenant_id: str, classes: Collection[str]) -> KeyFile:
        found = _read(path)
        if found is not None and (found.erased_at or not found.wrapped.keys() & set(classes)):
            return found
        now_us = self._clock.now_us()
        left = {name: key for name, key in found.wrapped.items() if name not in classes} if found is not None else {}
        made_at, owner = (now_us, tenant_id) if found is None else (found.made_at, found.tenant_id)
        rest = KeyFile(session_id, owner, made_at, left, erased_at=0 if left else now_us)
        if found is not None:
            with path.open("r+b") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                file.write(secrets.token_bytes(size))
                file.flush()
                os.fsync(file.fileno())
        fresh = _written(path, rest, flushed=True)
        fresh.replace(path)
        _flush(path.parent)
        return rest

    def remove(self, session_id: str) -> None:
        """Removes what is kept of a call of which the log keeps nothing more; there is no tombstone."""
        self.forget(session_id)
        self._path(session_id).unlink(missing_ok=True)

    def _cached(self, session_id: str) -> Keys | None:
        with self._lock:
            cached = self._opened.get(session_id)
            if cached is None or self._clock.monotonic_s() - cached[1] > LOOKED_S:
                return None
            self._opened.move_to_end(session_id)
            return cached[0]

    def _keep(self, session_id: str, found: KeyFile | None) -> Keys:
        # What is not there may come at any moment, from another process.
        if found is None:
            return {}
        opened = {
            name: DataKey(session_id, self._management.unwrap(found.tenant_id, key, _context(session_id, name)))
            for name, key in found.wrapped.items()
        }
        with self._lock:
            self._opened[session_id] = opened, self._clock.monotonic_s()
            if len(self._opened) > OPEN_MAX:
                self._opened.popitem(last=False)
        return opened

    def _path(self, session_id: str) -> Path:
        """Foreign keys may pose as session ids: none becomes a path."""
        name = hashlib.blake2b(session_id.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        return self._directory / "calls" / name[:2] / f"{name}.key"


def _context(session_id: str, name: str) -> bytes:
    return f"{session_id}/{name}".encode(errors="surrogatepass")


def _read(path: Path) -> KeyFile | None:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=KeyFile)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        log.error("no_key_file", path=str(path))
        return None


def _place(path: Path, content: KeyFile) -> None:
    """Puts the file there unless one is. A power failure leaves an empty one where one was just being made."""
    with _locked(path.parent):
        if _read(path) is None:
            _written(path, content).replace(path)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One at a time, of all processes: whoever finds no key makes one, and of two keys one would be lost."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _written(path: Path, content: KeyFile, flushed: bool = False) -> Path:
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.msgpack.encode(content))
        file.flush()
        if flushed:
            os.fsync(file.fileno())
    return fresh


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
