"""Events as JSON, for people and for the example files: as their Avro records, bytes as hex."""

from collections.abc import Mapping
from typing import Any, TypeVar

from schemas import files
from schemas.event import Event

EventT = TypeVar("EventT", bound=Event)


def to_json(event: Event) -> dict[str, Any]:
    """The event as JSON values, personal data included; times are microseconds since the epoch."""
    return {name: _to_json(value) for name, value in event.to_record().items()}


def from_json(cls: type[EventT], values: Mapping[str, Any]) -> EventT:
    """The inverse of `to_json`; fields with a default may be left out. Raises TypeError or ValueError."""
    schema = files.load(cls.NAME)
    types = {field["name"]: field["type"] for field in schema["fields"]}
    record = {name: _from_json(types.get(name), value) for name, value in values.items()}
    for field in schema["fields"]:
        if field["name"] not in record and "default" in field and field["name"] != files.SEALED:
            record[field["name"]] = _from_json(field["type"], field["default"])
    return cls.from_record(record)


def examples(cls: type[EventT]) -> tuple[EventT, ...]:
    """The example events of that class, of every kind it has; each consumer's tests read all of them."""
    return tuple(from_json(cls, values) for values in files.examples(cls.NAME))


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {name: _to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return value


def _from_json(avro: Any, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(avro, list):
        return _from_json(next(branch for branch in avro if branch != "null"), value)
    if avro == "bytes":
        return bytes.fromhex(value)
    if isinstance(avro, dict) and avro["type"] == "map":
        return {name: _from_json(avro["values"], item) for name, item in value.items()}
    return tuple(value) if isinstance(value, list) else value
