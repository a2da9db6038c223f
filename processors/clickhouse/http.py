"""The embedded ClickHouse on ClickHouse's own HTTP interface, on loopback and read-only.

Questions are SELECTs and their like over the platform's tables. The engine's `readonly` refuses changes, but not all
that leaves the tables (files, other servers, INTO OUTFILE), so what is asked is also looked at as the engine's own
parser sees it: it writes the query anew, one statement without comments, and only that text is checked and executed.
Stock clients find what they expect of a server: its ways to give a name and password, its status and error codes. Of
settings they may set those of formats; others have no effect.
"""

import asyncio
import base64
import binascii
import contextlib
import re
import socket
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field

import structlog
import uvicorn
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from prometheus_client import Counter, Gauge
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from processors.access.keyring import Keyring
from processors.access.refusals import Refusals
from processors.clickhouse.readers import Reader, Readers
from processors.clickhouse.sight import Sight, sight
from processors.clickhouse.store import connect
from schemas.events import AccessKind
from streams.client import LogError
from streams.settings import Settings

log = structlog.get_logger(__name__)

QUERY_S_MAX = 30
QUESTIONS_MAX = 32  # asked at once, most of them waiting
RESULT_ROWS_MAX = 1_000_000
QUERY_BYTES_MAX = 262_144
QUERY_MEMORY_BYTES_MAX = 1_073_741_824
QUERY_THREADS_MAX = 2
ACTION = "SQL"
_READING = re.compile(r"\(*\s*(SELECT|WITH|SHOW|DESCRIBE|DESC|EXPLAIN|EXISTS)\b", re.IGNORECASE)
_ALLOWED_TABLE_FUNCTIONS = frozenset(
    {"numbers", "values", "view", "zeros", "null", "format", "generateseries", "generate_series"}
)
# Functions of other kinds that read files, tables named by a text, or ask other servers.
_REFUSED_FUNCTIONS = re.compile(
    r"file|catboostevaluate|hascolumnintable|(?:dictget|dicthas|dictisin|joinget)\w*"
    r"|ai(?:generate|classify|embed|extract|filter|redact|similarity|translate)"
)
_FORMAT_SETTINGS = re.compile(r"(?:output_)?format_\w+")
_LITERALS = re.compile(r"'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.|``)*`|\"(?:[^\"\\]|\\.|\"\")*\"", re.DOTALL)
_TABLE = re.compile(r"^\s*TableIdentifier (\S+)", re.MULTILINE)
_UUID = re.compile(r"'[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}'", re.IGNORECASE)
_PERSONAL = re.compile(rf"{_LITERALS.pattern}|\b\d{{4,}}\b", re.DOTALL)
asking = Gauge("trunkline_sink_questions", "SQL questions asked and not yet answered.")
refused = Counter("trunkline_sink_questions_refused", "SQL questions not taken, since too many were asked.")

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "b": "\b", "f": "\f"}


@dataclass(frozen=True, slots=True)
class Question:
    """A query, the format to answer in unless it names one, parameters for its `{name:Type}`, settings of formats."""

    query: str
    form: str = "TabSeparated"
    parameters: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    password: str = field(default="", repr=False)
    database: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A question that may be asked: `query` without its format, and whether it reads the platform's tables."""

    query: str
    form: str
    parameters: Mapping[str, str]
    settings: Mapping[str, str]
    reads: bool


class BusyError(Exception):
    """Too many questions are being asked already."""


