"""What tenants do not want to keep is forgotten when its time has come, in every store.

Audio is only in the log: its key is destroyed. Words are erased as a caller's request would erase them: the key, and by
`erase` in the log what is in ClickHouse. Run by the sink, of which there is one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import structlog
from prometheus_client import Counter

from processors.erasure import erase_event
from processors.privacy import Policies
from schemas.event import Event
from schemas.files import AUDIO, WORDS
from streams.clock import Clock
from streams.keyring import KeyFile, Keyring

log = structlog.get_logger(__name__)

REASON = "retention"
DAY_US = 86_400_000_000

forgotten = Counter("trunkline_retention_forgotten", "Calls of which something was forgotten in time.", ["data_class"])


class Due(NamedTuple):
    """A call and what of it is to be forgotten: audio, words (and all else), or the file that says that it was."""

    file: KeyFile
    what: str


FILE = "file"


def due(file: KeyFile, policies: Policies, kept_us: float, now_us: int) -> str | None:
    """What is to be forgotten of the call now; nothing, where None. `kept_us` is how long the log keeps any record."""
    if now_us - max(file.made_at, file.erased_at) > kept_us:
        return FILE
    if file.erased_at:
        return None
    keep, age_days = policies.of(file.tenant_id).keep_days, (now_us - file.made_at) / DAY_US
    if keep.words is not None and age_days > keep.words:
        return WORDS
    if keep.audio is not None and age_days > keep.audio and AUDIO in file.wrapped:
        return AUDIO
    return None


class Retention:
    """Looks every `look_s`; a crash between two steps leaves work for the next look, never work undone."""

    def __init__(
        self,
        keys: Keyring,
        policies: Policies,
        publish: Callable[[Event], Awaitable[Any]],
        clock: Clock,
        kept_days: float,
        look_s: float,
    ) -> None:
        self._keys = keys
        self._policies = policies
        self._publish = publish
        self._clock = clock
        self._kept_us = kept_days * DAY_US
        self._look_s = look_s

    async def run(self) -> None:
        """Works until it is cancelled."""
        while True:
            try:
                await self.look()
            except OSError as error:
                log.warning("retention_failed", error=str(error))
            await self._clock.sleep(self._look_s)

    async def look(self) -> int:
        """Forgets what is due; returns of how many calls that was something."""
        found = await asyncio.to_thread(list, self._due())
        for one in found:
            await self._forget(one)
        return len(found)

    def _due(self) -> Iterator[Due]:
        now_us = self._clock.now_us()
        for file in self._keys.every():
            what = due(file, self._policies, self._kept_us, now_us)
            if what is not None:
                yield Due(file, what)

    async def _forget(self, one: Due) -> None:
        session_id, tenant_id = one.file.session_id, one.file.tenant_id
        if one.what == FILE:
            self._keys.remove(session_id)
        elif one.what == AUDIO:
            self._keys.destroy(session_id, tenant_id, (AUDIO,))
        else:
            # In this order: were the key gone before the log knows, nobody would ask for the rest again.
            await self._publish(erase_event(session_id, tenant_id, "", REASON, self._clock.now_us()))
            self._keys.destroy(session_id, tenant_id)
        forgotten.labels(one.what).inc()
        log.info("forgotten", session_id=session_id, what=one.what)
