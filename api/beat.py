"""The gateway's beat: the sockets of calls are read together, at times that many share.

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
from operator import itemgetter
from typing import Any, Final, NamedTuple

from uvicorn._types import ASGIReceiveEvent, WebSocketReceiveEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from api.dialects.dialect import Message
from api.frames import frame_end, take_messages

ON_BEAT: Final = "trunkline.on_beat"
"""Of an ASGI scope: puts the socket on the beat; absent where there is none.

`Callable[[Callable[[], Patience]], None]`: it is given what says how long the next message may wait.
"""
MORE: Final = "trunkline.more"
"""Of a message from a socket on the beat: the `Message`s that came right behind it, in order; absent without any.

What is handed on by itself costs the call a look at its state of its own.
"""


class Wait(Enum):
    """How long what a caller says next may wait to be read."""

    NONE = "none"
    """It is read as soon as it is there."""
    SHORT = "short"
    """A pause is long enough for an answer."""
    MEDIUM = "medium"
    """The agent speaks, who may have to be silenced, or is about to."""
    LONG = "long"
    """Nobody speaks, or the caller in full voice, or a pause is too short to matter yet."""


class Patience(NamedTuple):
    """How long what a caller says next may wait, and in how many ms there is something that may not wait at all."""

    wait: Wait
    within_ms: float = math.inf


SLOWER_FROM: Final = (5, 16)
"""Sockets on the beat from which on the second and the third of `HALVES` apply."""
HALVES: Final = {Wait.SHORT: (1, 2, 2), Wait.MEDIUM: (1, 2, 4), Wait.LONG: (1, 4, 12)}
"""How many halves of the usual length they take. Each is a multiple of those before, so that a row's end together."""
WAIT_MS_MAX: Final = {Wait.SHORT: 40, Wait.MEDIUM: 80, Wait.LONG: 240}
"""No wait becomes longer than that, or than the usual length."""
ROWS: Final = 6
"""Among how many the sockets are spread, the usual length apart, so that long waits do not all end at once."""
LATE_MS: Final = 1000
LATE_KEPT_S: Final = 5.0
"""Speech that is heard later than `LATE_MS` after it was written makes all waits long for that time."""


class Lateness:
    """Whether the stages hear speech so late that nothing is gained by reading it soon: read seldom, it costs less.

    Without it a platform that has fallen behind stays so: replies that come late are spoken over, which is read at
    once, and their pauses are never answered in time.
    """

    def __init__(self) -> None:
        self._until_s = -math.inf

    def heard(self, late_ms: float, now_s: float) -> None:
        """Speech was heard so much later than the log was given it."""
        if late_ms > LATE_MS:
            self._until_s = now_s + LATE_KEPT_S

    def lasts(self, now_s: float) -> bool:
        """Whether it was so a moment ago."""
        return now_s < self._until_s


