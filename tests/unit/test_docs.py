"""The documents name what is there."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from api.cli.main import app
from processors.agents import load_agents
from streams.settings import REPOSITORY
from streams.topics import TOPICS

DOCUMENTS = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "docs/topics.md",
    "docs/sla.md",
    "docs/calls.md",
    "docs/engines.md",
    "docs/faults.md",
    "docs/running.md",
    "docs/analytics.md",
    "docs/webhooks.md",
    "docs/access.md",
    "docs/audit.md",
    "docs/crm.md",
    "docs/privacy.md",
    "docs/capacity.md",
    "docs/scaling.md",
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
