"""Fails when a schema change would break an older reader or writer.

python -m schemas.compatibility

The rule is full transitive compatibility by Avro's schema resolution: the current schema must read what every
published version wrote, and every published version must read what the current one writes. Hence new fields need
defaults, a field is removed only if it had one, and types stay (a promotion such as int to long would leave the older
readers behind). Beyond Avro: enum symbols are never removed, a `pii` mark stays, and topic, key and name stay.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

from schemas import files

PROMOTIONS = {
    "int": {"long", "float", "double"},
    "long": {"float", "double"},
    "float": {"double"},
    "string": {"bytes"},
    "bytes": {"string"},
}
FIXED_ATTRIBUTES = ("name", "namespace", "topic", "key", "ce_type")


def problems(old: files.Schema, new: files.Schema) -> list[str]:
    """What would break between the two, as sentences; empty when either can read what the other wrote."""
    found = [
        f"{name}: {old.get(name)!r} cannot become {new.get(name)!r}"
        for name in FIXED_ATTRIBUTES
        if old.get(name) != new.get(name)
    ]
    found += [f"{problem} (the new schema cannot read older records)" for problem in unreadable(new, old)]
    found += [f"{problem} (older readers cannot read new records)" for problem in unreadable(old, new)]
    found += [f"{path}: the pii mark must stay" for path in sorted(_pii(old) - _pii(new)) if path in _paths(new)]
    found += [f"{path}: symbol {symbol} must stay" for path, symbol in _removed_symbols(old, new)]
    return found


def unreadable(reader: Any, writer: Any, path: str = "") -> Iterator[str]:
    """Why a reader with the first schema cannot read what a writer with the second wrote (Avro, schema resolution)."""
    if isinstance(writer, list):
        for branch in writer:
            yield from unreadable(reader, branch, path)
        return
    if isinstance(reader, list):
        if not any(_matches(branch, writer, path) for branch in reader):
            yield f"{path}: {_kind(writer)} is not among {', '.join(map(_kind, reader))}"
        return
    read, written = _kind(reader), _kind(writer)
    if read != written:
        if read not in PROMOTIONS.get(written, ()):
            yield f"{path}: {written} cannot be read as {read}"
    elif read in _INNER:
        yield from _INNER[read](reader, writer, path)
    elif _logical(reader) != _logical(writer):
        yield f"{path}: {_logical(writer)} cannot be read as {_logical(reader)}"


def _matches(reader: Any, writer: Any, path: str) -> bool:
    return next(unreadable(reader, writer, path), None) is None


def _record_unreadable(reader: files.Schema, writer: files.Schema, path: str) -> Iterator[str]:
    if reader["name"] != writer["name"]:
        yield f"{path or reader['name']}: record {writer['name']} cannot be read as {reader['name']}"
        return
    written = {field["name"]: field for field in writer["fields"]}
    for field in reader["fields"]:
        inner = f"{path}.{field['name']}" if path else field["name"]
        if field["name"] in written:
            yield from unreadable(field["type"], written[field["name"]]["type"], inner)
        elif "default" not in field:
            yield f"{inner}: a default is expected, since not every record has the field"


def _enum_unreadable(reader: files.Schema, writer: files.Schema, path: str) -> Iterator[str]:
    if reader["name"] != writer["name"]:
        yield f"{path}: enum {writer['name']} cannot be read as {reader['name']}"
    missing = [symbol for symbol in writer["symbols"] if symbol not in reader["symbols"]]
    if missing and "default" not in reader:
        yield f"{path}: an enum default is expected, since {', '.join(missing)} is not among the reader's symbols"


def _fixed_unreadable(reader: files.Schema, writer: files.Schema, path: str) -> Iterator[str]:
    if (reader["name"], reader["size"]) != (writer["name"], writer["size"]):
        yield f"{path}: fixed of another name or size"


_INNER: dict[str, Callable[[files.Schema, files.Schema, str], Iterator[str]]] = {
    "record": _record_unreadable,
    "enum": _enum_unreadable,
    "fixed": _fixed_unreadable,
    "array": lambda reader, writer, path: unreadable(reader["items"], writer["items"], f"{path}[]"),
    "map": lambda reader, writer, path: unreadable(reader["values"], writer["values"], f"{path}{{}}"),
}


def _kind(avro: Any) -> str:
    if isinstance(avro, dict):
        return _kind(avro["type"])
    return "union" if isinstance(avro, list) else str(avro)


def _logical(avro: Any) -> str:
    return str(avro.get("logicalType", _kind(avro))) if isinstance(avro, dict) else _kind(avro)


def _walk(avro: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field and type below, with its path; fields come as their dict."""
    if isinstance(avro, list):
        for branch in avro:
            yield from _walk(branch, path)
    elif isinstance(avro, dict):
        yield path, avro
        for field in avro.get("fields", ()):
            inner = f"{path}.{field['name']}" if path else field["name"]
            yield inner, {"field": field}
            yield from _walk(field["type"], inner)
        yield from _walk(avro.get("items"), f"{path}[]")
        yield from _walk(avro.get("values"), f"{path}{{}}")


def _paths(schema: files.Schema) -> set[str]:
    return {path for path, node in _walk(schema) if "field" in node}


def _pii(schema: files.Schema) -> set[str]:
    return {path for path, node in _walk(schema) if node.get("field", {}).get("pii")}


def _symbols(schema: files.Schema) -> dict[str, list[str]]:
    return {path: node["symbols"] for path, node in _walk(schema) if "symbols" in node}


def _removed_symbols(old: files.Schema, new: files.Schema) -> Iterator[tuple[str, str]]:
    kept = _symbols(new)
    for path, symbols in _symbols(old).items():
        yield from ((path, symbol) for symbol in symbols if path in kept and symbol not in kept[path])


def check(name: str) -> list[str]:
    """Problems of the current schema of that name with any of its published versions, each naming the file."""
    current = files.load(name)
    return [
        f"{name}.avsc against {name}.v{entry.version}.avsc: {problem}"
        for entry in files.published()
        if entry.name == name
        for problem in problems(files.load_published(entry), current)
    ]


def missing() -> list[str]:
    """Published names whose schema file has gone: their topics could no longer be read."""
    return [
        f"{name}.avsc: published, so it must stay"
        for name in sorted({entry.name for entry in files.published()} - set(files.names()))
    ]


def main() -> int:
    """Prints every problem; exits 1 when there is one."""
    found = missing() + [problem for name in files.names() for problem in check(name)]
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
