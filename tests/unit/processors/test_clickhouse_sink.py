"""What the sink shows of its progress; that every row arrives once is tested against ClickHouse itself."""

from dataclasses import replace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from clickhouse_connect.driver.exceptions import DataError

from processors.clickhouse.sink import Sink, patiently
from processors.privacy import Policies
from schemas import json_form
from schemas.events import DeadLetter, Transcript
from streams.client import LogError, Partition
from streams.clock import SystemClock
from streams.codec import default_codec
from streams.consumer import Record
from streams.settings import Settings


class Coordinator:
    """A group's coordinator that is away for a while."""

    def __init__(self) -> None:
        self.away = True
        self.offsets: dict[Partition, int] = {}

    async def commit(self, offsets: dict[Partition, int]) -> None:
        if self.away:
            raise LogError("not coordinator")
        self.offsets |= offsets


async def test_offsets_that_the_coordinator_did_not_take_are_shown_with_the_next() -> None:
    sink = Sink(Settings(), MagicMock(), MagicMock(), MagicMock(), SystemClock(), Policies({}))
    coordinator: Any = Coordinator()
    first, second = Partition("voice.intents", 0), Partition("voice.control", 1)
    sink._unshown[first] = 7
    await sink._show(coordinator)
    coordinator.away = False
    sink._unshown[second] = 3
    await sink._show(coordinator)
    assert coordinator.offsets == {first: 7, second: 3}
    coordinator.offsets.clear()
    await sink._show(coordinator)
    assert coordinator.offsets == {}


def record(value: bytes, offset: int) -> Record:
    key = json_form.examples(Transcript)[0].session_id.encode()
    return Record(Transcript.TOPIC, 2, offset, key, value, (), 0)


async def test_an_event_that_fits_no_table_is_a_dead_letter_and_the_others_are_written() -> None:
    """Stages take it for what it is, and refuse only what is no event."""
    good = json_form.examples(Transcript)[0]
    unfit = default_codec().encode(replace(good, audio_start_ms=2**53 // 16))
    letters: Any = AsyncMock()
    sink = Sink(Settings(), MagicMock(), MagicMock(publish=letters), default_codec(), SystemClock(), Policies({}))
    records = [record(unfit, 6), record(b"garbage", 7), record(default_codec().encode(good), 8)]
    tables, _ = await sink._tables(records)
    assert [row[-1] for row in tables[Transcript]] == [8]
    (told,) = (call.args[0] for call in letters.await_args_list)
    assert isinstance(told, DeadLetter)
    assert (told.source_topic, told.source_partition, told.source_offset) == (Transcript.TOPIC, 2, 6)
    assert (told.stage, told.reason, told.record_value) == ("clickhouse", "invalid_field", unfit)
    assert told.detail.startswith("audio_start_ms: ")


async def test_rows_that_cannot_be_written_are_not_tried_for_ever() -> None:
    work = MagicMock(side_effect=DataError("value out of range"))
    with pytest.raises(DataError):
        await patiently(work)
    work.assert_called_once_with()
