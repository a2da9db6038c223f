"""Writes the reference in `docs/analytics.md` from the database's own comments; `--check` fails when the two differ.

python -m processors.clickhouse.dictionary [--check]
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from clickhouse_connect.driver.client import Client

from processors.clickhouse.questions import ready_questions
from processors.clickhouse.store import Store, connect
from streams.settings import REPOSITORY, Settings

TARGET = REPOSITORY / "docs" / "analytics.md"
# What stands above it on the page is written by hand.
BEGIN = "## Ready questions\n"
_SELECT = """
SELECT t.name, t.engine = 'View', t.comment, c.name, c.type, c.comment
FROM system.tables AS t JOIN system.columns AS c ON c.database = t.database AND c.table = t.name
WHERE t.database = currentDatabase() AND t.engine != 'MaterializedView'
ORDER BY t.engine != 'View', t.name, c.position
"""


def reference(client: Client) -> str:
    """Questions, views and tables of a migrated database. Raises ValueError where one has no comment."""
    lines = [BEGIN, "Files to paste into any client, each about the last 30 days:", ""]
    lines += ["| question | `trunkline sql --question` |", "|---|---|"]
    for question in ready_questions().values():
        path = f"../{question.path.relative_to(REPOSITORY).as_posix()}"
        lines.append(f"| {question.title} | [{question.name}]({path}) |")
    rows = [tuple(str(value) for value in row) for row in client.query(_SELECT).result_rows]
    lines += ["", "## Views", "", *_tables(row for row in rows if row[1] == "1")]
    lines += ["## Tables", "", *_tables(row for row in rows if row[1] == "0")]
    return "\n".join(lines).rstrip() + "\n"


def _tables(rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines: list[str] = []
    table = ""
    for name, _, comment, column, kind, meaning in rows:
        if name != table:
            lines += ["", f"### {name}", "", _said(name, comment), "", "| column | type | meaning |", "|---|---|---|"]
            table = name
        lines.append(f"| `{column}` | `{kind}` | {_said(f'{name}.{column}', meaning)} |")
    return [*lines[1:], ""]


def _said(name: str, comment: str) -> str:
    if not comment:
        raise ValueError(f"{name}: a COMMENT is expected")
    return comment.replace("|", "\\|")


def main() -> int:
    """Writes or, with `--check`, compares; exits 1 when they differ."""
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(data_dir=Path(directory))
        store = Store(settings, "dictionary")
        store.migrate()
        client = connect(settings)
        found = reference(client)
        client.close()
        store.close()
    present = TARGET.read_text(encoding="utf-8")
    text = present.partition(BEGIN)[0] + found
    if text == present:
        return 0
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    print("docs/analytics.md differs: run python -m processors.clickhouse.dictionary", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
