"""Writes `events.py` from the Avro files; `--check` fails instead when the two differ.

python -m schemas.generate [--check]
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from schemas import files

TARGET = files.HERE / "events.py"
LINE_LENGTH = 120
SCALARS = {
    "string": "str",
    "int": "int",
    "long": "int",
    "float": "float",
    "double": "float",
    "boolean": "bool",
    "bytes": "bytes",
}
HEADER = '''"""Typed events, generated from `avro/*.avsc` by `python -m schemas.generate`; do not edit.

Personal data (`pii` in the schema) never shows in a `repr`, so logs cannot print it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from schemas.event import Event, Part
'''


class SchemaError(ValueError):
    """A schema file breaks a rule that every event keeps; names the file and the field."""


def python_type(avro: Any) -> str:
    """The annotation for an Avro type; times are int microseconds."""
    if isinstance(avro, list):
        return " | ".join("None" if branch == "null" else python_type(branch) for branch in reversed(avro))
    if isinstance(avro, str):
        return SCALARS[avro]
    match avro["type"]:
        case "enum" | "record":
            return str(avro["name"])
        case "array":
            return f"tuple[{python_type(avro['items'])}, ...]"
        case "map":
            return f"Mapping[str, {python_type(avro['values'])}]"
        case scalar:
            return SCALARS[scalar]


def _default(avro: Any, value: Any) -> str:
    """Source of the default; `field(...)` keywords where it is mutable."""
    kind = avro["type"] if isinstance(avro, dict) else avro
    if kind == "array":
        return "default=()"
    if kind == "map":
        return "default_factory=dict"
    if kind == "bytes":
        return f"default={value.encode('latin-1')!r}"
    return f"default={json.dumps(value) if isinstance(value, str) else repr(value)}"


def _field(entry: dict[str, Any]) -> str:
    keywords = []
    if "default" in entry:
        keywords.append(_default(entry["type"], entry["default"]))
    if entry.get("pii"):
        keywords.append("repr=False")
    annotation = f"    {entry['name']}: {python_type(entry['type'])}"
    if not keywords:
        return annotation
    if keywords[0].startswith("default=") and len(keywords) == 1:
        return f"{annotation} = {keywords[0].removeprefix('default=')}"
    return f"{annotation} = field({', '.join(keywords)})"


def _docstring(text: str) -> str:
    """The text as a class's docstring, wrapped where it does not fit on one line."""
    line = f'    """{text}"""'
    if len(line) <= LINE_LENGTH:
        return line
    wrapped = textwrap.fill(f'"""{text}', LINE_LENGTH, initial_indent="    ", subsequent_indent="    ")
    return f'{wrapped}\n    """'


def _enum(schema: dict[str, Any], doc: str) -> str:
    symbols = "\n".join(f'    {symbol.upper()} = "{symbol}"' for symbol in schema["symbols"])
    return f"class {schema['name']}(StrEnum):\n{_docstring(doc)}\n\n{symbols}\n"


def _record(schema: dict[str, Any], base: str, body: list[str], doc: str) -> str:
    keyword_only = ", kw_only=True" if base == "Event" else ""
    lines = "\n".join(body)
    return (
        f"@dataclass(frozen=True, slots=True{keyword_only})\n"
        f"class {schema['name']}({base}):\n{_docstring(doc)}\n\n{lines}\n"
    )


def event_source(name: str, schema: dict[str, Any]) -> str:
    """Source of one event class and of the enums and parts that it owns."""
    envelope, own = schema["fields"][: len(files.ENVELOPE_FIELDS)], schema["fields"][len(files.ENVELOPE_FIELDS) :]
    own = [entry for entry in own if entry["name"] != files.SEALED]
    if tuple(entry["name"] for entry in envelope) != files.ENVELOPE_FIELDS:
        raise SchemaError(f"{name}.avsc: fields must begin with the envelope {', '.join(files.ENVELOPE_FIELDS)}")
    blocks, enums, parts = [], {}, {}
    for entry in own:
        if not entry.get("doc"):
            raise SchemaError(f"{name}.avsc: field {entry['name']}: a doc is expected")
        avro = entry["type"]
        if isinstance(avro, dict) and avro["type"] == "enum":
            enums[entry["name"]] = avro["name"]
            blocks.append(_enum(avro, entry["doc"]))
        if isinstance(avro, dict) and avro["type"] == "array" and isinstance(avro["items"], dict):
            item = avro["items"]
            parts[entry["name"]] = item["name"]
            blocks.append(
                _record(item, "Part", [_field(part) for part in item["fields"]], f"One of `{entry['name']}`.")
            )
    pii = sorted(entry["name"] for entry in files.personal(schema))
    _check_personal(name, schema)
    body = [
        f'    NAME: ClassVar[str] = "{name}"',
        f'    TOPIC: ClassVar[str] = "{schema["topic"]}"',
        f'    CE_TYPE: ClassVar[str] = "{schema["ce_type"]}"',
        f"    PII: ClassVar[frozenset[str]] = frozenset({{{', '.join(json.dumps(field) for field in pii)}}})"
        if pii
        else "    PII: ClassVar[frozenset[str]] = frozenset()",
        f"    ENUMS: ClassVar[Mapping[str, type[StrEnum]]] = {_mapping(enums)}",
        f"    PARTS: ClassVar[Mapping[str, type[Part]]] = {_mapping(parts)}",
        f"    LISTS: ClassVar[tuple[str, ...]] = {_lists(own)!r}",
        "",
        *(_field(entry) for entry in own),
    ]
    blocks.append(_record(schema, "Event", body, schema["doc"]))
    return "\n\n".join(blocks)


def _check_personal(name: str, schema: dict[str, Any]) -> None:
    """Personal fields can be emptied, and there is a place for them to go, sealed."""
    marked = files.personal(schema)
    if files.data_class(schema) not in files.CLASSES:
        raise SchemaError(f"{name}.avsc: sealed_with: one of {', '.join(files.CLASSES)} is expected")
    for entry in schema["fields"]:
        avro = entry["type"]
        inner = avro["items"]["fields"] if isinstance(avro, dict) and isinstance(avro.get("items"), dict) else ()
        if any(part.get("pii") for part in inner) and not entry.get("pii"):
            raise SchemaError(f"{name}.avsc: field {entry['name']}: a pii mark is expected, since its parts have one")
    for entry in marked:
        if "default" not in entry:
            raise SchemaError(f"{name}.avsc: field {entry['name']}: a default is expected of a personal field")
    if marked and not any(entry["name"] == files.SEALED and entry["type"] == "bytes" for entry in schema["fields"]):
        raise SchemaError(f"{name}.avsc: a field {files.SEALED} of type bytes is expected beside personal fields")


def _lists(entries: list[dict[str, Any]]) -> tuple[str, ...]:
    """The fields that are arrays of scalars: Avro reads them as lists, events hold tuples."""
    arrays = [entry for entry in entries if isinstance(entry["type"], dict) and entry["type"]["type"] == "array"]
    return tuple(entry["name"] for entry in arrays if isinstance(entry["type"]["items"], str))


def _mapping(entries: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": {value}' for name, value in entries.items()) + "}"


def source() -> str:
    """The whole text of `events.py`, formatted."""
    schemas = {name: files.load(name) for name in files.names()}
    blocks = [event_source(name, schema) for name, schema in schemas.items()]
    by_topic = ", ".join(schema["name"] for schema in schemas.values())
    blocks.append(f"EVENTS: tuple[type[Event], ...] = ({by_topic})\n")
    return _formatted(HEADER + "\n\n" + "\n\n".join(blocks))


def _formatted(text: str) -> str:
    ruff = Path(sys.executable).with_name("ruff")
    command = [str(ruff), "format", "--quiet", "--stdin-filename", str(TARGET), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def main() -> int:
    """Writes or, with `--check`, compares; exits 1 when they differ."""
    text = source()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text() == text:
            return 0
        print("schemas/events.py differs from schemas/avro: run python -m schemas.generate", file=sys.stderr)
        return 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
