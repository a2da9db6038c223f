"""What a system answered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, JSON (None where it is none) and headers, whose names are in small letters."""

    status: int
    body: Any = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
