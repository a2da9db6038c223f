"""Tools' requests over HTTP, without a server."""

import httpx
import pytest
from prometheus_client import REGISTRY

from processors.engine import CallTool, EngineError
from processors.llm import tools
from processors.llm.tools import HttpTools
from streams.clock import SystemClock


def answering() -> HttpTools:
    client = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: httpx.Response(200, json={})))
    return HttpTools(client=client)


@pytest.mark.parametrize("url", ["http://[half/orders", "http://[x]/orders", "ftp://erp/orders", "/orders"])
async def test_a_url_that_is_none_is_an_engine_error(url: str) -> None:
    http = HttpTools(SystemClock())
    with pytest.raises(EngineError) as error:
        _ = [reply async for reply in http.ask(CallTool("GET", url, {}, b"", ""), 5.0)]
    assert error.value.reason == "invalid"
    await http.close()


async def test_a_host_that_is_forgotten_is_no_metric_any_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "HOSTS_MAX", 2)
    http = answering()
    for number in range(3):
        _ = [reply async for reply in http.ask(CallTool("GET", f"http://forgotten{number}/", {}, b"", ""), 5.0)]
    known = [
        REGISTRY.get_sample_value("trunkline_engine_breaker_state", {"engine": f"tools.forgotten{number}"})
        for number in range(3)
    ]
    assert known == [None, 0.0, 0.0]
    await http.close()
