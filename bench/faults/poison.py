"""Garbage for every topic: made from a seed, each record with whether it must end in the dead letters.

What is no event must. What is an event of absurd values, of a call that nobody holds, may, and must do no harm.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

from schemas.event import Event
from schemas.events import EVENTS, AudioFrame, Control, DeadLetter, Intent, Response, SpeechChunk, Transcript
from schemas.json_form import examples
from streams.codec import default_codec

OVERSIZE_BYTES = 900_000
_OVERSIZE_EVERY = 500
_NUMBERS = (-1, -(2**31), 2**31 - 1, 10**6)


class Garbage(NamedTuple):
    """One record; `refused` where it is no event of its topic, and so must have a dead letter."""

    topic: str
    key: bytes | None
    value: bytes | None
    refused: bool


def garbage(random: Random, count: int, sessions: Sequence[str] = ()) -> Iterator[Garbage]:
    """So many records over all topics of events; some bear the keys of `sessions`, which may grow meanwhile."""
    for number in range(count):
        event = EVENTS[number % len(EVENTS)]
        key = random.choice(sessions) if sessions and random.random() < 0.2 else str(_uuid(random))
        if number % _OVERSIZE_EVERY == 7:
            yield Garbage(event.TOPIC, key.encode(), b"\xff" * OVERSIZE_BYTES, True)
        elif random.random() < 0.05 and event is not DeadLetter:  # such a letter would speak of other records
            yield _absurd(random, random.choice(examples(event)))
        else:
            yield _refused(random, event.TOPIC, key, default_codec().encode(random.choice(examples(event))))


def _refused(random: Random, topic: str, key: str, valid: bytes) -> Garbage:
    """Something that is no event of the topic; a valid one of the topic is at hand."""
    other = random.choice([event for event in EVENTS if topic != event.TOPIC])
    shapes: dict[str, tuple[bytes | None, bytes | None]] = {
        "random": (key.encode(), b"\x01" + random.randbytes(random.randrange(1, 2000))),
        "framed": (key.encode(), b"\0" + random.randrange(10**6, 2**32).to_bytes(4, "big") + random.randbytes(64)),
        "short": (key.encode(), b"\0\0"),
        "truncated": (key.encode(), valid[: random.randrange(6, len(valid))]),
        "longer": (key.encode(), valid + random.randbytes(random.randrange(1, 100))),
        "wrong_key": (str(_uuid(random)).encode(), valid),
        "no_key": (None, valid),
        "binary_key": (random.randbytes(16), valid),
        "foreign": (key.encode(), default_codec().encode(random.choice(examples(other)))),
        "null": (key.encode(), None),
        "empty": (key.encode(), b""),
    }
    chosen_key, value = shapes[random.choice(list(shapes))]
    return Garbage(topic, chosen_key, value, True)


def _absurd(random: Random, event: Event) -> Garbage:
    """An event of a call that nobody holds, with numbers that nobody means."""
    session_id = str(_uuid(random))
    changes: dict[str, Any] = {
        "event_id": str(_uuid(random)),
        "session_id": session_id,
        "turn": random.choice(_NUMBERS),
        "seq": random.choice((-1, 2**62)),
    }
    if isinstance(event, AudioFrame | SpeechChunk):
        changes["sample_index"] = random.choice((-(2**62), 2**62, 2**31 - 1))
    elif isinstance(event, Transcript | Intent):
        changes["text"] = random.choice(("", "\0" * 100, "x" * 10_000))
    elif isinstance(event, Control):
        changes["heard_ms"] = random.choice(_NUMBERS)
    elif isinstance(event, Response):
        changes["sentence"] = random.choice(_NUMBERS)
    made = replace(event, **changes)
    return Garbage(event.TOPIC, session_id.encode(), default_codec().encode(made), False)


def _uuid(random: Random) -> uuid.UUID:
    return uuid.UUID(int=random.getrandbits(128), version=4)
