"""The demo ERP as a process, and tools calling it: one effect for each idempotency key, whatever happens."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from processors.engine import CallTool, EngineError, Generate, ToolReturned
from processors.llm.tools import ATTEMPTS_MAX, RESULT_BYTES_MAX, HttpTools
from streams.settings import REPOSITORY


class Erp:
    """A server process that can be killed and started again on the same data."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "infra.erp", "--port", "0", "--data", str(self.data)]
        self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://"), "the ERP did not start"

    def rows(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = httpx.get(f"{self.url}/{name}").json()
        return rows

    def stop(self, signal_: int) -> int:
        os.kill(self.process.pid, signal_)
        code = self.process.wait(timeout=20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def erp(tmp_path: Path) -> Iterator[Erp]:
    server = Erp(tmp_path / "erp.sqlite")
    yield server
    if server.process.poll() is None:
        server.stop(signal.SIGTERM)


def ticket(url: str, key: str, problem: str = "broken") -> CallTool:
    headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
    return CallTool("POST", f"{url}/tickets", headers, json.dumps({"problem": problem}).encode(), key)


async def ask(tools: HttpTools, request: CallTool, deadline_s: float = 10.0) -> ToolReturned:
    replies = [reply async for reply in tools.ask(request, deadline_s)]
    assert len(replies) == 1
    assert isinstance(replies[0], ToolReturned)
    return replies[0]


def test_serves_orders_and_stock(erp: Erp) -> None:
    with httpx.Client(base_url=erp.url) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        order = client.get("/orders/1042").json()
        assert (order["status"], len(order["delivery_date"])) == ("shipped", 10)
        assert client.get("/orders/9999").status_code == 404
        assert client.get("/stock/Rain%20Jacket").json()["available"] > 0
        assert client.get("/stock/kayak").status_code == 404
        assert {order["status"] for order in client.get("/orders").json()} == {
            "shipped",
            "processing",
            "delivered",
            "delayed",
            "cancelled",
        }
        assert client.post("/tickets", json={}).status_code == 422


def test_the_catalogue_adds_up(erp: Erp) -> None:
    for order in erp.rows("orders"):
        assert order["total"] == pytest.approx(sum(item["price"] * item["quantity"] for item in order["items"]))


@pytest.mark.parametrize(
    ("number", "status"), [("1187", 201), ("2560", 409), ("4478", 409), ("2117", 409), ("9999", 404)]
)
def test_returns_have_rules(erp: Erp, number: str, status: int) -> None:
    answer = httpx.post(f"{erp.url}/returns", json={"order_number": number}, headers={"Idempotency-Key": "a"})
    assert answer.status_code == status
    assert ("reason" in answer.json()) == (status != 201)
    again = httpx.post(f"{erp.url}/returns", json={"order_number": number}, headers={"Idempotency-Key": "b"})
    assert again.status_code == (409 if status == 201 else status)
    assert len(erp.rows("returns")) == (1 if status == 201 else 0)


async def test_concurrent_repeats_of_a_call_have_one_effect_and_one_answer(erp: Erp) -> None:
    tools = HttpTools()
    calls = [ask(tools, ticket(erp.url, f"key-{n % 5}", f"problem {n % 5}")) for n in range(40)]
    answers = await asyncio.gather(*calls)
    await tools.close()
    assert {answer.status for answer in answers} == {201}
    for n in range(5):
        assert len({answer.body for answer in answers[n::5]}) == 1
    assert sorted(t["problem"] for t in erp.rows("tickets")) == [f"problem {n}" for n in range(5)]


async def test_a_key_used_for_another_request_is_refused(erp: Erp) -> None:
    tools = HttpTools()
    assert (await ask(tools, ticket(erp.url, "key", "one"))).status == 201
    assert (await ask(tools, ticket(erp.url, "key", "two"))).status == 422
    await tools.close()
    assert len(erp.rows("tickets")) == 1


async def test_killed_in_the_middle_it_still_has_one_effect_for_each_key(erp: Erp) -> None:
    keys = [f"key-{n}" for n in range(30)]

    async def attempt(tools: HttpTools, key: str) -> ToolReturned | None:
        try:
            return await ask(tools, ticket(erp.url, key, key), deadline_s=5.0)
        except EngineError:
            return None

    tools = HttpTools()
    first = [asyncio.ensure_future(attempt(tools, key)) for key in keys]
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    assert erp.stop(signal.SIGKILL) == -signal.SIGKILL
    before = dict(zip(keys, await asyncio.gather(*first), strict=True))
    await tools.close()
    assert any(before.values())

    erp.start()
    tools = HttpTools()
    after = {key: await attempt(tools, key) for key in keys}
    await tools.close()
    for key, answer in after.items():
        earlier = before[key]
        assert answer is not None
        assert answer.status == 201
        assert earlier is None or earlier.body == answer.body
    assert sorted(t["problem"] for t in erp.rows("tickets")) == sorted(keys)


def test_stops_in_order_and_says_when_its_port_is_taken(erp: Erp) -> None:
    port = erp.url.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "infra.erp", "--port", port, "--data", str(erp.data)]
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in second.stderr
    assert erp.stop(signal.SIGTERM) in (0, -signal.SIGTERM)


# ---- tools against a server that misbehaves


class Server:
    """Answers each request with the next of `answers` (raw HTTP), then with the last again; None hangs up."""

    def __init__(self, answers: list[bytes | None]) -> None:
        self.answers = answers
        self.requests: list[bytes] = []
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if answer == b"silence":
            await reader.read()
        elif answer is not None:
            writer.write(answer)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def serving(*answers: bytes | None) -> AsyncIterator[Server]:
    server = Server(list(answers))
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()


def response(status: int, body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body)


@pytest.mark.parametrize("passing", [None, response(503), response(429)])
async def test_a_passing_failure_is_tried_again_under_the_same_key(passing: bytes | None) -> None:
    tools = HttpTools()
    async with serving(passing, response(201, b'{"number": 1}')) as server:
        assert (await ask(tools, ticket(server.url, "key"))).body == b'{"number": 1}'
        assert len(server.requests) == 2
        assert all(b"idempotency-key: key\r\n" in request.lower() for request in server.requests)
    await tools.close()


async def test_what_has_no_key_and_may_have_an_effect_is_not_repeated() -> None:
    tools = HttpTools()
    async with serving(None) as server:
        with pytest.raises(EngineError) as error:
            await ask(tools, CallTool("POST", server.url, {}, b"{}", ""))
        assert error.value.reason == "crashed"
        assert len(server.requests) == 1
    await tools.close()


async def test_tries_end_and_the_last_answer_is_given() -> None:
    tools = HttpTools()
    async with serving(response(503)) as server:
        assert (await ask(tools, CallTool("GET", server.url, {}, b"", ""))).status == 503
        assert len(server.requests) == ATTEMPTS_MAX
    await tools.close()


@pytest.mark.parametrize("status", [200, 302, 404, 409, 500])
async def test_a_decided_answer_is_given_as_it_is(status: int) -> None:
    tools = HttpTools()
    async with serving(response(status)) as server:
        assert (await ask(tools, ticket(server.url, "key"))).status == status
        assert len(server.requests) == 1
    await tools.close()


async def test_reasons_of_what_cannot_be_had() -> None:
    tools = HttpTools()
    async with serving(b"silence") as server:
        with pytest.raises(EngineError) as error:
            await ask(tools, ticket(server.url, "key"), deadline_s=0.2)
        assert error.value.reason == "timeout"
    async with serving(response(200, b"x" * (RESULT_BYTES_MAX + 1))) as server:
        with pytest.raises(EngineError) as error:
            await ask(tools, ticket(server.url, "key"))
        assert error.value.reason == "invalid"
    for url in ("/orders/1", "ftp://host/x"):
        with pytest.raises(EngineError) as error:
            await ask(tools, CallTool("GET", url, {}, b"", ""))
        assert error.value.reason == "invalid", url
    with pytest.raises(EngineError) as error:
        async for _ in tools.ask(Generate(()), 1.0):
            pass
    assert error.value.reason == "refused"
    await tools.close()
