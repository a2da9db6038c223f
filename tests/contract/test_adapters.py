"""Adapters against servers that want to be logged in to, that forget, dawdle, and lose what they were asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from processors.adapters.adapter import load_adapters
from processors.adapters.client import ATTEMPTS_MAX, RESULT_BYTES_MAX, Adapters, Performed
from processors.adapters.pace import Bucket
from processors.engine import CallOperation, EngineError, ToolReturned
from processors.llm.tools import HttpTools
from streams.settings import Settings

SECRETS = {"user": "ada", "password": "hush", "id": "client", "secret": "hush"}
HEAD = "name: X\nlimits: {requests_per_s: 1000, burst: 1000, concurrency: 4}\n"
READ = """operations:
  find:
    path: "things/{{ name }}"
    arguments: [name]
    result: {id: id}
"""
LOOKED_UP = """operations:
  find:
    path: things
    query: {key: "{{ key }}"}
    found: "things[0]"
    result: {id: id}
  make:
    effect: write
    method: POST
    path: things
    body: {key: "{{ key }}", name: "{{ name }}"}
    arguments: [name]
    idempotency: {by: lookup, operation: find}
    result: {id: id}
"""

Answer = tuple[int, Any] | None
Handler = Callable[["Asked"], Answer]


class Asked:
    """A request as the server got it."""

    def __init__(self, head: str, body: bytes) -> None:
        first, *lines = head.split("\r\n")
        self.method, target, _ = first.split(" ")
        self.path, _, query = target.partition("?")
        self.query = parse_qs(query)
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        self.body = body


class Server:
    """Answers each request with what `handler` gives: status and JSON (bytes as they are), or None to hang up."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.asked: list[Asked] = []
        self.more: Callable[[Asked], str] = lambda asked: ""
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        size = next((int(x[15:]) for x in head.split("\r\n") if x.lower().startswith("content-length:")), 0)
        asked = Asked(head.strip(), await reader.readexactly(size))
        self.asked.append(asked)
        answer = self.handler(asked)
        if answer is not None:
            status, value = answer
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            more = self.more(asked) + ("Retry-After: 1\r\n" if status == 429 else "")
            head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def asking(text: str, handler: Handler, tmp_path: Path) -> AsyncIterator[tuple[Adapters, Server]]:
    """An adapter with that text, called x, and the server that it asks."""
    server = Server(handler)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    (tmp_path / "x.yaml").write_text(HEAD + text, encoding="utf-8")
    settings = Settings(data_dir=tmp_path, adapters_dir=tmp_path, adapter_urls={"x": f"{server.url}/api"})
    adapters = Adapters(load_adapters(settings, SECRETS), SECRETS)
    try:
        yield adapters, server
    finally:
        await adapters.close()
        listener.close()


async def find(adapters: Adapters, name: str = "a") -> Performed:
    return await adapters.perform("x.find", {"name": name}, "")


@pytest.mark.parametrize(
    ("body", "found"),
    [(b"[" * 60_000, {}), (b'{"id": ' * 5000 + b"1" + b"}" * 5000, {}), (b'{"id": "a\\ud800"}', {"id": "a?"})],
)
async def test_whatever_a_system_answers_is_a_plain_record(tmp_path: Path, body: bytes, found: Any) -> None:
    async with asking(READ, lambda asked: (200, body), tmp_path) as (adapters, _):
        assert (await find(adapters)).result == found


async def test_client_credentials_are_got_once_kept_and_got_again_when_they_are_not_taken(tmp_path: Path) -> None:
    auth = """auth:
  kind: oauth2
  token_url: /token
  client_id: "{{ secrets.id }}"
  client_secret: "{{ secrets.secret }}"
  scope: things
"""
    issued: list[str] = []

    def answer(asked: Asked) -> Answer:
        if asked.path == "/api/token":
            form = parse_qs(asked.body.decode())
            assert (form["grant_type"], form["client_id"], form["scope"]) == (
                ["client_credentials"],
                ["client"],
                ["things"],
            )
            issued.append(f"token-{len(issued)}")
            return 200, {"access_token": issued[-1], "expires_in": 3600}
        return (200, {"id": 7}) if asked.headers["authorization"] == f"Bearer {issued[-1]}" else (401, {})

    async with asking(auth + READ, answer, tmp_path) as (adapters, server):
        done = await asyncio.gather(*(find(adapters) for _ in range(8)))
        assert {one.result["id"] for one in done} == {7}
        assert issued == ["token-0"]
        issued.append("revoked")
        assert (await find(adapters)).outcome == "ok"
        assert issued[-1] == "token-2"
        assert sum(asked.path == "/api/token" for asked in server.asked) == 2


