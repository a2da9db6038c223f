"""What the sink shows of its progress; that every row arrives once is tested against ClickHouse itself."""

from typing import Any
from unittest.mock import MagicMock

from processors.clickhouse.sink import Sink
from processors.privacy import Policies
from streams.client import LogError, Partition
from streams.clock import SystemClock
from streams.settings import Settings


class Coordinator:
    """A group's coordinator that is away for a while."""

    def __init__(self) -> None:
        self.away = True
        self.offsets: dict[Partition, int] = {}

    async def commit(self, offsets: dict[Partition, int]) -> None:
        if self.away:
            raise LogError("not coordinator")
        self.offsets |= offsets


async def test_offsets_that_the_coordinator_did_not_take_are_shown_with_the_next() -> None:
    sink = Sink(Settings(), MagicMock(), MagicMock(), MagicMock(), SystemClock(), Policies({}))
    coordinator: Any = Coordinator()
    first, second = Partition("voice.intents", 0), Partition("voice.control", 1)
    sink._unshown[first] = 7
    await sink._show(coordinator)
    coordinator.away = False
    sink._unshown[second] = 3
    await sink._show(coordinator)
    assert coordinator.offsets == {first: 7, second: 3}
    coordinator.offsets.clear()
    await sink._show(coordinator)
    assert coordinator.offsets == {}
