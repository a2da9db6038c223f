"""A way to a server on which answers can be held back: however fast it is, its client knows no more than it shall."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

PIECE_BYTES = 2048  # some ten tokens of a streamed chat
PACE_S = 0.05


class PacedWay:
    """Passes on what clients send at once, and what the server answers piece by piece while it is `slow`."""

    def __init__(self, server_url: str) -> None:
        """`server_url` is where it leads to."""
        self._to = urlsplit(server_url)
        self.url = ""
        self._fast = asyncio.Event()
        self._open = asyncio.Event()
        self._fast.set()
        self._open.set()

    def slow(self) -> None:
        """From now on answers come a few tokens at a time."""
        self._fast.clear()

    def hold(self) -> None:
        """From now on nothing comes back."""
        self._open.clear()

    def go_on(self) -> None:
        """Everything comes back at once again."""
        self._fast.set()
        self._open.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; either side's end is the other's."""
        there, back = await asyncio.open_connection(self._to.hostname, self._to.port)
        ways = [asyncio.create_task(_copied(reader, back)), asyncio.create_task(self._returned(there, writer))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for one in (back, writer):
            one.close()

    async def _returned(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(PIECE_BYTES):
            if not self._fast.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._fast.wait(), PACE_S)
            await self._open.wait()
            writer.write(data)
            await writer.drain()


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(PIECE_BYTES):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def paced_way(server_url: str) -> AsyncIterator[PacedWay]:
    """One that is open, at `url`."""
    way = PacedWay(server_url)
    async with await asyncio.start_server(way.serve, "127.0.0.1", 0) as server:
        way.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{urlsplit(server_url).path}"
        yield way
