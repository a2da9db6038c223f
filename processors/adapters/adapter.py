"""Adapters as people write them: a YAML file for each other system, with what may be asked of it and how.

`infra/adapters/sap.yaml` is the adapter `sap`. Everything is checked and compiled when it is loaded. An adapter is
there for use when it has an address: `base_url` in its file, or `adapter_urls` in the settings.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from processors.adapters.shape import Found, JsonShape, PathText, PlainText, Text
from processors.agents import Agent, Name
from processors.outcomes import OutcomeRule
from streams.settings import Settings
from streams.yamlfile import ConfigError, Problem, load_yaml, problem_at

# Unless its file says otherwise.
REQUESTS_PER_S = 20.0
CONCURRENCY = 8

# What every text of an operation may use, besides its arguments: the idempotency key of the call, and secrets.
SHARED_VARIABLES = frozenset({"key", "secrets"})
OUTCOME_VARIABLES = frozenset({"body", "status"})

Location = tuple[int | str, ...]
Mistake = tuple[Location, str]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Seconds = Annotated[float, Field(gt=0, le=600)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


def _is_secret(value: Text) -> Text:
    if not value.secrets:
        raise ValueError("expected a reference such as {{ secrets.crm_password }}: secrets do not belong in this file")
    return value


class Open(_Part):
    """No authentication."""

    kind: Literal["none"] = "none"


class Basic(_Part):
    """User and password with each request."""

    kind: Literal["basic"]
    username: PlainText
    password: PlainText

    _secret = field_validator("password")(_is_secret)


class Bearer(_Part):
    """A token that does not expire."""

    kind: Literal["bearer"]
    token: PlainText

    _secret = field_validator("token")(_is_secret)


class ClientCredentials(_Part):
    """OAuth2 client credentials (RFC 6749, 4.4): a token is fetched, kept until shortly before it expires."""

    kind: Literal["oauth2"]
    token_url: PlainText = Field(description="the token endpoint; relative to base_url where it begins with /")
    client_id: PlainText
    client_secret: PlainText
    scope: str = ""
    fields: Mapping[str, PlainText] = Field(default_factory=dict, description="further fields of the form")

    _secret = field_validator("client_secret")(_is_secret)


class Login(_Part):
    """A call that begins a session, and headers made from its answer."""

    kind: Literal["login"]
    path: PathText = Text("", encodes=True)
    body: JsonShape
    answer: Mapping[str, Found] = Field(min_length=1, description="names for parts of the answer, as JMESPath")
    headers: Mapping[str, PlainText] = Field(min_length=1, description="headers of each request; may use login.NAME")

    @model_validator(mode="after")
    def _reference(self) -> "Login":
        if not self.body.secrets:
            raise ValueError("expected a reference such as {{ secrets.erp_password }} in body: no secrets in this file")
        return self


Auth = Annotated[Open | Basic | Bearer | ClientCredentials | Login, Field(discriminator="kind")]


class Csrf(_Part):
    """A token that the system demands of writes beside the credentials, as SAP Gateway does."""

    path: PathText = Text("", encodes=True)
    header: str = Field("X-CSRF-Token", pattern=r"^[A-Za-z0-9-]+$")


class Pace(_Part):
    """What the other system is to be spared from, by each process of the platform that asks it."""

    requests_per_s: float = Field(REQUESTS_PER_S, gt=0, le=10_000)
    burst: int = Field(20, ge=1, le=10_000, description="requests that may come at once after a pause")
    concurrency: int = Field(CONCURRENCY, ge=1, le=100, description="requests under way at once")


class BreakerRules(_Part):
    """When the system is left alone: after failures in a row, for a rest that doubles until it answers."""

    failures_max: int = Field(5, ge=1, le=100)
    rest_first_s: float = Field(0.5, gt=0, le=600)
    rest_s_max: float = Field(30.0, gt=0, le=3600)


class ByHeader(_Part):
    """The system knows a header that makes a repeat harmless."""

    by: Literal["header"]
    header: str = Field("Idempotency-Key", pattern=r"^[A-Za-z0-9-]+$")


class ByKey(_Part):
    """`key` is in the path or the body, where the system has it as the record's own: a repeat writes the same again."""

    by: Literal["key"]


class ByLookup(_Part):
    """Before it is made, `operation` asks whether it is there; and again when the system refuses to make it."""

    by: Literal["lookup"]
    operation: Name


Idempotency = Annotated[ByHeader | ByKey | ByLookup, Field(discriminator="by")]


