"""A stage's side of an engine in another process: many asks on one Unix socket, each with its own deadline."""

import asyncio
import contextlib
import itertools
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import structlog

from processors.engine import Capabilities, EngineClient, EngineError, Reply, Request
from processors.engine_frames import (
    BadFrameError,
    Ended,
    Failed,
    FromClient,
    FromEngine,
    Hello,
    Open,
    Piece,
    Ping,
    Stop,
    engine_name,
    framed,
    from_engine,
    private_folder,
    read_frame,
    socket_path,
)
from processors.hosted import hosted_roles
from processors.lane import Description
from streams.settings import Settings

__all__ = [
    "SocketEngine",
    "engine_client",
    "engine_name",
    "replicas",
    "responds",
    "socket_path",
]

log = structlog.get_logger(__name__)

# An engine's process answers pings while its model computes; one that does not is stopped or stuck. To be wrong about
# that costs little: another replica is asked, and this one again as soon as it takes connections.
SILENCE_S = 1.5
_BACKOFF_FIRST_S = 0.02
_BACKOFF_MAX_S = 0.5
_UNSENT_BYTES_MAX = 16 << 20
_UNREAD_REPLIES_MAX = 4096


def replicas(settings: Settings, role: str) -> int:
    """How many processes serve a hosted role, numbered from 0."""
    return settings.engines.replicas


def engine_client(settings: Settings, role: str) -> EngineClient:
    """The client for the engine that the settings choose for the role, in a process of ours or remote."""
    if role not in hosted_roles(settings):
        from processors.llm.openai_compatible import OpenAICompatible

        return OpenAICompatible(settings)
    return SocketEngine(settings, role)


class _Pending:
    """An ask that waits for replies: what came, and a signal for the one who reads."""

    __slots__ = ("arrived", "frames")

    def __init__(self) -> None:
        self.frames: deque[Piece | Ended | Failed] = deque()
        self.arrived = asyncio.Event()

    def put(self, frame: Piece | Ended | Failed) -> None:
        if len(self.frames) >= _UNREAD_REPLIES_MAX:
            self.frames.clear()
            frame = Failed(frame.id, "refused", f"{_UNREAD_REPLIES_MAX} replies were not read")
        self.frames.append(frame)
        self.arrived.set()

    async def get(self) -> Piece | Ended | Failed:
        while not self.frames:
            self.arrived.clear()
            await self.arrived.wait()
        return self.frames.popleft()


class _Connection:
    """One connection to the engine's process. When it breaks, every ask on it fails with `crashed` at once."""

    def __init__(self, role: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silence_s: float) -> None:
        self.capabilities: Capabilities | None = None
        self.open = True
        self._role = role
        self._reader = reader
        self._writer = writer
        self._silence_s = silence_s
        self._pending: dict[int, _Pending] = {}
        self._ids = itertools.count(1)
        self._heard_s = 0.0
        self._watch: asyncio.Task[None] | None = None
        self._read: asyncio.Task[None] | None = None

    async def greeted(self, timeout_s: float) -> None:
        """Waits for the engine's first frame, then reads the rest in the background."""
        async with asyncio.timeout(timeout_s):
            hello = await read_frame(self._reader, from_engine)
        if not isinstance(hello, Hello):
            raise BadFrameError(f"expected Hello, found {type(hello).__name__}")
        self.capabilities = hello.capabilities
        self._read = asyncio.create_task(self._reading())

    def send(self, frame: FromClient) -> None:
        """Hands the frame to the socket; raises EngineError when the engine has long not been reading."""
        transport = self._writer.transport
        if transport.get_write_buffer_size() > _UNSENT_BYTES_MAX:
            raise EngineError("refused", f"the {self._role} engine does not take its asks")
        try:
            self._writer.write(framed(frame))
        except BadFrameError as error:
            raise EngineError("invalid", str(error)) from error

    def begin(self, request: Request, deadline_s: float) -> tuple[int, _Pending]:
        """Sends the ask."""
        number = next(self._ids)
        self.send(Open(number, request, deadline_s))
        pending = self._pending[number] = _Pending()
        if self._watch is None:
            self._heard_s = asyncio.get_running_loop().time()
            self._watch = asyncio.create_task(self._watching())
        return number, pending

    def end(self, number: int, unfinished: bool) -> None:
        """Forgets the ask, and tells the engine if it is still at work on it."""
        self._pending.pop(number, None)
        if unfinished and self.open:
            with contextlib.suppress(EngineError):
                self.send(Stop(number))

    def abort(self, why: str) -> None:
        """Closes at once and fails what is pending."""
        if not self.open:
            return
        self.open = False
        for task in (self._read, self._watch):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        self._writer.transport.abort()
        for number, pending in self._pending.items():
            pending.put(Failed(number, "crashed", why))
        self._pending.clear()

    async def _reading(self) -> None:
        why = f"the {self._role} engine's process is gone"
        try:
            while True:
                frame = await read_frame(self._reader, from_engine)
                self._heard_s = asyncio.get_running_loop().time()
                self._deliver(frame)
        except (asyncio.IncompleteReadError, OSError):
            pass
        except BadFrameError as error:
            why = f"the {self._role} engine sent what is no frame: {error}"
        log.warning("engine lost", role=self._role, pending=len(self._pending), why=why)
        self.abort(why)

    def _deliver(self, frame: FromEngine) -> None:
        if isinstance(frame, Piece | Ended | Failed):
            pending = self._pending.get(frame.id)
            if pending is not None:
                pending.put(frame)

    async def _watching(self) -> None:
        """While asks are open: a silent engine is asked whether it is there, and given up when it does not answer."""
        numbers = itertools.count(1)
        loop = asyncio.get_running_loop()
        while self._pending:
            await asyncio.sleep(self._silence_s / 3)
            silent_s = loop.time() - self._heard_s
            if silent_s >= self._silence_s:
                log.error("engine silent", role=self._role, silent_s=round(silent_s, 1), pending=len(self._pending))
                self.abort(f"the {self._role} engine has been silent for {silent_s:.1f} s")
                return
            if silent_s >= self._silence_s / 4:
                with contextlib.suppress(EngineError):
                    self.send(Ping(next(numbers)))
        self._watch = None


