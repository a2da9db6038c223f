"""Whether a model that begins its answers too late is waited for at all."""

import math

MISSES_MAX = 3
TRIED_EACH = 8


class Patience:
    """Counts, for each agent, how often in a row its model had no sentence in time (`limits.first_sentence_ms_max`).

    After three of these callers wait for it in vain no more: it is asked every eighth time, until it makes it once. One
    that has never made it is given a single try.
    Shared by all sessions of a worker and no part of their state, like `PartialPace`: which answer a turn gets may
    depend on how quick the model is anyway.
    """

    def __init__(self, misses_max: float = MISSES_MAX) -> None:
        """With infinity the model is always worth it."""
        self._misses_max = misses_max
        self._misses_max_unproven = misses_max if math.isinf(misses_max) else 1
        self._misses: dict[str, int] = {}
        self._proven: set[str] = set()

    def is_worth(self, agent_id: str) -> bool:
        """Whether the model shall be asked now."""
        misses, misses_max = self._misses.get(agent_id, 0), self._max_of(agent_id)
        if misses < misses_max:
            return True
        self._misses[agent_id] = misses + 1
        return (misses - misses_max) % TRIED_EACH == TRIED_EACH - 1

    def began(self, agent_id: str) -> None:
        """It had a sentence in time."""
        self._misses.pop(agent_id, None)
        self._proven.add(agent_id)

    def missed(self, agent_id: str) -> None:
        """It had none."""
        misses = self._misses.get(agent_id, 0)
        if misses < self._max_of(agent_id):  # from there on `is_worth` counts what it was asked
            self._misses[agent_id] = misses + 1

    def _max_of(self, agent_id: str) -> float:
        return self._misses_max if agent_id in self._proven else self._misses_max_unproven
