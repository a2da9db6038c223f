"""YAML files checked against a pydantic model, with messages that say where a mistake is and what was expected."""

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

ModelT = TypeVar("ModelT", bound=BaseModel)
Location = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a file. `line` counts from 1; `field` is a dotted path, empty for the file as a whole."""

    path: Path
    line: int
    field: str
    expected: str

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}"
        return f"{where}: {self.field}: {self.expected}" if self.field else f"{where}: {self.expected}"


class ConfigError(Exception):
    """A file that people write cannot be used; the text has a line for each problem, `file:line: field: expected`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


def load_yaml(path: Path, model: type[ModelT]) -> ModelT:
    """Reads the file and validates it as `model`; raises ConfigError, which lists every problem found."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([Problem(path, 1, "", f"cannot be read: {error.strerror or error}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(path, 1, "", f"is not UTF-8 text (byte {error.start})")]) from error
    root, data = _parse(path, text)
    repeated = list(_repeated_keys(root))
    if repeated:
        raise ConfigError(
            [Problem(path, line, field, "this key is given twice; expected once") for line, field in repeated]
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [_problem(path, root, model, details) for details in error.errors(include_url=False)]
        raise ConfigError(sorted(dict.fromkeys(problems), key=lambda problem: problem.line)) from error


def problem_at(path: Path, location: Location, expected: str) -> Problem:
    """A problem at a place in a file already known to be YAML: for checks that span fields or files."""
    root, _ = _parse(path, path.read_text(encoding="utf-8"))
    line, field = _find(root, location)
    return Problem(path, line, field, expected)


def _parse(path: Path, text: str) -> tuple[yaml.Node, Any]:
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise ConfigError([Problem(path, 1, "", "is empty; expected a mapping")])
        return root, loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        wrong = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError([Problem(path, line, "", f"is not valid YAML: {wrong}")]) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError([Problem(path, 1, "", f"is not valid YAML: {error}")]) from error
    finally:
        loader.dispose()


def _repeated_keys(node: yaml.Node, field: str = "", seen: set[int] | None = None) -> Iterator[tuple[int, str]]:
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated_keys(item, f"{field}[{index}]", seen)
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            inner = f"{field}.{name}" if field else name
            if name in names:
                yield key.start_mark.line + 1, inner
            names.add(name)
            yield from _repeated_keys(value, inner, seen)


def _find(root: yaml.Node, location: Location) -> tuple[int, str]:
    """The line and dotted path of a place; steps that are not in the file (a missing field) end at what holds them."""
    node, line, field = root, root.start_mark.line + 1, ""
    for step in location:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if str(key.value) == str(step)), None)
            if pair is None:
                continue
            line, node = pair[0].start_mark.line + 1, pair[1]
            field = f"{field}.{step}" if field else str(step)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
            field = f"{field}[{step}]"
    return line, field


def _problem(path: Path, root: yaml.Node, model: type[BaseModel], details: Mapping[str, Any]) -> Problem:
    location: Location = details["loc"]
    kind, message = details["type"], str(details["msg"])
    if kind == "missing":
        line, holder = _find(root, location[:-1])
        name = str(location[-1])
        return Problem(path, line, f"{holder}.{name}" if holder else name, f"is missing; {_described(model, location)}")
    line, field = _find(root, location)
    if kind == "extra_forbidden":
        return Problem(path, line, field, f"is not known here; {_alternatives(model, location)}")
    expected = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    expected = expected.replace("Input should be ", "expected ", 1).replace("Field required", "is missing", 1)
    given = details.get("input")
    ours = kind in ("value_error", "assertion_error")
    if not ours and expected.startswith("expected ") and (given is None or isinstance(given, str | int | float)):
        expected = f"{expected}, found {given!r}"
    return Problem(path, line, field, expected)


def _described(model: type[BaseModel], location: Location) -> str:
    for holder in _models_at(model, location[:-1]):
        info = holder.model_fields.get(str(location[-1]))
        if info is not None:
            kind = getattr(info.annotation, "__name__", None) or str(info.annotation).replace("typing.", "")
            return f"expected {info.description}" if info.description else f"expected a value of type {kind}"
    return "expected a value"


def _alternatives(model: type[BaseModel], location: Location) -> str:
    names = sorted({name for holder in _models_at(model, location[:-1]) for name in holder.model_fields})
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}expected one of {', '.join(names)}" if names else "expected it to be left out"


def _models_at(model: type[BaseModel], location: Location) -> list[type[BaseModel]]:
    """The models that a place can hold; names of union members, which pydantic adds to locations, are passed over."""
    kinds: list[Any] = [model]
    for step in location:
        inner: list[Any] = []
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                if str(step) in kind.model_fields:
                    inner.extend(_members(kind.model_fields[str(step)].annotation))
            elif typing.get_origin(kind) is not None:
                inner.extend(member for argument in typing.get_args(kind) for member in _members(argument))
        if inner:
            kinds = inner
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _members(annotation: Any) -> Iterable[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for argument in typing.get_args(annotation) for member in _members(argument)]
    return [annotation]
