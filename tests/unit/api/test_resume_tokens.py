"""Resume tokens: what is accepted, what is not, and where the key comes from."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.resume_tokens import KEY_FILE, ResumeTokens, resume_tokens
from streams.settings import ApiSettings, Settings

SESSION = "0b5e7c1a-3d51-4b7e-9d1c-5f0a4a8c2e11"
TOKENS = ResumeTokens(b"k" * 32, "demo")


def test_a_token_says_which_session_and_since_when_until_it_expires() -> None:
    token = TOKENS.mint(SESSION, "acme", 1_000, 9_000)
    read = TOKENS.read(token, 8_999)
    assert read is not None
    assert (read.session_id, read.tenant, read.since_us) == (SESSION, "acme", 1_000)
    assert TOKENS.read(token, 9_000) is None


@given(st.integers(0, 69), st.characters(codec="ascii"))
@example(49, "+")
def test_no_character_of_a_token_can_be_changed(position: int, other: str) -> None:
    token = TOKENS.mint(SESSION, "acme", 1_000, 9_000)
    forged = token[:position] + other + token[position + 1 :]
    assert forged == token or TOKENS.read(forged, 0) is None


@given(st.text(max_size=100))
def test_anything_else_is_no_token(text: str) -> None:
    assert TOKENS.read(text, 0) is None


def test_another_platforms_token_is_foreign_though_the_key_is_the_same() -> None:
    assert ResumeTokens(b"k" * 32, "other").read(TOKENS.mint(SESSION, "acme", 0, 9), 0) is None


def test_gateways_of_one_data_directory_share_a_key_that_nobody_else_can_read(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    token = resume_tokens(settings).mint(SESSION, "acme", 0, 9)
    assert resume_tokens(settings).read(token, 0) is not None
    assert (tmp_path / "data" / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "data").iterdir()] == [KEY_FILE]


def test_the_settings_key_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_API__RESUME_KEY", "of all gateways")
    first = Settings(data_dir=tmp_path / "0", api=ApiSettings())
    assert not list(tmp_path.iterdir())
    token = resume_tokens(Settings(data_dir=tmp_path / "0")).mint(SESSION, "acme", 0, 9)
    assert resume_tokens(Settings(data_dir=tmp_path / "1")).read(token, 0) is not None
    assert resume_tokens(first).read(token, 0) is None
