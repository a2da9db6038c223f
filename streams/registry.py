"""Schema ids of a Confluent-compatible registry, and the read part of such a registry's REST interface.

Without `schema_registry_url` the published schemas are their own registry: the gateway answers with `respond`, so that
any consumer's ordinary deserializer finds the schemas. With it, the ids in records are that registry's.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx

from schemas import files
from streams.clock import Clock, SystemClock
from streams.codec import BuiltInIds, Codec, RegistryError, SchemaIds
from streams.keyring import Keyring
from streams.kms import key_management
from streams.settings import Settings

__all__ = ["BuiltInIds", "RegistryError", "RegistryIds", "Reply", "codec_for", "respond", "subject_of"]

MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"

_TIMEOUT_S = 5.0
# How long an id that the registry does not know is not asked for again: garbage must not become a flood of requests.
_UNKNOWN_S = 30.0
_UNKNOWN_MAX = 10_000


def subject_of(topic: str) -> str:
    """The subject of a topic's values (Confluent's TopicNameStrategy)."""
    return f"{topic}-value"


def codec_for(settings: Settings) -> Codec:
    """The codec with the ids and the keys that the settings ask for, made once per process.

    With a registry, registers the current schemas there, which blocks; raises RegistryError when it refuses or is away,
    and KeyManagementError where the settings name no key management.
    """
    wanted = settings.schema_registry_url, settings.keys_dir, settings.privacy.kms, settings.privacy.seal
    if wanted not in _codecs:
        _codecs[wanted] = Codec(_ids(settings.schema_registry_url), keyring_for(settings), settings.privacy.seal)
    return _codecs[wanted]


def keyring_for(settings: Settings) -> Keyring:
    """The calls' keys, opened once per process."""
    wanted = settings.keys_dir, settings.privacy.kms
    if wanted not in _keyrings:
        _keyrings[wanted] = Keyring(settings.keys_dir, key_management(settings))
    return _keyrings[wanted]


_codecs: dict[tuple[str, Path, str, bool], Codec] = {}
_keyrings: dict[tuple[Path, str], Keyring] = {}


@cache
def _ids(url: str) -> SchemaIds:
    return RegistryIds(url) if url else BuiltInIds()


