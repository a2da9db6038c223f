"""The gateway's beat, in simulated time."""

import asyncio

from api.beat import Beat
from tests.simulation.simulated import simulate


def beats(arrivals_ms: list[float], again: int = 0) -> list[int]:
    """When those who came then were called back, in ms; who waits `again` so many times does so when called back."""
    called: list[int] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        beat = Beat(40)
        left = again

        def call_back() -> None:
            nonlocal left
            called.append(round(loop.time() * 1000))
            if left:
                left -= 1
                beat.wait(call_back)

        for at_ms in arrivals_ms:
            await asyncio.sleep(at_ms / 1000 - loop.time())
            beat.wait(call_back)
        await asyncio.sleep(1)

    simulate(run())
    return called


def test_all_who_wait_are_called_back_together() -> None:
    assert beats([1, 3, 39, 41, 79]) == [40, 40, 40, 80, 80]


def test_nobody_waits_longer_than_a_beat() -> None:
    arrivals_ms = [7.0 * number for number in range(50)]
    waits_ms = [called_ms - at_ms for at_ms, called_ms in zip(arrivals_ms, beats(arrivals_ms), strict=True)]
    assert all(0 <= wait_ms <= 41 for wait_ms in waits_ms)


def test_who_waits_again_when_called_back_waits_for_the_next_beat() -> None:
    assert beats([0], again=3) == [40, 80, 120, 160]
