"""The gateway's beat: the sockets of calls are read together, once in the length of a frame.

Each message that comes by itself wakes the whole process, with cold caches, for 20 ms of audio; what was read together
costs a third. Nobody waits longer for it: a frame was always that long in the making.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

ON_BEAT: Final = "trunkline.on_beat"
"""Of an ASGI scope: puts the socket on the beat, `Callable[[int], None]`; absent where the server has none."""


class Beat:
    """Calls back who waits, all of a part at once, each part once every `every_ms`.

    Parts follow each other evenly, so that what comes after the gateway is not flooded all at once. A session's part
    comes from its partition: records of a partition travel together.
    """

    def __init__(self, every_ms: int, parts: int) -> None:
        self._step_s = every_ms / 1000 / parts
        self._waiting: list[list[Callable[[], None]]] = [[] for _ in range(parts)]
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0

    def wait(self, part: int, callback: Callable[[], None]) -> None:
        """Calls back at the part's next turn, once; any number stands for one of the parts."""
        self._waiting[part % len(self._waiting)].append(callback)
        if self._timer is None:
            self._set_timer()

    def _set_timer(self) -> None:
        loop = asyncio.get_running_loop()
        number = max(math.floor(loop.time() / self._step_s), self._last) + 1
        self._timer = loop.call_at(number * self._step_s, self._turn, number)

    def _turn(self, number: int) -> None:
        self._timer = None
        # A turn that comes late takes those with it that should have come meanwhile.
        self._last = max(number, math.floor(asyncio.get_running_loop().time() / self._step_s))
        for part in range(number, min(self._last + 1, number + len(self._waiting))):
            self._call_back(part % len(self._waiting))
        if self._timer is None and any(self._waiting):
            self._set_timer()

    def _call_back(self, part: int) -> None:
        callbacks, self._waiting[part] = self._waiting[part], []
        for callback in callbacks:
            callback()


class MediaProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's, but a socket that is on the beat is read on it, and not as soon as its last message was taken."""

    def __init__(self, beat: Beat, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._beat = beat
        self._part: int | None = None

    async def run_asgi(self) -> None:
        """See uvicorn."""
        self.scope[ON_BEAT] = self._join  # type: ignore[typeddict-unknown-key]
        await super().run_asgi()

    async def receive(self) -> ASGIReceiveEvent:
        """See uvicorn."""
        if self._part is None:
            return await super().receive()
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self._beat.wait(self._part, self._read_on)
        return message

    def _join(self, part: int) -> None:
        self._part = part

    def _read_on(self) -> None:
        if self.read_paused and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()
