"""The wire between caller and gateway: a TCP proxy that can be cut, and can fall silent."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

_PIECE_BYTES = 65_536


class Wire:
    """Forwards connections to one address; see `open_wire`."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._cut = False
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def cut(self, seconds: float) -> None:
        """Resets every connection, and refuses new ones for that long."""
        self._cut = True
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(seconds)
        self._cut = False

    async def fall_silent(self, seconds: float) -> None:
        """Keeps every connection open and carries nothing for that long; then all of it arrives."""
        self._flowing.clear()
        await asyncio.sleep(seconds)
        self._flowing.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        if self._cut:
            writer.transport.abort()
            return
        try:
            other_reader, other_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, other_writer}
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(reader, other_writer))
                both.create_task(self._carry(other_reader, writer))
        finally:
            self._writers -= {writer, other_writer}
            writer.close()
            other_writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE_BYTES):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            if writer.can_write_eof():
                writer.write_eof()


@contextlib.asynccontextmanager
async def open_wire(url: str) -> AsyncIterator[tuple[Wire, str]]:
    """A wire to the HTTP address, and its own; it stands while connections to what is behind it fail."""
    target = urlsplit(url)
    wire = Wire(target.hostname or "127.0.0.1", target.port or 80)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    try:
        yield wire, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