async def test_a_login_makes_the_headers_of_each_request(tmp_path: Path) -> None:
    auth = """auth:
  kind: login
  body: {method: common.db.login, params: ["{{ secrets.user }}", {password: "{{ secrets.password }}"}]}
  answer: {user: "result[0]", token: "result[1]"}
  headers:
    Authorization: "Session {{ (secrets.user ~ ':' ~ login.user ~ ':' ~ login.token) | base64 }}"
"""
    logins = 0

    def answer(asked: Asked) -> Answer:
        nonlocal logins
        if asked.method == "POST":
            assert json.loads(asked.body)["params"] == ["ada", {"password": "hush"}]
            logins += 1
            return 200, {"result": [3, f"t{logins}"]}
        # A session that ends after every second request.
        known = {"Session YWRhOjM6dDE=": 1, "Session YWRhOjM6dDI=": 2}[asked.headers["authorization"]]
        return (200, {"id": known}) if known == 2 or (known == logins and len(server.asked) < 4) else (403, {})

    async with asking(auth + READ, answer, tmp_path) as (adapters, server):
        assert [(await find(adapters)).result["id"] for _ in range(3)] == [1, 1, 2]


async def test_a_csrf_token_goes_with_writes_alone_and_is_got_anew_when_it_is_not_taken(tmp_path: Path) -> None:
    text = """csrf: {path: metadata}
operations:
  find: {path: things}
  make:
    effect: write
    method: PUT
    path: "things/{{ key }}"
    idempotency: {by: key}
"""
    tokens = 0

    def answer(asked: Asked) -> Answer:
        nonlocal tokens
        if asked.path == "/api/metadata":
            assert asked.headers["x-csrf-token"] == "Fetch"
            tokens += 1
            return 200, {}
        if asked.method == "GET":
            assert "x-csrf-token" not in asked.headers
            return 200, {}
        good = asked.headers["x-csrf-token"] == f"t{tokens}" and asked.headers["cookie"] == f"session=s{tokens}"
        return (200, {}) if good else (403, {})

    def more(asked: Asked) -> str:
        return f"X-CSRF-Token: t{tokens}\r\nSet-Cookie: session=s{tokens}\r\n" if asked.path == "/api/metadata" else ""

    async with asking(text, answer, tmp_path) as (adapters, server):
        server.more = more
        assert (await adapters.perform("x.find", {}, "")).outcome == "ok"
        assert [(await adapters.perform("x.make", {}, "k")).outcome for _ in range(3)] == ["ok"] * 3
        assert tokens == 1
        tokens += 1  # its session is over
        assert (await adapters.perform("x.make", {}, "k")).outcome == "ok"
        assert tokens == 3


async def test_who_is_not_let_in_is_told_so_without_the_secret(tmp_path: Path) -> None:
    auth = "auth: {kind: oauth2, token_url: /token, client_id: x, client_secret: '{{ secrets.secret }}'}\n"
    async with asking(auth + READ, lambda asked: (401, {}), tmp_path) as (adapters, _):
        with pytest.raises(EngineError) as error:
            await find(adapters)
    assert error.value.reason == "refused"
    assert "hush" not in str(error.value)


async def test_a_lookup_keeps_a_system_without_keys_from_making_it_twice(tmp_path: Path) -> None:
    """It makes what it is asked for, and hangs up instead of saying so."""
    things: list[dict[str, Any]] = []

    def answer(asked: Asked) -> Answer:
        if asked.method == "GET":
            return 200, {"things": [one for one in things if [one["key"]] == asked.query["key"]]}
        things.append({**json.loads(asked.body), "id": len(things)})
        return None

    async with asking(LOOKED_UP, answer, tmp_path) as (adapters, _):
        done = [await adapters.perform("x.make", {"name": "a"}, key, 30.0) for key in ("k1", "k1", "k2")]
    assert [one.outcome for one in done] == ["ok"] * 3
    assert [one.result["id"] for one in done] == [0, 0, 1]
    assert [one["key"] for one in things] == ["k1", "k2"]


async def test_a_refusal_is_looked_at_again_for_somebody_else_may_have_made_it(tmp_path: Path) -> None:
    things: list[dict[str, Any]] = []

    def answer(asked: Asked) -> Answer:
        if asked.method == "GET":
            return 200, {"things": things}
        things.append({"id": 5})
        return 409, {"error": "unique"}

    async with asking(LOOKED_UP, answer, tmp_path) as (adapters, _):
        done = await adapters.perform("x.make", {"name": "a"}, "k", 30.0)
    assert (done.outcome, done.result) == ("ok", {"id": 5})


