"""The schema files on disk: the current ones, the published ones, and the example events."""

import json
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
AVRO = HERE / "avro"
PUBLISHED = HERE / "published"
EXAMPLES = HERE / "examples"

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
