"""Policies: the example is good, each tenant has its own, and a mistake is named with file, line and field."""

from dataclasses import replace
from pathlib import Path

import pytest

from processors.privacy import KeepDays, load_policies
from schemas import json_form
from schemas.events import Transcript
from streams.settings import REPOSITORY
from streams.yamlfile import ConfigError

EXAMPLES = REPOSITORY / "infra" / "privacy"
STRICT = r"""
tenants: [acme, umbrella]
mask: [card, email, phone, iban]
national_ids: [us, de]
patterns:
  - {name: member_number, pattern: 'M-\d{6}'}
keep_days: {audio: 7, words: 0.5}
"""


def words(tenant: str) -> Transcript:
    return replace(
        json_form.examples(Transcript)[-1],
        tenant_id=tenant,
        text="M-204881, 4111 1111 1111 1111, ann@example.com",
        words=(),
    )


def test_the_example_masks_cards_and_keeps_everything() -> None:
    policy = load_policies(EXAMPLES).of("demo")
    assert (policy.mask, policy.keep_days) == (("card",), KeepDays())


def test_each_tenant_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "strict.yaml").write_text(STRICT, encoding="utf-8")
    (tmp_path / "none.yaml").write_text("tenants: [open]\nmask: []\n", encoding="utf-8")
    policies = load_policies(tmp_path)
    texts = {tenant: policies.redacted(words(tenant)).to_record()["text"] for tenant in ("acme", "open", "other")}
    assert texts == {
        "acme": "********, **** **** **** ****, ***************",
        "open": "M-204881, 4111 1111 1111 1111, ann@example.com",
        "other": "M-204881, **** **** **** ****, ann@example.com",
    }
    assert policies.of("umbrella").keep_days == KeepDays(audio=7, words=0.5)
    assert policies.of("other").keep_days == KeepDays()


def test_a_directory_that_is_not_there_holds_nobodys_policy(tmp_path: Path) -> None:
    assert load_policies(tmp_path / "none").of("acme").mask == ("card",)


@pytest.mark.parametrize(
    ("given", "found", "line", "field", "expected"),
    [
        ("[card, email, phone, iban]", "[cards]", 3, "mask[0]", "'card', 'email', 'phone' or 'iban'"),
        ("[us, de]", "[us, xx]", 4, "national_ids[1]", "one of at, br, de, es, fr, it, nl, pl, us is expected"),
        (r"'M-\d{6}'", "'M-('", 6, "patterns[0].pattern", "is no regular expression: missing )"),
        (r"'M-\d{6}'", "'M*'", 6, "patterns[0].pattern", "needs at least one character"),
        ("member_number", "Member Number", 6, "patterns[0].name", "should match pattern"),
        ("audio: 7", "audio: 0", 7, "keep_days.audio", "greater than 0"),
        ("keep_days", "keep_day", 7, "keep_day", "is not known here; did you mean keep_days"),
        ("tenants: [acme, umbrella]", "", 1, "tenants", "is missing; expected the ids of the tenants"),
    ],
)
def test_a_mistake_names_file_line_and_field(
    tmp_path: Path, given: str, found: str, line: int, field: str, expected: str
) -> None:
    path = tmp_path / "strict.yaml"
    path.write_text(STRICT.replace(given, found, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_policies(tmp_path)
    problems = [problem for problem in raised.value.problems if problem.field == field]
    assert problems, str(raised.value)
    assert expected in problems[0].expected
    assert field == "tenants" or problems[0].line == line


def test_a_tenant_has_one_policy(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("tenants: [acme]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"two\.yaml:1: tenants\[0\]: expected in one policy only, 'acme' has that"):
        load_policies(tmp_path)
