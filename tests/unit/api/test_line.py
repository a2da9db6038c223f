"""What a socket gets of a call whose client reads slowly."""

import asyncio
from typing import Any
from unittest.mock import MagicMock

from starlette.websockets import WebSocket

from api.line import BYTES_MAX, Line


class Slow:
    """A socket that takes a message each time that it is let."""

    def __init__(self) -> None:
        self.got: list[str | bytes] = []
        self._ready = asyncio.Semaphore(0)
        self.line = Line(MagicMock(spec=WebSocket, send=self._send), MagicMock())
        self.line.start()

    async def _send(self, message: Any) -> None:
        await self._ready.acquire()
        self.got.append(message.get("text") or message["bytes"])

    async def take(self, count: int) -> list[str | bytes]:
        """All that has come, so many messages later."""
        for _ in range(count):
            self._ready.release()
        for _ in range(2 * count + 2):
            await asyncio.sleep(0)
        return self.got


async def test_the_header_of_a_piece_of_speech_is_never_sent_without_its_audio() -> None:
    socket = Slow()
    line = socket.line
    line.send(("header 0", b"audio 0"), turn=1)
    line.send(("header 1", b"audio 1"), turn=1)
    await socket.take(0)  # the first header waits for the socket
    line.drop(1)
    assert line.waiting_bytes == 0
    line.send(("clear",))
    assert await socket.take(5) == ["header 0", b"audio 0", "clear"]
    assert line.waiting_bytes == 0
    await line.close(1000)


async def test_speech_that_waits_is_dropped_and_all_else_is_sent_in_order() -> None:
    socket = Slow()
    line = socket.line
    for frames, turn in ((("a",), None), (("b", b"bb"), 1), (("c",), None), (("d", b"dd"), 2), ((), None)):
        line.send(frames, turn=turn)
    assert line.waiting_bytes == 8
    line.drop(1)
    assert line.waiting_bytes == 5
    assert await socket.take(9) == ["a", "c", "d", b"dd"]
    await line.close(1000)


async def test_a_client_that_does_not_read_is_stuck_and_gets_nothing_more() -> None:
    socket = Slow()
    line = socket.line
    line.send(("header", bytes(BYTES_MAX)), turn=1)
    assert line.stuck
    line.send(("more",))
    assert await socket.take(3) == ["header", bytes(BYTES_MAX)]
    await line.close(1000)
