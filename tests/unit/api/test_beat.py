"""The gateway's beat, in simulated time."""

import asyncio

from api.beat import Beat
from tests.simulation.simulated import simulate


def turns(arrivals: list[tuple[float, int]], parts: int = 4, busy_s: float = 0.0) -> list[tuple[int, int]]:
    """When each who waited, from a moment in ms and for a part, was called back; `busy_s` is lost before the first."""
    called: list[tuple[int, int]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        beat = Beat(40, parts)
        for at_ms, part in arrivals:
            await asyncio.sleep(at_ms / 1000 - loop.time())

            def come(part: int = part) -> None:
                called.append((round(loop.time() * 1000), part))

            beat.wait(part, come)
        if busy_s:
            loop._jumping.now_s += busy_s  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)

    simulate(run())
    return called


def test_who_waits_for_a_part_is_called_back_together() -> None:
    called = turns([(1, 1), (3, 5), (8, 1)])
    assert called == [(10, 1), (10, 5), (10, 1)]


def test_parts_follow_each_other_and_each_comes_once_in_a_beat() -> None:
    called = turns([(1, 0), (2, 1), (3, 2), (4, 3)])
    assert called == [(10, 1), (20, 2), (30, 3), (40, 0)]


def test_nobody_waits_longer_than_a_beat() -> None:
    arrivals = [(7.0 * number, number) for number in range(50)]
    waits_ms = [called_ms - 7.0 * (number) for called_ms, number in sorted(turns(arrivals), key=lambda pair: pair[1])]
    assert len(waits_ms) == len(arrivals)
    assert all(-1 <= wait_ms <= 41 for wait_ms in waits_ms)


def test_turns_that_were_missed_come_at_once() -> None:
    called = turns([(1, 1), (2, 2), (3, 3), (4, 0)], busy_s=0.025)
    assert [part for _, part in called] == [1, 2, 3, 0]
    assert called[1][0] == called[0][0]
    assert called[3][0] > called[2][0]


def test_who_waits_again_when_called_back_waits_for_the_next_beat() -> None:
    times: list[int] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        beat = Beat(40, 1)

        def again() -> None:
            times.append(round(loop.time() * 1000))
            if len(times) < 4:
                beat.wait(0, again)

        beat.wait(0, again)
        await asyncio.sleep(1)

    simulate(run())
    assert times == [40, 80, 120, 160]
