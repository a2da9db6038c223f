"""Who calls, as templates see it."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote


class Caller:
    """`{{ caller }}` is the number or id that the caller came with, `{{ caller.name }}` a field of its record.

    A field that the record lacks is empty, and so is every field where there is no record.
    """

    def __init__(self, identity: str, record: Mapping[str, str] | None = None) -> None:
        self._identity = identity
        self._record = dict(record or {})

    def quoted(self) -> "Caller":
        """The same, percent-encoded, for a URL."""
        record = {name: quote(value, safe="") for name, value in self._record.items()}
        return Caller(quote(self._identity, safe=""), record)

    def __getattr__(self, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._record.get(name, "")

    def __getitem__(self, name: Any) -> str:
        return self._record.get(str(name), "")

    def __str__(self) -> str:
        return self._identity

    def __bool__(self) -> bool:
        return bool(self._identity)

    def __eq__(self, other: object) -> bool:
        return str(other) == self._identity

    def __hash__(self) -> int:
        return hash(self._identity)
