"""How a process says that it is ready, and how others read it: a small JSON file in the run directory."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streams.settings import Settings


def path(settings: Settings, name: str) -> Path:
    """Where the process called `name` announces itself."""
    return settings.run_dir / f"{name}.json"


def announce(settings: Settings, name: str, **facts: Any) -> None:
    """Says that this process is ready, with facts that others need (`http_port`, `metrics_port`); safe to repeat.

    Engine processes are called `engine-<role>.<replica>`, all others by their component's name.
    """
    write_json(path(settings, name), {"name": name, "pid": os.getpid(), "ready_at_us": time.time_ns() // 1000, **facts})


def read(settings: Settings, name: str) -> Mapping[str, Any] | None:
    """What `name` last announced, or None. It may be left over from a process that is gone: compare `pid`."""
    try:
        facts = json.loads(path(settings, name).read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return facts if isinstance(facts, dict) else None


def withdraw(settings: Settings, name: str) -> None:
    """Takes this process's announcement back; that of a process which has taken its place stays."""
    facts = read(settings, name)
    if facts is not None and facts.get("pid") == os.getpid():
        clear(settings, name)


def clear(settings: Settings, name: str) -> None:
    """Removes the announcement, whosever it is, so that nobody takes an old one for a new one."""
    path(settings, name).unlink(missing_ok=True)


def write_json(target: Path, value: Any) -> None:
    """Replaces the file in one step: a reader sees the old content or the new, never half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, ensure_ascii=False) + "\n")
    temporary.replace(target)
