"""A ClickHouse server that does wrong as it is told, for tests of who writes to it.

The engine is the real one, embedded in this process; over HTTP it understands what clickhouse-connect sends. As a
program (`python -m tests.support.clickhouse_server FOLDER`) it prints its port and serves until it is killed.
"""

import ast
import asyncio
import email
import email.policy
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from enum import StrEnum
from pathlib import Path

import clickhouse_connect
import httpx
import uvicorn
from clickhouse_connect.driver._backend.chdb_backend import _decompress  # which methods there are differs by Python
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from streams.settings import REPOSITORY
from tests.support.sink import Asked

_INSERT = re.compile(rb"INSERT INTO (?P<table>\S+)\s*\((?P<columns>[^)]*)\)\s*FORMAT Native\n")
_ASKING = re.compile(r"\(*\s*(SELECT|WITH|SHOW|DESCRIBE|EXISTS)\b", re.IGNORECASE)


class Illness(StrEnum):
    """hang: what is asked is neither done nor answered. refuse: it is not done, HTTP 503. lose: rows are written, and
    it is not answered. deny: they are written, HTTP 502. halve: half of an answer comes.
    """

    HANG = "hang"
    REFUSE = "refuse"
    LOSE = "lose"
    DENY = "deny"
    HALVE = "halve"


class ClickHouseServer(Asked):
    """The server as a process."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "tests.support.clickhouse_server", str(folder)]
        self._process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def fall_ill(self, illness: Illness) -> None:
        """From the next request on; those that are hanging hang on when it is well again."""
        self._tell(illness)

    def recover(self) -> None:
        """Requests that come from now on are answered."""
        self._tell("")

    def ask(self, query: str, **parameters: str) -> httpx.Response:
        """The answer of a server that is well, as text."""
        content = f"{query} FORMAT TabSeparated".encode()
        return httpx.post(f"http://127.0.0.1:{self.port}/?database=trunkline", content=content, timeout=60)

    def freeze(self) -> None:
        """It stands still; what it is asked lies in its sockets, and is done when it thaws."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def _tell(self, illness: str) -> None:
        httpx.post(f"http://127.0.0.1:{self.port}/illness", content=illness).raise_for_status()


class Engine:
    """The embedded engine, with a connection for each database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clients: dict[str, Client] = {}

    def perform(self, parameters: Mapping[str, str], body: bytes) -> bytes:
        """Does what is asked and returns the answer; raises ClickHouseError."""
        given = dict(parameters)
        client = self._client(given.pop("database", "default"))
        query = given.pop("query", "")
        named = [name for name in given if name.startswith("param_")]
        values = {name.removeprefix("param_"): _value(given.pop(name)) for name in named}
        if (insert := _INSERT.match(body)) is not None:
            columns = [name.strip().strip("`") for name in insert["columns"].decode().split(",")]
            client.raw_insert(insert["table"].decode(), columns, body[insert.end() :], settings=given, fmt="Native")
            return b""
        query = query or body.decode()
        if _ASKING.match(query):
            form = None if re.search(r"\bFORMAT\s+\w+\s*$", query) else "TabSeparated"
            return client.raw_query(query, parameters=values, settings=given, fmt=form)
        client.command(query, parameters=values, settings=given)
        return b""

    def _client(self, database: str) -> Client:
        if database not in self._clients:
            self._clients[database] = clickhouse_connect.get_client(
                interface="chdb", path=str(self._folder), database=database
            )
        return self._clients[database]


def create_app(engine: Engine) -> Starlette:
    """ClickHouse's `/`, and `/illness`, which takes an `Illness` or nothing."""
    illness = ""

    async def tell(request: Request) -> Response:
        nonlocal illness
        illness = (await request.body()).decode()
        return PlainTextResponse("")

    async def perform(request: Request) -> Response:
        ill = illness
        body = await request.body()
        if ill == Illness.HANG:
            await asyncio.Event().wait()
        if ill == Illness.REFUSE:
            return PlainTextResponse("<html>no server is available</html>", 503)
        if encoding := request.headers.get("content-encoding"):
            body = _decompress(body, encoding)
        parameters = dict(request.query_params)
        if (form := request.headers.get("content-type", "")).startswith("multipart/form-data"):
            parameters |= _fields(form, body)
        try:
            answer = await asyncio.to_thread(engine.perform, parameters, body)
        except ClickHouseError as error:
            return PlainTextResponse(str(error), 500, {"X-ClickHouse-Exception-Code": "1"})
        writes = _INSERT.match(body) is not None
        if ill == Illness.LOSE and writes:
            await asyncio.Event().wait()
        if ill == Illness.DENY and writes:
            return PlainTextResponse("<html>bad gateway</html>", 502)
        if ill == Illness.HALVE:
            return StreamingResponse(_half(answer))
        return Response(answer, media_type="application/octet-stream")

    return Starlette(routes=[Route("/illness", tell, methods=["POST"]), Route("/", perform, methods=["GET", "POST"])])


def _fields(content_type: str, body: bytes) -> dict[str, str]:
    """Of a form, which long parameters come in."""
    form = email.message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body, policy=email.policy.HTTP)
    return {part["content-disposition"].params["name"]: part.get_content() for part in form.iter_parts()}


def _value(text: str) -> str | list[str] | list[int]:
    """What a parameter stands for: the embedded engine's client writes it down anew."""
    return ast.literal_eval(text) if text.startswith("[") else text


async def _half(answer: bytes) -> AsyncIterator[bytes]:
    yield answer[: len(answer) // 2]
    await asyncio.Event().wait()


def main() -> None:
    """Serves the folder that the command line names."""
    config = uvicorn.Config(create_app(Engine(Path(sys.argv[1]))), log_config=None, lifespan="off")
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
