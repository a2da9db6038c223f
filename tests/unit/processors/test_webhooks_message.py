"""What a delivery says, who gets it, and how its secret is kept."""

import base64
import json
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import standardwebhooks
import svix.webhooks
from hypothesis import given
from hypothesis import strategies as st

from processors.webhooks.message import body_of, headers_of, trial_body
from processors.webhooks.subscriptions import (
    TOPICS,
    Progress,
    Secret,
    Start,
    State,
    Subscription,
    disabled_of,
    event_types,
    message_id,
    outcome_id,
    state_of,
    type_of,
    unknown_patterns,
    wants,
)
from processors.webhooks.vault import KEY_FILE, Vault, VaultError, check_secret, new_secret, vault_of
from schemas import json_form
from schemas.event import Event
from schemas.events import EVENTS, Response, Session, Transcript
from streams.keys import Position
from streams.settings import Settings, WebhookSettings

PLACE = Position("voice.sessions", 3, 42)


def now_us() -> int:
    """Receivers refuse what is older than five minutes, and a test may run long after it was collected."""
    return time.time_ns() // 1000


def subscription(**fields: object) -> Subscription:
    base = Subscription(
        id="wh_1", url="https://example.org/", tenant="demo", events=("*",), secrets=(), start=Start(number=1),
        created_at=0, changed_at=0,
    )  # fmt: skip
    return Subscription(**{name: getattr(base, name) for name in base.__struct_fields__} | fields)


# What it says.


@pytest.mark.parametrize("kind", [event for event in EVENTS if event.TOPIC in TOPICS])
def test_every_event_is_told_with_its_place_and_verifies(kind: type[Event]) -> None:
    for event in json_form.examples(kind):
        secrets = [new_secret(), new_secret()]
        body = body_of(event, PLACE, 2**20)
        headers = headers_of(message_id("wh_1", event.event_id), body, secrets, now_us())
        for secret in secrets:
            told = standardwebhooks.Webhook(secret).verify(body, headers)
            svix.webhooks.Webhook(secret).verify(body, headers)
        assert told["type"] == type_of(event)
        assert told["data"]["event"] == json_form.to_json(event)
        assert [told["data"][name] for name in ("topic", "partition", "offset")] == list(PLACE)
        assert told["timestamp"].endswith("Z")


def test_what_was_altered_or_signed_by_another_is_refused() -> None:
    body = body_of(json_form.examples(Session)[0], PLACE, 2**20)
    secret = new_secret()
    headers = headers_of("msg_1", body, [secret], now_us())
    altered = body.replace(b"42", b"43")
    old = headers_of("msg_1", body, [secret], now_us() - 400_000_000)
    for key, text, shown in ((secret, altered, headers), (new_secret(), body, headers), (secret, body, old)):
        with pytest.raises(standardwebhooks.webhooks.WebhookVerificationError):
            standardwebhooks.Webhook(key).verify(text, shown)
        with pytest.raises(svix.webhooks.WebhookVerificationError):
            svix.webhooks.Webhook(key).verify(text, shown)


def test_an_event_above_the_limit_is_told_by_its_place_alone() -> None:
    event = replace(json_form.examples(Transcript)[0], text="x" * 5000)
    whole, short = body_of(event, PLACE, 2**20), body_of(event, PLACE, 5000)
    assert json.loads(short)["data"] == {
        **PLACE._asdict(), "omitted_bytes": len(whole), "session_id": event.session_id
    }  # fmt: skip


def test_a_test_is_no_event() -> None:
    assert json.loads(trial_body(1_500_000)) == {
        "type": "webhook.test", "timestamp": "1970-01-01T00:00:01.500000Z", "data": {}
    }  # fmt: skip


@given(st.uuids(), st.uuids(), st.integers(1, 99))
def test_ids_are_the_same_for_the_same_and_different_for_others(one: uuid.UUID, other: uuid.UUID, attempt: int) -> None:
    first = message_id("wh_1", str(one))
    assert first == message_id("wh_1", str(one))
    assert first != message_id("wh_2", str(one))
    assert (first == message_id("wh_1", str(other))) == (one == other)
    assert outcome_id(first, attempt, "attempted") != outcome_id(first, attempt + 1, "attempted")
    assert outcome_id(first, attempt, "attempted") != outcome_id(first, attempt, "disabled")


# Who gets it.


