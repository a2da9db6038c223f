"""How loaded a worker is, and what it gives up for it: pure, driven by the times that it is told.

A worker measures itself (`Meter`), and what it measured climbs a ladder of levels (`LoadLadder`): first new sessions
are refused, so that running ones do not suffer; only when that is not enough do running ones get less. `Board` is what
others know of it from voice.health. Seconds are of a monotonic clock unless a name says otherwise.
"""

import itertools
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from schemas.events import Health, HealthKind
from streams.settings import Settings


class Level(IntEnum):
    """What is given up; each level includes those below it."""

    ORDINARY = 0
    REFUSING = 1  # new sessions are refused
    RARE_PARTIALS = 2  # words come less often while somebody speaks
    SMALL_MODELS = 3  # speech is read by the smallest model alone
    SHORT_ANSWERS = 4  # one sentence from documents and the language model; templates stay whole


# What each stage can do about its own load. Speech that is synthesised too slowly is helped by shorter answers, which
# the llm stage makes: it heeds the levels of the others.
STEPS: Mapping[str, tuple[Level, ...]] = {
    "stt": (Level.REFUSING, Level.RARE_PARTIALS, Level.SMALL_MODELS),
    "intent": (Level.REFUSING,),
    "llm": (Level.REFUSING, Level.SHORT_ANSWERS),
    "tts": (Level.REFUSING, Level.SHORT_ANSWERS),
    "api": (Level.REFUSING,),
}

# Stages that give up something for others' load: llm makes shorter answers, and intent begins none ahead.
HEEDING = frozenset({"intent", "llm"})

WINDOW_S = 5.0
AGES_S = 1.0
USED_S = 30.0  # longer than between two looks of whoever collects metrics
CALM = 0.7
RAISE_S = 1.0
STEP_S = 4.0
CALM_S = 5.0
REPEAT_S = 2.0
EXPIRE_S = 3 * REPEAT_S
_SMOOTHING = 0.2


@dataclass(frozen=True, slots=True)
class LoadLimits:
    """Where each quantity counts as overload. Utilisation alone only refuses; the others are what callers feel."""

    depth: int = 100
    oldest_s: float = 1.0
    waiting_s: float = 0.6
    lag_s: float = 0.5
    utilisation: float = 0.85


LIMITS = LoadLimits()


