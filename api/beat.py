"""The gateway's beat: the sockets of calls are read together, once in the usual length of a frame.

Each message that comes by itself wakes the whole process, with cold caches, for 20 ms of audio; what is read together
costs a third. A frame is that long in the making in any case: for the beat audio waits 10 ms longer on average. What
may have to silence the agent is urgent, and waits for no beat.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

ON_BEAT: Final = "trunkline.on_beat"
"""Of an ASGI scope: puts the socket on the beat; absent where there is none. `Callable[[Callable[[], bool]], None]`.

It is given what says whether the next message is urgent, which is read as soon as it is there.
"""


class Beat:
    """Calls back all who wait, once every `every_ms`."""

    def __init__(self, every_ms: int) -> None:
        self._every_s = every_ms / 1000
        self._waiting: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0

    def wait(self, callback: Callable[[], None]) -> None:
        """Calls back at the next beat, once."""
        self._waiting.append(callback)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            # A loop may be called a little before the time, and must not beat twice for it.
            self._last = max(math.floor(loop.time() / self._every_s), self._last) + 1
            self._timer = loop.call_at(self._last * self._every_s, self._beat)

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
        self._waits = False

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

    def _join(self, urgent: Callable[[], bool]) -> None:
        self._urgent = urgent

    def _beaten(self) -> None:
        self._waits = False
        self._read_on()

    def _read_on(self) -> None:
        if self._is_hungry and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()
