"""The ready questions: `infra/clickhouse/questions/`, a file each, that any client may ask as they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from streams.settings import REPOSITORY

QUESTIONS = REPOSITORY / "infra" / "clickhouse" / "questions"


@dataclass(frozen=True, slots=True)
class ReadyQuestion:
    """`title` is the question in words, `query` the SQL that answers it."""

    name: str
    title: str
    query: str
    path: Path


@cache
def ready_questions(directory: Path = QUESTIONS) -> Mapping[str, ReadyQuestion]:
    """By name, in the order of their numbers."""
    found = {}
    for path in sorted(directory.glob("[0-9]*.sql")):
        title, _, query = path.read_text(encoding="utf-8").partition("\n")
        name = path.stem.partition("_")[2]
        found[name] = ReadyQuestion(name, title.removeprefix("-- "), query.strip(), path)
    return found
