"""The outgoing side of a call's socket: a bounded queue and the task that empties it."""

import asyncio
from collections import deque
from collections.abc import Iterable

from starlette.websockets import WebSocket

from api.dialects.dialect import Message
from api.metrics import Metrics

BYTES_MAX = 4 * 1024 * 1024
SHED_BYTES = BYTES_MAX // 8
FAREWELL_S = 2.0


class Line:
    """Sends frames in order.

    A client that reads too slowly first misses what is only for show (`sheddable`); at BYTES_MAX, two minutes of
    speech, `stuck` is set and nothing more is taken: speech with holes is worse than a call that ends.
    """

    def __init__(self, websocket: WebSocket, metrics: Metrics) -> None:
        self._websocket = websocket
        self._metrics = metrics
        self._queue: deque[tuple[int | None, tuple[Message, ...]]] = deque()
        self._wake = asyncio.Event()
        self._closing: tuple[int, str] | None = None
        self._task: asyncio.Task[None] | None = None
        self.waiting_bytes = 0
        self.stuck = False

    def start(self) -> None:
        """Begins sending; the socket has been accepted."""
        self._task = asyncio.create_task(self._run())

    def send(self, frames: Iterable[Message], turn: int | None = None, sheddable: bool = False) -> None:
        """Puts frames into the queue; `turn` marks speech that `drop` can take out again: all of them, or none."""
        if self._closing is not None or self.stuck:
            return
        if sheddable and self.waiting_bytes > SHED_BYTES:
            self._metrics.dropped.labels("outgoing", "shed_partials").inc()
            return
        together = tuple(frames)
        if together:
            self._queue.append((turn, together))
            self.waiting_bytes += _size(together)
        if self.waiting_bytes > BYTES_MAX:
            self.stuck = True
            self._metrics.dropped.labels("outgoing", "end_call").inc()
        self._wake.set()

    def drop(self, turn: int) -> None:
        """Takes the turn's speech out of the queue, as far as it is not being sent."""
        if any(entry[0] == turn for entry in self._queue):
            self._queue = deque(entry for entry in self._queue if entry[0] != turn)
            self.waiting_bytes = sum(_size(frames) for _, frames in self._queue)

    async def close(self, code: int, reason: str = "") -> None:
        """Sends what is queued, for FAREWELL_S at most, then closes the socket."""
        if self._closing is None:
            self._closing = (code, reason)
            self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=FAREWELL_S)
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while True:
                while self._queue:
                    _, frames = self._queue.popleft()
                    self.waiting_bytes -= _size(frames)
                    for frame in frames:
                        kind = "bytes" if isinstance(frame, bytes) else "text"
                        await self._websocket.send({"type": "websocket.send", kind: frame})
                if self._closing is not None:
                    await self._websocket.close(*self._closing)
                    return
                self._wake.clear()
                await self._wake.wait()
        except Exception:
            # The peer is gone in one of the ways that servers tell it; the receiving side hears of it too.
            self._queue.clear()
            self.waiting_bytes = 0


def _size(frames: Iterable[Message]) -> int:
    return sum(map(len, frames))
