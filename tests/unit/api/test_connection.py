"""What a socket does with messages that were read together; its call is a note of what it was told."""

import asyncio
from collections.abc import Sequence
from typing import Any
from unittest.mock import MagicMock

from starlette.websockets import WebSocket

from api.beat import MORE
from api.connection import TOGETHER_MAX, Connection
from api.dialects.dialect import Dialect
from api.dialects.native import NativeDialect
from api.dialects.twilio import TwilioDialect
from streams.clock import Clock, SystemClock
from tests.simulation.simulated import SimulatedClock, simulate

Told = list[tuple[bytes, ...] | str]


class Notes:
    """A call that is `over` at a piece of audio that says so."""

    crowded = False

    def __init__(self, ahead_s: float) -> None:
        self.ahead_s = ahead_s
        self.told: Told = []
        self.ended = asyncio.Event()
        self.over = asyncio.Event()

    def audio(self, *pieces: bytes) -> float:
        self.told.append(pieces)
        if b"over" in pieces:
            self.over.set()
        return self.ahead_s

    def dtmf(self, digit: str, press_id: str) -> None:
        self.told.append(digit)

    def end(self, reason: str, close_code: int = 1000) -> None:
        self.told.append(reason)
        self.over.set()


async def told(
    *batches: Sequence[bytes | str], dialect: Dialect | None = None, clock: Clock | None = None, ahead_s: float = 0.0
) -> Told:
    """What the call was told of messages that were read in such batches, until the caller was gone.

    The caller is so far ahead of real time with whatever comes at once.
    """
    notes = Notes(ahead_s)

    async def received() -> Any:
        if not left:
            return {"type": "websocket.disconnect", "code": 1000, "reason": ""}
        one, *more = left.pop(0)
        first = {"type": "websocket.receive", "bytes" if isinstance(one, bytes) else "text": one}
        return {**first, MORE: more} if more else first

    left = list(batches)
    websocket = MagicMock(spec=WebSocket, receive=received)
    router: Any = MagicMock(clock=clock or SystemClock())
    connection = Connection(websocket, dialect or NativeDialect(), router, MagicMock())
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


def test_a_caller_who_is_too_fast_is_slowed_down_and_loses_nothing() -> None:
    message = '{"event": "media", "media": {"payload": "AAAA"}}'
    dialect = TwilioDialect()
    assert dialect.text_rate_per_s * 3 < 700, "beyond what may come at once"

    async def run() -> Told:
        return await told([message] * 700, dialect=dialect, clock=SimulatedClock(), ahead_s=0.5)

    heard = simulate(run())
    assert sum(len(pieces) for pieces in heard[:-1]) == 700


async def test_what_comes_behind_the_end_of_the_call_is_not_told() -> None:
    assert await told([b"aa", '{"type": "hang_up"}', b"bb", key("5")], [b"cc"]) == [(b"aa",), "hung_up"]
    assert await told([b"over", key("5"), b"bb"], [b"cc"]) == [(b"over",)], "it ended while it was told"
