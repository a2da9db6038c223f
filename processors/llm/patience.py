"""Whether a model that begins its answers too late is waited for at all."""

import math
from dataclasses import dataclass

MISSES_MAX = 3
TRIED_EACH = 8
TRIED_EACH_MAX = 512


@dataclass(slots=True)
class _Record:
    """What an agent's model did lately: misses in a row, and of how many turns one is tried then."""

    misses: int = 0
    unasked: int = 0
    each: int = TRIED_EACH
    proven: bool = False


class Patience:
    """Counts, for each agent, how often in a row its model had no sentence in time (`limits.first_sentence_ms_max`).

    After three of these callers wait for it in vain no more: the eighth does, then the sixteenth after that, and so on,
    until it makes it once. One that has never made it is given a single try before.
    Shared by all sessions of a worker and no part of their state, like `PartialPace`: which answer a turn gets may
    depend on how quick the model is anyway.
    """

    def __init__(self, misses_max: float = MISSES_MAX) -> None:
        """With infinity the model is always worth it."""
        self._misses_max = misses_max
        self._misses_max_unproven = misses_max if math.isinf(misses_max) else 1
        self._records: dict[str, _Record] = {}

    def is_worth(self, agent_id: str) -> bool:
        """Whether the model shall be asked now."""
        record = self._of(agent_id)
        if record.misses < self._max_of(record):
            return True
        record.unasked += 1
        if record.unasked < record.each:
            return False
        record.unasked, record.each = 0, min(2 * record.each, TRIED_EACH_MAX)
        return True

    def began(self, agent_id: str) -> None:
        """It had a sentence in time."""
        self._records[agent_id] = _Record(proven=True)

    def missed(self, agent_id: str) -> None:
        """It had none."""
        self._of(agent_id).misses += 1

    def _of(self, agent_id: str) -> _Record:
        return self._records.setdefault(agent_id, _Record())

    def _max_of(self, record: _Record) -> float:
        return self._misses_max if record.proven else self._misses_max_unproven
