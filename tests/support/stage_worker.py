"""A worker to be killed: notes what it is assigned and each record it did, then acknowledges the record.

`python -m tests.support.stage_worker BOOTSTRAP GROUP INSTANCE TOPICS FILE`
"""

import asyncio
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvloop

from streams.client import Partition
from streams.faust_app import create_app, run
from streams.faust_transport import Committed, Confirm
from streams.settings import KafkaSettings, Settings


class Notes:
    """Lines in a file, each written before the worker goes on."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", buffering=1)
        self.write("started")

    def write(self, *words: object) -> None:
        """Adds a line."""
        self._file.write(" ".join(map(str, words)) + "\n")

    async def assigned(self, partitions: Mapping[Partition, Committed], confirm: Confirm) -> None:
        """Notes each partition."""
        await confirm()
        for topic, number in partitions:
            self.write("assigned", topic, number)

    async def revoked(self, partitions: set[Partition]) -> None:
        """Notes each partition."""
        for topic, number in partitions:
            self.write("revoked", topic, number)

    async def lost(self, partitions: set[Partition]) -> None:
        """Notes each partition."""
        await self.revoked(partitions)


async def work(bootstrap_servers: str, group: str, instance: str, topics: str, file: str) -> None:
    """Runs until SIGTERM."""
    notes = Notes(Path(file))
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=bootstrap_servers, session_timeout_ms=600))
    app = create_app(
        settings,
        group,
        topics.split(","),
        notes,
        instance_id=instance if instance != "-" else "",
        commit_interval_s=0.2,
    )

    async def shell(stream: Any) -> None:
        async for event in stream.noack().events():
            message = event.message
            notes.write("did", message.topic, message.partition, message.offset)
            event.ack()

    app.read_with(shell)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await run(app, stopping)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work(*sys.argv[1:]))