class Operation(_Part):
    """One thing that may be asked. What writes says how a repeat has no second effect."""

    description: str = ""
    effect: Literal["read", "write"] = "read"
    method: Method = "GET"
    path: PathText = Field(description="a path below base_url, with placeholders")
    query: Mapping[str, PlainText] = Field(default_factory=dict)
    headers: Mapping[str, PlainText] = Field(default_factory=dict)
    body: JsonShape | None = None
    arguments: tuple[Name, ...] = Field((), description="names that the texts may use; one not given is empty")
    idempotency: Idempotency | None = None
    found: Found | None = Field(None, description="JMESPath of the record; where it finds nothing: not_found")
    result: Mapping[Name, Found] = Field(default_factory=dict, description="names for its parts, as JMESPath")
    outcomes: tuple[OutcomeRule, ...] = ()
    timeout_s: Seconds = 5.0
    cache_s: float = Field(0.0, ge=0, le=86_400, description="how long a record that was found is not asked for again")

    @model_validator(mode="after")
    def _safe(self) -> "Operation":
        if self.method == "GET" and self.body is not None:
            raise ValueError("expected a GET operation to have no body")
        if self.method == "GET" and self.effect == "write":
            raise ValueError("expected a GET operation to have effect read")
        if (self.effect == "write") != (self.idempotency is not None):
            raise ValueError("expected idempotency (by header, key or lookup) for effect write, and for no other")
        if self.effect == "write" and self.cache_s:
            raise ValueError("expected cache_s for effect read alone")
        return self

    def texts(self) -> Iterator[tuple[Location, Text]]:
        """Its texts outside the body, each with its place."""
        yield ("path",), self.path
        for field in ("query", "headers"):
            for name, text in getattr(self, field).items():
                yield (field, name), text

    @property
    def secrets(self) -> frozenset[str]:
        """The names of secrets that it uses."""
        own = self.body.secrets if self.body is not None else frozenset[str]()
        return own.union(*(text.secrets for _, text in self.texts()))


class AdapterFile(_Part):
    """An adapter as people write it."""

    name: str = Field(min_length=1, max_length=80)
    description: str = ""
    base_url: str = Field("", pattern=r"^(https?://[^\s/?#]+[^\s?#]*)?$", description="empty: see adapter_urls")
    auth: Auth = Open()
    csrf: Csrf | None = None
    headers: Mapping[str, PlainText] = Field(default_factory=dict, description="headers of each request")
    limits: Pace = Pace()
    breaker: BreakerRules = BreakerRules()
    operations: Mapping[Name, Operation] = Field(min_length=1)


class Adapter(AdapterFile):
    """An adapter with an address. `id` is its file's name."""

    id: str


def load_adapters(settings: Settings, secrets: Mapping[str, str]) -> Mapping[str, Adapter]:
    """The adapters that have an address, by id; raises ConfigError with all problems of all files.

    Those without one are checked, too.
    """
    urls = settings.adapter_urls
    adapters: dict[str, Adapter] = {}
    problems: list[Problem] = []
    directory = settings.adapters_dir
    files = sorted((*directory.glob("*.yaml"), *directory.glob("*.yml")))
    for path in files:
        try:
            adapter = load_adapter(path, urls.get(path.stem, ""))
            if adapter.base_url:
                _require_secrets(path, adapter, secrets)
                adapters[adapter.id] = adapter
        except ConfigError as error:
            problems.extend(error.problems)
    for unknown in sorted(set(urls) - {path.stem for path in files}):
        expected = f"holds no {unknown}.yaml, to which adapter_urls gives an address"
        problems.append(Problem(directory, 1, "", expected))
    if problems:
        raise ConfigError(problems)
    return MappingProxyType(adapters)


def load_adapter(path: Path, url: str = "") -> Adapter:
    """The adapter in that file, with that address where one is given; raises ConfigError."""
    written = load_yaml(path, AdapterFile)
    found = list(_checks(written))
    if found:
        problems = [problem_at(path, location, expected) for location, expected in found]
        raise ConfigError(sorted(problems, key=lambda problem: problem.line))
    values = {name: getattr(written, name) for name in AdapterFile.model_fields}
    return Adapter.model_construct(**{**values, "base_url": (url or written.base_url).rstrip("/")}, id=path.stem)


def check_agents(directory: Path, agents: Mapping[str, Agent], adapters: Mapping[str, Adapter]) -> None:
    """Raises ConfigError, which names the agent's file, where an agent uses an operation that is not there."""
    problems = [
        problem_at(next(directory.glob(f"{agent.id}.y*ml")), location, expected)
        for agent in agents.values()
        for location, expected in _agent_checks(agent, adapters)
    ]
    if problems:
        raise ConfigError(problems)


def operation_of(adapters: Mapping[str, Adapter], name: str) -> Operation | None:
    """The operation called `adapter.operation`."""
    adapter, _, operation = name.partition(".")
    return adapters[adapter].operations.get(operation) if adapter in adapters else None


