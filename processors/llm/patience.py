"""Whether a model that begins its answers too late is waited for at all."""

import math
from dataclasses import dataclass

MISSES_MAX = 3
TRIED_EACH = 8
# A model that has become quick, as another one has that was swapped in, is found out within so many answers.
TRIED_EACH_MAX = 32


@dataclass(slots=True)
class _Past:
    """What an agent's model did so far.

    `misses` are those in a row; from their limit on it is asked for one of `tried_each` answers, and was not for the
    last `unasked`. `tried` says that such a try has not ended yet, `proven` that it had a sentence in time once.
    """

    misses: int = 0
    tried_each: int = TRIED_EACH
    unasked: int = 0
    tried: bool = False
    proven: bool = False


class Patience:
    """Counts, for each agent, how often in a row its model had no sentence in time (`limits.first_sentence_ms_max`).

    After three of these callers wait for it in vain no more, but for every eighth answer; each such try that is in vain
    doubles that, up to every 32nd. Once it makes it, all is forgotten. One that has never made it has a single try
    before.
    Shared by all sessions of a worker and no part of their state, like `PartialPace`: which answer a turn gets may
    depend on how quick the model is anyway.
    """

    def __init__(self, misses_max: float = MISSES_MAX) -> None:
        """With infinity the model is always worth it."""
        self._misses_max = misses_max
        self._misses_max_unproven = misses_max if math.isinf(misses_max) else 1
        self._pasts: dict[str, _Past] = {}

    def is_worth(self, agent_id: str) -> bool:
        """Whether the model shall be asked now."""
        past = self._of(agent_id)
        if past.misses < self._max_of(past):
            return True
        past.unasked += 1
        if past.unasked < past.tried_each:
            return False
        past.unasked, past.tried = 0, True
        return True

    def began(self, agent_id: str) -> None:
        """It had a sentence in time."""
        self._pasts[agent_id] = _Past(proven=True)

    def missed(self, agent_id: str) -> None:
        """It had none."""
        past = self._of(agent_id)
        past.misses += 1
        if past.tried:
            past.tried, past.tried_each = False, min(2 * past.tried_each, TRIED_EACH_MAX)

    def _of(self, agent_id: str) -> _Past:
        return self._pasts.setdefault(agent_id, _Past())

    def _max_of(self, past: _Past) -> float:
        return self._misses_max if past.proven else self._misses_max_unproven
