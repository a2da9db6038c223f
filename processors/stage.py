"""The contract between a stage's pure core and the shell around it.

A core is `state + what happened + now -> new state + outcomes`. It does no I/O and reads no clock, so its tests are
tables. The runner (`runner.py`) performs the outcomes; Faust appears only in `shell.py`.
"""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from schemas.event import Event
from streams.keys import Position as Position

# What is held and that nobody goes on from for so long is held no longer: the call that it is of may never have begun.
ABANDONED_US = 60_000_000
ABANDONED = "abandoned"
LOADED = "loaded"  # as which a session's core wakes when its state has just been taken over

_IDS = uuid.UUID("6f1d6c1e-8f0b-5c39-9a5b-7472756e6b6c")
_HASHED_IDS = hashlib.sha1(_IDS.bytes, usedforsecurity=False)


# What can happen to a session, as its core sees it.


@dataclass(frozen=True, slots=True)
class Received:
    """A record of the session arrived, in offset order within its topic.

    `recorded` holds what this stage already emitted for the record before a crash or a change of owner, in order: the
    core adopts it instead of asking again. It is empty in ordinary running.
    """

    event: Event
    position: Position
    recorded: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """An engine answered; a streaming engine answers many times, the last time with `last`.

    A stream may end without a value: `reply` is then None and `last` true.
    """

    ask_id: str
    reply: Any
    last: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """An engine did not answer; nothing more comes for the ask.

    `reason` is timeout, crashed, refused, invalid or out_of_memory.
    """

    ask_id: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Woken:
    """A timer set by `Wake` ran out."""

    name: str


Happening = Received | Answered | Failed | Woken


# What a core wants done. The runner performs outcomes in the order given.


@dataclass(frozen=True, slots=True)
class Emit:
    """Publish the event; the runner sets `seq`. An event whose id is already recorded is not published again."""

    event: Event


@dataclass(frozen=True, slots=True)
class Ask:
    """Put a request (see `engine.py`) to the engine in that role; answers come back as `Answered` or `Failed`.

    The record being applied is not finished before the ask is. `ask_id` is unique within the session. All asks of one
    `turn` in one role are answered by the same model.
    """

    ask_id: str
    role: str
    request: Any
    deadline_s: float
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop the ask; nothing more comes for it."""

    ask_id: str


@dataclass(frozen=True, slots=True)
class Wake:
    """Set (or, with None, clear) the session's timer of that name, to run out at `at_us` on the clock of `now_us`."""

    name: str
    at_us: int | None


@dataclass(frozen=True, slots=True)
class Hold:
    """The record being applied is needed again if this process dies: it is not finished before a `Release`."""


@dataclass(frozen=True, slots=True)
class Release:
    """Records of `topic` that the session held, with offsets below `before`, are finished."""

    topic: str
    before: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The record being applied is bad input: it goes to the dead letters with its bytes and this reason."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Drop:
    """The record is not used, by rule (late, repeated, foreign turn); counted under `reason`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Speculated:
    """What became of work begun for a revision that was not committed: begun, used or void; counted, nothing more.

    `engine_ms` is the time that engines spent on it.
    """

    what: str
    engine_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class End:
    """The session is over: forget its state and delete its snapshot."""


Outcome = Emit | Ask | Cancel | Wake | Hold | Release | Refuse | Drop | Speculated | End

StateT = TypeVar("StateT")


@dataclass(frozen=True, slots=True)
class Step(Generic[StateT]):
    """What a core returns: the next state and what is to be done."""

    state: StateT
    outcomes: tuple[Outcome, ...] = ()


class Core(Protocol[StateT]):
    """The pure part of a stage. It never raises on bad input: it returns `Refuse`."""

    def start(self, session_id: str) -> StateT:
        """The state of a session of which nothing is known yet."""
        ...

    def apply(self, state: StateT, happening: Happening, now_us: int) -> Step[StateT]:
        """Takes one step; `now_us` is wall time in microseconds."""
        ...

    def save(self, state: StateT) -> bytes:
        """The state as of the oldest held record, for a snapshot; empty when there is nothing worth keeping.

        Called while no ask of the session is open. Equal bytes mean that no new snapshot is needed.
        """
        ...

    def load(self, session_id: str, data: bytes) -> StateT:
        """The inverse of `save`; records held at that time are delivered again afterwards."""
        ...


def abandonment(now_us: int) -> Wake:
    """The timer of what is held from now on; it wakes as `ABANDONED`."""
    return Wake(ABANDONED, now_us + ABANDONED_US)


def event_id(cause_id: str, name: str) -> str:
    """The id of the event called `name` (unique among the cause's effects) that `cause_id` brought about.

    It is `str(uuid.uuid5(_IDS, f"{cause_id}/{name}"))`, at a third of the cost: each frame of audio has one.
    """
    digest = _HASHED_IDS.copy()
    digest.update(f"{cause_id}/{name}".encode())
    text = digest.hexdigest()
    variant = "89ab"[int(text[16], 16) & 3]
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{variant}{text[17:20]}-{text[20:32]}"


def turn_event_id(session_id: str, turn: int, name: str) -> str:
    """The id of the event called `name` of which a committed turn has one, whatever record brings it about.

    A worker that wakes up after it was replaced may come to another by another way: the first one is the truth.
    """
    return event_id(session_id, f"turn-{turn}-{name}")


def caused(cause: Event, event_class: type[Event], name: str, now_us: int, /, **fields: Any) -> Any:
    """A new event that `cause` brought about: the envelope is filled in, `seq` is left to the runner.

    `name` distinguishes the effects of one cause (`final`, `sentence-2`) and makes the id deterministic.
    `turn` may be given among the fields; else it is the cause's.
    """
    envelope: Mapping[str, Any] = {
        "event_id": event_id(cause.event_id, name),
        "session_id": cause.session_id,
        "tenant_id": cause.tenant_id,
        "agent_id": cause.agent_id,
        "turn": cause.turn,
        "seq": 0,
        "occurred_at": now_us,
        "causation_id": cause.event_id,
    }
    return event_class(**{**envelope, **fields})
