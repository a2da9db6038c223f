"""The documents name what is there."""

import re
from collections import Counter
from pathlib import Path

import pytest
from typer.main import get_command

from api.cli.main import app
from bench.faults.faults import FAULTS, Promise
from bench.faults.faulty_engine import Order
from bench.overload import SLOWER_MAX
from processors.agents import load_agents
from streams.settings import REPOSITORY
from streams.topics import TOPICS

DOCUMENTS = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    *sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "docs").glob("**/*.md")),
]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_consumer_as_it_is() -> None:
    assert f"```python\n{(REPOSITORY / 'docs/examples/consumer.py').read_text(encoding='utf-8')}```" in README


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_fenced_command_exists(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    named = re.findall(r"(?:\.venv/bin/|`)trunkline (\w+)", fenced)
    assert set(named) <= set(get_command(app).commands)  # type: ignore[attr-defined]
    if name == "README.md":
        assert {"up", "call", "status", "down"} <= set(named)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_linked_file_exists(name: str) -> None:
    path = REPOSITORY / name
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_agent_of_the_readme_loads(tmp_path: Path) -> None:
    (written,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "cafe.yaml").write_text(written, encoding="utf-8")
    assert list(load_agents(tmp_path)) == ["cafe"]


def test_every_topic_is_described() -> None:
    described = (REPOSITORY / "docs/topics.md").read_text(encoding="utf-8")
    assert [name for name in TOPICS if name not in described and not name.startswith("voice.state.")] == []


def test_the_readme_names_every_document() -> None:
    assert [path.name for path in (REPOSITORY / "docs").glob("*.md") if path.name not in README] == []


def test_every_entry_of_the_changelog_is_told_once() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    entries = [" ".join(entry.split()) for entry in re.split(r"^- |^#.*$", text, flags=re.MULTILINE)]
    assert [entry for entry, times in Counter(filter(None, entries)).items() if times > 1] == []


FAULTS_PAGE = (REPOSITORY / "docs/faults.md").read_text(encoding="utf-8")


def test_the_page_on_faults_promises_what_the_campaign_holds_the_platform_to() -> None:
    promised = FAULTS_PAGE.split("## What is promised")[1]
    cells = [line.strip("|").split("|") for line in promised.splitlines() if line.startswith("| `")]
    by_name = {name: silence for names, silence, _ in cells for name in re.findall(r"`([\w.]+)`", names)}
    for fault in FAULTS.values():
        silence = by_name.get(fault.name) or by_name[fault.name.split(".")[0]]
        written = {name: 1000 * float(value) for name, value in re.findall(r"(p50|max) ([\d.]+) s", silence)}
        expected = fault.promise or Promise(None, None)
        assert (written.get("p50"), written.get("max")) == (expected.p50_ms, expected.max_ms), fault.name


def test_the_page_on_faults_names_each_thing_that_an_engine_may_do() -> None:
    (row,) = [line for line in FAULTS_PAGE.splitlines() if line.startswith("| `engine.HOW.ROLE`")]
    assert [order for order in Order if f"`{order}`" not in row] == []


def test_overload_is_promised_in_the_same_words() -> None:
    for promise in (
        f"at most {SLOWER_MAX:g} times that of one call at a time",
        "others are told when to come back",
        "no call dropped or failed",
    ):
        assert promise in " ".join(FAULTS_PAGE.split())
    assert f"at most {SLOWER_MAX:g} times that of one call at a time" in " ".join(README.split())
