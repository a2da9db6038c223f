"""Which fault strikes when: all of it from the seed, so that a run can be had again.

A run depends on the seed, its fault's name and its own number alone: it is the same whichever other faults were asked
for and however many runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from bench.faults.speech import Conversation


class Phase(StrEnum):
    """caller: while the caller speaks. thinking: between that and the reply. agent: while the agent speaks."""

    CALLER = "caller"
    THINKING = "thinking"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Moment:
    """When a fault strikes: in which turn (from 0), in which phase of it, and how far into the phase (0 to 1)."""

    turn: int
    phase: Phase
    part: float

    def __str__(self) -> str:
        return f"turn {self.turn + 1}, {self.phase} at {self.part:.0%}"


@dataclass(frozen=True, slots=True)
class Run:
    """One planned run; `seed` feeds what the fault itself draws."""

    fault: str
    number: int
    conversation: int
    moment: Moment
    seed: str


_PHASES = (Phase.CALLER, Phase.AGENT, Phase.CALLER, Phase.AGENT, Phase.THINKING)


def plan_run(seed: int, fault: str, number: int, conversations: Sequence[Conversation]) -> Run:
    """Run `number` (from 0) of the fault. Phases and conversations take turns; the rest is drawn."""
    own_seed = f"{seed}/{fault}/{number}"
    random, first = Random(own_seed), Random(f"{seed}/{fault}")
    conversation = (number + first.randrange(len(conversations))) % len(conversations)
    phase = _PHASES[(number + first.randrange(len(_PHASES))) % len(_PHASES)]
    turn = random.randrange(len(conversations[conversation].turns))
    # Not at the very edges: there a sentence has not begun, or is over before the fault strikes.
    part = round(random.uniform(0.05, 0.85), 3)
    return Run(fault, number, conversation, Moment(turn, phase, part), own_seed)


def plan(seed: int, faults: Sequence[str], runs: int, conversations: Sequence[Conversation]) -> list[Run]:
    """The campaign: faults take turns, so that an interrupted one has seen all of them."""
    return [plan_run(seed, fault, number, conversations) for number in range(runs) for fault in faults]
