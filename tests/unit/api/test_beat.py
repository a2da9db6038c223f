"""The gateway's beat, in simulated time, and a real socket on a beat that is given by hand."""

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest.mock import MagicMock

import pytest
import uvicorn
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection, connect
from websockets.frames import Frame, Opcode

from api.beat import (
    LATE_KEPT_S,
    LATE_MS,
    MORE,
    ON_BEAT,
    ROWS,
    SLOWER_FROM,
    Beat,
    Lateness,
    MediaProtocol,
    Patience,
    Wait,
)
from api.server import MESSAGE_BYTES_MAX
from tests.simulation.simulated import simulate


def beats(
    arrivals_ms: list[float],
    again: int = 0,
    sockets: int = SLOWER_FROM[0],
    usual_ms: int = 40,
    wait: Wait = Wait.SHORT,
    within_ms: float = math.inf,
    row: int = 0,
) -> list[int]:
    """When those who came then were called back, in ms; who waits `again` so many times does so when called back."""
    called: list[int] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        beat = Beat(usual_ms)
        for _ in range(sockets):
            beat.join()
        left = again

        def call_back() -> None:
            nonlocal left
            called.append(round(loop.time() * 1000))
            if left:
                left -= 1
                beat.wait(call_back, Patience(wait), row)

        for at_ms in arrivals_ms:
            await asyncio.sleep(at_ms / 1000 - loop.time())
            beat.wait(call_back, Patience(wait, within_ms), row)
        await asyncio.sleep(1)

    simulate(run())
    return called


def test_all_who_wait_are_called_back_together() -> None:
    assert beats([1, 3, 39, 41, 79]) == [40, 40, 40, 80, 80]


def test_nobody_waits_longer_than_a_beat() -> None:
    arrivals_ms = [7.0 * number for number in range(50)]
    waits_ms = [called_ms - at_ms for at_ms, called_ms in zip(arrivals_ms, beats(arrivals_ms), strict=True)]
    assert all(0 <= wait_ms <= 41 for wait_ms in waits_ms)


def test_who_waits_again_when_called_back_waits_for_the_next_beat() -> None:
    assert beats([0], again=3) == [40, 80, 120, 160]


@pytest.mark.parametrize(
    ("sockets", "short_ms", "medium_ms", "long_ms"),
    [(1, 20, 20, 20), (4, 20, 20, 20), (5, 40, 40, 80), (15, 40, 40, 80), (16, 40, 80, 240), (500, 40, 80, 240)],
)
def test_the_more_sockets_there_are_the_less_often_those_are_read_who_can_wait(
    sockets: int, short_ms: int, medium_ms: int, long_ms: int
) -> None:
    for wait, every_ms in ((Wait.SHORT, short_ms), (Wait.MEDIUM, medium_ms), (Wait.LONG, long_ms)):
        assert beats([0], again=3, sockets=sockets, wait=wait) == [every_ms, 2 * every_ms, 3 * every_ms, 4 * every_ms]
        arrivals_ms = [1.0, every_ms - 1.0, every_ms + 1.0]
        assert beats(arrivals_ms, sockets=sockets, wait=wait) == [every_ms, every_ms, 2 * every_ms]


@pytest.mark.parametrize(
    ("usual_ms", "short_ms", "medium_ms", "long_ms"),
    [(20, 20, 40, 120), (40, 40, 80, 240), (60, 60, 60, 240), (80, 80, 80, 240), (100, 100, 100, 200)],
)
def test_nobody_waits_longer_than_callers_can(usual_ms: int, short_ms: int, medium_ms: int, long_ms: int) -> None:
    waits = {Wait.SHORT: short_ms, Wait.MEDIUM: medium_ms, Wait.LONG: long_ms}
    assert {wait: beats([0], sockets=500, usual_ms=usual_ms, wait=wait)[0] for wait in waits} == waits