def test_types_are_those_of_calls_in_words() -> None:
    assert {one.partition(".")[0] for one in event_types()} == {
        "session", "transcript", "intent", "response", "control"
    }  # fmt: skip
    assert {"session.ended", "transcript.final", "response.tool_returned"} <= set(event_types())
    assert not any(one.endswith(".unknown") for one in event_types())


@pytest.mark.parametrize(
    ("pattern", "unknown"),
    [("*", False), ("session.*", False), ("session.ended", False), ("session", True), ("*.ended", True),
     ("audio_frame.*", True), ("delivery.*", True), ("session.unknown", True), ("", True)],
)  # fmt: skip
def test_patterns(pattern: str, unknown: bool) -> None:
    assert unknown_patterns([pattern]) == ([pattern] if unknown else [])


ENDED = replace(json_form.examples(Session)[-1], tenant_id="demo", agent_id="shop")
AHEAD = replace(json_form.examples(Response)[0], tenant_id="demo", committed=False)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, True),
        ({"events": ("session.*",)}, True),
        ({"events": ("transcript.*",)}, False),
        ({"events": ("transcript.*", type_of(ENDED))}, True),
        ({"agents": ("shop", "other")}, True),
        ({"agents": ("other",)}, False),
        ({"tenant": "another"}, False),
    ],
)
def test_who_is_told(fields: dict[str, object], wanted: bool) -> None:
    assert wants(subscription(**fields), ENDED) is wanted


def test_what_is_made_ahead_is_told_to_those_who_ask() -> None:
    assert not wants(subscription(), AHEAD)
    assert wants(subscription(), replace(AHEAD, committed=True))
    assert wants(subscription(speculative=True), AHEAD)


def test_switching_on_again_undoes_what_the_relay_did_and_nothing_else_does() -> None:
    gone = Progress(start=1, positions={}, enablings=0, disabled="it answered 410 (gone)", failing_since=5)
    assert state_of(subscription(), None) is State.HEALTHY
    assert state_of(subscription(), gone) is State.DISABLED
    assert disabled_of(subscription(enablings=1), gone) == ""
    assert state_of(subscription(enabled=False, enablings=1), gone) is State.DISABLED
    assert state_of(subscription(), Progress(start=1, positions={}, failing_since=5)) is State.FAILING


# Its secret.


def test_a_secret_is_opened_by_its_key_for_its_subscription_alone() -> None:
    vault, secret = Vault(b"k" * 32), new_secret()
    sealed = vault.seal(secret, "wh_1")
    assert secret.encode() not in sealed
    assert sealed != vault.seal(secret, "wh_1")
    assert vault.open(sealed, "wh_1") == secret
    for other, text, identity in (
        (Vault(b"l" * 32), sealed, "wh_1"),
        (vault, sealed, "wh_2"),
        (vault, sealed[:-1] + bytes([sealed[-1] ^ 1]), "wh_1"),
        (vault, b"", "wh_1"),
    ):
        with pytest.raises(VaultError, match=r"webhooks\.key"):
            other.open(text, identity)
    assert secret not in repr(Secret(sealed=sealed))


def test_the_key_is_kept_in_the_data_directory_for_its_owner_alone(tmp_path: Path) -> None:
    sealed = vault_of(Settings(data_dir=tmp_path)).seal("whsec_x", "wh_1")
    assert vault_of(Settings(data_dir=tmp_path)).open(sealed, "wh_1") == "whsec_x"
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    given_key = Settings(data_dir=tmp_path, webhooks=WebhookSettings(key="of the settings"))
    with pytest.raises(VaultError):
        vault_of(given_key).open(sealed, "wh_1")
    (tmp_path / KEY_FILE).write_bytes(b"short")
    with pytest.raises(VaultError, match="32 bytes"):
        vault_of(Settings(data_dir=tmp_path))


@pytest.mark.parametrize("size", [24, 32, 64])
def test_secrets_of_standard_webhooks_are_taken(size: int) -> None:
    check_secret("whsec_" + base64.b64encode(b"s" * size).decode())
    check_secret(new_secret())


@pytest.mark.parametrize(
    "secret", ["", "hush", "whsec_", "whsec_!!!!", "whsk_" + "A" * 32, "whsec_" + "A" * 28, "whsec_" + "A" * 120]
)
def test_other_secrets_are_refused_and_not_quoted(secret: str) -> None:
    with pytest.raises(ValueError, match="is expected") as raised:
        check_secret(secret)
    assert not secret.removeprefix("whsec_") or secret not in str(raised.value)