class SocketEngine:
    """An `EngineClient` for one engine process of a role (`python -m processors.engine_host ROLE --replica N`).

    Connects when first asked and again, with growing pauses, whenever the process was restarted; asks wait for that up
    to their deadline. Must be used from one event loop.
    """

    def __init__(
        self, settings: Settings, role: str, silence_s: float = SILENCE_S, replica: int = 0, generation: int = 0
    ) -> None:
        self._path = socket_path(settings, role, replica, generation)
        self._role = role
        self._name = engine_name(role, replica, generation)
        self._silence_s = silence_s
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None
        self._closed = False

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`. Fails with `crashed` as soon as the engine's process dies or has been silent too long."""
        deadline = asyncio.get_running_loop().time() + deadline_s
        wall = time.monotonic() + deadline_s
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._connected()
        except TimeoutError:
            raise EngineError("timeout", f"no {self._role} engine for {deadline_s:g} s") from None
        number, pending = connection.begin(request, wall)
        unfinished = True
        try:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        frame = await pending.get()
                except TimeoutError:
                    raise EngineError("timeout", f"no answer within {deadline_s:g} s") from None
                unfinished = isinstance(frame, Piece)
                if isinstance(frame, Piece):
                    yield frame.reply
                elif isinstance(frame, Failed):
                    raise EngineError(frame.reason, frame.detail)
                else:
                    return
        finally:
            connection.end(number, unfinished)

    @property
    def reachable(self) -> bool:
        """Whether the process is connected, as far as is known."""
        return self._connection is not None and self._connection.open

    async def reach(self) -> None:
        """Returns when the process is connected; raises EngineError once the client was closed."""
        await self._connected()

    @property
    def concurrency(self) -> int:
        """See `Concurrent`."""
        known = self._known
        return known.concurrency if known is not None else 1

    @property
    def description(self) -> Description:
        """What the process said of its engine when it was last connected."""
        known = self._known
        return Description(known.model if known else "", known.device if known else "", self._name)

    async def capabilities(self, timeout_s: float) -> Capabilities:
        """What the engine says of itself, once it is there; raises EngineError (`timeout`) when it is not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connected()
        except TimeoutError:
            raise EngineError("timeout", f"no {self._role} engine for {timeout_s:g} s") from None
        assert connection.capabilities is not None
        return connection.capabilities

    @property
    def _known(self) -> Capabilities | None:
        return self._connection.capabilities if self._connection is not None else None

    async def close(self) -> None:
        """See `EngineClient`."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort("the client was closed")

    async def _connected(self) -> _Connection:
        """The connection; all who wait for one wait for the same attempt, which goes on when one of them gives up."""
        if self._closed:
            raise EngineError("crashed", "the client was closed")
        if self._connection is not None and self._connection.open:
            return self._connection
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
        try:
            return await asyncio.shield(self._connecting)
        except asyncio.CancelledError:
            if self._closed and self._connecting.cancelled():
                raise EngineError("crashed", "the client was closed") from None
            raise

    async def _connect(self) -> _Connection:
        pause_s = _BACKOFF_FIRST_S
        while True:
            try:
                reader, writer = await _dial(self._path)
            except OSError:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _BACKOFF_MAX_S)
                continue
            connection = _Connection(self._role, reader, writer, self._silence_s)
            try:
                await connection.greeted(self._silence_s)
            except (OSError, BadFrameError, TimeoutError, asyncio.IncompleteReadError):
                writer.transport.abort()
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _BACKOFF_MAX_S)
                continue
            except asyncio.CancelledError:
                writer.transport.abort()
                raise
            self._connection = connection
            return connection


async def _dial(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    private_folder(path)
    return await asyncio.open_unix_connection(str(path))


def responds(settings: Settings, role: str, timeout_s: float = 2.0, replica: int = 0) -> bool:
    """Whether the role's engine process takes connections and greets: for those who watch processes. Blocks."""
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(timeout_s)
        try:
            one.connect(str(socket_path(settings, role, replica)))
            (length,) = struct.unpack(">I", _exactly(one, 4))
            return isinstance(from_engine.decode(_exactly(one, length)), Hello)
        except (OSError, msgspec.MsgspecError):
            return False


def _exactly(one: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = one.recv(count - len(data))
        if not piece:
            raise ConnectionError("closed")
        data += piece
    return data