def test_waits_of_all_lengths_end_together_and_the_short_ones_come_first() -> None:
    called: list[tuple[int, Wait]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        beat = Beat(40)
        for _ in range(SLOWER_FROM[-1]):
            beat.join()

        def call_back(wait: Wait) -> None:
            called.append((round(loop.time() * 1000), wait))
            if loop.time() < 0.23:
                beat.wait(functools.partial(call_back, wait), Patience(wait), 0)

        for wait in (Wait.LONG, Wait.MEDIUM, Wait.SHORT):
            beat.wait(functools.partial(call_back, wait), Patience(wait), 0)
        await asyncio.sleep(0.5)

    simulate(run())
    short, medium = Wait.SHORT, Wait.MEDIUM
    assert called[:4] == [(40, short), (80, short), (80, medium), (120, short)]
    assert called[4:9] == [(160, short), (160, medium), (200, short), (240, short), (240, medium)]
    assert called[9:] == [(240, Wait.LONG)]


def test_the_beat_becomes_faster_as_sockets_leave_and_is_never_out_of_step() -> None:
    called: list[int] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        beat = Beat(40)

        def call_back() -> None:
            called.append(round(loop.time() * 1000))

        rows: list[int] = []
        for joins, wait_ms in ((True, 5), (True, 30), (False, 40), (False, 30)):
            for _ in range(4):
                rows.append(beat.join()) if joins else beat.leave(rows.pop())
            beat.wait(call_back, Patience(Wait.SHORT), 0)
            await asyncio.sleep(wait_ms / 1000)

    simulate(run())
    # With 4, 8, 4 and none, asked for at 0, 5, 35 and 75 ms.
    assert called == [20, 40, 40, 80]


@pytest.mark.parametrize(("wait", "every_ms"), [(Wait.SHORT, 40), (Wait.MEDIUM, 80), (Wait.LONG, 240)])
def test_those_who_wait_long_are_spread_and_none_waits_longer_for_it(wait: Wait, every_ms: int) -> None:
    firsts = {row: beats([1, every_ms + 1], sockets=500, wait=wait, row=row) for row in range(ROWS)}
    assert all(second - first == every_ms for first, second in firsts.values())
    phases = sorted({first % every_ms for first, _ in firsts.values()})
    assert phases == list(range(0, every_ms, 40))


def test_sockets_are_spread_evenly_also_when_some_have_left() -> None:
    beat = Beat(40)
    rows = [beat.join() for _ in range(2 * ROWS)]
    assert sorted(rows) == sorted([*range(ROWS)] * 2)
    beat.leave(2)
    assert beat.join() == 2


@pytest.mark.parametrize(("within_ms", "called_ms"), [(0, 20), (15, 20), (30, 40), (50, 60), (79, 80), (500, 80)])
def test_what_is_wanted_earlier_is_read_earlier(within_ms: float, called_ms: int) -> None:
    assert beats([1], sockets=500, wait=Wait.MEDIUM, within_ms=within_ms) == [called_ms]


def test_what_is_wanted_then_comes_before_all_others() -> None:
    called: list[str] = []

    async def run() -> None:
        beat = Beat(40)
        for _ in range(SLOWER_FROM[-1]):
            beat.join()
        beat.wait(lambda: called.append("medium"), Patience(Wait.MEDIUM), 0)
        beat.wait(lambda: called.append("short"), Patience(Wait.SHORT), 0)
        beat.wait(lambda: called.append("wanted"), Patience(Wait.MEDIUM, 35.0), 1)
        await asyncio.sleep(0.2)

    simulate(run())
    assert called == ["wanted", "short", "medium"]


def test_speech_is_heard_late_until_a_while_after_it_was() -> None:
    lateness = Lateness()
    lateness.heard(LATE_MS, 10.0)
    assert not lateness.lasts(10.0)
    lateness.heard(LATE_MS + 1, 20.0)
    lateness.heard(100, 21.0)
    assert lateness.lasts(20.0 + LATE_KEPT_S - 0.1)
    assert not lateness.lasts(20.0 + LATE_KEPT_S)


class ByHand(Beat):
    """Beats when it is told to."""

    def __init__(self) -> None:
        super().__init__(every_ms=3_600_000)
        self.callbacks: list[Callable[[], None]] = []
        self.waits: list[Patience] = []
        self.on_it = 0

    def join(self) -> int:
        self.on_it += 1
        return 3

    def leave(self, row: int) -> None:
        assert row == 3, "the one in which it waited"
        self.on_it -= 1

    def wait(self, callback: Callable[[], None], patience: Patience, row: int) -> None:
        assert row == 3
        self.callbacks.append(callback)
        self.waits.append(patience)

    def beat(self) -> None:
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()


class Listener:
    """An application that notes what it hears; the word `urgent` makes what follows so, `calm` ends that.

    It is ready for a call when `begun` is set.
    """

    def __init__(self) -> None:
        self.heard: asyncio.Queue[str] = asyncio.Queue()
        self.together: list[int] = []
        self.left = asyncio.Event()
        self.urgent = False
        self.begun = asyncio.Event()
        self.begun.set()
        self.joined = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await self.begun.wait()
        scope[ON_BEAT](lambda: Patience(Wait.NONE if self.urgent else Wait.MEDIUM, within_ms=70.0))
        self.joined.set()
        while (message := await receive())["type"] == "websocket.receive":
            words = [message["text"], *message.get(MORE, ())]
            self.together.append(len(words))
            for word in words:
                self.urgent = (self.urgent or word == "urgent") and word != "calm"
                self.heard.put_nowait(word)
        self.left.set()


def converse(talk: Callable[[ClientConnection, Listener, ByHand], Any], **keepalive: float) -> None:
    async def run() -> None:
        listener, beat = Listener(), ByHand()
        protocol = functools.partial(MediaProtocol, beat)
        config = uvicorn.Config(
            listener,
            port=0,
            ws=protocol,  # type: ignore[arg-type]
            ws_max_size=MESSAGE_BYTES_MAX,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            **keepalive,  # type: ignore[arg-type]
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  uvicorn tells nobody
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}") as socket:
            await talk(socket, listener, beat)
            listener.urgent = True
            beat.beat()
        server.should_exit = True
        await serving

    asyncio.run(run())


async def beaten(beat: ByHand) -> None:
    while not beat.callbacks:  # noqa: ASYNC110  the socket's reading is no task of ours
        await asyncio.sleep(0.001)
    beat.beat()


def test_a_socket_on_the_beat_is_read_on_it() -> None:
    async def talk(socket: ClientConnection, listener: Listener, beat: ByHand) -> None:
        for word in ("one", "two", "three"):
            await socket.send(word)
            if word != "one":
                await asyncio.sleep(0.05)
                assert listener.heard.empty()
                await beaten(beat)
            assert await listener.heard.get() == word
        assert set(beat.waits) == {Patience(Wait.MEDIUM, 70.0)}, "what the call says"

    converse(talk)


def test_what_is_urgent_waits_for_no_beat() -> None:
    async def talk(socket: ClientConnection, listener: Listener, beat: ByHand) -> None:
        for word in ("urgent", "one", "two", "calm"):
            await socket.send(word)
            assert await listener.heard.get() == word
        await socket.send("three")
        await asyncio.sleep(0.05)
        assert listener.heard.empty()
        await beaten(beat)
        assert await listener.heard.get() == "three"

    converse(talk)


def test_what_was_read_together_is_handed_on_together_and_in_order() -> None:
    async def talk(socket: ClientConnection, listener: Listener, beat: ByHand) -> None:
        await socket.send("one")
        assert await listener.heard.get() == "one"
        for word in ("two", "three", "four"):
            await socket.send(word)
        await asyncio.sleep(0.05)
        await beaten(beat)
        assert [await listener.heard.get() for _ in range(3)] == ["two", "three", "four"]
        assert listener.together == [1, 3]

    converse(talk)


def test_fragments_large_messages_and_pings_between_others_are_taken_in_their_order() -> None:
    async def talk(socket: ClientConnection, listener: Listener, beat: ByHand) -> None:
        await socket.send("urgent")
        large = "large" * 20_000

        async def fragments() -> AsyncIterator[str]:
            for part in ("fragm", "en", "ted"):
                yield part
                await socket.ping()

        for message in ("one", fragments(), "", large, "two"):
            await socket.send(message)
        assert [await listener.heard.get() for _ in range(6)] == ["urgent", "one", "fragmented", "", large, "two"]

    converse(talk)


def test_a_message_that_came_in_two_reads_is_whole() -> None:
    async def talk(socket: ClientConnection, listener: Listener, beat: ByHand) -> None:
        await socket.send("urgent")
        one, two = (Frame(Opcode.TEXT, word).serialize(mask=True) for word in (b"one", b"two"))
        socket.transport.write(one + two[:5])
        assert await listener.heard.get() == "urgent"
        assert await listener.heard.get() == "one"
        socket.transport.write(two[5:])
        assert await listener.heard.get() == "two"

    converse(talk)


def test_who_does_not_know_the_beat_is_handed_each_message_by_itself() -> None:
    async def talk(socket: ClientConnection, listener: Listener, beat: ByHand) -> None:
        listener.begun.clear()
        url = f"ws://127.0.0.1:{socket.remote_address[1]}"
        async with connect(url) as other:
            other.transport.write(b"".join(Frame(Opcode.TEXT, word).serialize(mask=True) for word in (b"one", b"two")))
            await asyncio.sleep(0.05)
            listener.begun.set()
            assert [await listener.heard.get(), await listener.heard.get()] == ["one", "two"]
            assert listener.together == [1, 1]

    converse(talk)


NO_MASK = Frame(Opcode.TEXT, b"no mask").serialize(mask=False)
NO_TEXT = Frame(Opcode.TEXT, b"\xff\xfe").serialize(mask=True)
BETWEEN_FRAGMENTS = Frame(Opcode.TEXT, b"un", fin=False).serialize(mask=True) + Frame(Opcode.TEXT, b"").serialize(
    mask=True
)
TOO_LARGE = Frame(Opcode.BINARY, bytes(MESSAGE_BYTES_MAX + 1)).serialize(mask=True)[:100]


@pytest.mark.parametrize(
    ("sent", "code"),
    [(NO_MASK, 1002), (NO_TEXT, 1007), (BETWEEN_FRAGMENTS, 1002), (TOO_LARGE, 1009)],
    ids=["no mask", "no text", "between fragments", "too large"],
)
def test_what_is_against_the_protocol_closes_the_socket(sent: bytes, code: int) -> None:
    async def talk(socket: ClientConnection, listener: Listener, beat: ByHand) -> None:
        await socket.send("urgent")
        socket.transport.write(sent + Frame(Opcode.TEXT, b"after").serialize(mask=True))
        await socket.wait_closed()
        assert socket.close_code == code
        await listener.left.wait()
        assert listener.heard.get_nowait() == "urgent"
        assert listener.heard.empty()

    converse(talk)


def test_who_leaves_is_missed_only_once_all_was_heard() -> None:
    async def talk(socket: ClientConnection, listener: Listener, beat: ByHand) -> None:
        await socket.send("one")
        assert await listener.heard.get() == "one"
        await socket.send("two")
        await socket.send("three")
        closing = asyncio.create_task(socket.close())
        await asyncio.sleep(0.05)
        await beaten(beat)
        await listener.left.wait()
        assert listener.together == [1, 2]
        await closing

    converse(talk)


def test_a_socket_is_on_the_beat_until_it_is_closed() -> None:
    async def talk(socket: ClientConnection, listener: Listener, beat: ByHand) -> None:
        await listener.joined.wait()
        assert beat.on_it == 1
        socket.transport.abort()
        while beat.on_it:  # noqa: ASYNC110  the protocol tells nobody
            await asyncio.sleep(0.001)

    converse(talk)


def test_a_caller_who_has_gone_before_the_call_began_is_not_on_the_beat() -> None:
    async def talk(socket: ClientConnection, listener: Listener, beat: ByHand) -> None:
        listener.joined.clear()
        listener.begun.clear()
        async with connect(f"ws://127.0.0.1:{socket.remote_address[1]}") as other:
            other.transport.abort()
        await asyncio.sleep(0.05)
        listener.begun.set()
        await listener.joined.wait()
        assert beat.on_it == 1, "the one who is there"

    converse(talk)


KEEPALIVE = {"ws_ping_interval": 0.05, "ws_ping_timeout": 0.3}


def test_who_is_not_read_is_not_taken_for_gone() -> None:
    async def talk(socket: ClientConnection, listener: Listener, beat: ByHand) -> None:
        async with asyncio.timeout(10):
            for word in ("one", "two", "three"):
                await socket.send(word)
                if word != "one":
                    await asyncio.sleep(2 * KEEPALIVE["ws_ping_timeout"])
                    await beaten(beat)
                assert await listener.heard.get() == word
        assert not listener.left.is_set()

    converse(talk, **KEEPALIVE)


def test_who_does_not_answer_though_it_is_read_is_gone() -> None:
    async def talk(socket: ClientConnection, listener: Listener, beat: ByHand) -> None:
        await socket.send("urgent")
        assert await listener.heard.get() == "urgent"
        socket.transport.pause_reading()
        async with asyncio.timeout(10):
            await listener.left.wait()
        socket.transport.abort()

    converse(talk, **KEEPALIVE)


@pytest.mark.parametrize(("read_from_s", "gone_s"), [(None, 10), (3, 13), (9.5, 19.5), (12, 22), (45, 55)])
def test_an_answer_is_waited_for_from_when_the_socket_is_read(read_from_s: float | None, gone_s: float) -> None:
    """What was sent before it is read first, so that it need not be there at once."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(Listener(), ws_ping_timeout=10)
        protocol = MediaProtocol(Beat(40), config=config, server_state=ServerState(), app_state={})
        protocol.transport = MagicMock(is_closing=lambda: False)
        protocol.conn = MagicMock(data_to_send=list)
        protocol.read_paused = read_from_s is not None
        protocol.send_keepalive_ping()
        if read_from_s is not None:
            loop.call_at(read_from_s, protocol._read_on)
        await asyncio.sleep(gone_s - 0.1)
        protocol.conn.fail.assert_not_called()
        await asyncio.sleep(0.2)
        protocol.conn.fail.assert_called_once_with(1011, "keepalive ping timeout")

    simulate(run())
