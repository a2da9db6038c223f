"""Texts with placeholders: Jinja2, sandboxed, strict about names, compiled when an agent is loaded."""

import re
from collections.abc import Callable, Mapping
from datetime import date
from typing import Annotated, Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BeforeValidator, PlainSerializer

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


class RenderError(Exception):
    """A template could not be rendered with the values given, such as a result that lacks a field."""


def spell(value: Any) -> str:
    """Characters one by one, as order numbers are read aloud: `1042` becomes `1 0 4 2`."""
    return " ".join(character for character in str(value) if character.isalnum())


def spoken_date(value: Any) -> str:
    """An ISO date as it is said: `2026-11-27` becomes `Friday, November 27`; anything else stays as it is."""
    try:
        day = date.fromisoformat(str(value)[:10])
    except ValueError:
        return str(value)
    return f"{_WEEKDAYS[day.weekday()]}, {_MONTHS[day.month - 1]} {day.day}"


def money(value: Any, currency: str = "dollars") -> str:
    """An amount as it is said: `129.5` becomes `129 dollars and 50 cents`."""
    cents = round(float(value) * 100)
    whole, rest = divmod(abs(cents), 100)
    return f"{'minus ' if cents < 0 else ''}{whole} {currency}" + (f" and {rest} cents" if rest else "")


def listing(values: Any, conjunction: str = "and") -> str:
    """A list as it is said: `a, b and c`."""
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {conjunction} {words[-1]}" if words else ""


def environment(finalize: Callable[[Any], Any] | None = None) -> ImmutableSandboxedEnvironment:
    """Sandboxed, and strict about names; `finalize` is applied to every value that a template puts into its text."""
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, finalize=finalize)
    filters: Mapping[str, Callable[..., str]] = {
        "spell": spell,
        "spoken_date": spoken_date,
        "money": money,
        "listing": listing,
    }
    environment.filters.update(filters)
    # What a template could differ by between two runs has no place in a replayable log.
    del environment.filters["random"]
    return environment


_ENVIRONMENT = environment()


class Template:
    """A compiled text; `variables` are the names it needs."""

    __slots__ = ("_compiled", "source", "variables")

    def __init__(self, source: str) -> None:
        try:
            self._compiled = _ENVIRONMENT.from_string(source)
            self.variables = frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(source)))
        except TemplateError as error:
            raise ValueError(f"expected a Jinja2 template; {error}") from error
        self.source = source

    def render(self, values: Mapping[str, Any]) -> str:
        """The text with runs of blanks made one; raises RenderError where a value is missing or does not fit."""
        try:
            return re.sub(r"\s+", " ", self._compiled.render(values)).strip()
        except Exception as error:  # filters and methods raise anything for values that they were not made for
            raise RenderError(f"{type(error).__name__}: {error}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and other.source == self.source

    def __hash__(self) -> int:
        return hash(self.source)

    def __repr__(self) -> str:
        return f"Template({self.source!r})"


class Expression:
    """A compiled condition over values, such as `result.available == 0`; `variables` are the names it needs."""

    __slots__ = ("_compiled", "source", "variables")

    def __init__(self, source: str) -> None:
        try:
            self._compiled = _ENVIRONMENT.compile_expression(source, undefined_to_none=True)
            parsed = _ENVIRONMENT.parse("{{ (" + source + ") }}")
            self.variables = frozenset(meta.find_undeclared_variables(parsed))
        except TemplateError as error:
            raise ValueError(f"expected a Jinja2 expression; {error}") from error
        self.source = source

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the condition is met; one that cannot be evaluated is not."""
        try:
            return bool(self._compiled(**values))
        except Exception:  # as of a template: a condition over another system's answer meets any value
            return False

    def __repr__(self) -> str:
        return f"Expression({self.source!r})"


def _template(value: Any) -> Any:
    return Template(value) if isinstance(value, str) else value


def _expression(value: Any) -> Any:
    return Expression(value) if isinstance(value, str) else value


def _source(value: Template | Expression) -> str:
    return value.source


TemplateText = Annotated[Template, BeforeValidator(_template), PlainSerializer(_source, return_type=str)]
ExpressionText = Annotated[Expression, BeforeValidator(_expression), PlainSerializer(_source, return_type=str)]
