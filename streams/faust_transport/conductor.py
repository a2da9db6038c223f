"""From a partition to the streams that read it, without a task or a coroutine for each record."""
# Faust comes without usable types: its classes are Any here.
# mypy: allow-subclassing-any

from collections.abc import Callable
from typing import Any

from faust.exceptions import ImproperlyConfigured
from faust.transport.conductor import Conductor as FaustConductor
from faust.types import TP

# Puts a message into the buffers of its streams, or returns False when one of them is full.
Deliver = Callable[[Any], bool]


class Conductor(FaustConductor):
    """Delivers raw records only: what they mean is decided behind the stream, so that bad bytes cannot be dropped."""

    def deliverer(self, tp: TP) -> Deliver:
        """How messages of the partition are delivered; raises ImproperlyConfigured for a topic that is not raw.

        When a buffer is full, `Consumer.on_buffer_drop` is called once it has room. An acknowledgement counts once
        every stream of the topic has given its own.
        """
        channels = list(self._tp_index[tp])
        for channel in channels:
            if (channel.key_serializer, channel.value_serializer) != ("raw", "raw"):
                raise ImproperlyConfigured(f"topic {tp.topic}: key_serializer='raw', value_serializer='raw' expected")
        queues = [channel.queue for channel in channels]
        rooms = [(queue, max(1, queue.pressure_high_size)) for queue in queues]
        streams_count = len(queues)
        create_event = self.app.create_event
        on_buffer_full, on_buffer_drop = self.app.consumer.on_buffer_full, self.app.consumer.on_buffer_drop

        def drop() -> None:
            on_buffer_drop(tp)

        def deliver(message: Any) -> bool:
            for queue, size_max in rooms:
                if queue.qsize() >= size_max:
                    queue.in_pressure_high_state(drop)
                    on_buffer_full(tp)
                    return False
            message.refcount = streams_count
            event = create_event(message.key, message.value, message.headers, message)
            for queue in queues:
                queue.put_nowait(event)
            return True

        return deliver
