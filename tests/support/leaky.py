"""A proxy between a client and an HTTP server that loses some of the answers: what was asked for has happened."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

_PIECE_BYTES = 65_536


class LeakyProxy:
    """Forwards connections; of answers it loses the given share, by hanging up or by falling silent."""

    def __init__(self, url: str, share: float, seed: int) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._path = parts.path
        self._share = share
        self._chance = random.Random(seed)
        self.carried = 0
        self.lost = 0
        self.url = ""

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Listens until told to stop."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{self._path}"
        ready.set()
        await stop.wait()
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            other_reader, other_writer = await asyncio.open_connection(self._host, self._port)
            asking = asyncio.create_task(self._carry(reader, other_writer))
            while piece := await other_reader.read(_PIECE_BYTES):
                if self._chance.random() < self._share:
                    self.lost += 1
                    # Some who lose an answer see the connection end; others wait for their deadline.
                    if self._chance.random() < 0.3:
                        await asking
                    break
                self.carried += 1
                writer.write(piece)
                await writer.drain()
            asking.cancel()
            other_writer.close()
        writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE_BYTES):
                writer.write(piece)
                await writer.drain()


@contextlib.contextmanager
def leaking(url: str, share: float, seed: int = 1) -> Iterator[LeakyProxy]:
    """A proxy to that server, in a thread of its own."""
    proxy, ready = LeakyProxy(url, share, seed), threading.Event()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(proxy.serve(ready, stop)), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
