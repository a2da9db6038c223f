"""`trunkline capacity` as it is typed, and docs/capacity.md, whose figures are what it prints."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from api.cli.main import app
from api.errors import OperatorError
from streams.settings import REPOSITORY

TEXT = (REPOSITORY / "docs" / "capacity.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```text\n\$ ([^\n]*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
STEPS = {100: 0, 1000: 100, 10_000: 1000, 100_000: 10_000}
GPU = "infra/capacity/gpu.yaml"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def printed(command: str) -> str:
    """What a line as in the documents prints: variables, `trunkline`, arguments."""
    words = shlex.split(command)
    start = words.index("trunkline")
    variables = dict(word.split("=", 1) for word in words[:start])
    result = CliRunner().invoke(app, words[start + 1 :], env=variables, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def plans(arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed(f"trunkline capacity {arguments} --json").splitlines()]


def step(sessions: int) -> str:
    """The document's section on so many calls, without what commands print there."""
    section = TEXT.split(f"\n### {sessions:,} calls\n")[1].split("\n## ")[0].split("\n### ")[0]
    return re.sub(r"^```.*?^```", "", section, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("command", "output"), BLOCKS, ids=[command[-60:] for command, _ in BLOCKS])
def test_the_document_shows_what_the_command_prints(command: str, output: str) -> None:
    assert printed(command) == output


def test_the_document_has_all_steps() -> None:
    assert len(BLOCKS) >= 4
    for command, _ in BLOCKS[:2]:
        assert [int(number) for number in re.findall(r"--sessions (\d+)", command)] == list(STEPS)


@pytest.mark.parametrize("sessions", STEPS)
def test_every_bold_figure_of_a_step_is_printed(sessions: int) -> None:
    figures = re.findall(r"\*\*([\d,.]+)\*\*", step(sessions))
    output = "".join(
        printed(f"trunkline capacity --sessions {sessions} --profile infra/capacity/{name}.yaml")
        for name in ("cpu", "gpu")
    )
    printed_numbers = set(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", output))
    assert figures
    assert set(figures) - printed_numbers == set()


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
@pytest.mark.parametrize("sessions", [number for number in STEPS if number > 100])
def test_a_step_names_what_breaks_first(sessions: int, profile: str) -> None:
    given = f"--sessions {STEPS[sessions]} --sessions {sessions} --profile infra/capacity/{profile}.yaml"
    first = plans(given)[1]["first"]
    assert f"{first['name']}, with {first['sessions']:,} calls" in " ".join(step(sessions).split())


def test_a_row_each_in_order_whatever_the_order_of_the_options() -> None:
    lines = printed("trunkline capacity --sessions 1000 --sessions 100").splitlines()
    assert [line.split()[0] for line in lines] == ["calls", "100", "1,000"]


def test_json_has_all_parts() -> None:
    (made,) = plans("--sessions 100")
    assert made["sessions"] == 100
    assert {"topics", "log", "processes", "engines", "totals", "limits", "first"} <= set(made)


def test_what_is_kept_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_KAFKA__RETENTION_DAYS", '{"voice.sessions": -1}')
    with pytest.raises(OperatorError, match=r"^voice\.sessions: kept for ever"):
        plans("--sessions 100")


def test_every_figure_is_shown_with_its_source() -> None:
    rows = [json.loads(line) for line in printed(f"trunkline capacity --figures --profile {GPU} --json").splitlines()]
    assert {row["origin"] for row in rows} == {"measured", "published", "setting", "assumed"}
    assert len(rows) > 80
    table = printed(f"trunkline capacity --figures --profile {GPU}")
    assert all(row["source"] in table for row in rows)


@pytest.mark.parametrize("arguments", ["", "--sessions 3 --figures"])
def test_either_calls_or_figures(arguments: str) -> None:
    with pytest.raises(OperatorError, match="--sessions N or --figures"):
        printed(f"trunkline capacity {arguments}")


def test_a_bad_profile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\n", encoding="utf-8")
    with pytest.raises(OperatorError, match=rf"{re.escape(str(path))}:1: platform: is missing"):
        printed(f"trunkline capacity --sessions 3 --profile {path}")
