"""Snapshots of a session that changes hands and comes back while the one in between is still writing."""

import asyncio
from typing import Any

import msgspec

from processors.pipeline import STAGES
from processors.recovery import Snapshots, recover
from processors.session import Snapshot
from streams.keys import Partition
from tests.simulation.log import Connection, Decoded, Producer, Reader, SimulatedLog, Weather
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


async def read_back(log: SimulatedLog, found: list[bytes]) -> None:
    committed = {Partition(kind.TOPIC, 0): 9 for kind in STAGES["llm"].consumes}
    reader: Any = Reader(Connection(log), "recovery")
    codec: Any = Decoded()
    recovered = await recover(reader, STAGES["llm"], codec, committed)
    found.append(recovered[0].restored.snapshots["session"])


def test_a_straggler_that_is_ahead_in_one_topic_does_not_count_against_the_owner() -> None:
    world = World(1)
    log = SimulatedLog(world, 1, Weather())
    for kind in STAGES["llm"].consumes:
        for _ in range(9):
            log.append(Partition(kind.TOPIC, 0), b"other", None, 0)
    owner = msgspec.msgpack.encode(Snapshot(b"owner", {"voice.intents": 3, "voice.control": 4}, 9, b""))
    straggler = msgspec.msgpack.encode(Snapshot(b"straggler", {"voice.intents": 1, "voice.control": 8}, 5, b""))
    log.append(STATES, b"session/2.b", owner, 0)
    log.append(STATES, b"session/1.a", straggler, 0)
    found: list[bytes] = []
    process = Process(world, "stage")
    process.spawn(read_back(log, found))
    world.run(5.0, lambda: False)
    world.close()
    assert not world.errors
    assert found == [owner]
