"""Tiers: the examples are good, and a mistake is named with file, line, field and what is expected."""

from pathlib import Path

import pytest

from processors.sla.objectives import Objective, load_tiers
from streams.settings import REPOSITORY
from streams.yamlfile import ConfigError

EXAMPLES = REPOSITORY / "infra" / "sla"
GOOD = (EXAMPLES / "standard.yaml").read_text(encoding="utf-8")


def test_the_examples_are_the_three_tiers_of_the_trade(tmp_path: Path) -> None:
    targets = []
    for path in EXAMPLES.glob("*.yaml"):
        text = path.read_text(encoding="utf-8").replace("tenants: []", f"tenants: [{path.stem}]")
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    for tier in load_tiers(tmp_path).values():
        targets.append(tier.session_success.target_percent)
    assert sorted(targets) == [99.5, 99.9, 99.99]
    assert set(load_tiers(EXAMPLES)) == {"demo"}


def test_every_promise_is_a_share_that_may_be_bad() -> None:
    assert load_tiers(EXAMPLES)["demo"].objectives == (
        Objective("session_success", 0.005),
        Objective("voice_to_voice_p50", 0.5),
        Objective("voice_to_voice_p95", 0.05),
        Objective("voice_to_voice_p99", 0.01),
        Objective("stt_confidence", 0.1),
    )


def test_a_directory_that_is_not_there_promises_nothing(tmp_path: Path) -> None:
    assert load_tiers(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("given", "found", "line", "field", "expected"),
    [
        ("target_percent: 99.5", "target_percent: 100", 6, "session_success.target_percent", "less than 100"),
        ("target_percent: 99.5", "target_percent: high", 6, "session_success.target_percent", "valid number"),
        ("target_percent: 99.5", "", 5, "session_success.target_percent", "is missing; expected the percentage"),
        ("  p95: 2500", "  p95: 6000", 9, "voice_to_voice_ms", "expected p50 <= p95 <= p99"),
        ("  p95: 2500", "  p90: 2500", 11, "voice_to_voice_ms.p90", "is not known here; did you mean p99"),
        ("at_least: 0.5", "at_least: 50", 15, "stt_confidence.at_least", "less than or equal to 1"),
        ("tenants: [demo]", "tenants: demo", 3, "tenants", "expected a valid tuple"),
        ("name: Standard", "name: Standard\nname: Other", 3, "name", "given twice"),
    ],
)
def test_a_mistake_names_file_line_and_field(
    tmp_path: Path, given: str, found: str, line: int, field: str, expected: str
) -> None:
    path = tmp_path / "tier.yaml"
    path.write_text(GOOD.replace(given, found, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_tiers(tmp_path)
    problems = [problem for problem in raised.value.problems if problem.field == field]
    assert problems, str(raised.value)
    assert (problems[0].path, problems[0].line) == (path, line)
    assert expected in problems[0].expected


def test_a_tenant_is_in_one_tier(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "b.yaml").write_text(GOOD.replace("[demo]", "[other, demo]"), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"b\.yaml:3: tenants\[1\]: expected in one tier only, 'demo' has that of a\.yaml, too"
    ):
        load_tiers(tmp_path)