def limits_of(settings: Settings) -> LoadLimits:
    """As the operator set them."""
    load = settings.load
    return LoadLimits(depth=load.depth_max, oldest_s=load.oldest_ms_max / 1000, waiting_s=load.waiting_ms_max / 1000)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a worker measured at one moment.

    `depth` are asks and events under way, `oldest_s` is the age of the oldest record not yet processed, `waiting_s` how
    long asks wait for an engine before it begins with them, `lag_s` how late the event loop is, `utilisation` the
    share of the engines' time in use, `deadline_used` the largest share of its deadline that an ask waited of late.
    """

    depth: int = 0
    oldest_s: float = 0.0
    waiting_s: float = 0.0
    lag_s: float = 0.0
    utilisation: float = 0.0
    deadline_used: float = 0.0

    def pressure(self, limits: LoadLimits) -> float:
        """The worst of what callers feel, as a multiple of its limit."""
        return max(
            self.depth / limits.depth,
            self.oldest_s / limits.oldest_s,
            self.waiting_s / limits.waiting_s,
            self.lag_s / limits.lag_s,
        )

    def strain(self, limits: LoadLimits) -> float:
        """How near the engines are to having no time left, as a multiple of the limit."""
        return self.utilisation / limits.utilisation

    def __str__(self) -> str:
        return (
            f"depth {self.depth}, oldest {1000 * self.oldest_s:.0f} ms, waiting {1000 * self.waiting_s:.0f} ms, "
            f"lag {1000 * self.lag_s:.0f} ms, engine in use {100 * self.utilisation:.0f} %"
        )


class LoadLadder:
    """From pressure to a level, with hysteresis both ways.

    At a pressure of 1 the first step is taken after RAISE_S, further ones after STEP_S each while it lasts; below CALM
    one is given back after CALM_S each. In between nothing moves. Strain takes and keeps the first step only.
    """

    def __init__(self, steps: tuple[Level, ...]) -> None:
        self._steps = steps
        self._taken = 0
        self._high_since_s: float | None = None
        self._calm_since_s: float | None = None

    @property
    def level(self) -> Level:
        """The level reached."""
        return self._steps[self._taken - 1] if self._taken else Level.ORDINARY

    def observe(self, now_s: float, pressure: float, strain: float = 0.0) -> Level:
        """Takes what was measured now; times never step back."""
        first = self._taken == 0
        worse = pressure >= 1 or (first and strain >= 1)
        calm = pressure < CALM and (self._taken > 1 or strain < CALM)
        if not worse:
            self._high_since_s = None
        elif self._high_since_s is None:
            self._high_since_s = now_s
        if not calm:
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        if self._high_since_s is not None and now_s - self._high_since_s >= (RAISE_S if first else STEP_S):
            self._taken = min(self._taken + 1, len(self._steps))
            self._high_since_s = now_s
        elif self._taken and self._calm_since_s is not None and now_s - self._calm_since_s >= CALM_S:
            self._taken -= 1
            self._calm_since_s = now_s
        return self.level


class Busy:
    """The share of the last WINDOW_S in which an engine that answers `capacity` asks at a time was in use."""

    def __init__(self, capacity: int, now_s: float) -> None:
        self._capacity = capacity
        self._open = 0
        self._at_s = now_s
        self._used_s = 0.0
        self._marks: deque[tuple[float, float]] = deque([(now_s, 0.0)])

    def change(self, by: int, now_s: float) -> None:
        """An ask began (+1) or ended (-1)."""
        self._advance(now_s)
        self._open += by

    def share(self, now_s: float) -> float:
        """0 to 1; call it regularly, since it remembers where the window began."""
        self._advance(now_s)
        self._marks.append((now_s, self._used_s))
        while len(self._marks) > 2 and self._marks[1][0] <= now_s - WINDOW_S:
            self._marks.popleft()
        began_s, used_s = self._marks[0]
        lasted_s = max(now_s - began_s, 1e-9)
        return min(1.0, (self._used_s - used_s) / (lasted_s * self._capacity))

    def _advance(self, now_s: float) -> None:
        self._used_s += min(self._open, self._capacity) * max(0.0, now_s - self._at_s)
        self._at_s = max(self._at_s, now_s)


class Waits:
    """How long asks waited for the engine: their time without the engine's own, which the replies tell.

    One whose answer has begun to come waits no longer, however long it goes on.
    """

    def __init__(self) -> None:
        self._open: dict[int, float] = {}
        self._begun: set[int] = set()
        self._ended: deque[tuple[float, float]] = deque()
        self._compute_s = 0.0

    def begin(self, number: int, now_s: float) -> None:
        """An ask was put."""
        self._open[number] = now_s

    def begun(self, number: int) -> None:
        """The first of its answer came."""
        if number in self._open:
            self._begun.add(number)

    def end(self, number: int, now_s: float, compute_s: float | None) -> None:
        """It was answered, or failed (None); one that did not begin here is not counted."""
        if number not in self._open:
            return
        lasted_s = now_s - self._open.pop(number)
        self._begun.discard(number)
        if compute_s is not None:
            self._compute_s += (compute_s - self._compute_s) * (_SMOOTHING if self._compute_s else 1.0)
        spent_s = self._compute_s if compute_s is None else compute_s
        self._ended.append((now_s, max(0.0, lasted_s - spent_s)))

    def forget(self, number: int) -> None:
        """It was withdrawn: what it waited says nothing."""
        self._open.pop(number, None)
        self._begun.discard(number)

    def mean_s(self, now_s: float) -> float:
        """Over the last WINDOW_S, or what those that wait now have already waited where that is more."""
        while self._ended and self._ended[0][0] <= now_s - WINDOW_S:
            self._ended.popleft()
        ended = sum(waited_s for _, waited_s in self._ended) / len(self._ended) if self._ended else 0.0
        waiting = (began_s for number, began_s in self._open.items() if number not in self._begun)
        oldest_s = now_s - min(waiting, default=now_s)
        return max(ended, oldest_s - 2 * self._compute_s)


class Deadlines:
    """How much of its deadline an ask waits for the first of its answer: 0 nothing, 1 all of it, then it was late."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[float, float]] = {}
        self._seen: deque[tuple[float, float]] = deque()

    def asked(self, number: int, now_s: float, deadline_s: float) -> None:
        """An ask was put that must be answered within `deadline_s`."""
        self._waiting[number] = (now_s, deadline_s)

    def over(self, number: int, now_s: float, withdrawn: bool = False) -> None:
        """Its answer begins, or it ended without; what was withdrawn tells nothing. Safe to repeat."""
        known = self._waiting.pop(number, None)
        if known is not None and not withdrawn:
            self._seen.append((now_s, _share(known, now_s)))
            self._forget(now_s)

    def used(self, now_s: float) -> float:
        """The largest share among those that wait and those of the last USED_S."""
        self._forget(now_s)
        waiting = (_share(known, now_s) for known in self._waiting.values())
        return max((*waiting, *(share for _, share in self._seen)), default=0.0)

    def _forget(self, now_s: float) -> None:
        while self._seen and self._seen[0][0] <= now_s - USED_S:
            self._seen.popleft()


def _share(known: tuple[float, float], now_s: float) -> float:
    put_s, deadline_s = known
    return (now_s - put_s) / max(deadline_s, 1e-3)


