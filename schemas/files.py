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


@cache
def names() -> tuple[str, ...]:
    """Schema names (`transcript`, `intent`, ...), sorted: the stems of the files in `avro/`."""
    return tuple(sorted(path.stem for path in AVRO.glob("*.avsc")))


@cache
def load(name: str) -> Schema:
    """The current schema of that name, as JSON; treat it as read-only."""
    schema: Schema = json.loads((AVRO / f"{name}.avsc").read_text())
    return schema


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