async def test_nothing_is_made_while_it_cannot_be_looked_up(tmp_path: Path) -> None:
    async with asking(LOOKED_UP, lambda asked: (500, {}), tmp_path) as (adapters, server):
        done = await adapters.perform("x.make", {"name": "a"}, "k", 30.0)
    assert (done.outcome, done.may_pass) == ("failed", True)
    assert {asked.method for asked in server.asked} == {"GET"}


async def test_what_was_found_is_not_asked_for_again_for_a_while(tmp_path: Path) -> None:
    def answer(asked: Asked) -> Answer:
        return (404, {}) if asked.path.endswith("/none") else (200, {"id": asked.path})

    text = READ + "    cache_s: 60\n"
    async with asking(text, answer, tmp_path) as (adapters, server):
        found = [await find(adapters, name) for name in ("a", "a", "b", "a", "none", "none")]
    assert [one.outcome for one in found] == ["ok"] * 4 + ["not_found"] * 2
    assert [asked.path for asked in server.asked] == [f"/api/things/{name}" for name in ("a", "b", "none", "none")]


async def test_a_passing_failure_is_tried_again_and_told_in_the_end(tmp_path: Path) -> None:
    async with asking(READ, lambda asked: (503, {}), tmp_path) as (adapters, server):
        assert ((await find(adapters)).status, len(server.asked)) == (503, ATTEMPTS_MAX)
    async with asking(READ, lambda asked: (429, {}) if len(server.asked) < 2 else (200, {"id": 1}), tmp_path) as (
        adapters,
        server,
    ):
        done = await find(adapters)
        assert done.outcome == "ok"
        assert done.duration_ms >= 990  # it asked for a second


async def test_a_tool_gets_the_mapped_record_and_the_adapters_outcome(tmp_path: Path) -> None:
    text = READ + "    outcomes: [{when: body.gone, outcome: sold_out}]\n"
    async with asking(text, lambda asked: (200, {"id": 1, "gone": True, "more": "x" * 1000}), tmp_path) as (
        adapters,
        _,
    ):
        tools = HttpTools(adapters=adapters)
        (reply,) = [reply async for reply in tools.ask(CallOperation("x.find", {"name": "a"}, "k"), 10.0)]
    assert isinstance(reply, ToolReturned)
    assert (reply.status, json.loads(reply.body), reply.outcome) == (200, {"id": 1}, "sold_out")


async def test_an_answer_that_is_too_long_is_none(tmp_path: Path) -> None:
    async with asking(READ, lambda asked: (200, "x" * RESULT_BYTES_MAX), tmp_path) as (adapters, _):
        with pytest.raises(EngineError) as error:
            await find(adapters)
    assert error.value.reason == "invalid"


class Stopped:
    """A clock that moves only by sleeping."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now_us(self) -> int:
        return int(self.now_s * 1_000_000)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


async def test_the_pace_is_kept_after_a_burst() -> None:
    clock = Stopped()
    bucket = Bucket(clock, per_s=10, burst=3)
    taken = []
    for _ in range(6):
        await bucket.take()
        taken.append(round(clock.now_s - 100, 3))
    assert taken == [0, 0, 0, 0.1, 0.2, 0.3]
    bucket.rest(5)
    await bucket.take()
    assert clock.now_s - 100 == pytest.approx(5.3)
    await clock.sleep(60)
    before = clock.now_s
    for _ in range(3):
        await bucket.take()
    assert clock.now_s == before


async def test_who_waits_too_long_for_a_turn_does_not_make_the_system_look_ill(tmp_path: Path) -> None:
    text = READ + "breaker: {failures_max: 1}\n"
    async with asking(text, lambda asked: (200, {"id": 1}), tmp_path) as (_, server):
        slow = HEAD.replace("requests_per_s: 1000, burst: 1000", "requests_per_s: 0.5, burst: 1")
        (tmp_path / "x.yaml").write_text(slow + text, encoding="utf-8")
        settings = Settings(data_dir=tmp_path, adapters_dir=tmp_path, adapter_urls={"x": f"{server.url}/api"})
        spared = Adapters(load_adapters(settings, SECRETS), SECRETS)
        assert (await find(spared)).outcome == "ok"
        for _ in range(2):
            with pytest.raises(EngineError) as error:
                await spared.perform("x.find", {"name": "a"}, "", 0.1)
            assert error.value.reason == "timeout"
        await spared.close()


class Still(Stopped):
    """A clock by which nothing comes."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


async def test_who_leaves_before_the_turn_stands_in_nobodys_way() -> None:
    clock = Still()
    bucket = Bucket(clock, per_s=1, burst=1)
    await bucket.take()
    waiting = [asyncio.ensure_future(bucket.take()) for _ in range(100)]
    await asyncio.sleep(0)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert bucket.is_behind
    clock.now_s += 1
    assert not bucket.is_behind
    await bucket.take()
