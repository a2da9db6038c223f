"""Who may call now: existing calls first, and new ones by measured capacity. Pure, driven by the times that it is told.

A newcomer's load shows only after some seconds, so that a burst would be let in whole by anyone who looks at present
load alone. Here every newcomer counts as the load that a call has been measured to be, until its own has come to show.
"""

import math
import random
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from processors.load import CALM, LIMITS, Board, Level, LoadLadder, Sample, StageLoad
from schemas.events import Health

# What one call takes of each stage's engines until it has been measured: the share of their time, on two cores.
COST = {"stt": 0.07, "intent": 0.02, "llm": 0.03, "tts": 0.04}
# And of the processors of the gateway's machine, which it shares with the engines unless those have their own.
MACHINE = "machine"
MACHINE_COST = 0.08
MACHINE_SMOOTHING = 0.15
COST_RANGE = 4.0  # measured costs stay within this factor of those: silent callers are not free, a storm passes
SILENT_MAX = 10  # so many calls may well be silent at the same time
COST_ADAPTS_S = 20.0
SETTLED_S = 12.0  # after so long a newcomer's load shows whole
REPLIES_S = 30.0
REPLIES_MIN = 6
REPLIES_MAX = 500
QUIET_REPLIES_MIN = 10
QUIET_REPLIES_MAX = 200
QUIET_CALLS_MAX = 2
SLOWER_MAX = 1.35  # replies may take so much longer than when it is quiet
RESERVED_S = 15.0
RETRY_S_MIN = 2.0
RETRY_S_MAX = 15.0
RECENT_S = 10.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call is not taken. `code` is for clients, `reason` for metrics: shutting_down, sessions, sockets, level,
    replies, gateway or expected.
    """

    code: str
    reason: str
    retry_after_s: int
    detail: str = ""

    @property
    def message(self) -> str:
        """For people."""
        return "The gateway takes no more calls now."

    @property
    def hint(self) -> str:
        """What to do."""
        return f"Try again in {self.retry_after_s} s."


@dataclass(slots=True)
class Newcomers:
    """Calls of the last SETTLED_S, whose load does not show whole yet."""

    _at_s: deque[float] = field(default_factory=deque)

    def add(self, now_s: float, count: int = 1) -> None:
        """So many more."""
        self._at_s.extend([now_s] * count)

    def count(self, now_s: float) -> int:
        """How many there are."""
        while self._at_s and now_s - self._at_s[0] >= SETTLED_S:
            self._at_s.popleft()
        return len(self._at_s)


class Cost:
    """What a call takes of one stage's engines: a default at first, then what is measured."""

    def __init__(self, default: float) -> None:
        self._default = default
        self.share = default
        self._measured_s: float | None = None
        self.calls = 0
        self.newcomers = Newcomers()

    def measured(self, load: StageLoad, now_s: float) -> None:
        """Takes the stage's present load; calls that have only just come are not what makes it."""
        self.newcomers.add(now_s, max(0, load.calls - self.calls))
        lasted_s = 0.0 if self._measured_s is None else now_s - self._measured_s
        self._measured_s = now_s
        self.calls = load.calls
        settled = load.calls - self.newcomers.count(now_s)
        if settled < 1:
            return
        weight = 1 - math.exp(-lasted_s / COST_ADAPTS_S)
        share = self.share + weight * (load.utilisation / settled - self.share)
        # Of the time of several workers together a call takes less; and that many calls are all silent just now is less
        # likely the more they are, so that what is measured of them is believed.
        least = self._default / COST_RANGE / max(1, load.workers) / max(1.0, settled / SILENT_MAX)
        self.share = min(max(share, least), self._default * COST_RANGE)


