"""The texts of an adapter: paths, queries and bodies with placeholders, and expressions over what comes back.

What goes out is Jinja2 and what comes in JMESPath, each compiled when the adapter is loaded. Wherever a value goes, it
cannot become more than a value: in a path it is percent-encoded, in a body it is JSON.
"""

import base64
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from urllib.parse import quote

import jmespath
from jinja2 import TemplateError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jmespath.exceptions import JMESPathError
from pydantic import BeforeValidator, PlainSerializer

from processors.templates import RenderError, environment

_IDS = uuid.UUID("3c2f7f0e-8a64-5d0e-9a3f-61646170746f")
_EXPRESSION = re.compile(r"\{\{((?:(?!\{\{|\}\}).)*)\}\}", re.DOTALL)
_JSON = (str, int, float, list, dict, type(None))


def as_uuid(value: Any) -> str:
    """A UUID for a key: of 32 hexadecimal digits the same ones, of anything else one that it determines."""
    text = str(value)
    return str(uuid.UUID(text)) if re.fullmatch(r"[0-9a-f]{32}", text) else str(uuid.uuid5(_IDS, text))


def as_base64(value: Any) -> str:
    """The text's UTF-8 in base64."""
    return base64.b64encode(str(value).encode()).decode()


def as_odata(value: Any) -> str:
    """The inside of an OData string literal: apostrophes doubled."""
    return str(value).replace("'", "''")


def as_soql(value: Any) -> str:
    """The inside of a SOQL string literal: backslashes and apostrophes escaped."""
    return str(value).replace("\\", "\\\\").replace("'", "\\'")


def _environment(encodes: bool = False) -> ImmutableSandboxedEnvironment:
    made = environment(finalize=(lambda value: quote(str(value), safe="")) if encodes else None)
    made.filters.update({"uuid": as_uuid, "base64": as_base64, "odata": as_odata, "soql": as_soql})
    return made


_PLAIN, _PATH = _environment(), _environment(encodes=True)


class Text:
    """A text with placeholders; `variables` and `secrets` are the names it needs.

    One that is a single `{{ ... }}` gives that value as it is, so that numbers and lists stay what they are.
    """

    def __init__(self, source: str, encodes: bool = False) -> None:
        made = _PATH if encodes else _PLAIN
        whole = None if encodes else _EXPRESSION.fullmatch(source.strip())
        try:
            tree = made.parse(source)
            self._value = made.compile_expression(whole[1], undefined_to_none=False) if whole else None
            self._text = made.from_string(source)
        except TemplateError as error:
            raise ValueError(f"expected a Jinja2 template; {error}") from error
        self.source = source
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        self.secrets = frozenset(_secrets(tree))

    def render(self, values: Mapping[str, Any]) -> Any:
        """Raises RenderError, without quoting a value, where one is missing or does not fit."""
        try:
            if self._value is None:
                return self._text.render(values)
            found = self._value(**values)
            # What JSON does not know is its text; a name that is not there raises only here.
            plain = found if isinstance(found, _JSON) else str(found)
        except Exception as error:  # as of `processors.templates.Template`
            raise RenderError(f"{self.source!r} cannot be filled in ({type(error).__name__})") from error
        return plain


def _secrets(tree: nodes.Template) -> Iterator[str]:
    for attribute in tree.find_all(nodes.Getattr):
        if _is_secrets(attribute.node):
            yield attribute.attr
    for item in tree.find_all(nodes.Getitem):
        if _is_secrets(item.node) and isinstance(item.arg, nodes.Const):
            yield str(item.arg.value)


def _is_secrets(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "secrets"


class Shape:
    """A JSON value as YAML writes it, with placeholders in its texts."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self._shape = _compiled(source)
        texts = list(_texts(self._shape))
        self.variables = frozenset[str]().union(*(text.variables for text in texts))
        self.secrets = frozenset[str]().union(*(text.secrets for text in texts))

    def render(self, values: Mapping[str, Any]) -> Any:
        """The value, for JSON; raises RenderError."""
        return _rendered(self._shape, values)


def _compiled(source: Any) -> Any:
    match source:
        case str():
            return Text(source)
        case Mapping():
            return {str(name): _compiled(value) for name, value in source.items()}
        case list() | tuple():
            return [_compiled(value) for value in source]
        case None | bool() | int() | float():
            return source
        case _:
            raise ValueError(f"expected what JSON can hold, found {type(source).__name__}")


def _texts(shape: Any) -> Iterator[Text]:
    match shape:
        case Text():
            yield shape
        case dict():
            for value in shape.values():
                yield from _texts(value)
        case list():
            for value in shape:
                yield from _texts(value)


def _rendered(shape: Any, values: Mapping[str, Any]) -> Any:
    match shape:
        case Text():
            return shape.render(values)
        case dict():
            return {name: _rendered(value, values) for name, value in shape.items()}
        case list():
            return [_rendered(value, values) for value in shape]
        case _:
            return shape


class Search:
    """A JMESPath expression."""

    def __init__(self, source: str) -> None:
        try:
            self._compiled = jmespath.compile(source)
        except JMESPathError as error:
            raise ValueError(f"expected a JMESPath expression; {str(error).splitlines()[0]}") from error
        self.source = source

    def find(self, value: Any) -> Any:
        """What it finds; None where nothing, or where it does not apply."""
        try:
            return self._compiled.search(value)
        except JMESPathError:
            return None


def _path(value: Any) -> Any:
    return Text(value, encodes=True) if isinstance(value, str) else value


def _text(value: Any) -> Any:
    return Text(value) if isinstance(value, str) else value


def _search(value: Any) -> Any:
    return Search(value) if isinstance(value, str) else value


def _source(value: Text | Shape | Search) -> Any:
    return value.source


PathText = Annotated[Text, BeforeValidator(_path), PlainSerializer(_source)]
PlainText = Annotated[Text, BeforeValidator(_text), PlainSerializer(_source)]
JsonShape = Annotated[Shape, BeforeValidator(Shape), PlainSerializer(_source)]
Found = Annotated[Search, BeforeValidator(_search), PlainSerializer(_source)]
