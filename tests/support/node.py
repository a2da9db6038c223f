"""Programs for Node, run beside the packages that `make test` installs below .venv."""

import shutil
import subprocess
from pathlib import Path

import pytest

from streams.settings import REPOSITORY

MODULES = REPOSITORY / ".venv" / "node" / "node_modules"
PROGRAMS = REPOSITORY / "tests" / "node"


def command(program: Path, folder: Path, *arguments: str) -> list[str]:
    """How to run the program, as it is, from `folder`, where Node finds the packages; skips where there is none."""
    node = shutil.which("node")
    if node is None or not MODULES.is_dir():
        pytest.skip("no Node with the packages of tests/node: install Node and npm, then `make test`")
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(MODULES)
    return [node, str(shutil.copy(program, folder)), *arguments]


def output(program: Path, folder: Path, *arguments: str) -> str:
    """What it prints; fails with what it complains of."""
    done = subprocess.run(command(program, folder, *arguments), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
