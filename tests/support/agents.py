"""Agents' files for tests."""

from pathlib import Path

import yaml


def write_agent(folder: Path, agent_id: str, **models: str) -> None:
    """An agent's file, which names these models."""
    agent = {
        "name": agent_id,
        "greeting": "Hello.",
        "persona": "You answer.",
        "intents": [{"name": "hours", "examples": ["when are you open"], "templates": {"ok": "From nine to five."}}],
        **({"models": models} if models else {}),
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{agent_id}.yaml").write_text(yaml.safe_dump(agent), encoding="utf-8")
