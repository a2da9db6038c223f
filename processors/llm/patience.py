"""Whether a model that begins its answers too late is waited for at all."""

import math
from dataclasses import dataclass

MISSES_MAX = 3
REHEARSED_EACH = 8
# A model that has become quick, as another one has that was swapped in, is found out within so many answers.
REHEARSED_EACH_MAX = 32


@dataclass(slots=True)
class _Past:
    """What an agent's model did so far.

    `misses` are those in a row. One that is `late` is not waited for, and was not for the last `unasked` answers; after
    `rehearsed_each` of them it is rehearsed. `proven` says that it had a sentence in time for a caller once.
    """

    misses: int = 0
    late: bool = False
    rehearsed_each: int = REHEARSED_EACH
    unasked: int = 0
    proven: bool = False


class Patience:
    """Counts, for each agent, how often in a row its model had no sentence in time (`limits.first_sentence_ms_max`).

    After three of these callers wait for it in vain no more, nor after a single one where it has never made it, nor
    where it was late in a rehearsal before it had. It is rehearsed for every eighth of the answers that it might have
    given, then for ever fewer, down to every 32nd; where it begins in time, the next caller waits for it again.
    Shared by all sessions of a worker and no part of their state, like `PartialPace`: which answer a turn gets may
    depend on how quick the model is anyway.
    """

    def __init__(self, misses_max: float = MISSES_MAX) -> None:
        """With infinity callers wait for it however often they did in vain."""
        self._misses_max = misses_max
        self._misses_max_unproven = misses_max if math.isinf(misses_max) else 1
        self._pasts: dict[str, _Past] = {}

    def is_worth(self, agent_id: str) -> bool:
        """Whether the model shall be asked now."""
        past = self._of(agent_id)
        past.unasked += past.late
        return not past.late

    def wants_rehearsal(self, agent_id: str) -> bool:
        """Whether it is time to find out if a model for which nobody waits has become quick."""
        past = self._of(agent_id)
        return past.late and past.unasked >= past.rehearsed_each

    def rehearsed(self, agent_id: str, in_time: bool | None) -> None:
        """How it did while no caller waited; None where it did not answer at all."""
        past = self._of(agent_id)
        past.unasked = 0
        if past.late:
            past.rehearsed_each = min(2 * past.rehearsed_each, REHEARSED_EACH_MAX)
        if in_time and past.late:
            # What made it with nobody waiting may yet be late for callers: one of them finds that out.
            past.misses, past.late = MISSES_MAX - 1 if past.proven else 0, False
        elif in_time is False and not past.proven:  # callers know better
            past.late = True

    def began(self, agent_id: str) -> None:
        """It had a sentence in time."""
        self._pasts[agent_id] = _Past(proven=True)

    def missed(self, agent_id: str) -> None:
        """It had none."""
        past = self._of(agent_id)
        past.misses += 1
        past.late = past.late or past.misses >= (self._misses_max if past.proven else self._misses_max_unproven)

    def _of(self, agent_id: str) -> _Past:
        return self._pasts.setdefault(agent_id, _Past())