class Replies:
    """How long callers wait for replies now, and how long they did when it was quiet."""

    def __init__(self, limit_s: float) -> None:
        """`limit_s` is what the operator allows in any case."""
        self._limit_s = limit_s
        self._recent: deque[tuple[float, float]] = deque(maxlen=REPLIES_MAX)
        self._quiet: deque[float] = deque(maxlen=QUIET_REPLIES_MAX)

    def add(self, waited_s: float, now_s: float, quiet: bool) -> None:
        """A reply began after that long."""
        self._recent.append((now_s, waited_s))
        if quiet:
            self._quiet.append(waited_s)

    @property
    def limit_s(self) -> float:
        """Where replies count as slow: the operator's limit, or a multiple of the quiet ones where that is less."""
        if len(self._quiet) < QUIET_REPLIES_MIN:
            return self._limit_s
        return min(self._limit_s, SLOWER_MAX * _percentile(self._quiet, 0.95))

    def pressure(self, now_s: float) -> float:
        """1 at the limit; steeper than the ratio, since quiet replies take most of the limit already."""
        return max(0.0, 1 + 2 * (self.p95_s(now_s) / self.limit_s - 1))

    def p95_s(self, now_s: float) -> float:
        """Of the last REPLIES_S; 0 where they are too few to tell."""
        while self._recent and now_s - self._recent[0][0] >= REPLIES_S:
            self._recent.popleft()
        if len(self._recent) < REPLIES_MIN:
            return 0.0
        return _percentile([waited_s for _, waited_s in self._recent], 0.95)


