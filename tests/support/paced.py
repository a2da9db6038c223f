"""A way to a server on which answers can be held back: however fast it is, its client knows no more than it shall."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

PIECE_BYTES = 2048  # some ten tokens of a streamed chat
PACE_S = 0.2


class PacedWay:
    """Passes on what clients send at once, and what the server answers piece by piece while it is `slow`."""

    def __init__(self, server_url: str) -> None:
        """`server_url` is where it leads to."""
        self._to = urlsplit(server_url)
        self.url = ""
        self._fast = asyncio.Event()
        self._fast.set()
        self._gates: set[asyncio.Event] = set()

    def slow(self) -> None:
        """From now on answers come a few tokens at a time."""
        self._fast.clear()

    def fast(self) -> None:
        """From now on they come as they are made."""
        self._fast.set()

    def hold(self) -> None:
        """Nothing more comes of the answers that are under way; further requests are answered."""
        for gate in self._gates:
            gate.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; either side's end is the other's."""
        there, back = await asyncio.open_connection(self._to.hostname, self._to.port)
        gate = asyncio.Event()
        self._gates.add(gate)
        ways = [
            asyncio.create_task(_asked(reader, back, gate)),
            asyncio.create_task(self._answered(there, writer, gate)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        self._gates.discard(gate)
        for one in (back, writer):
            one.close()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        while data := await reader.read(PIECE_BYTES):
            if not self._fast.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._fast.wait(), PACE_S)
            await gate.wait()
            writer.write(data)
            await writer.drain()


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    while data := await reader.read(PIECE_BYTES):
        gate.set()
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def paced_way(server_url: str) -> AsyncIterator[PacedWay]:
    """One that is open, at `url`."""
    way = PacedWay(server_url)
    async with await asyncio.start_server(way.serve, "127.0.0.1", 0) as server:
        way.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{urlsplit(server_url).path}"
        yield way
