"""Spares another system: requests go out at a rate, and not before it said that it can take some again."""

import asyncio

from streams.clock import Clock


class Bucket:
    """A token bucket for one event loop: who takes waits for its turn, in the order of asking."""

    def __init__(self, clock: Clock, per_s: float, burst: int) -> None:
        self._clock = clock
        self._every_s = 1 / per_s
        self._depth_s = (burst - 1) / per_s
        # When the bucket would be full again: what is taken moves it on.
        self._full_s = clock.monotonic_s()

    async def take(self) -> None:
        """Returns when a request may go out."""
        now_s = self._clock.monotonic_s()
        due_s = max(now_s, self._full_s - self._depth_s)
        self._full_s = max(now_s, self._full_s) + self._every_s
        if due_s <= now_s:
            return
        try:
            await self._clock.sleep(due_s - now_s)
        except asyncio.CancelledError:
            self._full_s -= self._every_s  # who did not wait has taken nothing
            raise

    @property
    def is_behind(self) -> bool:
        """Whether who asks now has to wait."""
        return self._full_s - self._depth_s > self._clock.monotonic_s()

    def rest(self, for_s: float) -> None:
        """Lets nothing go out for so long."""
        self._full_s = max(self._full_s, self._clock.monotonic_s() + for_s + self._depth_s)
