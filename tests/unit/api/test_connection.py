"""What a socket does with messages that were read together; its call is a note of what it was told."""

import asyncio
from collections.abc import Sequence
from typing import Any
from unittest.mock import MagicMock

from starlette.websockets import WebSocket

from api.beat import MORE
from api.connection import TOGETHER_MAX, Connection
from api.dialects.native import NativeDialect
from streams.clock import SystemClock

Told = list[tuple[bytes, ...] | str]


class Notes:
    """A call that is `over` at a piece of audio that says so."""

    crowded = False

    def __init__(self) -> None:
        self.told: Told = []
        self.ended = asyncio.Event()
        self.over = asyncio.Event()

    def audio(self, *pieces: bytes) -> float:
        self.told.append(pieces)
        if b"over" in pieces:
            self.over.set()
        return 0.0

    def dtmf(self, digit: str, press_id: str) -> None:
        self.told.append(digit)

    def end(self, reason: str, close_code: int = 1000) -> None:
        self.told.append(reason)
        self.over.set()


async def told(*batches: Sequence[bytes | str]) -> Told:
    """What the call was told of messages that were read in such batches, until the caller was gone."""
    notes = Notes()

    async def received() -> Any:
        if not left:
            return {"type": "websocket.disconnect", "code": 1000, "reason": ""}
        one, *more = left.pop(0)
        first = {"type": "websocket.receive", "bytes" if isinstance(one, bytes) else "text": one}
        return {**first, MORE: more} if more else first

    left = list(batches)
    websocket = MagicMock(spec=WebSocket, receive=received)
    router: Any = MagicMock(clock=SystemClock())
    connection = Connection(websocket, NativeDialect(), router, MagicMock())
    connection._call, connection._over = notes, notes.over  # type: ignore[assignment]
    await connection._receive()
    return notes.told


def key(digit: str) -> str:
    return f'{{"type": "dtmf", "digit": "{digit}"}}'


async def test_audio_that_was_read_together_is_told_together_and_a_key_between_it_in_its_place() -> None:
    heard = await told([b"aa", b"bb", key("5"), key("6"), b"cc"], [b"dd"], [b"ee", b"ff"])
    assert heard == [(b"aa", b"bb"), "5", "6", (b"cc",), (b"dd",), (b"ee", b"ff"), "hung_up"]


async def test_of_much_audio_a_call_is_told_a_bounded_part_at_once() -> None:
    heard = await told([bytes(2)] * (2 * TOGETHER_MAX + 3))
    assert [len(pieces) for pieces in heard[:-1]] == [TOGETHER_MAX, TOGETHER_MAX, 3]


async def test_what_comes_behind_the_end_of_the_call_is_not_told() -> None:
    assert await told([b"aa", '{"type": "hang_up"}', b"bb", key("5")], [b"cc"]) == [(b"aa",), "hung_up"]
    assert await told([b"over", key("5"), b"bb"], [b"cc"]) == [(b"over",)], "it ended while it was told"