class Beat:
    """Calls back all who wait, at times that those of a row share: see `HALVES`. Those with short waits come first."""

    def __init__(self, every_ms: int) -> None:
        self._every_ms = every_ms
        self._half_s = every_ms / 2000
        # Who is called back when so many halves have passed, and in which order: those with short waits are first.
        self._waiting: dict[int, list[tuple[int, Callable[[], None]]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._last = 0
        self._rows = [0] * ROWS

    def join(self) -> int:
        """A call's socket is on it from now on; returns the row in which it waits."""
        row = self._rows.index(min(self._rows))
        self._rows[row] += 1
        return row

    def leave(self, row: int) -> None:
        """One of them is closed."""
        self._rows[row] -= 1

    def wait(self, callback: Callable[[], None], patience: Patience, row: int) -> None:
        """Calls back at the next beat for such waits (not NONE) in that row, once."""
        halves = self._halves(patience.wait)
        now = asyncio.get_running_loop().time() / self._half_s
        # A loop may be called a little before the time, and must not beat twice for it.
        passed = max(math.floor(now), self._last)
        first = 2 * row % halves  # a row is the usual length, two halves, behind the one before it
        due = (passed - first) // halves * halves + halves + first
        wanted = now + patience.within_ms / 1000 / self._half_s
        if wanted <= due:
            due, halves = max(passed + 1, math.ceil(wanted)), 0
        if due not in self._waiting:
            self._waiting[due] = []
            self._set_timer()
        self._waiting[due].append((halves, callback))

    def _halves(self, wait: Wait) -> int:
        halves = HALVES[wait][bisect_right(SLOWER_FROM, sum(self._rows))]
        return min(halves, max(2, WAIT_MS_MAX[wait] // self._every_ms * 2))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._waiting:
            at = min(self._waiting)
            self._timer = asyncio.get_running_loop().call_at(at * self._half_s, self._beat, at)

    def _beat(self, at: int) -> None:
        self._last = at
        ended = sorted(self._waiting.pop(at), key=itemgetter(0))
        self._set_timer()
        for _, callback in ended:
            callback()


class MediaProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's, but a socket that is on the beat is read on it, and what was read then is handed on together.

    Whole messages are taken here, before the library's parser, whose log of frames does not show them therefore.
    """

    def __init__(self, beat: Beat, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._beat = beat
        self._patience: Callable[[], Patience] = lambda: Patience(Wait.NONE)  # until the socket is on the beat
        self._row = 0
        self._on_beat = self._waits = False
        self._rest = bytearray()  # of a frame that is not whole yet
        self._reads_since_s = -math.inf

    async def run_asgi(self) -> None:
        """See uvicorn."""
        self.scope[ON_BEAT] = self._join  # type: ignore[typeddict-unknown-key]
        await super().run_asgi()

    def data_received(self, data: bytes) -> None:
        """See uvicorn. The first data is the request, the rest are frames; its parser gets what is no whole message."""
        if not self.handshake_initiated:
            super().data_received(data)
            return
        self._rest += data
        length_max = self.config.ws_max_size
        while True:
            if self.conn.state is State.OPEN and not self.close_sent and not self.frames:
                messages, taken = take_messages(self._rest, length_max)
                del self._rest[:taken]
                self._hand_on(messages)
            end = frame_end(self._rest, length_max)
            if end is None:
                return
            super().data_received(bytes(self._rest[:end]))
            del self._rest[:end]
            if self.transport.is_closing():
                self._rest.clear()
                return

    def _hand_on(self, messages: list[Message]) -> None:
        if self._on_beat and len(messages) > 1:
            event = _event(messages[0])
            event[MORE] = messages[1:]  # type: ignore[typeddict-unknown-key]
            self.queue.put_nowait(event)
        else:
            for message in messages:
                self.queue.put_nowait(_event(message))
        if messages and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    async def receive(self) -> ASGIReceiveEvent:
        """See uvicorn."""
        # What the last messages told says how long the next may wait.
        self._read_more()
        message = await self.queue.get()
        if not self._on_beat:
            self._read_more()
        return message

    @property
    def _is_hungry(self) -> bool:
        return self.read_paused and self.queue.empty()

    def _read_more(self) -> None:
        if not self._is_hungry:
            return
        patience = self._patience()
        if patience.wait is Wait.NONE:
            self._read_on()
        elif not self._waits:
            self._waits = True
            self._beat.wait(self._read_at_beat, patience, self._row)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        if self._on_beat:
            self._on_beat = False
            self._beat.leave(self._row)
        super().connection_lost(exc)

    def _join(self, patience: Callable[[], Patience]) -> None:
        self._patience = patience
        # Who has gone while the call began will not leave again.
        if not self._on_beat and not self.disconnected:
            self._on_beat = True
            self._row = self._beat.join()

    def _read_at_beat(self) -> None:
        self._waits = False
        self._read_on()

    def _read_on(self) -> None:
        if self._is_hungry and not self.transport.is_closing():
            self.read_paused = False
            self._reads_since_s = self.loop.time()
            self.transport.resume_reading()

    def keepalive_timeout(self) -> None:
        """See uvicorn. A pong comes behind all audio that was sent before it: only time in which it is read counts."""
        assert self.ping_timeout is not None, "it has timed out"
        read_s = 0.0 if self.read_paused else self.loop.time() - self._reads_since_s
        if read_s < self.ping_timeout:
            self.pong_timer = self.loop.call_later(self.ping_timeout - read_s, self.keepalive_timeout)
        else:
            super().keepalive_timeout()


def _event(message: Message) -> WebSocketReceiveEvent:
    if isinstance(message, str):
        return {"type": "websocket.receive", "text": message}
    return {"type": "websocket.receive", "bytes": message}
