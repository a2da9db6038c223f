"""WebSocket frames as clients send them (RFC 6455, 5.2), as far as one has to know them who takes whole messages.

A call is fifty small messages a second. To parse each frame step by step, for whatever it might be, costs six times as
much as to look whether it is what nearly all are: a whole message, masked, of less than 64 KiB. All others are only
cut off here, for a parser that knows what they are.
"""

from websockets.frames import apply_mask  # type: ignore[attr-defined]  # in C where there is such a build

from api.dialects.dialect import Message

_TEXT, _BINARY = 0x81, 0x82  # whole messages, without extensions
_MASKED = 0x80
_SHORT_MAX, _LONG = 125, 127
_MASK_BYTES = 4


def take_messages(data: bytes | bytearray, length_max: int) -> tuple[list[Message], int]:
    """The messages at the head of `data`, which begins with a frame; and where the first frame begins that is none.

    That is one which is not whole yet, a part of a message, a control frame, a large one (of 64 KiB, or longer than
    `length_max`), or one against the rules.
    """
    messages: list[Message] = []
    at, size = 0, len(data)
    while size - at >= 2 + _MASK_BYTES and (kind := data[at]) in (_TEXT, _BINARY):
        length = data[at + 1] - _MASKED
        start = at + 2
        if length == _SHORT_MAX + 1:
            length = data[start] << 8 | data[start + 1]
            start += 2
        elif not 0 <= length <= _SHORT_MAX:
            break
        start += _MASK_BYTES
        if start + length > size or length > length_max:
            break
        payload = apply_mask(data[start : start + length], data[start - _MASK_BYTES : start])
        try:
            messages.append(payload.decode() if kind == _TEXT else payload)
        except UnicodeDecodeError:
            break
        at = start + length
    return messages, at


def frame_end(data: bytes | bytearray, length_max: int) -> int | None:
    """Where the frame ends that `data` begins with; None where it is not whole yet.

    One that nobody will take, without a mask or longer than `length_max`, ends with what there is of it.
    """
    if len(data) < 2:
        return None
    length = data[1] - _MASKED
    if length < 0:
        return len(data)
    start = 2
    if length > _SHORT_MAX:
        start += 8 if length == _LONG else 2
        if len(data) < start:
            return None
        length = int.from_bytes(data[2:start])
    if length > length_max:
        return len(data)
    end = start + _MASK_BYTES + length
    return end if end <= len(data) else None
