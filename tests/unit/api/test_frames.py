"""Frames as websockets writes them, cut anywhere, and what its parser says of those that are left to it."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from api.dialects.dialect import Message
from api.frames import frame_end, take_messages

LENGTH_MAX = 1 << 20
LENGTHS = (0, 1, 125, 126, 127, 65_535, 65_536)

MESSAGES = st.one_of(st.text(max_size=200), st.binary(max_size=200), st.sampled_from(LENGTHS).map(bytes))
CONTROLS = st.tuples(st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))


def written(frame: Message | tuple[Opcode, bytes]) -> bytes:
    if isinstance(frame, tuple):
        return Frame(*frame).serialize(mask=True)
    opcode, data = (Opcode.TEXT, frame.encode()) if isinstance(frame, str) else (Opcode.BINARY, frame)
    return Frame(opcode, data).serialize(mask=True)


def parsed(data: bytes) -> list[Message | tuple[Opcode, bytes]]:
    """What the library's parser makes of them."""
    protocol = ServerProtocol(state=OPEN, max_size=LENGTH_MAX)
    protocol.receive_data(data)
    assert protocol.parser_exc is None
    found: list[Message | tuple[Opcode, bytes]] = []
    for frame in protocol.events_received():
        assert isinstance(frame, Frame)
        data = bytes(frame.data)
        message: Message = data.decode() if frame.opcode is Opcode.TEXT else data
        found.append(message if frame.opcode in (Opcode.TEXT, Opcode.BINARY) else (frame.opcode, data))
    return found


@given(st.lists(st.one_of(MESSAGES, CONTROLS), max_size=8), st.lists(st.integers(0, 2000), max_size=6))
@example(["a" * 200, b"", (Opcode.PING, b"")], [1, 2, 3, 7, 8, 9])
def test_messages_are_those_that_were_sent_wherever_the_network_cut_them(
    sent: list[Message | tuple[Opcode, bytes]], cuts: list[int]
) -> None:
    data = b"".join(map(written, sent))
    bounds = sorted({0, *(min(cut, len(data)) for cut in cuts), len(data)})
    taken: list[Message | tuple[Opcode, bytes]] = []
    rest = bytearray()
    for start, stop in pairwise(bounds):
        rest += data[start:stop]
        end: int | None = 0
        while end is not None:
            messages, at = take_messages(rest, LENGTH_MAX)
            taken += messages
            del rest[:at]
            end = frame_end(rest, LENGTH_MAX)
            if end is not None:
                taken += parsed(bytes(rest[:end]))
                del rest[:end]
    assert taken == sent
    assert not rest


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Opcode.TEXT, b"un", fin=False).serialize(mask=True),
        Frame(Opcode.CONT, b"fragmented").serialize(mask=True),
        b"\xc1\x80mask",
        Frame(Opcode.TEXT, b"\xff\xfe no UTF-8").serialize(mask=True),
        Frame(Opcode.BINARY, bytes(65_536)).serialize(mask=True),
        Frame(Opcode.CLOSE, b"").serialize(mask=True),
        b"\x83\x80mask",
    ],
    ids=["first part", "last part", "reserved bit", "no text", "large", "control", "reserved opcode"],
)
def test_what_is_no_whole_message_or_against_the_rules_is_left_to_the_parser(frame: bytes) -> None:
    before, after = written("before"), written("after")
    assert take_messages(before + frame + after, LENGTH_MAX) == (["before"], len(before))
    assert frame_end(frame + after, LENGTH_MAX) == len(frame)


@pytest.mark.parametrize("length", [length for length in LENGTHS if length < 65_536])
def test_all_but_large_messages_are_taken(length: int) -> None:
    text, binary = "a" * length, bytes(length)
    data = written(text) + written(binary)
    assert take_messages(data, LENGTH_MAX) == ([text, binary], len(data))
    assert take_messages(data, length - 1) == ([], 0)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_frame_ends_where_it_is_whole(length: int) -> None:
    frame = written(bytes(length))
    assert [frame_end(frame[:size], LENGTH_MAX) for size in (0, 1, len(frame) - 1)] == [None] * 3
    assert frame_end(frame + b"\x81", LENGTH_MAX) == len(frame)


@pytest.mark.parametrize(
    "begun",
    [written(bytes(LENGTH_MAX + 1))[:2000], Frame(Opcode.TEXT, b"without a mask").serialize(mask=False)[:2]],
    ids=["too long", "no mask"],
)
def test_a_frame_that_nobody_will_take_is_not_waited_for(begun: bytes) -> None:
    assert take_messages(begun, LENGTH_MAX) == ([], 0)
    assert frame_end(begun, LENGTH_MAX) == len(begun)
