"""How much of the machine partial readings may have: they are a convenience, and every final waits behind them."""

SHARE = 0.25  # of one core, for all sessions of a worker together
BURST_MS = 500.0
_USUAL_MS = 80.0  # until one was measured
_KEPT = 0.8


class PartialPace:
    """Credit in milliseconds of computing, which grows with time and is spent by partials.

    With one caller it never runs out; the more speak at once, or the slower the machine has become, the further apart
    are each one's partials. Shared by all sessions of a worker and no part of their state: whether a partial was asked
    for changes nothing that a core promises.
    """

    def __init__(self, share: float = SHARE) -> None:
        self._share = share
        self._credit_ms = BURST_MS
        self._usual_ms = _USUAL_MS
        self._at_us: int | None = None

    def take(self, now_us: int, first: bool) -> bool:
        """Whether a partial may be asked for now; if so, its usual cost is spent.

        An utterance's `first` may run into debt: it tells words from noise while the agent speaks.
        """
        if self._at_us is not None:
            grown_ms = self._share * max(0, now_us - self._at_us) / 1000
            self._credit_ms = min(BURST_MS, self._credit_ms + grown_ms)
        self._at_us = now_us
        if self._credit_ms - self._usual_ms < (-BURST_MS if first else 0.0):
            return False
        self._credit_ms -= self._usual_ms
        return True

    def took(self, compute_ms: float) -> None:
        """One was answered after so much computing."""
        # Never dearer than a full purse, or none would ever be asked for again.
        self._usual_ms = min(BURST_MS, _KEPT * self._usual_ms + (1 - _KEPT) * compute_ms)
