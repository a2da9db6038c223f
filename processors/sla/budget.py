"""The arithmetic of error budgets: pure.

An objective allows a share of bad events. Its budget is that share of the events there were; the burn rate is how many
times faster than it bears the budget is spent: at 1 it lasts exactly as long as the period.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from processors.sla.objectives import Objective

MINUTE_S = 60


class Counts(NamedTuple):
    """How many events there were, and how many of them were bad."""

    events: int = 0
    bad: int = 0

    def __add__(self, other: object) -> "Counts":
        """Both together."""
        if not isinstance(other, Counts):
            return NotImplemented
        return Counts(self.events + other.events, self.bad + other.bad)


def attainment(counts: Counts) -> float | None:
    """The share of good events; None where there were none."""
    return 1 - counts.bad / counts.events if counts.events else None


def burn_rate(counts: Counts, allowed: float) -> float | None:
    """How many times the allowed share was bad; None where there were no events."""
    return counts.bad / counts.events / allowed if counts.events else None


def is_met(counts: Counts, allowed: float) -> bool | None:
    """Whether no more were bad than are allowed; None where there were no events."""
    return counts.bad <= allowed * counts.events * (1 + 1e-9) if counts.events else None


class Window(NamedTuple):
    """An alert: the budget is spent `rate` times too fast over the long window, and still is over the short one."""

    long_s: int
    short_s: int
    rate: float
    level: int


# Those of the SRE workbook: 2 % of a month's budget in an hour, 5 % in six hours, 10 % in three days.
WINDOWS = (Window(3600, 300, 14.4, 2), Window(21_600, 1800, 6.0, 2), Window(259_200, 21_600, 1.0, 1))
KEPT_S = max(window.long_s for window in WINDOWS)
BAD_MIN = 2  # one failure alone wakes nobody, however few the calls are


class Burn(NamedTuple):
    """What the windows say of one objective: the level, and the window and numbers that it comes from."""

    level: int
    window: Window
    rate: float
    long: Counts
    short: Counts


@dataclass(slots=True)
class Budgets:
    """Counts by minute of one tenant's objectives for as long as the longest window, and the levels last reported."""

    objectives: tuple[Objective, ...]
    levels: dict[str, int] = field(default_factory=dict)
    _minutes: dict[str, dict[int, Counts]] = field(default_factory=lambda: defaultdict(dict))

    def put(self, counts: Mapping[tuple[str, int], Counts], since_s: int, now_s: int) -> None:
        """Replaces what is known from `since_s` on; keys are the objective and the start of a minute in seconds."""
        for minutes in self._minutes.values():
            for minute_s in [at for at in minutes if at >= since_s or at < now_s - KEPT_S - MINUTE_S]:
                del minutes[minute_s]
        for (name, minute_s), found in counts.items():
            self._minutes[name][minute_s] = found

    def over(self, name: str, window_s: int, now_s: int) -> Counts:
        """The counts of the minutes that ended within the window."""
        minutes = self._minutes.get(name, {})
        return _sum(found for at, found in minutes.items() if now_s - window_s < at + MINUTE_S and at <= now_s)

    def burn(self, objective: Objective, now_s: int) -> Burn:
        """The worst window; at level 0 the first one."""
        found = []
        for window in WINDOWS:
            long = self.over(objective.name, window.long_s, now_s)
            short = self.over(objective.name, window.short_s, now_s)
            rate = burn_rate(long, objective.allowed) or 0.0
            still = burn_rate(short, objective.allowed) or 0.0
            burning = long.bad >= BAD_MIN and min(rate, still) >= window.rate
            found.append(Burn(window.level if burning else 0, window, rate, long, short))
        return max(found, key=lambda burn: burn.level)

    def changes(self, now_s: int) -> list[tuple[Objective, Burn, bool]]:
        """The objectives whose level is another than the one last reported, and whether it rose; they count as told."""
        changed = []
        for objective in self.objectives:
            burn = self.burn(objective, now_s)
            before = self.levels.get(objective.name, 0)
            if burn.level != before:
                self.levels[objective.name] = burn.level
                changed.append((objective, burn, burn.level > before))
        return changed


def _sum(counts: Iterable[Counts]) -> Counts:
    total = Counts()
    for found in counts:
        total += found
    return total