class Meter:
    """What one worker notes of its records and asks, to be sampled every half second or so."""

    def __init__(self, capacities: Mapping[str, int], now_s: float) -> None:
        """`capacities` names the roles whose engines can be overloaded, and how many asks each answers at a time."""
        self._busy = {role: Busy(capacity, now_s) for role, capacity in capacities.items()}
        self._waits = {role: Waits() for role in capacities}
        self._deadlines = Deadlines()
        self._numbers = itertools.count(1)
        self._waiting_us: int | None = None
        self._ages: deque[tuple[float, float]] = deque()

    def waiting(self, written_us: int) -> None:
        """A record, written at that wall time, is next and may have to wait for room."""
        self._waiting_us = written_us

    def taken(self, now_s: float, now_us: int) -> None:
        """It is being processed."""
        if self._waiting_us is not None:
            self._ages.append((now_s, max(0.0, (now_us - self._waiting_us) / 1e6)))
        self._waiting_us = None
        self._forget_ages(now_s)

    def asked(self, role: str, now_s: float, sheddable: bool = False, deadline_s: float = math.inf) -> int:
        """An ask was put; how long one waits that can be shed does not count. Returns its number."""
        number = next(self._numbers)
        if role in self._busy:
            self._busy[role].change(1, now_s)
            if not sheddable:
                self._waits[role].begin(number, now_s)
                self._deadlines.asked(number, now_s, deadline_s)
        return number

    def begun(self, role: str, number: int, now_s: float) -> None:
        """Something of its answer came."""
        if role in self._waits:
            self._waits[role].begun(number)
            self._deadlines.over(number, now_s)

    def answered(self, role: str, number: int, now_s: float, compute_s: float | None, withdrawn: bool = False) -> None:
        """It ended: with the time that the engine spent on it, without an answer (None), or because we let go of it."""
        if role not in self._busy:
            return
        self._busy[role].change(-1, now_s)
        self._deadlines.over(number, now_s, withdrawn)
        if withdrawn:
            self._waits[role].forget(number)
        else:
            self._waits[role].end(number, now_s, compute_s)

    def sample(self, now_s: float, now_us: int, depth: int, lag_s: float = 0.0) -> Sample:
        """What holds now; `depth` and `lag_s` are the caller's."""
        self._forget_ages(now_s)
        oldest_s = max((age_s for _, age_s in self._ages), default=0.0)
        if self._waiting_us is not None:
            oldest_s = max(oldest_s, (now_us - self._waiting_us) / 1e6)
        return Sample(
            depth=depth,
            oldest_s=oldest_s,
            waiting_s=self.waiting_s(now_s),
            lag_s=lag_s,
            utilisation=max((busy.share(now_s) for busy in self._busy.values()), default=0.0),
            deadline_used=self._deadlines.used(now_s),
        )

    def waiting_s(self, now_s: float) -> float:
        """How long asks wait for the engine, of the role where they wait longest."""
        return max((waits.mean_s(now_s) for waits in self._waits.values()), default=0.0)

    def _forget_ages(self, now_s: float) -> None:
        while self._ages and self._ages[0][0] <= now_s - AGES_S:
            self._ages.popleft()


@dataclass(frozen=True, slots=True)
class Said:
    """The latest that a process said of itself."""

    component: str
    level: Level
    utilisation: float
    calls: int
    reason: str
    heard_s: float


@dataclass(frozen=True, slots=True)
class StageLoad:
    """A stage's workers together: the mean of their utilisation, the sum of their calls."""

    utilisation: float
    calls: int
    workers: int = 1


class Board:
    """What the platform's processes said of their load, each until EXPIRE_S after it was heard: they repeat it."""

    def __init__(self) -> None:
        self._said: dict[str, Said] = {}

    def heard(self, event: Health, now_s: float) -> None:
        """Takes an event of voice.health; those about breakers are no news here."""
        if event.kind not in (HealthKind.LOAD_RAISED, HealthKind.LOAD_LOWERED, HealthKind.LOAD_MEASURED):
            return
        level = Level(min(max(event.level, Level.ORDINARY), Level.SHORT_ANSWERS))
        before = self._said.get(event.session_id)
        measured = event.kind is HealthKind.LOAD_MEASURED
        if measured or before is None:
            utilisation, calls = event.utilisation, event.calls
        else:
            utilisation, calls = before.utilisation, before.calls
        reason = event.reason if not measured or before is None else before.reason
        self._said[event.session_id] = Said(event.component, level, utilisation, calls, reason, now_s)

    def worst(self, now_s: float, besides: str = "") -> Said | None:
        """Who has given up most, if anyone has; `besides` is a component that does not count."""
        raised = [said for said in self._current(now_s) if said.level and said.component != besides]
        return max(raised, key=lambda said: said.level, default=None)

    def stages(self, now_s: float) -> dict[str, StageLoad]:
        """Every component that measured itself lately."""
        found: dict[str, list[Said]] = {}
        for said in self._current(now_s):
            found.setdefault(said.component, []).append(said)
        return {
            name: StageLoad(sum(one.utilisation for one in all_) / len(all_), sum(one.calls for one in all_), len(all_))
            for name, all_ in found.items()
        }

    def _current(self, now_s: float) -> list[Said]:
        self._said = {who: said for who, said in self._said.items() if now_s - said.heard_s < EXPIRE_S}
        return list(self._said.values())