class RefusedError(Exception):
    """Not for this asker; `code` is ClickHouse's, with the HTTP status that goes with it."""

    def __init__(self, code: int, name: str, status: int, detail: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {detail} ({name})")
        self.status = status


class UnknownReaderError(RefusedError):
    """A wrong name or password, or a key that may not ask."""


class Questions:
    """Answers questions on connections of its own, a few at a time."""

    def __init__(
        self,
        settings: Settings,
        note: Callable[..., Awaitable[None]],
        concurrency: int = 2,
        keyring: Keyring | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        """`note` writes down who asks what, before it is answered (`processors.audit.accesses.Accesses.note`)."""
        self._asking = 0
        self._note = note
        self._database = settings.clickhouse.database
        self._readers = Readers(settings, keyring)
        self._refusals = refusals
        self._sights: dict[str, Sight] = {}
        self._clients: asyncio.Queue[Client] = asyncio.Queue()
        for _ in range(concurrency):
            self._clients.put_nowait(_reading_client(settings))

    async def ask(self, question: Question) -> tuple[bytes, str]:
        """The answer and its format.

        Raises ClickHouseError, ValueError for what is refused, RefusedError for a wrong name or password, BusyError, or
        LogError where the question cannot be written down.
        """
        if self._asking >= QUESTIONS_MAX:
            refused.inc()
            raise BusyError
        self._asking += 1
        asking.set(self._asking)
        try:
            client = await self._clients.get()
            try:
                reader, prepared = await asyncio.to_thread(self._prepared, client, question)
                if prepared.reads:
                    tenant, shape = reader.tenant or "", shape_of(prepared.query)
                    await self._note(AccessKind.QUERIED, reader.name, tenant=tenant, query=shape)
                return await asyncio.to_thread(answer, client, prepared), prepared.form
            except UnknownReaderError:
                if self._refusals is not None:
                    self._refusals.tell(*self._readers.refusal(question.password), action=ACTION)
                raise
            finally:
                self._clients.put_nowait(client)
        finally:
            self._asking -= 1
            asking.set(self._asking)

    def _prepared(self, client: Client, question: Question) -> tuple[Reader, Prepared]:
        reader = self._readers.known(question.user, question.password)
        if reader is None:
            detail = (
                f"{question.user}: Authentication failed: password is incorrect, or there is no user with such name."
            )
            raise UnknownReaderError(516, "AUTHENTICATION_FAILED", 403, detail)
        # Clients that were not told a database name the one that servers come with.
        if question.database not in ("", "default", self._database):
            raise RefusedError(81, "UNKNOWN_DATABASE", 404, f"Database {question.database} does not exist.")
        return reader, prepare(client, question, self._sight(client, reader.tenant))

    def _sight(self, client: Client, tenant: str | None) -> Sight | None:
        if tenant is None:
            return None
        if tenant not in self._sights:
            self._sights[tenant] = sight(client, self._database, tenant)
        return self._sights[tenant]


def _reading_client(settings: Settings) -> Client:
    """A connection that can change nothing but settings, from its first query on; there is no way back."""
    client = connect(settings)
    client.command(f"SET max_execution_time = {QUERY_S_MAX}, max_result_rows = {RESULT_ROWS_MAX}")
    client.command(f"SET max_memory_usage = {QUERY_MEMORY_BYTES_MAX}, max_threads = {QUERY_THREADS_MAX}")
    client.command("SET readonly = 2")
    return client


def prepare(client: Client, question: Question, seen: Sight | None = None) -> Prepared:
    """Looks at a question; blocks. `seen` is what a tenant's reader sees; without it, everything is.

    Raises ClickHouseError, and ValueError for what is refused.
    """
    parameters = dict(question.parameters)
    query = client.query(
        "SELECT formatQuerySingleLine({query:String})", parameters={"query": question.query}
    ).result_rows[0][0]
    form, query = split_format(query, question.form)
    if not _READING.match(query):
        raise ValueError("read-only: one SELECT, SHOW, DESCRIBE, EXISTS or EXPLAIN is expected")
    bare = _LITERALS.sub("''", query)
    if ";" in bare:
        raise ValueError("read-only: one statement is expected")
    if re.search(r"\bINTO\s+OUTFILE\b", bare, re.IGNORECASE):
        raise ValueError("read-only: INTO OUTFILE is refused")
    tree = client.raw_query(f"EXPLAIN AST {query}", parameters=parameters, fmt="TabSeparatedRaw").decode()
    _check(tree, _table_functions(client))
    settings = dict(question.formats)
    if seen is not None:
        settings |= seen.checked(client, query, bare, tree, parameters)
    reads = any(not name.lower().startswith(("system.", "information_schema.")) for name in _TABLE.findall(tree))
    return Prepared(query, form, parameters, settings, reads)


def answer(client: Client, prepared: Prepared) -> bytes:
    """Blocks; raises ClickHouseError."""
    parameters, settings = dict(prepared.parameters), dict(prepared.settings)
    return client.raw_query(prepared.query, parameters=parameters, fmt=prepared.form, settings=settings)


def shape_of(query: str) -> str:
    """The query with `?` for its texts and long numbers, which may name persons; ids of calls stay."""

    def shown(part: re.Match[str]) -> str:
        text = part[0]
        if text[0] in '`"' or _UUID.fullmatch(text):
            return text
        return "'?'" if text[0] == "'" else "?"

    return _PERSONAL.sub(shown, query)


def _table_functions(client: Client) -> frozenset[str]:
    """All that there are in this engine, in lower case."""
    return frozenset(name.lower() for (name,) in client.query("SELECT name FROM system.table_functions").result_rows)


def _check(tree: str, table_functions: frozenset[str]) -> None:
    """Raises ValueError where the parsed query names what leads out of the tables, or changes a setting."""
    above = ""
    for line in tree.splitlines():
        node = line.strip()
        if match := re.match(r"Function (\S+)", node):
            name = match[1].lower()
            as_table = above.startswith("TableExpression") or name in table_functions
            if _REFUSED_FUNCTIONS.fullmatch(name) or (as_table and name not in _ALLOWED_TABLE_FUNCTIONS):
                raise ValueError(f"read-only: the function {match[1]} is refused")
        elif re.match(r"Set\b", node):
            raise ValueError("read-only: SETTINGS are refused")
        above = node


def split_format(query: str, default: str) -> tuple[str, str]:
    """A FORMAT at the end of the query rules; else the default, where it is a plain name."""
    match = re.search(r"\s+FORMAT\s+(\w+)\s*$", query, re.IGNORECASE)
    if match and "'" not in query[match.start() :]:
        return match[1], query[: match.start()]
    return (default if re.fullmatch(r"\w+", default) else "TabSeparated"), query


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
            return _problem(f"Code: 62. at most {QUERY_BYTES_MAX} characters are expected", 400)
        try:
            found, form = await questions.ask(_question(query, request))
        except BusyError:
            text = f"Code: 202. {QUESTIONS_MAX} questions are being asked (TOO_MANY_SIMULTANEOUS_QUERIES)"
            return _problem(text, 503, {"Retry-After": "1"})
        except RefusedError as error:
            return _problem(str(error), error.status)
        except ValueError as error:
            return _problem(f"Code: 164. DB::Exception: {error} (READONLY)", 403)
        except LogError:
            return _problem("Code: 210. the log, where questions are written down, is away (NETWORK_ERROR)", 503)
        except (ClickHouseError, RuntimeError) as error:
            return _problem(str(error), 400)
        query_id = request.query_params.get("query_id") or str(uuid.uuid4())
        return Response(found, headers={"X-ClickHouse-Format": form, "X-ClickHouse-Query-Id": query_id})

    async def ping(request: Request) -> Response:
        return PlainTextResponse("Ok.\n")

    return Starlette(routes=[Route("/ping", ping), Route("/", ask, methods=["GET", "POST"])])


def _problem(text: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """The error as text, with its number in the header that clients look into."""
    code = re.search(r"Code: (\d+)", text)
    named = {"X-ClickHouse-Exception-Code": code[1]} if code else {}
    return PlainTextResponse(f"{text}\n", status, {**named, **(headers or {})})


def _question(query: str, request: Request) -> Question:
    parameters = request.query_params
    user, password = _credentials(request)
    return Question(
        query,
        parameters.get("default_format") or request.headers.get("X-ClickHouse-Format") or "TabSeparated",
        {name.removeprefix("param_"): _text(value) for name, value in parameters.items() if name.startswith("param_")},
        {name: value for name, value in parameters.items() if _FORMAT_SETTINGS.fullmatch(name)},
        user,
        password,
        parameters.get("database") or request.headers.get("X-ClickHouse-Database") or "",
    )


def _credentials(request: Request) -> tuple[str, str]:
    """Name and password in the three ways that ClickHouse takes them; empty where they are not given."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            name, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
            return name, password
        return "?", ""
    if "X-ClickHouse-User" in request.headers or "X-ClickHouse-Key" in request.headers:
        return request.headers.get("X-ClickHouse-User", ""), request.headers.get("X-ClickHouse-Key", "")
    return request.query_params.get("user", ""), request.query_params.get("password", "")


def _text(value: str) -> str:
    """A parameter's value, which comes escaped as in the format TabSeparated."""
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), value, flags=re.DOTALL)


class Server(uvicorn.Server):
    """A uvicorn server inside a process that handles signals itself; `listening` is set once it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process has its own handlers."""
        yield


async def serve(settings: Settings, questions: Questions) -> tuple[Server, "asyncio.Task[None]", int]:
    """Answers on loopback from its return on; returns the server, its task and the port."""
    config = uvicorn.Config(
        create_app(questions), host="127.0.0.1", port=settings.clickhouse.http_port, log_config=None, lifespan="off"
    )
    server = Server(config)
    sock = config.bind_socket()
    task = asyncio.get_running_loop().create_task(server.serve(sockets=[sock]), name="clickhouse-http")
    await server.listening.wait()
    return server, task, sock.getsockname()[1]
