"""A ClickHouse server that is ill for a while: the sink waits, what it holds is bounded, and every row arrives once."""

import asyncio
import uuid
from collections.abc import Iterator

import pytest

from schemas.events import EVENTS
from streams.settings import Settings
from tests.support.clickhouse_server import ClickHouseServer, Illness
from tests.support.kafka import TestBroker
from tests.support.sink import SinkProcess, burst_of, publish, rows_are_events

BATCH_ROWS = 500


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseServer]:
    running = ClickHouseServer(tmp_path_factory.mktemp("server"))
    yield running
    running.kill()


@pytest.fixture(scope="module")
def sink(
    kafka: TestBroker, server: ClickHouseServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SinkProcess]:
    running = SinkProcess(
        tmp_path_factory.mktemp("sink"),
        kafka.bootstrap_servers,
        TRUNKLINE_CLICKHOUSE__HOST="127.0.0.1",
        TRUNKLINE_CLICKHOUSE__PORT=str(server.port),
        TRUNKLINE_CLICKHOUSE__ANSWER_S="2",
        TRUNKLINE_CLICKHOUSE__BATCH_ROWS_MAX=str(BATCH_ROWS),
    )
    try:
        running.start()
        yield running
    finally:
        running.kill()


@pytest.fixture
def settings(kafka: TestBroker, sink: SinkProcess) -> Settings:
    """With the sink's keys."""
    return kafka.settings(data_dir=sink.settings.data_dir)


async def tries(sink: SinkProcess, number: int) -> None:
    """Waits until it has failed so many times more."""
    wanted = sink.log.read_text().count("clickhouse_away") + number
    async with asyncio.timeout(120):
        while sink.log.read_text().count("clickhouse_away") < wanted:
            assert sink.running
            await asyncio.sleep(0.1)


async def outlived(sink: SinkProcess, settings: Settings, server: ClickHouseServer, restarted: bool = False) -> None:
    """The server is ill by now; at the end it is well and every row is there once."""
    session_id = str(uuid.uuid4())
    count = 4 * BATCH_ROWS // len(EVENTS)
    await publish(settings, burst_of(session_id, count))
    await tries(sink, 3)
    assert sink.metric("trunkline_sink_waiting") <= BATCH_ROWS
    assert sink.metric("trunkline_log_waiting") <= BATCH_ROWS
    if restarted:
        sink.kill()
        sink.start(wait=False)
        await tries(sink, 1)
    server.thaw()
    server.recover()
    await asyncio.to_thread(rows_are_events, server, session_id, count)
    assert sink.running


@pytest.mark.parametrize("illness", Illness)
async def test_a_server_that_is_ill_for_a_while_gets_every_row_once(
    sink: SinkProcess, settings: Settings, server: ClickHouseServer, illness: Illness
) -> None:
    server.fall_ill(illness)
    await outlived(sink, settings, server)


async def test_a_frozen_server_does_what_it_was_asked_several_times_once(
    sink: SinkProcess, settings: Settings, server: ClickHouseServer
) -> None:
    """Each try lies in its sockets by the time that it thaws."""
    server.freeze()
    await outlived(sink, settings, server)


@pytest.mark.parametrize("illness", [Illness.HANG, Illness.LOSE])
async def test_a_sink_that_is_killed_meanwhile_repeats_the_batch_and_no_row(
    sink: SinkProcess, settings: Settings, server: ClickHouseServer, illness: Illness
) -> None:
    server.fall_ill(illness)
    await outlived(sink, settings, server, restarted=True)


async def test_a_sink_whose_server_hangs_stops_in_order(
    sink: SinkProcess, settings: Settings, server: ClickHouseServer
) -> None:
    server.fall_ill(Illness.HANG)
    session_id = str(uuid.uuid4())
    await publish(settings, burst_of(session_id, 1))
    await tries(sink, 1)
    assert await asyncio.to_thread(sink.stop) == 0
    server.recover()
    await asyncio.to_thread(sink.start)
    await asyncio.to_thread(rows_are_events, server, session_id, 1)
