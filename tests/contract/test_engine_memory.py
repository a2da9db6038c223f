"""Engine processes whose models find no memory: real children, which go on with less at once."""

import asyncio
import os
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from api.cli.engines import rows_of
from processors.engine import Embed, Embedded, EngineError, Generate, Generated
from processors.engine_client import SocketEngine
from streams import ready
from tests.support.engines import HostProcess, noted, replies, running_host, script, settings_in, start_host


def counted(host: HostProcess, name: str, **labels: str) -> float:
    """A sample of the process's page of metrics; 0 where it is not there."""
    facts = ready.read(host.settings, f"engine-{host.role}.{host.replica}") or {}
    wanted = ",".join(f'{label}="{value}"' for label, value in sorted({"role": host.role, **labels}.items()))
    for line in httpx.get(f"http://127.0.0.1:{facts['metrics_port']}/metrics").text.splitlines():
        if line.startswith(f"{name}{{{wanted}}} "):
            return float(line.rpartition(" ")[2])
    return 0.0


async def texts(client: SocketEngine, request: Generate) -> list[str]:
    return [reply.text for reply in await replies(client, request) if isinstance(reply, Generated)]


async def test_an_ask_for_which_memory_lacks_once_is_answered_by_the_same_process(tmp_path: Path) -> None:
    settings, journal = settings_in(tmp_path), tmp_path / "journal"
    with running_host(settings, "llm", scripted=True) as host:
        client = SocketEngine(settings, "llm")
        assert await texts(client, script(journal, "a", pieces=2, lacks=1)) == ["a0", "a1"]
        assert noted(journal).count("a:begun") == 2
        assert counted(host, "trunkline_engine_out_of_memory_total", outcome="less") == 1
        assert counted(host, "trunkline_engine_asks_total", outcome="answered") == 1
        await client.close()


async def test_where_memory_goes_on_lacking_the_ask_fails_as_that_and_the_process_lives(tmp_path: Path) -> None:
    settings, journal = settings_in(tmp_path), tmp_path / "journal"
    with running_host(settings, "llm", scripted=True) as host:
        client = SocketEngine(settings, "llm")
        with pytest.raises(EngineError, match="out_of_memory: RuntimeError"):
            await texts(client, script(journal, "a", lacks=2))
        assert noted(journal).count("a:begun") == 2
        # What was said already cannot be said again: the ladder goes on from there.
        with pytest.raises(EngineError, match="out_of_memory: MemoryError"):
            await texts(client, script(journal, "b", lacks_later=True))
        assert noted(journal).count("b:begun") == 1
        assert await texts(client, script(journal, "c")) == ["c0"]
        assert host.process.poll() is None
        assert counted(host, "trunkline_engine_out_of_memory_total", outcome="failed") == 2
        assert counted(host, "trunkline_engine_asks_total", outcome="out_of_memory") == 2
        await client.close()


async def test_an_engine_that_works_on_several_asks_works_on_fewer_afterwards(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, llm="tests.support.engines:several")
    journal, gate, later = tmp_path / "journal", tmp_path / "gate", tmp_path / "later"
    with running_host(settings, "llm") as host:
        client = SocketEngine(settings, "llm")
        asks = [asyncio.create_task(texts(client, script(journal, name, lacks=1, gate=str(gate)))) for name in "abcd"]
        async with asyncio.timeout(30):
            while len(noted(journal)) < 4:  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.01)
        gate.touch()
        assert await asyncio.gather(*asks) == [["a0"], ["b0"], ["c0"], ["d0"]]
        assert counted(host, "trunkline_engine_out_of_memory_total", outcome="less") == 4
        held = [asyncio.create_task(texts(client, script(journal, name, gate=str(later)))) for name in "ef"]
        async with asyncio.timeout(30):
            while counted(host, "trunkline_engine_queue_depth") < 1:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.01)
        assert counted(host, "trunkline_engine_working") == 1
        later.touch()
        await asyncio.gather(*held)
        await client.close()


async def test_texts_are_embedded_in_smaller_batches(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, embeddings="tests.support.engines:narrow")
    given = tuple("x" * length for length in range(1, 12))
    with running_host(settings, "embeddings") as host:
        client = SocketEngine(settings, "embeddings")
        (reply,) = await replies(client, Embed(given))
        assert isinstance(reply, Embedded)
        found = np.frombuffer(reply.vectors, "<f4").reshape(-1, reply.dimensions)
        assert [int(row.argmax()) for row in found] == [len(text) for text in given]
        with pytest.raises(EngineError, match="out_of_memory"):
            await replies(client, Embed((*given, "huge")))
        assert host.process.poll() is None
        await client.close()


def test_a_process_tells_its_memory_and_how_long_it_took_to_be_warm(tmp_path: Path) -> None:
    settings, stage = settings_in(tmp_path), CollectorRegistry()
    up = Gauge("trunkline_engine_up", "As a stage serves it.", ["role", "engine", "address"], registry=stage)
    up.labels("llm", "llm.0", "engine-llm.0").set(1)
    server, _ = start_http_server(0, "127.0.0.1", stage)
    ready.announce(settings, "llm", metrics_port=server.server_port)
    with running_host(settings, "llm", scripted=True) as host:
        engine = {"name": "engine-llm.0", "state": "ready"}
        (row,) = rows_of(settings, {"components": [{"name": "llm", "state": "ready", "engines": [engine]}]}, {})
        resident_mb = psutil.Process(host.process.pid).memory_info().rss / 1e6
        assert row.memory_mb is not None
        assert abs(row.memory_mb - resident_mb) < 0.2 * resident_mb
        assert row.warm_s is not None
        assert row.device_memory_mb is None
        assert counted(host, "trunkline_engine_load_seconds") >= counted(host, "trunkline_engine_warm_seconds") > 0
    server.shutdown()


def test_a_model_for_which_there_is_no_memory_says_so_and_is_not_served(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, embeddings="tests.support.engines:too_large")
    host = start_host(settings, "embeddings")
    assert host.process.wait() == os.EX_OSERR
    assert "no memory left for the model (MemoryError)" in host.log.read_text()
    assert "Traceback" not in host.log.read_text()
