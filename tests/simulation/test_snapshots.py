"""Snapshots of a session that changes hands and comes back while the one in between is still writing."""

import asyncio
from typing import Any

from processors.recovery import Snapshots
from streams.keys import Partition
from tests.simulation.log import Producer, SimulatedLog, Weather
from tests.simulation.world import Process, World

STATES = Partition("voice.state.llm", 0)


def keys(log: SimulatedLog) -> dict[str, tuple[bytes, ...]]:
    """What recovery would find of the one session there is."""
    left: dict[bytes, bytes | None] = {}
    for record in log.records[STATES]:
        left[record.key or b""] = record.value
    return {"session": tuple(key for key, value in left.items() if value is not None)}


async def handed_back(log: SimulatedLog, process: Process) -> None:
    producer: Any = Producer(log, process)
    first, second = Snapshots(producer, "llm", "first"), Snapshots(producer, "llm", "second")
    first.inherit(0, {})
    await first.write("session", 0, b"one")
    second.inherit(0, keys(log))
    first.forget(0)
    first.inherit(0, keys(log))
    await first.write("session", 0, b"two")
    await second.write("session", 0, b"late")
    await asyncio.sleep(1)


def test_a_straggler_does_not_delete_the_snapshot_of_an_owner_who_had_the_partition_before() -> None:
    world = World(1)
    log = SimulatedLog(world, 1, Weather())
    process = Process(world, "stage")
    process.spawn(handed_back(log, process))
    world.run(5.0, lambda: False)
    world.close()
    assert not world.errors
    assert b"two" in log.snapshots("llm").values()
