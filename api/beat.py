"""The gateway's beat: the sockets of calls are read together, at times that all share.

Each message that comes by itself wakes the whole process, with cold caches, for 20 ms of audio; what is read together
costs a third. The more calls there are the more there is to save, and the longer a caller waits for a core that is
busy. So many calls are read seldom, but for those whose pause is about to be long enough for an answer; few are read
at the rate of the wire. What may have to silence the agent is urgent, and waits for no beat.
"""

import asyncio
import math
from bisect import bisect_right
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

ON_BEAT: Final = "trunkline.on_beat"
"""Of an ASGI scope: puts the socket on the beat; absent where there is none. `Callable[[Callable[[], Wait]], None]`.

It is given what says how long the next message may wait.
"""
MORE: Final = "trunkline.more"
"""Of a message from a socket on the beat: those that were read with it, in order; absent without any.

What is handed on by itself costs the call a look at its state of its own.
"""


class Wait(Enum):
    """How long what a caller says next may wait to be read."""

    NONE = "none"
    """It is read as soon as it is there."""
    SHORT = "short"
    """A pause is about to be long enough for an answer."""
    MEDIUM = "medium"
    """The caller speaks, or the agent, which may have to be silenced."""
    LONG = "long"
    """Nobody speaks."""


SLOWER_FROM: Final = (5, 16)
"""Sockets on the beat from which on the second and the third of `HALVES` apply."""
HALVES: Final = {Wait.SHORT: (1, 2, 2), Wait.MEDIUM: (1, 2, 4), Wait.LONG: (1, 4, 8)}
"""How many halves of the usual length they take. Each is twice another, so that they end together."""
WAIT_MS_MAX: Final = {Wait.SHORT: 40, Wait.MEDIUM: 80, Wait.LONG: 160}
"""No wait becomes longer than that, or than the usual length."""


class Beat:
    """Calls back all who wait, at times that all share: see `HALVES`. Those whose waits are short come first."""

    def __init__(self, every_ms: int) -> None:
        self._every_ms = every_ms
        self._half_s = every_ms / 2000
        # When who waits so many halves is called back, and who that is.
        self._waiting: dict[int, tuple[int, list[Callable[[], None]]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0
        self._sockets = 0

    def join(self) -> None:
        """A call's socket is on it from now on."""
        self._sockets += 1

    def leave(self) -> None:
        """One of them is closed."""
        self._sockets -= 1

    def wait(self, callback: Callable[[], None], wait: Wait) -> None:
        """Calls back at the next beat for such waits (not NONE), once."""
        halves = self._halves(wait)
        if halves not in self._waiting:
            # A loop may be called a little before the time, and must not beat twice for it.
            passed = max(math.floor(asyncio.get_running_loop().time() / self._half_s), self._last)
            self._waiting[halves] = (passed // halves + 1) * halves, []
            self._set_timer()
        self._waiting[halves][1].append(callback)

    def _halves(self, wait: Wait) -> int:
        halves = HALVES[wait][bisect_right(SLOWER_FROM, self._sockets)]
        while halves > 2 and halves * self._every_ms > 2 * WAIT_MS_MAX[wait]:
            halves //= 2
        return halves

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._waiting:
            at = min(due for due, _ in self._waiting.values())
            self._timer = asyncio.get_running_loop().call_at(at * self._half_s, self._beat, at)

    def _beat(self, at: int) -> None:
        self._last = at
        ended = sorted(halves for halves, (due, _) in self._waiting.items() if due == at)
        callbacks = [callback for halves in ended for callback in self._waiting.pop(halves)[1]]
        self._set_timer()
        for callback in callbacks:
            callback()


class MediaProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's, but a socket that is on the beat is read on it, and what was read then is handed on together."""

    def __init__(self, beat: Beat, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._beat = beat
        self._wait: Callable[[], Wait] = lambda: Wait.NONE  # until the socket is on the beat
        self._on_beat = self._waits = False
        self._left: ASGIReceiveEvent | None = None  # it came behind messages that were handed on together

    async def run_asgi(self) -> None:
        """See uvicorn."""
        self.scope[ON_BEAT] = self._join  # type: ignore[typeddict-unknown-key]
        await super().run_asgi()

    async def receive(self) -> ASGIReceiveEvent:
        """See uvicorn."""
        # What the last messages told says how long the next may wait.
        self._read_more()
        message, self._left = self._left or await self.queue.get(), None
        if not self._on_beat:
            self._read_more()
            return message
        return self._with_more(message)

    def _with_more(self, message: ASGIReceiveEvent) -> ASGIReceiveEvent:
        more: list[ASGIReceiveEvent] = []
        while message["type"] == "websocket.receive" and self._left is None and not self.queue.empty():
            next_one = self.queue.get_nowait()
            if next_one["type"] == "websocket.receive":
                more.append(next_one)
            else:
                self._left = next_one
        if more:
            message[MORE] = more  # type: ignore[typeddict-unknown-key]
        return message

    @property
    def _is_hungry(self) -> bool:
        return self.read_paused and self.queue.empty()

    def _read_more(self) -> None:
        if not self._is_hungry:
            return
        wait = self._wait()
        if wait is Wait.NONE:
            self._read_on()
        elif not self._waits:
            self._waits = True
            self._beat.wait(self._read_at_beat, wait)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        if self._on_beat:
            self._on_beat = False
            self._beat.leave()
        super().connection_lost(exc)

    def _join(self, wait: Callable[[], Wait]) -> None:
        self._wait = wait
        # Who has gone while the call began will not leave again.
        if not self._on_beat and not self.disconnected:
            self._on_beat = True
            self._beat.join()

    def _read_at_beat(self) -> None:
        self._waits = False
        self._read_on()

    def _read_on(self) -> None:
        if self._is_hungry and not self.transport.is_closing():
            self.read_paused = False
            self.transport.resume_reading()