class RegistryIds:
    """The ids of a registry: the current schemas are registered at once, unknown ids are looked up when they appear.

    A look-up blocks for up to 5 s; it happens once for each id. Credentials may stand in the URL.
    """

    def __init__(self, url: str, clock: Clock | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(base_url=url, timeout=_TIMEOUT_S, transport=transport)
        self._clock = clock or SystemClock()
        self._unknown: dict[int, float] = {}
        self._schemas: dict[int, files.Schema] = {}
        self._current = {name: self._register(name) for name in files.names()}

    def id_of(self, name: str) -> int:
        """See `codec.SchemaIds`."""
        return self._current[name]

    def schema(self, schema_id: int) -> files.Schema | None:
        """See `codec.SchemaIds`."""
        if schema_id in self._schemas:
            return self._schemas[schema_id]
        if self._clock.monotonic_s() < self._unknown.get(schema_id, 0.0):
            return None
        answer = self._ask("GET", f"/schemas/ids/{schema_id}")
        if answer is None:
            if len(self._unknown) >= _UNKNOWN_MAX:
                self._unknown.clear()
            self._unknown[schema_id] = self._clock.monotonic_s() + _UNKNOWN_S
            return None
        self._schemas[schema_id] = schema = _as_record(answer)
        return schema

    def _register(self, name: str) -> int:
        schema = files.load(name)
        path = f"/subjects/{quote(subject_of(schema['topic']), safe='')}/versions"
        answer = self._ask("POST", path, {"schema": _text(schema), "schemaType": "AVRO"})
        if not isinstance(answer, dict) or not isinstance(answer.get("id"), int):
            raise RegistryError(f"the schema registry gave no id for {name}")
        self._schemas[answer["id"]] = schema
        return int(answer["id"])

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's JSON; None where the registry does not know the thing."""
        where = f"schema registry {self._http.base_url.copy_with(username=None, password=None)}"
        try:
            response = self._http.request(method, path, json=body)
            if response.status_code == 404 and method == "GET":
                return None
            if response.is_error:
                raise RegistryError(f"{where}: {method} {path}: {response.status_code} {response.text[:300]}")
            return response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise RegistryError(f"{where}: {method} {path}: {type(error).__name__}: {error}") from error


def _as_record(answer: Any) -> files.Schema:
    """The schema in a registry's answer; what is no Avro record becomes an empty one, of no topic."""
    try:
        schema = json.loads(answer["schema"])
    except (ValueError, TypeError, KeyError):
        schema = None
    if isinstance(schema, dict) and schema.get("type") == "record":
        return schema
    return {"type": "record", "name": "Foreign", "fields": []}


# The REST interface, read only. Each answer is a status and a JSON body.


@dataclass(frozen=True, slots=True)
class Reply:
    """A status and the body to be sent as JSON with `MEDIA_TYPE`."""

    status: int
    body: Any


class _RefusedError(Exception):
    def __init__(self, error_code: int, message: str) -> None:
        self.reply = Reply(error_code if error_code < 1000 else error_code // 100, _error(error_code, message))


def _error(error_code: int, message: str) -> dict[str, Any]:
    return {"error_code": error_code, "message": message}


def respond(method: str, path: str, query: Mapping[str, str] | None = None, body: bytes = b"") -> Reply:
    """Answers a request of the Schema Registry's REST interface; `path` is the raw path below the registry's root.

    Errors are answers as well, with the registry's own codes (40401 subject, 40402 version, 40403 schema).
    """
    segments = tuple(unquote(segment) for segment in path.strip("/").split("/"))
    for wanted, pattern, handler in _ROUTES:
        values = _matched(pattern, segments)
        if wanted == method and values is not None:
            try:
                return Reply(200, handler(values, query or {}, body))
            except _RefusedError as error:
                return error.reply
    if method not in ("GET", "HEAD"):
        return Reply(405, _error(405, "this registry is read only: schemas are published with the platform"))
    return Reply(404, _error(404, "HTTP 404 Not Found"))


def _matched(pattern: tuple[str, ...], segments: tuple[str, ...]) -> list[str] | None:
    if len(pattern) != len(segments):
        return None
    pairs = list(zip(pattern, segments, strict=True))
    if any(expected not in ("*", got) for expected, got in pairs):
        return None
    return [got for expected, got in pairs if expected == "*"]


def subjects(prefix: str = "") -> list[str]:
    """All subjects with that prefix, sorted."""
    return sorted({entry.subject for entry in files.published() if entry.subject.startswith(prefix)})


def versions(subject: str) -> list[int]:
    """The subject's versions."""
    return [entry.version for entry in _of_subject(subject)]


def version(subject: str, wanted: str) -> dict[str, Any]:
    """One version, by number or `latest`."""
    entries = _of_subject(subject)
    if wanted in ("latest", "-1"):
        return _described(entries[-1])
    if not re.fullmatch(r"[0-9]{1,10}", wanted) or not 1 <= int(wanted) < 2**31:
        message = f"The specified version '{wanted}' is not a valid version id. Allowed values are between [1, 2^31-1]"
        raise _RefusedError(42202, f'{message} and the string "latest"')
    for entry in entries:
        if entry.version == int(wanted):
            return _described(entry)
    raise _RefusedError(40402, f"Version {wanted} not found.")


def schema_by_id(schema_id: str, fetch_max_id: bool = False) -> dict[str, Any]:
    """The schema with that id, as text in JSON."""
    answer: dict[str, Any] = {"schema": _text(files.load_published(_by_id(schema_id)))}
    return answer | {"maxId": max(entry.id for entry in files.published())} if fetch_max_id else answer


def lookup(subject: str, body: bytes) -> dict[str, Any]:
    """The version of the subject that has the schema in the request's body."""
    entries = _of_subject(subject)
    try:
        wanted = json.loads(json.loads(body)["schema"])
    except (ValueError, TypeError, KeyError):
        raise _RefusedError(42201, "Either the input schema or one its references is invalid") from None
    for entry in entries:
        if files.load_published(entry) == wanted:
            return _described(entry)
    raise _RefusedError(40403, "Schema not found")


def _registered(subject: str, body: bytes) -> dict[str, Any]:
    """Registering what is there already is reading; serializers do it by default."""
    try:
        return {"id": lookup(subject, body)["id"]}
    except _RefusedError as error:
        if error.reply.body["error_code"] == 42201:
            raise
        message = f"Subject {subject} is in read-only mode: schemas are published with the platform"
        raise _RefusedError(42205, message) from None


def _of_subject(subject: str) -> list[files.Published]:
    entries = [entry for entry in files.published() if entry.subject == subject]
    if not entries:
        raise _RefusedError(40401, f"Subject '{subject}' not found.")
    return entries


def _by_id(schema_id: str) -> files.Published:
    for entry in files.published():
        if str(entry.id) == schema_id:
            return entry
    raise _RefusedError(40403, f"Schema {schema_id} not found")


def _described(entry: files.Published) -> dict[str, Any]:
    schema = _text(files.load_published(entry))
    return {"subject": entry.subject, "version": entry.version, "id": entry.id, "schema": schema}


def _text(schema: files.Schema) -> str:
    return json.dumps(schema, separators=(",", ":"))


def _config(values: list[str], query: Mapping[str, str], body: bytes) -> dict[str, str]:
    if values:
        _of_subject(values[0])
    return {"compatibilityLevel": "FULL_TRANSITIVE"}


_Handler = Callable[[list[str], Mapping[str, str], bytes], Any]

# Nothing is ever deleted here, so the `deleted` parameters change no answer.
_ROUTES: tuple[tuple[str, tuple[str, ...], _Handler], ...] = (
    ("GET", ("",), lambda values, query, body: {}),
    ("GET", ("subjects",), lambda values, query, body: subjects(query.get("subjectPrefix", ""))),
    ("GET", ("subjects", "*", "versions"), lambda values, query, body: versions(values[0])),
    ("GET", ("subjects", "*", "versions", "*"), lambda values, query, body: version(*values)),
    (
        "GET",
        ("subjects", "*", "versions", "*", "schema"),
        lambda values, query, body: json.loads(version(*values)["schema"]),
    ),
    ("POST", ("subjects", "*"), lambda values, query, body: lookup(values[0], body)),
    ("POST", ("subjects", "*", "versions"), lambda values, query, body: _registered(values[0], body)),
    (
        "GET",
        ("schemas", "ids", "*"),
        lambda values, query, body: schema_by_id(values[0], query.get("fetchMaxId", "").lower() == "true"),
    ),
    ("GET", ("schemas", "ids", "*", "schema"), lambda values, query, body: files.load_published(_by_id(values[0]))),
    ("GET", ("schemas", "ids", "*", "subjects"), lambda values, query, body: [_by_id(values[0]).subject]),
    (
        "GET",
        ("schemas", "ids", "*", "versions"),
        lambda values, query, body: [{"subject": _by_id(values[0]).subject, "version": _by_id(values[0]).version}],
    ),
    ("GET", ("schemas", "types"), lambda values, query, body: ["AVRO"]),
    ("GET", ("config",), _config),
    ("GET", ("config", "*"), _config),
    ("GET", ("mode",), lambda values, query, body: {"mode": "READONLY"}),
    ("GET", ("mode", "*"), lambda values, query, body: {"mode": "READONLY"}),
)
