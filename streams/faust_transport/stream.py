"""A Faust stream that acknowledges a record only when its handler returned."""
# Faust comes without usable types: its classes are Any here.
# mypy: allow-subclassing-any

from collections.abc import AsyncIterator
from typing import Any

import faust
from faust.types import ChannelT
from mode.utils.futures import maybe_async


class RecordStream(faust.Stream):
    """Reads a channel of raw records.

    Faust's own iterator acknowledges a record whose handler raised, and gives the event loop a turn for each record.
    This one does neither: the buffer is bounded, so the loop has its turn when the buffer is empty.
    """

    def __aiter__(self) -> AsyncIterator[Any]:
        if not isinstance(self.channel, ChannelT):
            return super().__aiter__()  # type: ignore[no-any-return]
        values = self._values()
        self._active_agens.add(values)
        return values

    async def events(self) -> AsyncIterator[Any]:
        """Events in order of arrival; with `noack()`, each is to be acknowledged by `event.ack()`, at any time."""
        if self._processors or not isinstance(self.channel, ChannelT):
            async for _ in self:
                yield self.current_event
            return
        async for event in self._records():
            yield event

    async def _values(self) -> AsyncIterator[Any]:
        async for event in self._records():
            value = event.value
            for processor in self._processors:
                value = await maybe_async(processor(value))
            yield value

    async def _records(self) -> AsyncIterator[Any]:
        self._finalized = True
        started_here = await self.maybe_start()
        app, queue = self.app, self.channel.queue
        empty, take, wait = queue.empty, queue.get_nowait, queue.get
        is_active = app.flow_control.is_active
        try:
            while not self.should_stop:
                event = await wait() if empty() else take()
                if event.message.generation_id != app.consumer_generation_id or not is_active():
                    continue
                self._set_current_event(event)
                self.events_total += 1
                # A handler that raises closes this generator here, so its record stays unacknowledged.
                yield event
                self.current_event = None
                if self.enable_acks:
                    event.ack()
        except StopAsyncIteration:
            return
        finally:
            self._channel_stop_iteration(self.channel)
            if started_here:
                await self.stop()
                self.service_reset()
