"""In which partitions a gateway's calls begin."""

from pathlib import Path
from typing import Any

import pytest

from api.metrics import Metrics
from api.session_router import SessionRouter
from api.twilio import session_of
from streams.keys import partition_of
from streams.settings import Settings

CALLS = 200  # so that not one of eight partitions is missed by chance


@pytest.mark.parametrize(
    ("api", "begun"),
    [
        ({}, set(range(8))),
        ({"spread": 2}, {0, 4}),
        ({"spread": 3}, {0, 2, 5}),
        ({"spread": 9}, set(range(8))),
        ({"partitions": [7, 5, 3]}, {3, 5, 7}),
        ({"partitions": [7, 5, 3], "spread": 1}, {3}),
    ],
)
def test_calls_begin_in_so_many_of_the_gateways_partitions(
    tmp_path: Path, api: dict[str, Any], begun: set[int]
) -> None:
    settings = Settings(data_dir=tmp_path, api=api)
    router = SessionRouter(settings, {}, Metrics())
    assert {partition_of(router.mint(), settings.kafka.partitions) for _ in range(CALLS)} == begun
    telephone = (session_of(router, f"CA{number:032x}") for number in range(CALLS))
    assert {partition_of(session_id, settings.kafka.partitions) for session_id in telephone} == begun
    # Those that began elsewhere, under another setting or at another gateway of the same partitions, are still its own.
    assert router.partitions == set(settings.api.partitions or range(8))
