"""What a stage and its engine's process say to each other: MessagePack frames, each after its length in four bytes.

A frame is a length (unsigned, big-endian) and that many bytes of one of the structures below. Either side closes the
connection on anything else.
"""

import asyncio
import hashlib
import os
import stat
import struct
import tempfile
from pathlib import Path
from typing import TypeVar

import msgspec

from processors.engine import Capabilities, Reply, Request
from streams.settings import Settings

FRAME_BYTES_MAX = 8 << 20
_SOCKET_PATH_BYTES_MAX = 100  # Linux takes 107, macOS 103
_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()
FrameT = TypeVar("FrameT")


class Open(msgspec.Struct, frozen=True, tag=True):
    """An ask. `deadline_s` is on the machine's monotonic clock, which is one for all its processes."""

    id: int
    request: Request
    deadline_s: float


class Stop(msgspec.Struct, frozen=True, tag=True):
    """The answer is not wanted any more; nothing more is sent for the ask."""

    id: int


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Are you there?"""

    number: int


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The first frame of an engine's process on each connection."""

    capabilities: Capabilities


class Piece(msgspec.Struct, frozen=True, tag=True):
    """A reply to an ask; more may come."""

    id: int
    reply: Reply


class Ended(msgspec.Struct, frozen=True, tag=True):
    """The ask is answered in full."""

    id: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The ask will not be answered; `reason` as in `engine.EngineError`."""

    id: int
    reason: str
    detail: str


class Pong(msgspec.Struct, frozen=True, tag=True):
    """I am."""

    number: int


FromClient = Open | Stop | Ping
FromEngine = Hello | Piece | Ended | Failed | Pong

from_client: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)
from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


class BadFrameError(Exception):
    """What arrived is not a frame; the connection is of no further use."""


def framed(frame: FromClient | FromEngine) -> bytes:
    """The frame as it travels; raises BadFrameError when it is too large or holds what cannot be encoded."""
    try:
        body = _encoder.encode(frame)
    except (ValueError, OverflowError) as error:  # lone surrogates, huge integers
        raise BadFrameError(f"cannot be encoded ({type(error).__name__})") from error
    if len(body) > FRAME_BYTES_MAX:
        raise BadFrameError(f"expected at most {FRAME_BYTES_MAX} bytes, found {len(body)}")
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[FrameT]) -> FrameT:
    """The next frame; raises BadFrameError, and asyncio.IncompleteReadError or OSError when the other side is gone."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > FRAME_BYTES_MAX:
        raise BadFrameError(f"expected at most {FRAME_BYTES_MAX} bytes, found {length}")
    try:
        return decoder.decode(await reader.readexactly(length))
    except msgspec.MsgspecError as error:
        raise BadFrameError(str(error)) from error


def of_generation(role: str, generation: int) -> str:
    """The role's name where there are several generations of its engines: `tts`, then `tts@1`."""
    return f"{role}@{generation}" if generation else role


def engine_name(role: str, replica: int = 0, generation: int = 0) -> str:
    """What the replica's process is called: in `streams.ready`, in logs and in `status`."""
    return f"engine-{of_generation(role, generation)}.{replica}"


def socket_path(settings: Settings, role: str, replica: int = 0, generation: int = 0) -> Path:
    """The replica's Unix socket: in the run directory, or in a private folder where its path is too long."""
    path = settings.run_dir.absolute() / f"{engine_name(role, replica, generation)}.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"trunkline-{os.getuid()}" / f"{name}.sock"


def private_folder(path: Path) -> Path:
    """Makes sure that the socket's folder is there and belongs to us alone; raises PermissionError when it does not."""
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.name.startswith("engine-"):
        return folder
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PermissionError(f"{folder}: expected a folder of this user alone (mode 0700)")
    return folder