def call_mistakes(
    adapters: Mapping[str, Adapter], name: str, arguments: AbstractSet[str], effect: str = ""
) -> Iterator[Mistake]:
    """What is wrong with a call of an operation: each place below the call, and what is expected there."""
    operation = operation_of(adapters, name)
    if operation is None:
        known = sorted(f"{one.id}.{each}" for one in adapters.values() for each in one.operations)
        hint = ", ".join(known) or "no adapter has an address: see adapter_urls"
        yield ("operation",), f"expected an operation of an adapter that has an address ({hint}), found {name!r}"
        return
    for argument in sorted(arguments - set(operation.arguments)):
        expected = ", ".join(operation.arguments) or "none"
        yield ("arguments", argument), f"is no argument of {name}; expected one of {expected}"
    if effect and effect != operation.effect:
        yield ("effect",), f"expected {operation.effect}, the effect of {name}"


def _agent_checks(agent: Agent, adapters: Mapping[str, Adapter]) -> Iterator[Mistake]:
    for index, tool in enumerate(agent.tools):
        if tool.operation:
            for location, expected in call_mistakes(adapters, tool.operation, set(tool.arguments), tool.effect):
                yield ("tools", index, *location), expected
    if agent.caller_record is not None:
        record = agent.caller_record
        for location, expected in call_mistakes(adapters, record.operation, set(record.arguments), "read"):
            if location == ("effect",):
                location, expected = ("operation",), f"expected an operation that reads, {record.operation} writes"
            yield ("caller_record", *location), expected


def _checks(adapter: AdapterFile) -> Iterator[Mistake]:
    """Mistakes that lie between fields."""
    for field, text in _auth_texts(adapter.auth):
        allowed = {"secrets", "login"} if field[1] == "headers" else {"secrets"}
        yield from _unknown(field, text.variables, allowed)
    if isinstance(adapter.auth, Login):
        yield from _unknown(("auth", "body"), adapter.auth.body.variables, {"secrets"})
    if adapter.csrf is not None:
        yield from _unknown(("csrf", "path"), adapter.csrf.path.variables, {"secrets"})
    for name, text in adapter.headers.items():
        yield from _unknown(("headers", name), text.variables, {"secrets"})
    for name, operation in adapter.operations.items():
        for location, expected in _operation_checks(adapter, operation):
            yield ("operations", name, *location), expected


def _auth_texts(auth: Any) -> Iterator[tuple[Location, Text]]:
    for field in type(auth).model_fields:
        value = getattr(auth, field)
        if isinstance(value, Text):
            yield ("auth", field), value
        elif isinstance(value, Mapping):
            yield from ((("auth", field, name), text) for name, text in value.items() if isinstance(text, Text))


def _operation_checks(adapter: AdapterFile, operation: Operation) -> Iterator[Mistake]:
    known = SHARED_VARIABLES | set(operation.arguments)
    used = operation.body.variables if operation.body is not None else frozenset[str]()
    yield from _unknown(("body",), used, known)
    for location, text in operation.texts():
        yield from _unknown(location, text.variables, known)
        used |= text.variables
    for index, rule in enumerate(operation.outcomes):
        if rule.when is not None:
            yield from _unknown(("outcomes", index, "when"), rule.when.variables, OUTCOME_VARIABLES)
    match operation.idempotency:
        case ByKey() if "key" not in used:
            yield ("idempotency",), "expected {{ key }} in the path or the body: nothing tells a repeat apart"
        case ByLookup(operation=name):
            yield from _lookup_checks(adapter, operation, name)


def _lookup_checks(adapter: AdapterFile, operation: Operation, name: str) -> Iterator[Mistake]:
    place = ("idempotency", "operation")
    lookup = adapter.operations.get(name)
    if lookup is None or lookup.effect != "read":
        reads = sorted(each for each, one in adapter.operations.items() if one.effect == "read")
        yield place, f"expected an operation of this adapter that reads ({', '.join(reads) or 'there is none'})"
        return
    if foreign := sorted(set(lookup.arguments) - set(operation.arguments)):
        yield place, f"expected {name} to have no arguments of its own, found {', '.join(foreign)}"


def _unknown(location: Location, used: AbstractSet[str], known: AbstractSet[str]) -> Iterator[Mistake]:
    for name in sorted(used - known):
        yield location, f"uses the unknown variable {name!r}; expected one of {', '.join(sorted(known))}"


def _require_secrets(path: Path, adapter: Adapter, secrets: Mapping[str, str]) -> None:
    places: list[tuple[Location, frozenset[str]]] = [
        (location, text.secrets) for location, text in _auth_texts(adapter.auth)
    ]
    if isinstance(adapter.auth, Login):
        places.append((("auth", "body"), adapter.auth.body.secrets))
    places += [(("headers", name), text.secrets) for name, text in adapter.headers.items()]
    places += [(("operations", name), operation.secrets) for name, operation in adapter.operations.items()]
    problems = [
        problem_at(
            path,
            location,
            f"uses the secret {name}; expected TRUNKLINE_SECRET_{name.upper()} in the environment, or the file "
            f"/run/secrets/trunkline_secret_{name}",
        )
        for location, names in places
        for name in sorted(names - set(secrets))
    ]
    if problems:
        raise ConfigError(problems)