class Admission:
    """Decides for one gateway. What it is told: voice.health, its own calls, their replies, its queues."""

    def __init__(
        self,
        sessions_max: int,
        sockets_max: int,
        reply_s_max: float,
        utilisation_max: float = 0.5,
        rng: random.Random | None = None,
        costs: Mapping[str, float] = COST,
        machine_max: float = 0.8,
        by_load: bool = True,
        calls_min: int = 0,
    ) -> None:
        """Without `by_load` only the numbers of calls and connections are bounded, as for the first `calls_min`."""
        self._sessions_max = sessions_max
        self._sockets_max = sockets_max
        self._utilisation_max = utilisation_max
        self._random = rng or random.Random()
        self._board = Board()
        self._costs = {name: Cost(default) for name, default in costs.items()}
        self._machine = Cost(MACHINE_COST)
        self._machine_max = machine_max
        self._by_load = by_load
        self._calls_min = calls_min
        self._machine_share = 0.0
        self._machine_idle = 0.0
        self._taken = Newcomers()
        self._reserved: OrderedDict[str, float] = OrderedDict()
        self._ladder = LoadLadder((Level.REFUSING,))
        self._refused_s: deque[float] = deque(maxlen=1000)
        self._sample = Sample()
        self.replies = Replies(reply_s_max)
        self.closing = False

    # What it is told.

    def heard(self, event: Health, now_s: float) -> None:
        """An event of voice.health."""
        self._board.heard(event, now_s)
        for name, load in self._board.stages(now_s).items():
            if name == event.component and name in self._costs and event.kind == "load_measured":
                self._costs[name].measured(load, now_s)

    def replied(self, waited_s: float, now_s: float, calls: int) -> None:
        """A caller heard the first of a reply after that long."""
        self.replies.add(waited_s, now_s, quiet=calls <= QUIET_CALLS_MAX and not self._level(now_s))

    def observe(self, now_s: float, sample: Sample) -> Level:
        """The gateway's own queues and event loop, and its replies; every half second or so."""
        self._sample = sample
        return self._ladder.observe(now_s, max(sample.pressure(LIMITS), self.replies.pressure(now_s)))

    def machine(self, now_s: float, share: float, calls: int) -> None:
        """The share of the machine's processors in use; what is used without any call is nobody's cost."""
        self._machine_share += MACHINE_SMOOTHING * (share - self._machine_share)
        if calls == 0 and not self._taken.count(now_s):
            self._machine_idle += MACHINE_SMOOTHING * (share - self._machine_idle)
        self._machine.measured(StageLoad(max(0.0, self._machine_share - self._machine_idle), calls), now_s)

    def taken(self, now_s: float) -> None:
        """A new call has been taken."""
        self._taken.add(now_s)

    def reserve(self, name: str, now_s: float) -> None:
        """A call that will come in a moment has been promised its place, as telephone calls are by the webhook."""
        self._expire(now_s)
        if name and name not in self._reserved:
            self._reserved[name] = now_s

    def claim(self, name: str, now_s: float) -> bool:
        """Whether the call of that name was promised its place; it counts as taken from then on."""
        self._expire(now_s)
        return self._reserved.pop(name, None) is not None

    # What it says.

    @property
    def level(self) -> Level:
        """The gateway's own."""
        return self._ladder.level

    def expected(self, now_s: float) -> dict[str, float]:
        """For each stage, and the machine, the utilisation to be expected once all who have been taken are heard.

        It is not less than what so many calls take on average: a moment in which few speak is no room.
        """
        present = self._board.stages(now_s)
        awaited = self._taken.count(now_s) + len(self._reserved)
        found = {}
        for name, cost in self._costs.items():
            load = present.get(name, StageLoad(0.0, 0))
            newcomers = max(cost.newcomers.count(now_s), awaited)
            found[name] = max(load.utilisation + cost.share * newcomers, cost.share * load.calls)
        machine = self._machine
        newcomers = max(machine.newcomers.count(now_s), awaited)
        found[MACHINE] = max(
            self._machine_share + machine.share * newcomers, self._machine_idle + machine.share * machine.calls
        )
        return found

    def costs(self) -> dict[str, float]:
        """For each stage, the share of its engines' time that a call is measured to take; and of the machine's."""
        return {name: cost.share for name, cost in self._costs.items()} | {MACHINE: self._machine.share}

    def refusal(self, now_s: float, calls: int, sockets: int = 0) -> Refusal | None:
        """Why no new call is taken now, or None: it may come. Asking changes nothing."""
        self._expire(now_s)
        if self.closing:
            return self._refusal("shutting_down", "shutting_down", now_s, calls)
        if calls + len(self._reserved) >= self._sessions_max:
            return self._refusal("overloaded", "sessions", now_s, calls, f"{calls} calls")
        if sockets >= self._sockets_max:
            return self._refusal("overloaded", "sockets", now_s, calls, f"{sockets} connections")
        if not self._by_load or calls < self._calls_min:
            return None
        if calls == 0 and not any(load.calls for load in self._board.stages(now_s).values()):
            return None  # nobody is there to suffer, and what was measured is over
        worst = self._board.worst(now_s, besides="api")
        if worst is not None:
            return self._refusal("overloaded", "level", now_s, calls, f"{worst.component}: {worst.reason}")
        if self._ladder.level:
            slow = self.replies.pressure(now_s) >= CALM
            return self._refusal("overloaded", "replies" if slow else "gateway", now_s, calls, str(self._sample))
        costs = self.costs()
        for name, expected in self.expected(now_s).items():
            share = expected + costs[name]
            if share > self._share_max(name):
                return self._refusal("overloaded", "expected", now_s, calls, f"{name}: {100 * share:.0f} % expected")
        return None

    def calls_free(self, now_s: float) -> dict[str, int]:
        """For each stage, and the machine, how many more calls it has time for, by what one is measured to take."""
        costs = self.costs()
        return {
            name: max(0, math.floor((self._share_max(name) - expected) / costs[name] + 1e-9))
            for name, expected in self.expected(now_s).items()
        }

    def _share_max(self, name: str) -> float:
        return self._machine_max if name == MACHINE else self._utilisation_max

    def refused(self, now_s: float) -> None:
        """A caller was told so: many who are, are asked to stay away longer."""
        self._refused_s.append(now_s)

    def _refusal(self, code: str, reason: str, now_s: float, calls: int, detail: str = "") -> Refusal:
        """Whoever tries again does so later the more there are, and not all at once."""
        recent = sum(now_s - at_s < RECENT_S for at_s in self._refused_s)
        after_s = RETRY_S_MIN * (1 + recent / max(1, calls)) * self._random.uniform(0.75, 1.5)
        return Refusal(code, reason, math.ceil(min(max(after_s, RETRY_S_MIN), RETRY_S_MAX)), detail)

    def _level(self, now_s: float) -> bool:
        return bool(self._ladder.level) or self._board.worst(now_s, besides="api") is not None

    def _expire(self, now_s: float) -> None:
        while self._reserved and now_s - next(iter(self._reserved.values())) >= RESERVED_S:
            self._reserved.popitem(last=False)


def _percentile(values: "deque[float] | list[float]", share: float) -> float:
    """The nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
