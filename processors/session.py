"""What a runner keeps for each live session: its state, its open work, and what it has seen."""

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from processors.choices import History
from processors.stage import Position
from schemas.event import Event

StateT = TypeVar("StateT")

SEEN_MAX = 256
_DIGEST_BYTES = 8


@dataclass(slots=True, eq=False)
class Unit:
    """One record being worked on. It is settled when nothing is open and it is not held."""

    position: Position
    event_id: str
    open: int = 0
    held: bool = False
    settled: bool = False


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """A session's cached state. `applied` names, for each topic, the last offset whose effect it holds.

    `seen` are the digests of the latest events' ids, one after the other. `ended` says that the session is over, and
    that records of it which come again are to be dropped. `at_us` is when it was written, 0 where that is not known.
    `began_us` is when the session began, as far as is known, and `agent_id` whose it is. `turns` are, by role, the
    generations of engines that its latest turns asked (`processors/choices.py`).
    """

    state: bytes
    applied: dict[str, int]
    seq: int
    seen: bytes
    ended: bool = False
    at_us: int = 0
    began_us: int = 0
    turns: dict[str, dict[int, int]] = msgspec.field(default_factory=dict)
    agent_id: str = ""

    @property
    def progress(self) -> tuple[bool, int]:
        """Grows with every record of the session: of two snapshots the one with more is the newer."""
        return self.ended, sum(self.applied.values())


class Seen:
    """The ids of a session's latest events, oldest forgotten first: the first event with an id is the truth.

    Kept as digests, which makes a snapshot of a long call a quarter the size.
    """

    def __init__(self, digests: bytes = b"") -> None:
        found = (digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES))
        self._digests: OrderedDict[bytes, None] = OrderedDict.fromkeys(found)

    def add(self, event_id: str) -> bool:
        """True when the id is new."""
        digest = _digest(event_id)
        if digest in self._digests:
            return False
        self._digests[digest] = None
        if len(self._digests) > SEEN_MAX:
            self._digests.popitem(last=False)
        return True

    def digests(self, without: Iterable[str]) -> bytes:
        """Oldest first, less those of the ids given."""
        left_out = {_digest(event_id) for event_id in without}
        return b"".join(digest for digest in self._digests if digest not in left_out)


def _digest(event_id: str) -> bytes:
    return hashlib.blake2b(event_id.encode(), digest_size=_DIGEST_BYTES).digest()


@dataclass(slots=True, eq=False)
class Live(Generic[StateT]):
    """A session in memory."""

    session_id: str
    partition: int
    state: StateT
    seq: int = 0
    seen: Seen = field(default_factory=Seen)
    saved: bytes = b""
    saved_seq: int = 0
    saved_at_s: float = float("-inf")
    #: A snapshot is due, or on its way; `due` is the timer of one that waits for its time.
    saving: bool = False
    #: One was due while something was open: it is written at the first moment without.
    overdue: bool = False
    due: asyncio.TimerHandle | None = None
    #: Something other than a record changed the state: no record will bring that back.
    stirred: bool = False
    applied: dict[str, int] = field(default_factory=dict)
    held: dict[str, deque[Unit]] = field(default_factory=dict)
    settled: list[Unit] = field(default_factory=list)
    open: int = 0
    asks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    heard_s: float = 0.0
    began_us: int = 0
    agent_id: str = ""
    histories: dict[str, History] = field(default_factory=dict)
    recorded: dict[str, list[Event]] = field(default_factory=dict)
    recorded_ids: set[str] = field(default_factory=set)
    ended: bool = False
    gone: bool = False

    def history(self, role: str) -> History:
        """What it asked of the role."""
        history = self.histories.setdefault(role, History())
        history.began_us, history.agent_id = self.began_us, self.agent_id
        return history

    def snapshot(self, state: bytes, now_us: int) -> bytes:
        """The snapshot to publish: offsets stop short of what is still held, since that comes again."""
        applied = dict(self.applied)
        again: set[str] = set()
        for topic, units in self.held.items():
            if units:
                applied[topic] = units[0].position.offset - 1
                again.update(unit.event_id for unit in units)
        seen = self.seen.digests(without=again)
        turns = {role: dict(history.turns) for role, history in self.histories.items()}
        written = Snapshot(state, applied, self.seq, seen, False, now_us, self.began_us, turns, self.agent_id)
        return msgspec.msgpack.encode(written)

    def epitaph(self) -> bytes:
        """The snapshot of a session that is over."""
        return msgspec.msgpack.encode(Snapshot(b"", self.applied, self.seq, b"", ended=True))

    def close(self) -> None:
        """Stops timers and asks; nothing more comes of the session."""
        self.gone = True
        if self.due is not None:
            self.due.cancel()
        for timer in self.timers.values():
            timer.cancel()
        for task in list(self.asks.values()):
            task.cancel()
        self.timers.clear()


def read_snapshot(data: bytes) -> Snapshot:
    """Raises msgspec.DecodeError when the bytes are no snapshot."""
    return msgspec.msgpack.decode(data, type=Snapshot)
