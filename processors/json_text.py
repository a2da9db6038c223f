"""JSON that others wrote, as plain values that everything here takes."""

import json
from typing import Any

# Python's own reader and writer stop at about a thousand, and what is told of an answer wraps it a few times more.
DEPTH_MAX = 100


def json_in(text: str | bytes) -> Any:
    """What the JSON text says; None where it is none, or is nested deeper than DEPTH_MAX.

    Halves of characters, which JSON may hold and no encoding takes, are question marks in it.
    """
    try:
        return _plain(json.loads(text), DEPTH_MAX) if text else None
    except (ValueError, RecursionError):
        return None


def valid(value: Any) -> str:
    """The text, without halves of characters that JSON may hold and nothing else takes; empty where it is no text."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return valid(value)
    if not isinstance(value, dict | list):
        return value
    if depth == 0:
        raise ValueError("it is nested too deeply")
    if isinstance(value, list):
        return [_plain(item, depth - 1) for item in value]
    return {valid(name): _plain(item, depth - 1) for name, item in value.items()}
