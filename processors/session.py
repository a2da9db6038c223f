"""What a runner keeps for each live session: its state, its open work, and what it has seen."""

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from processors.stage import Position
from schemas.event import Event

StateT = TypeVar("StateT")

SEEN_MAX = 256


@dataclass(slots=True, eq=False)
class Unit:
    """One record being worked on. It is settled when nothing is open and it is not held."""

    position: Position
    event_id: str
    open: int = 0
    held: bool = False
    settled: bool = False


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """A session's cached state. `applied` names, for each topic, the last offset whose effect it holds."""

    state: bytes
    applied: dict[str, int]
    seq: int
    seen: list[str]


class Seen:
    """The ids of a session's latest events, oldest forgotten first: the first event with an id is the truth."""

    def __init__(self, ids: list[str] | None = None) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict.fromkeys(ids or ())

    def add(self, event_id: str) -> bool:
        """True when the id is new."""
        if event_id in self._ids:
            return False
        self._ids[event_id] = None
        if len(self._ids) > SEEN_MAX:
            self._ids.popitem(last=False)
        return True

    def ids(self, without: set[str]) -> list[str]:
        """Oldest first, less those given."""
        return [event_id for event_id in self._ids if event_id not in without]


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
    saving: bool = False
    applied: dict[str, int] = field(default_factory=dict)
    held: dict[str, deque[Unit]] = field(default_factory=dict)
    settled: list[Unit] = field(default_factory=list)
    open: int = 0
    asks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    recorded: dict[str, list[Event]] = field(default_factory=dict)
    recorded_ids: set[str] = field(default_factory=set)
    ended: bool = False
    gone: bool = False

    def snapshot(self, state: bytes) -> bytes:
        """The snapshot to publish: offsets stop short of what is still held, since that comes again."""
        applied = dict(self.applied)
        again: set[str] = set()
        for topic, units in self.held.items():
            if units:
                applied[topic] = units[0].position.offset - 1
                again.update(unit.event_id for unit in units)
        return msgspec.msgpack.encode(Snapshot(state, applied, self.seq, self.seen.ids(without=again)))

    def close(self) -> None:
        """Stops timers and asks; nothing more comes of the session."""
        self.gone = True
        for timer in self.timers.values():
            timer.cancel()
        for task in list(self.asks.values()):
            task.cancel()
        self.timers.clear()


def read_snapshot(data: bytes) -> Snapshot:
    """Raises msgspec.DecodeError when the bytes are no snapshot."""
    return msgspec.msgpack.decode(data, type=Snapshot)
