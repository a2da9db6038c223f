"""A Faust application for one stage: raw records in, manual acknowledgement, no tables, no web server, no monitor.

app = create_app(settings, "trunkline.stt", ("voice.audio.in",), listener=...)

@app.agent(app.records)
async def shell(stream):
    async for event in stream.noack().events():
        ...  # and later, from any task: event.ack()

await run(app, stopping)
"""
# Faust comes without usable types: its classes are Any here.
# mypy: allow-subclassing-any

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Literal

import faust
from faust.app.base import BootStrategy
from faust.tables.manager import TableManager
from faust.types import TP
from mode import CrashingSupervisor

from streams import faust_transport
from streams.client import client_config
from streams.faust_transport.options import Options, PartitionListener
from streams.faust_transport.stream import RecordStream
from streams.settings import Settings

# A partition may carry half of all calls, whose audio comes on while it is prepared: to pause it would cost the time of
# a fetch.
HELD_FACTOR = 4


class NoTables(TableManager):
    """Stages keep their state themselves, so there is nothing to recover (and no second to wait for it)."""

    async def on_start(self) -> None:
        """Lets the conductor subscribe at once."""
        self._tables_finalized.set()
        self._tables_registered.set()

    async def on_stop(self) -> None:
        """Nothing to stop."""

    def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Nothing to flush."""

    async def on_rebalance(self, assigned: set[TP], *args: Any, **kwargs: Any) -> None:
        """Nothing to recover; the consumer opens partitions as they are prepared."""

    async def wait_until_recovery_completed(self) -> bool:
        """There is no recovery to wait for."""
        return False


class Boot(BootStrategy):
    """Starts what a stage needs: without leader election and replies there is one group, with the stage's topics."""

    def kafka_consumer(self) -> Iterable[Any]:
        """The consumer alone."""
        return [self.app.consumer]


class StageApp(faust.App):
    """The application; see `create_app`."""

    BootStrategy = Boot
    transport_options: Options
    #: Set while this worker is in the group and every partition it was given is prepared and delivers.
    ready: asyncio.Event
    #: The stage's topics as one channel of raw records.
    records: Any

    def on_init_dependencies(self) -> Iterable[Any]:
        """Without Faust's monitor, which costs more for each event than all the rest."""
        return self.boot_strategy.server()  # type: ignore[no-any-return]

    def read_with(self, shell: Callable[[Any], Awaitable[None]]) -> None:
        """Makes the function the agent that reads the stage's records; the same as `@app.agent(app.records)`."""
        self.agent(self.records)(shell)

    @property
    def records_waiting(self) -> int:
        """Records that arrived and wait for room in the stream."""
        return 0 if self._consumer is None else int(self.consumer.records_held)

    async def on_stop(self) -> None:
        """Gives the partitions up first, while the stage can still finish what is in flight."""
        if self._consumer is not None:
            await self.consumer.release()
        await super().on_stop()

    def on_rebalance_return(self) -> None:
        """Faust would warn here that there are no sensors."""

    def on_rebalance_end(self) -> None:
        """The partitions may now be prepared."""
        self.rebalancing = False

    def _create_directories(self) -> None:
        """No tables, so no files."""

    def _on_rebalance_when_stopped(self) -> None:
        """The consumer is closed by its own thread."""


def create_app(
    settings: Settings,
    group: str,
    topics: Sequence[str],
    listener: PartitionListener | None = None,
    *,
    instance_id: str = "",
    start: Literal["earliest", "latest"] = "earliest",
    buffer_records_max: int = 64,
    commit_interval_s: float = 0.5,
    revoke_limit_s: float = 2.0,
) -> StageApp:
    """An application that reads `topics` as a member of `group`; nothing is started or connected yet.

    At most about `buffer_records_max` records wait in the stream, and `HELD_FACTOR` times as many of each partition
    before it is paused. An agent that raises stops the application, its record unacknowledged. See `Options` for the
    rest.
    """
    faust_transport.register()
    connection = client_config(settings, instance_id or group)
    app = StageApp(
        group,
        broker=f"{faust_transport.SCHEME}://{str(connection['bootstrap.servers']).replace(',', ';')}",
        Stream=RecordStream,
        TableManager=NoTables,
        agent_supervisor=CrashingSupervisor,
        key_serializer="raw",
        value_serializer="raw",
        broker_commit_interval=commit_interval_s,
        broker_session_timeout=settings.kafka.session_timeout_ms / 1000,
        broker_heartbeat_interval=settings.kafka.session_timeout_ms / 5000,
        broker_max_poll_interval=60,
        stream_buffer_maxsize=max(2, buffer_records_max * 5 // 4),  # records are held back at four fifths
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
    )
    app.transport_options = Options(
        connection=connection,
        listener=listener,
        instance_id=instance_id,
        start=start,
        session_timeout_ms=settings.kafka.session_timeout_ms,
        revoke_limit_s=revoke_limit_s,
        held_records_max=HELD_FACTOR * buffer_records_max,
    )
    app.ready = asyncio.Event()
    app.records = app.topic(*topics, key_serializer="raw", value_serializer="raw")
    return app


async def run(app: StageApp, stopping: asyncio.Event) -> None:
    """Runs the application on this event loop until `stopping` is set; raises what made it fail."""
    app.finalize()
    try:
        await app.start()
        await app.wait_for_stopped(stopping)
    finally:
        await app.stop()
    if app.crash_reason is not None:
        raise app.crash_reason
