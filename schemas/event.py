"""What every generated event can do: become an Avro record, and come from one."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Self


@dataclass(frozen=True, slots=True)
class Part:
    """A record inside an event, such as one word of a transcript."""

    def to_record(self) -> dict[str, Any]:
        """The part as fastavro writes it."""
        return {name: getattr(self, name) for name in _field_names(type(self))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The envelope that all events share; see the generated subclasses for what each adds."""

    NAME: ClassVar[str]
    TOPIC: ClassVar[str]
    CE_TYPE: ClassVar[str]
    PII: ClassVar[frozenset[str]]
    ENUMS: ClassVar[Mapping[str, type[StrEnum]]]
    PARTS: ClassVar[Mapping[str, type[Part]]]
    LISTS: ClassVar[tuple[str, ...]] = ()

    event_id: str
    session_id: str
    tenant_id: str
    agent_id: str
    turn: int
    seq: int
    occurred_at: int
    causation_id: str | None = None

    def to_record(self) -> dict[str, Any]:
        """The event as fastavro writes it; times are microseconds since the epoch."""
        record = {name: getattr(self, name) for name in _field_names(type(self))}
        for name in self.PARTS:
            record[name] = [part.to_record() for part in record[name]]
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Builds the event from a decoded Avro record; raises TypeError where a field is missing or foreign."""
        values = dict(record)
        for name, enum in cls.ENUMS.items():
            values[name] = enum(values[name])
        for name, part in cls.PARTS.items():
            values[name] = tuple(part(**item) for item in values[name])
        for name in cls.LISTS:
            values[name] = tuple(values[name])
        return cls(**values)

    @property
    def ce_type(self) -> str:
        """The CloudEvents type, such as `trunkline.transcript.final`."""
        kind = getattr(self, "kind", None)
        return self.CE_TYPE if kind is None else f"{self.CE_TYPE}.{kind}"


_FIELD_NAMES: dict[type[Event] | type[Part], tuple[str, ...]] = {}


def _field_names(cls: type[Event] | type[Part]) -> tuple[str, ...]:
    names = _FIELD_NAMES.get(cls)
    if names is None:
        names = _FIELD_NAMES[cls] = tuple(field.name for field in fields(cls))
    return names
