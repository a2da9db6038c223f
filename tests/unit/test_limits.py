"""The table of limits, and the page on overload, say what the code does: names exist, with the sizes that they have."""

import ast
import re
from typing import Any

import pytest
from pydantic import BaseModel

from api.door import SOCKETS_SPARE
from api.server import REQUESTS_MAX
from streams.settings import REPOSITORY, Settings

TEXT = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
OVERLOAD = (REPOSITORY / "docs" / "limits.md").read_text(encoding="utf-8")
SOURCES = [path for folder in ("api", "processors", "streams") for path in (REPOSITORY / folder).rglob("*.py")]
COLUMNS = ("queue", "size", "unit", "when_full", "metric", "where")


def rows() -> list[dict[str, str]]:
    """The table of queues."""
    table = TEXT.split("\n## Limits\n")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
    return [dict(zip(COLUMNS, (cell.strip() for cell in cells), strict=True)) for cells in lines[1:]]


def metrics() -> set[str]:
    """The names of all metrics that the code makes."""
    made = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(ast.Name("Counter" | "Gauge" | "Histogram"), [ast.Constant(str(name)), *_]):
                    made.add(name)
    return made


def setting(name: str) -> Any:
    """Its default; None where there is no such setting."""
    found: Any = Settings.model_construct(
        **{n: f.get_default(call_default_factory=True) for n, f in Settings.model_fields.items()}
    )
    for part in name.split("."):
        if not isinstance(found, BaseModel) or part not in type(found).model_fields:
            return None
        found = getattr(found, part)
    return found


def constant(path: str, name: str) -> Any:
    """A module's constant, a default of a dataclass's field or of a parameter, evaluated; None where there is none."""
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return eval(compile(ast.Expression(node.value), path, "eval"), {})
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return ast.literal_eval(node.value) if node.value is not None else None
        if isinstance(node, ast.arguments):
            named = dict(zip([a.arg for a in node.kwonlyargs], node.kw_defaults, strict=True))
            positional = node.args[len(node.args) - len(node.defaults) :]
            named |= dict(zip([a.arg for a in positional], node.defaults, strict=True))
            if isinstance(default := named.get(name), ast.Constant):
                return default.value
    return None


def test_every_row_says_all_of_it() -> None:
    assert len(rows()) > 30
    for row in rows():
        assert all(row.values()), row


def test_every_metric_named_exists() -> None:
    named = set(re.findall(r"`(trunkline_\w+)`", TEXT + OVERLOAD))
    assert named
    assert named - metrics() == set()
    for row in rows():
        assert re.search(r"`trunkline_\w+`", row["metric"]), row


def places() -> list[tuple[str, str, str]]:
    """Each row's size with the setting, or with the file and constant, that it comes from."""
    found = []
    for row in rows():
        size = row["size"].replace(",", "")
        if match := re.fullmatch(r"`(\S+\.py)` `(\w+)`", row["where"]):
            found.append((size, match[1], match[2]))
        elif match := re.fullmatch(r"`([\w.]+)`", row["where"]):
            found.append((size, "", match[1]))
    return found


@pytest.mark.parametrize(("size", "path", "name"), places())
def test_every_size_is_the_codes(size: str, path: str, name: str) -> None:
    found = constant(path, name) if path else setting(name)
    if name == "_MIB":
        assert found == int(size)
    elif name == "buffer_records_max" and path == "streams/faust_app.py":
        assert found * 5 // 4 == int(size)  # records are held back at four fifths
    else:
        assert found is not None, f"{path} {name}: expected to exist"
        assert float(found) == float(size)


def test_the_sums_of_connections_are_right() -> None:
    sizes = {
        row["queue"]: int(row["size"].replace(",", "")) for row in rows() if "connections of a gateway" in row["queue"]
    }
    sockets = 2 * Settings().api.sessions_max + SOCKETS_SPARE
    assert sizes == {
        "callers' connections of a gateway": sockets,
        "all connections of a gateway": sockets + REQUESTS_MAX,
    }
    assert len(places()) == len(rows()) - len(sizes)


def test_every_setting_of_load_is_described() -> None:
    described = set(re.findall(r"`load\.(\w+)", TEXT + OVERLOAD))
    assert described == set(type(Settings().load).model_fields)


def test_every_bound_of_the_code_is_in_the_table() -> None:
    """Deques and queues are made with a bound or in a file that the table names or that is known to bound them."""
    unbounded = re.compile(r"(deque\(\)|Queue\(\)|default_factory=deque\))")
    known = {path.relative_to(REPOSITORY).as_posix() for path in SOURCES if unbounded.search(path.read_text())}
    in_table = {path for _, path, _ in places() if path}
    # What bounds those that the table does not name: time windows (load, admission), a rate (dead letters), open work
    # (runner), offsets in flight (ledger), tokens (llama_cpp), connections (http), held records (consumer).
    bounded = {
        "api/admission.py",
        "processors/load.py",
        "processors/dead_letters.py",
        "processors/llm/llama_cpp.py",
        "streams/faust_transport/ledger.py",
        "streams/faust_transport/consumer.py",
    }
    assert known - in_table - bounded == set()
