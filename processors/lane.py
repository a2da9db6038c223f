"""One engine as a stage sees it: how it is reached, whether it is well, and how much it has to do."""

import contextlib
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from prometheus_client import Gauge

from processors.breaker import Breaker
from processors.engine import EngineClient

_up = Gauge(
    "trunkline_engine_up",
    "Engines that a stage asks: 1 reachable, 0 away.",
    ["role", "engine", "model", "device", "address"],
)


@runtime_checkable
class Reachable(Protocol):
    """A client that knows whether its engine is there, so that nobody waits for one that is not."""

    @property
    def reachable(self) -> bool:
        """Whether an ask can be put now."""
        ...

    async def reach(self) -> None:
        """Returns when it can."""
        ...


@dataclass(frozen=True, slots=True)
class Queue:
    """The asks that an engine has from everybody: those that wait for room, and those that it is at work on."""

    waiting: int
    working: int


@runtime_checkable
class Shared(Protocol):
    """A client of an engine that works on many asks at once, of other processes, too."""

    async def queue(self) -> Queue | None:
        """What the engine says of its queue; None where it says nothing or is away. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Description:
    """An engine for people: its model, cpu, cuda or remote, and its address or its process's name; empty: unknown."""

    model: str
    device: str
    address: str


@runtime_checkable
class Described(Protocol):
    """A client that can say what its engine is."""

    @property
    def description(self) -> Description:
        """As far as is known by now; holds no secret."""
        ...


@runtime_checkable
class Concurrent(Protocol):
    """A client that knows how many asks its engine works on at once."""

    @property
    def concurrency(self) -> int:
        """As the engine said; 1 where it has not been heard of."""
        ...


@dataclass(slots=True, eq=False)
class Lane:
    """One engine: how it is reached, whether it is well, and how much it was asked by this process."""

    name: str
    client: EngineClient
    breaker: Breaker
    open: int = 0
    answered_s: float = -math.inf
    told: Queue | None = None
    _open_then: int = 0
    _shown: tuple[str, ...] = ()

    @property
    def reachable(self) -> bool:
        """Whether an ask can be put now, as far as is known."""
        return not isinstance(self.client, Reachable) or self.client.reachable

    @property
    def load(self) -> tuple[int, int]:
        """What a further ask finds there, to be compared: how many wait for room, and how many there are at all.

        An engine of ours has room for as many asks as it works on at once. What a shared one told is corrected by what
        this process has asked since; one that tells nothing is taken to have room.
        """
        if not isinstance(self.client, Shared):
            return self.open // (self.client.concurrency if isinstance(self.client, Concurrent) else 1), 0
        if self.told is None:
            return 0, self.open
        others = max(0, self.told.waiting + self.told.working - self._open_then)
        waiting = max(0, self.told.waiting + self.open - self._open_then) if self.told.waiting else 0
        return waiting, others + self.open

    @property
    def spare(self) -> bool:
        """Whether it has time for what may be in vain."""
        return self.open == 0 if self.told is None else self.load[0] == 0

    async def look(self) -> bool:
        """Asks a shared engine how long its queue is; whether it told."""
        assert isinstance(self.client, Shared)
        self.told = await self.client.queue()
        self._open_then = self.open
        return self.told is not None

    def show(self, role: str) -> None:
        """What it is and whether it is there, as a metric."""
        what = self.client.description if isinstance(self.client, Described) else Description("", "", "")
        labels = (role, self.name, what.model, what.device, what.address)
        if self._shown and self._shown != labels:
            _up.remove(*self._shown)
        self._shown = labels
        _up.labels(*labels).set(self.reachable)

    def hide(self) -> None:
        """It is not asked any more, and no metric tells of it as one that is."""
        if self._shown:
            with contextlib.suppress(KeyError):
                _up.remove(*self._shown)
        self._shown = ()
        self.breaker.forget()
