"""Waiting for what is merely late, so that only what stays wrong counts."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

FoundT = TypeVar("FoundT")


async def settle(
    look: Callable[[], Awaitable[FoundT]], wrong: Callable[[FoundT], object], within_s: float, every_s: float = 0.5
) -> FoundT:
    """Looks again and again until nothing is wrong or the time is over; returns what was seen last."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while True:
        found = await look()
        if not wrong(found) or loop.time() > deadline_s:
            return found
        await asyncio.sleep(every_s)
