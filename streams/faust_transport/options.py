"""What an application tells the transport, and what the transport tells the application."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from streams.client import Partition


@dataclass(frozen=True, slots=True)
class Committed:
    """What the group had committed for a partition when it was assigned; None where nothing ever was."""

    offset: int | None


Confirm = Callable[[], Awaitable[None]]


class PartitionListener(Protocol):
    """Told on the event loop which partitions this worker owns.

    For each partition the order is `assigned`, records, then `revoked` or `lost`; then perhaps `assigned` again.
    """

    async def assigned(self, partitions: Mapping[Partition, Committed], confirm: Confirm) -> None:
        """Prepares to own the partitions, all of one partition number; numbers are prepared concurrently.

        `confirm` returns once the group's coordinator has said that the partitions are this worker's still: a process
        that was stopped may wake up with an assignment from before, and what it read since may be its successor's.
        Awaited between reading and the first thing that would hurt a successor.

        No record of theirs is delivered before this returns; meanwhile they arrive, up to a limit, and wait. Raising
        stops the worker. Cancelled when the partitions go away meanwhile; `revoked` or `lost` names them all the same.
        """
        ...

    async def revoked(self, partitions: set[Partition]) -> None:
        """Finishes or drops what is in flight; no further record of theirs is delivered.

        Records acknowledged before this returns, or before the time limit cancels it, are committed; later
        acknowledgements are ignored, and the next owner is given those records again.
        """
        ...

    async def lost(self, partitions: set[Partition]) -> None:
        """The partitions already belong to someone else: drop what is in flight; nothing more can be committed."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """How a worker takes part in its consumer group."""

    #: librdkafka's settings for reaching the cluster; empty: the servers of the application's broker URL.
    connection: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    listener: PartitionListener | None = None
    #: Static membership: a worker that comes back under this name within the session timeout finds its partitions
    #: waiting. Unique within the group; empty: a dynamic member.
    instance_id: str = ""
    #: Where a partition begins of which the group has committed nothing.
    start: Literal["earliest", "latest"] = "earliest"
    session_timeout_ms: int = 1500
    #: A worker that has not served its consumer for so long gives its partitions up. Heartbeats go on while a C call
    #: holds the interpreter, so this is generous.
    max_poll_interval_ms: int = 60_000
    #: How long `revoked` may take.
    revoke_limit_s: float = 2.0
    #: How often the consumer's thread looks for commands; records wake it at once.
    poll_s: float = 0.1
    #: Records of one partition that may wait for room in a stream before fetching it is paused.
    held_records_max: int = 256
