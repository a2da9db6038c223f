"""What `trunkline engines` makes of a stage's metrics, of its processes' states and of voice.health."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from api.cli import engines
from api.engines import EngineRow, Trouble, engine_rows, quantile, troubles_of, with_footprint
from processors.breaker import Breaker
from processors.engine import EngineError, Generate, Generated, Message, Reply, Request
from processors.ladder import Ladder, Rung
from processors.lane import Description, Lane
from processors.rungs import MANNERS
from schemas.events import Health, HealthKind
from streams import ready
from streams.settings import Settings
from tests.simulation.simulated import SimulatedClock, simulate

INF = float("inf")
CHAT = Generate((Message("user", "Hello"),))


@pytest.mark.parametrize(
    ("buckets", "share", "value"),
    [
        ({}, 0.5, None),
        ({0.1: 0, INF: 0}, 0.5, None),
        ({0.1: 10, INF: 10}, 0.5, 0.05),
        ({0.1: 10, INF: 10}, 0.95, 0.095),
        ({0.1: 0, 0.2: 10, INF: 10}, 0.5, 0.15),
        ({0.1: 5, 0.2: 5, 0.4: 10, INF: 10}, 0.5, 0.1),
        ({0.1: 5, 0.2: 5, 0.4: 10, INF: 10}, 0.75, 0.3),
        ({0.1: 1, 5.0: 1, INF: 10}, 0.95, 5.0),  # all that is known: longer than that
    ],
)
def test_a_quantile_is_interpolated_in_its_bucket(
    buckets: Mapping[float, float], share: float, value: float | None
) -> None:
    assert quantile(buckets, share) == (value if value is None else pytest.approx(value))


PAGE = """\
# TYPE trunkline_engine_up gauge
trunkline_engine_up{{address="{address}",device="remote",engine="llm.0",model="m",role="llm"}} {up}
# TYPE trunkline_engine_breaker_state gauge
trunkline_engine_breaker_state{{engine="llm.0"}} {breaker}
"""


@pytest.mark.parametrize(
    ("address", "up", "state", "health"),
    [
        ("http://gpu:8000/v1", 1, "", "reachable"),
        ("http://gpu:8000/v1", 0, "", "away"),
        ("engine-llm.0", 1, "ready", "ready"),
        ("engine-llm.0", 0, "ready", "away"),
        ("engine-llm.0", 0, "restarting", "restarting"),
        ("engine-llm.0", 0, "failing", "failing"),
    ],
)
def test_health_is_what_its_process_or_its_connection_shows(address: str, up: int, state: str, health: str) -> None:
    families = text_string_to_metric_families(PAGE.format(address=address, up=up, breaker=0))
    (row,) = engine_rows("llm", families, {address: state} if state else {}, {})
    assert (row.health, row.address, row.model, row.device) == (health, address, "m", "remote")
    assert (row.answered, row.failed, row.p50_ms, row.p95_ms) == (0, {}, None, None)


@pytest.mark.parametrize(("value", "state"), [(0, "closed"), (1, "half open"), (2, "open")])
def test_a_breakers_state_has_a_name(value: int, state: str) -> None:
    (row,) = engine_rows("llm", text_string_to_metric_families(PAGE.format(address="", up=1, breaker=value)), {}, {})
    assert row.breaker == state


def test_a_tools_host_has_a_breaker_and_nothing_else() -> None:
    page = 'trunkline_engine_breaker_state{engine="tools.erp.test:8090"} 2\n'
    trouble = Trouble(5, "timeout")
    rows = engine_rows("llm", text_string_to_metric_families(page), {}, {("llm", "tools.erp.test:8090"): trouble})
    assert rows == [EngineRow("llm", "tools", "tools.erp.test:8090", breaker="open", trouble=trouble)]


def health(at_us: int, kind: HealthKind = HealthKind.BREAKER_OPENED, **fields: Any) -> Health:
    told = {"component": "llm", "engine": "llm.0", "reason": "crashed", **fields}
    where: dict[str, Any] = {"event_id": f"{at_us}", "session_id": "s", "tenant_id": "t", "agent_id": ""}
    return Health(**where, turn=0, seq=1, occurred_at=at_us, kind=kind, **told)


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([], {}),
        ([health(1), health(3, reason="timeout"), health(2)], {("llm", "llm.0"): Trouble(3, "timeout")}),
        ([health(1), health(2, HealthKind.BREAKER_CLOSED)], {("llm", "llm.0"): Trouble(1, "crashed")}),
        ([health(1, HealthKind.LOAD_RAISED), health(1, HealthKind.BURN_RAISED)], {}),
        (
            [health(1, component="intent", engine="embeddings.0"), health(1, engine="embeddings.0")],
            {("intent", "embeddings.0"): Trouble(1, "crashed"), ("llm", "embeddings.0"): Trouble(1, "crashed")},
        ),
    ],
)
def test_the_newest_opening_of_each_breaker_is_the_trouble(
    events: list[Health], found: dict[tuple[str, str], Trouble]
) -> None:
    assert troubles_of(events) == found


class Scripted:
    """An engine that answers after a tenth of a second, or fails."""

    def __init__(self, address: str, fails: str = "") -> None:
        self.description = Description("", "remote", address)
        self.fails = fails

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        await asyncio.sleep(0.1)
        if self.fails:
            raise EngineError(self.fails)
        self.description = replace(self.description, model="a-model")
        yield Generated("Hello. ")

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def served() -> int:
    """The port of a page of metrics that a real ladder made: three asks, of which the first engine answers none."""

    async def test() -> None:
        clock = SimulatedClock()
        clients = Scripted("http://one.test/v1", "crashed"), Scripted("http://two.test/v1")
        names = [f"unit.{number}" for number in range(2)]
        lanes = [Lane(name, one, Breaker(name, clock)) for name, one in zip(names, clients, strict=True)]
        ladder = Ladder("llm", [Rung(lane) for lane in lanes], clock, MANNERS["llm"])
        for _ in range(3):
            assert [reply async for reply in ladder.ask(CHAT, 4.0)]
        await asyncio.sleep(2.0)
        await ladder.close()

    simulate(test())
    server, _ = start_http_server(0, "127.0.0.1", registry=REGISTRY)
    return int(server.server_port)


def test_a_running_stage_is_shown_by_what_it_serves(tmp_path: Path, served: int) -> None:
    settings = Settings(data_dir=tmp_path)
    ready.announce(settings, "llm", metrics_port=served)
    state = {"components": [{"name": "llm", "state": "ready"}, {"name": "tts", "state": "restarting"}]}
    rows = engines.rows_of(settings, state, {("llm", "unit.0"): Trouble(7, "crashed")})
    first, second = (row for row in rows if row.engine.startswith("unit."))
    assert (first.role, first.address, first.health) == ("llm", "http://one.test/v1", "reachable")
    assert first.answered == 0
    assert first.failed["crashed"] == 3
    assert first.p50_ms is None
    assert first.trouble == Trouble(7, "crashed")
    assert (second.model, second.breaker, second.answered, second.failed) == ("a-model", "closed", 3, {})
    assert second.p50_ms is not None
    assert 50 <= second.p50_ms <= 100
    assert second.as_json()["trouble"] is None
    assert rows[-1] == EngineRow("tts", "", "", health="the stage is restarting")


FOOTPRINT = """\
# TYPE trunkline_engine_memory_bytes gauge
trunkline_engine_memory_bytes{role="stt"} 3.1e+08
# TYPE trunkline_engine_load_seconds gauge
trunkline_engine_load_seconds{role="stt"} 2.34
"""
DEVICE = """\
# TYPE trunkline_engine_device_memory_bytes gauge
trunkline_engine_device_memory_bytes{role="stt",what="used"} 9e+09
trunkline_engine_device_memory_bytes{role="stt",what="own"} OWN
"""


@pytest.mark.parametrize(
    ("page", "footprint"),
    [
        ("", (None, None, None)),
        (FOOTPRINT, (310, None, 2.3)),
        (FOOTPRINT + DEVICE.replace("OWN", "2.5e+09"), (310, 2500, 2.3)),
        (FOOTPRINT + DEVICE.replace("OWN", "NaN"), (310, None, 2.3)),  # it was told once, and is not any more
    ],
)
def test_an_engines_process_tells_what_it_takes(page: str, footprint: tuple[int | None, int | None, float]) -> None:
    row = with_footprint(EngineRow("stt", "stt", "stt.0"), text_string_to_metric_families(page))
    assert (row.memory_mb, row.device_memory_mb, row.warm_s) == footprint


def test_a_stage_that_cannot_be_asked_is_said_to_be_so(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    components = [{"name": "intent", "state": "ready"}, {"name": "llm", "state": "failing"}, {"name": "api"}]
    rows = engines.rows_of(settings, {"components": components}, {})
    assert [(row.stage, row.engine, row.health) for row in rows] == [
        ("intent", "", "the stage serves no metrics"),
        ("llm", "", "the stage is failing"),
    ]


def test_nothing_running_has_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert engines.show(tmp_path, as_json=True) == 3
    assert capsys.readouterr().out == ""
    assert engines.show(tmp_path, as_json=False) == 3
    assert "trunkline up" in capsys.readouterr().out
