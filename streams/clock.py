"""Time as a dependency, so that tests run conversations in simulated time."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Where the code that waits or stamps gets its time from."""

    def now_us(self) -> int:
        """Wall time in microseconds since the epoch, UTC: for stamps. It may step."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never step back: for durations and deadlines."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits that long by `monotonic_s`."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        """See `Clock`."""
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        await asyncio.sleep(seconds)
