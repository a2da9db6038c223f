"""The schema files on disk: the current ones, the published ones, and the example events."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
AVRO = HERE / "avro"
PUBLISHED = HERE / "published"
EXAMPLES = HERE / "examples"
INDEX = PUBLISHED / "index.json"

Schema = dict[str, Any]

ENVELOPE_FIELDS = (
    "event_id",
    "session_id",
    "tenant_id",
    "agent_id",
    "turn",
    "seq",
    "occurred_at",
    "causation_id",
)
# The field that holds the personal ones, encrypted; events in memory have none (see streams/codec.py).
SEALED = "sealed"
# A call has a key for each class of data, so that audio can be forgotten before words.
WORDS, AUDIO = CLASSES = ("words", "audio")


@cache
def names() -> tuple[str, ...]:
    """Schema names (`transcript`, `intent`, ...), sorted: the stems of the files in `avro/`."""
    return tuple(sorted(path.stem for path in AVRO.glob("*.avsc")))


@cache
def load(name: str) -> Schema:
    """The current schema of that name, as JSON; treat it as read-only."""
    schema: Schema = json.loads((AVRO / f"{name}.avsc").read_text())
    return schema


def personal(schema: Schema) -> list[dict[str, Any]]:
    """The fields with personal data, in the schema's order: what `sealed` holds is a record of them."""
    return [field for field in schema["fields"] if field.get("pii")]


def data_class(schema: Schema) -> str:
    """Which of the call's keys seals the personal fields: the schema's `sealed_with`, else that of words."""
    return str(schema.get("sealed_with", WORDS))


def examples(name: str) -> list[dict[str, Any]]:
    """Example events of that schema as JSON records; bytes are hex strings."""
    loaded: list[dict[str, Any]] = json.loads((EXAMPLES / f"{name}.json").read_text())
    return loaded


class Published(NamedTuple):
    """A frozen version of a schema; records carry its `id` (see streams/codec.py)."""

    id: int
    name: str
    version: int
    subject: str

    @property
    def path(self) -> Path:
        """Its file."""
        return PUBLISHED / f"{self.name}.v{self.version}.avsc"


@cache
def published() -> tuple[Published, ...]:
    """Every published version, by id; later versions of a name come later."""
    if not INDEX.exists():
        return ()
    return tuple(Published(**entry) for entry in json.loads(INDEX.read_text())["schemas"])


@cache
def load_published(entry: Published) -> Schema:
    """The published schema, as JSON; treat it as read-only."""
    schema: Schema = json.loads(entry.path.read_text())
    return schema
