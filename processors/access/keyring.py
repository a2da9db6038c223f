"""The keys as one process knows them: all there were when it began, and what changed a moment ago."""

import asyncio
import contextlib

import structlog

from processors.access.keys import Key, apply, id_in, opens, stored_keys
from streams.client import LogError
from streams.clock import Clock
from streams.consumer import LogReader
from streams.settings import Settings
from streams.topics import KEYS

log = structlog.get_logger(__name__)

NAME = "trunkline.access"
RETRY_S = 1.0


class Keyring:
    """Follows the topic of keys; for one event loop. While the log is away it knows what it knew."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._known = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begins to follow, unless it has; a process does so while it waits for its turn."""
        if self._task is None:
            self._task = asyncio.create_task(self._follow())

    async def open(self) -> None:
        """Returns when the keys are known, however long the log takes."""
        self.begin()
        await self._known.wait()

    async def close(self) -> None:
        """Follows no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def __len__(self) -> int:
        """How many there are, revoked ones too."""
        return len(self._keys)

    def find(self, text: str) -> Key | None:
        """The key that this is, be it revoked or expired; None for anything else."""
        key = self._keys.get(id_in(text) or "")
        return key if opens(key, text) else None

    async def _follow(self) -> None:
        while True:
            try:
                await self._read_on()
            except LogError as error:
                log.warning("the keys cannot be read, trying again", error=str(error))
            await self._clock.sleep(RETRY_S)

    async def _read_on(self) -> None:
        """Everything that is there, and then what comes."""
        async with LogReader(self._settings, NAME) as reader:
            ends = await reader.end_offsets(await reader.partitions(KEYS))
            self._keys = await stored_keys(self._settings, ends)
            self._known.set()
            await reader.add(ends)
            async for record in reader:
                apply(self._keys, record)
