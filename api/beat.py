"""The gateway's beat: the sockets of calls are read together, once in the usual length of a frame.

Each message that comes by itself wakes the whole process, with cold caches, for 20 ms of audio; what is read together
costs a third. A frame is that long in the making in any case: for the beat audio waits 10 ms longer on average. While
there are few, little is to be saved, and the beat is twice as fast; where there are many, callers wait longer for a
core that is busy than for a slower beat. What may have to silence the agent is urgent, and waits for no beat.
"""

import asyncio
import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, Final

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

ON_BEAT: Final = "trunkline.on_beat"
"""Of an ASGI scope: puts the socket on the beat; absent where there is none. `Callable[[Callable[[], bool]], None]`.

It is given what says whether the next message is urgent, which is read as soon as it is there.
"""
SLOWER_FROM: Final = (5, 24, 36)
"""Sockets on the beat from which on it takes 2, 3 and 4 halves of its usual length, and not one."""
SLOW_MS_MAX: Final = 80
"""No beat becomes slower than that, or than its usual length."""


class Beat:
    """Calls back all who wait, once every `every_ms`: see `SLOWER_FROM`."""

    def __init__(self, every_ms: int) -> None:
        self._half_s = every_ms / 2000
        self._halves_max = max(2, 2 * SLOW_MS_MAX // every_ms)
        self._waiting: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0
        self._sockets = 0

    def join(self) -> None:
        """A call's socket is on it from now on."""
        self._sockets += 1

    def leave(self) -> None:
        """One of them is closed."""
        self._sockets -= 1

    def wait(self, callback: Callable[[], None]) -> None:
        """Calls back at the next beat, once."""
        self._waiting.append(callback)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            step = min(1 + bisect_right(SLOWER_FROM, self._sockets), self._halves_max)
            # A loop may be called a little before the time, and must not beat twice for it.
            passed = max(math.floor(loop.time() / self._half_s), self._last)
            self._last = (passed // step + 1) * step
            self._timer = loop.call_at(self._last * self._half_s, self._beat)

    def _beat(self) -> None:
        self._timer = None
        callbacks, self._waiting = self._waiting, []
        for callback in callbacks:
            callback()


class MediaProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's, but a socket that is on the beat is read on it, and not as soon as its last message was taken."""

    def __init__(self, beat: Beat, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._beat = beat
        self._urgent: Callable[[], bool] = lambda: True  # until the socket is on the beat
        self._on_beat = self._waits = False

    async def run_asgi(self) -> None:
        """See uvicorn."""
        self.scope[ON_BEAT] = self._join  # type: ignore[typeddict-unknown-key]
        await super().run_asgi()

    async def receive(self) -> ASGIReceiveEvent:
        """See uvicorn."""
        # What the last message told may make the next one urgent, though it was to wait for the beat.
        self._read_more()
        message = await self.queue.get()
        self._read_more()
        return message

    @property
    def _is_hungry(self) -> bool:
        return self.read_paused and self.queue.empty()

    def _read_more(self) -> None:
        if self._is_hungry and self._urgent():
            self._read_on()
        elif self._is_hungry and not self._waits:
            self._waits = True
            self._beat.wait(self._beaten)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        if self._on_beat:
            self._on_beat = False
            self._beat.leave()
        super().connection_lost(exc)

    def _join(self, urgent: Callable[[], bool]) -> None:
        self._urgent = urgent
        # Who has gone while the call began will not leave again.
        if not self._on_beat and not self.disconnected:
            self._on_beat = True
            self._beat.join()

    def _beaten(self) -> None:
        self._waits = False
        self._read_on()

    def _read_on(self) -> None:
        if self._is_hungry and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()
