"""A circuit breaker: what keeps failing is not asked for a while, then tried, and used again when it answers.

Our own, since the kept libraries read the machine's clock themselves (pybreaker, aiobreaker, purgatory and
circuitbreaker all do), which simulated time cannot move, and know a call that returns rather than a stream that may
fail in its middle, be cancelled, or lose a race.
"""

import contextlib
from collections.abc import Callable
from enum import IntEnum

from prometheus_client import Counter, Gauge

from streams.clock import Clock

FAILURES_MAX = 3  # in a row; one may be bad luck
REST_FIRST_S = 0.5
REST_MAX_S = 10.0

_state = Gauge("trunkline_engine_breaker_state", "0 closed, 1 half open, 2 open.", ["engine"])
_transitions = Counter("trunkline_engine_breaker_transitions", "Changes of a breaker's state.", ["engine", "to"])


class State(IntEnum):
    """What may be asked: everything, one trial, nothing."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


OnChange = Callable[["Breaker", str], None]


class Breaker:
    """Guards one engine. Opens after `failures_max` failures in a row, or at once when told that it is gone.

    Each opening without a success between rests twice as long as the last. `on_change` is called with the breaker, in
    its new state, and the reason.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        on_change: OnChange = lambda breaker, reason: None,
        failures_max: int = FAILURES_MAX,
        rest_first_s: float = REST_FIRST_S,
        rest_max_s: float = REST_MAX_S,
    ) -> None:
        self.name = name
        self.state = State.CLOSED
        self._clock = clock
        self._on_change = on_change
        self._failures_max = failures_max
        self._rest_first_s = rest_first_s
        self._rest_max_s = rest_max_s
        self._failures = 0
        self._rest_s = 0.0
        self._until_s = 0.0
        _state.labels(name).set(State.CLOSED)

    @property
    def closed(self) -> bool:
        """Whether ordinary asks may be put."""
        return self.state is State.CLOSED

    @property
    def rest_left_s(self) -> float:
        """How long it stays open; 0 when a trial is due or it is not open."""
        return max(0.0, self._until_s - self._clock.monotonic_s()) if self.state is State.OPEN else 0.0

    def trial(self) -> bool:
        """Takes the one trial that a rested breaker allows; its outcome is to be told, or `released`."""
        if self.state is not State.OPEN or self.rest_left_s > 0:
            return False
        self._change(State.HALF_OPEN, "rested")
        return True

    def succeeded(self) -> None:
        """It answered well."""
        if self.state is State.OPEN:
            return  # an ask from before; the trial decides
        self._failures = 0
        self._rest_s = 0.0
        if self.state is State.HALF_OPEN:
            self._change(State.CLOSED, "answered a trial")

    def failed(self, reason: str, gone: bool = False) -> None:
        """It did not answer, or not well; `gone` means that its process or host cannot be reached."""
        if self.state is State.OPEN:
            return
        self._failures += 1
        if gone or self.state is State.HALF_OPEN or self._failures >= self._failures_max:
            self._rest_s = min(2 * self._rest_s or self._rest_first_s, self._rest_max_s)
            self._until_s = self._clock.monotonic_s() + self._rest_s
            self._change(State.OPEN, reason)

    def released(self) -> None:
        """The trial ended without telling anything; the next may begin at once."""
        if self.state is State.HALF_OPEN:
            self._until_s = self._clock.monotonic_s()
            self._change(State.OPEN, "trial without outcome")

    def forget(self) -> None:
        """Nobody asks it any more: its state is no metric any longer."""
        with contextlib.suppress(KeyError):
            _state.remove(self.name)

    def _change(self, state: State, reason: str) -> None:
        self.state = state
        if state is not State.HALF_OPEN:
            self._failures = 0
        _state.labels(self.name).set(state)
        _transitions.labels(self.name, state.name.lower()).inc()
        self._on_change(self, reason)
