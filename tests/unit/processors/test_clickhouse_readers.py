"""Readers of the embedded ClickHouse by name and password, and how one is made."""

import json
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from api.cli.main import app
from processors.access.keys import Key, new_key
from processors.access.roles import Role
from processors.clickhouse.questions import ready_questions
from processors.clickhouse.readers import (
    KEY_FILE,
    Reader,
    Readers,
    create_user,
    known_operator_key,
    operator_key,
    password_hash,
)
from streams.clock import SystemClock
from streams.settings import ClickHouseSettings, ClickHouseUser, Settings


def settings(directory: Path, **clickhouse: object) -> Settings:
    return Settings(data_dir=directory, clickhouse=ClickHouseSettings.model_validate(clickhouse))


def test_a_reader_is_told_by_name_and_password(tmp_path: Path) -> None:
    users = {"ann": {"tenant": "acme", "password_hash": password_hash("right")}}
    readers = Readers(settings(tmp_path, users=users))
    for _ in range(2):
        assert readers.known("ann", "right") == Reader("ann", "acme")
        assert readers.known("ann", "wrong") is None
        assert readers.known("ann", "") is None
        assert readers.known("bob", "right") is None


def test_without_users_the_operator_needs_no_password(tmp_path: Path) -> None:
    readers = Readers(settings(tmp_path))
    assert readers.known("", "") == readers.known("default", "") == Reader("default")
    assert readers.known("ann", "") is None
    assert not (tmp_path / KEY_FILE).exists()


def test_with_users_the_operator_has_a_key_that_only_its_owner_reads(tmp_path: Path) -> None:
    users = {"ann": {"tenant": "acme", "password_hash": password_hash("right")}}
    chosen = settings(tmp_path, users=users)
    key = operator_key(chosen)
    assert len(key) >= 32
    assert operator_key(chosen) == known_operator_key(settings(tmp_path)) == key
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    readers = Readers(chosen)
    assert readers.known("default", key) == Reader("default")
    assert readers.known("default", "") is None
    assert readers.known("", "") is None


def test_the_operators_password_may_be_given(tmp_path: Path) -> None:
    readers = Readers(settings(tmp_path, password="given"))
    assert readers.known("default", "given") == Reader("default")
    assert readers.known("default", "") is None


class Ring:
    """Knows one key."""

    def __init__(self, key: Key, text: str) -> None:
        self.key, self.text = key, text

    def find(self, text: str) -> Key | None:
        return self.key if text == self.text else None


NOW_US = SystemClock().now_us()


@pytest.mark.parametrize(
    ("role", "tenant", "fields", "refused"),
    [
        (Role.ANALYST, "acme", {}, None),
        (Role.AUDITOR, None, {}, None),
        (Role.ADMIN, "acme", {"expires_at": NOW_US + 3_600_000_000}, None),
        (Role.SERVICE, "acme", {}, ("forbidden", "role")),
        (Role.OPERATOR, None, {}, ("forbidden", "role")),
        (Role.ANALYST, "acme", {"expires_at": NOW_US - 1}, ("unauthenticated", "expired_key")),
        (Role.ANALYST, "acme", {"revoked_at": NOW_US}, ("unauthenticated", "revoked_key")),
    ],
)
def test_a_key_is_a_password_under_any_name(
    tmp_path: Path, role: Role, tenant: str | None, fields: dict[str, int], refused: tuple[str, str] | None
) -> None:
    key, text = new_key("ann", role, tenant, NOW_US, "test")
    ring: Any = Ring(msgspec.structs.replace(key, **fields), text)
    readers = Readers(settings(tmp_path), ring)
    for name in ("", "default", "ann"):
        assert readers.known(name, text) == (Reader(key.id, tenant) if refused is None else None)
        assert readers.known(name, text[:-1] + ("A" if text[-1] != "A" else "B")) is None
    if refused is not None:
        kind, reason, principal = readers.refusal(text)
        assert (kind, reason) == refused
        assert principal == key.principal
    assert readers.refusal("wrong")[1:] == ("unknown_reader", None)


@pytest.mark.parametrize(
    ("user", "field"),
    [
        ({"tenant": "", "password_hash": password_hash("x")}, "tenant"),
        ({"tenant": "a", "password_hash": "x"}, "password_hash"),
    ],
)
def test_a_mistaken_user_is_named(user: dict[str, str], field: str) -> None:
    with pytest.raises(ValidationError, match=rf"users\.ann\.{field}"):
        ClickHouseSettings.model_validate({"users": {"ann": user}})


def test_hashes_are_salted_and_never_shown() -> None:
    assert password_hash("x") != password_hash("x")
    assert "scrypt" not in repr(ClickHouseUser(tenant="acme", password_hash=password_hash("x")))


def test_a_user_is_made_for_both_kinds_of_clickhouse(tmp_path: Path) -> None:
    made = json.loads(CliRunner().invoke(app, ["bi-user", "ann", "--tenant", "acme", "--json"]).stdout)
    readers = Readers(settings(tmp_path, users=made["setting"]))
    assert readers.known("ann", made["password"]) == Reader("ann", "acme")
    assert made["server"] == create_user("ann", "acme", made["password"])
    assert made["server"].startswith("CREATE USER `ann@acme` IDENTIFIED WITH sha256_hash BY '")
    assert made["password"] not in made["server"]


@pytest.mark.parametrize(("name", "tenant"), [("a@b", "acme"), ("a`b", "acme"), ("ann", "acme'"), ("", "acme")])
def test_a_name_that_a_server_could_misread_is_refused(name: str, tenant: str) -> None:
    with pytest.raises(ValueError, match="are expected"):
        create_user(name, tenant, "password")


def test_the_ready_questions_are_listed() -> None:
    listed = CliRunner().invoke(app, ["sql", "--questions", "--json"]).stdout.splitlines()
    assert [json.loads(line)["name"] for line in listed] == list(ready_questions())
