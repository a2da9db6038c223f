"""Keys: what is kept of them, what opens and what does not."""

import msgspec
import pytest

from processors.access.keys import PREFIX, Key, apply, id_in, new_key, opens, revoked
from processors.access.roles import Role
from streams.consumer import Record
from streams.topics import KEYS


def a_key(**fields: object) -> tuple[Key, str]:
    key, text = new_key("ann", Role.ANALYST, "acme", 1_000, "cli")
    return msgspec.structs.replace(key, **fields), text


def record(key: bytes, value: bytes | None) -> Record:
    return Record(KEYS, 0, 0, key, value, (), 0)


def test_nothing_of_a_key_is_kept_but_its_id_and_a_digest() -> None:
    key, text = a_key()
    prefix, identity, secret = text.split("_", 2)
    assert (prefix, identity) == (PREFIX, key.id)
    kept = msgspec.json.encode(key)
    assert identity.encode() in kept
    assert secret.encode() not in kept
    assert secret not in repr(key)
    assert opens(msgspec.json.decode(kept, type=Key), text)


def test_keys_differ() -> None:
    made = [a_key() for _ in range(100)]
    assert len({key.id for key, _ in made}) == len({text for _, text in made}) == 100


def test_a_key_opens_with_all_of_its_text_alone() -> None:
    key, text = a_key()
    other, another = a_key()
    swapped = f"{PREFIX}_{key.id}_{another.split('_', 2)[2]}"
    for wrong in (another, swapped, text[:-1], text + "A", text.upper(), "", key.id, key.digest.hex()):
        assert not opens(key, wrong)
    assert not opens(None, text)
    assert not opens(other, text)


@pytest.mark.parametrize(
    "text", ["", "tlk_", "tlk_0123456789abcdef_short", "é" * 64, "tlk_0123456789ABCDEF_" + "a" * 43]
)
def test_what_does_not_look_like_a_key_is_none(text: str) -> None:
    assert id_in(text) is None


def test_a_key_lets_in_until_it_expires_or_is_revoked_and_the_first_revocation_counts() -> None:
    key, _ = a_key(expires_at=5_000)
    assert key.refusal(4_999) == ""
    assert key.refusal(5_000) == "expired_key"
    gone = revoked(key, 3_000, "bob")
    assert gone.refusal(3_000) == "revoked_key"
    assert revoked(gone, 4_000, "eve") == gone


def test_the_keys_follow_the_records_and_garbage_changes_nothing() -> None:
    key, _ = a_key()
    keys: dict[str, Key] = {}
    apply(keys, record(key.id.encode(), msgspec.json.encode(key)))
    apply(keys, record(key.id.encode(), msgspec.json.encode(revoked(key, 2_000, "bob"))))
    apply(keys, record(b"other", b"{}"))
    apply(keys, record(b"\xff", b"\xff"))
    assert [one.revoked_by for one in keys.values()] == ["bob"]
    apply(keys, record(key.id.encode(), None))
    assert keys == {}
