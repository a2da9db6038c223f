"""The embedded ClickHouse on ClickHouse's own HTTP interface, on loopback and read-only.

Questions are SELECTs and their like over the platform's tables. What would leave them (files, other servers, INTO
OUTFILE) is refused by looking at the parsed query, since `readonly` alone lets some of it pass.
"""

import asyncio
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import structlog
import uvicorn
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from processors.clickhouse.store import connect
from streams.settings import Settings

log = structlog.get_logger(__name__)

QUERY_S_MAX = 30
RESULT_ROWS_MAX = 1_000_000
QUERY_BYTES_MAX = 262_144
# First words of the parsed query's tree: what only reads.
_READING = ("SelectWithUnionQuery", "SelectQuery", "SelectIntersectExceptQuery", "ShowTables", "Describe", "Explain")
_READING_WORDS = re.compile(r"\s*(select|with|show|describe|desc|explain|exists)\b", re.IGNORECASE)
_ALLOWED_TABLE_FUNCTIONS = frozenset({"numbers", "values", "view", "zeros", "generateseries", "generate_series"})
_FORMAT_SETTINGS = re.compile(r"(?:output_)?format_\w+|output_format_\w+|default_format")


class Questions:
    """Answers questions on connections of its own, a few at a time."""

    def __init__(self, settings: Settings, concurrency: int = 2) -> None:
        self._clients: asyncio.Queue[Client] = asyncio.Queue()
        self._database = settings.clickhouse.database
        for _ in range(concurrency):
            self._clients.put_nowait(connect(settings))

    async def ask(self, query: str, form: str, formats: Mapping[str, str]) -> bytes:
        """The answer in ClickHouse's format of that name; raises ClickHouseError, or ValueError for what is refused."""
        client = await self._clients.get()
        try:
            return await asyncio.to_thread(self._ask, client, query, form, dict(formats))
        finally:
            self._clients.put_nowait(client)

    def _ask(self, client: Client, query: str, form: str, formats: dict[str, str]) -> bytes:
        check(client, query)
        settings: dict[str, Any] = {
            **formats,
            "max_execution_time": QUERY_S_MAX,
            "max_result_rows": RESULT_ROWS_MAX,
            "readonly": 1,
        }
        return client.raw_query(query, fmt=form, settings=settings)


def check(client: Client, query: str) -> None:
    """Raises ValueError unless the query only reads the platform's tables."""
    if not _READING_WORDS.match(query):
        raise ValueError("read-only: a SELECT, SHOW, DESCRIBE, EXISTS or EXPLAIN is expected")
    if not re.match(r"\s*(select|with)\b", query, re.IGNORECASE):
        return
    tree = client.raw_query(f"EXPLAIN AST {query}", fmt="TabSeparatedRaw").decode()
    if not tree.startswith(_READING):
        raise ValueError("read-only: one SELECT is expected")
    if re.search(r"\binto\s+outfile\b", _without_literals(query), re.IGNORECASE):
        raise ValueError("read-only: INTO OUTFILE is refused")
    for name in _table_functions(tree):
        if name.lower() not in _ALLOWED_TABLE_FUNCTIONS:
            raise ValueError(f"read-only: the table function {name} is refused")


def _table_functions(tree: str) -> list[str]:
    """Functions that stand where a table does: directly below a TableExpression."""
    found = []
    lines = tree.splitlines()
    for above, line in pairwise(lines):
        if above.strip().startswith("TableExpression") and (match := re.match(r"\s*Function (\w+)", line)):
            found.append(match[1])
    return found


def _without_literals(query: str) -> str:
    query = re.sub(r"'(?:[^'\\]|\\.|'')*'", "''", query)
    return re.sub(r"--[^\n]*|/\*.*?\*/", " ", query, flags=re.DOTALL)


def create_app(questions: Questions) -> Starlette:
    """`GET /?query=...` and `POST /` with the query as body, `/ping`, as ClickHouse's HTTP interface has them."""

    async def ask(request: Request) -> Response:
        body = await request.body()
        query = " ".join(
            part for part in (request.query_params.get("query", ""), body.decode("utf-8", "replace")) if part
        )
        if not query.strip():
            return PlainTextResponse("Ok.\n")
        if len(query) > QUERY_BYTES_MAX:
            return PlainTextResponse(f"Code: 62. at most {QUERY_BYTES_MAX} characters are expected\n", 400)
        form, query = _format(query, request.query_params.get("default_format", "TabSeparated"))
        formats = {
            name: value
            for name, value in request.query_params.items()
            if _FORMAT_SETTINGS.fullmatch(name) and name != "default_format"
        }
        try:
            answer = await questions.ask(query, form, formats)
        except ValueError as error:
            return PlainTextResponse(f"Code: 164. DB::Exception: {error} (READONLY)\n", 403)
        except ClickHouseError as error:
            return PlainTextResponse(f"{error}\n", 400)
        return Response(answer, headers={"X-ClickHouse-Format": form})

    async def ping(request: Request) -> Response:
        return PlainTextResponse("Ok.\n")

    return Starlette(routes=[Route("/ping", ping), Route("/", ask, methods=["GET", "POST"])])


def _format(query: str, default: str) -> tuple[str, str]:
    """A FORMAT at the end of the query rules; else the default, where it is a plain name."""
    query = query.strip().rstrip(";").rstrip()
    match = re.search(r"\bFORMAT\s+(\w+)$", query, re.IGNORECASE)
    if match:
        return match[1], query[: match.start()].rstrip()
    return (default if re.fullmatch(r"\w+", default) else "TabSeparated"), query


class Server(uvicorn.Server):
    """A uvicorn server inside a process that handles signals itself."""

    def install_signal_handlers(self) -> None:
        """The process has its own."""


async def serve(settings: Settings, questions: Questions) -> tuple[Server, "asyncio.Task[None]", int]:
    """Starts answering on loopback; returns the server, its task and the port."""
    config = uvicorn.Config(
        create_app(questions), host="127.0.0.1", port=settings.clickhouse.http_port, log_config=None, lifespan="off"
    )
    server = Server(config)
    sock = config.bind_socket()
    task = asyncio.get_running_loop().create_task(server.serve(sockets=[sock]), name="clickhouse-http")
    return server, task, sock.getsockname()[1]
