"""The platform's signature: one key, made once and kept secret, and nothing verifies that was not signed with it."""

import copy
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from streams.settings import Settings
from streams.signing import KEY_FILE, SignatureError, canonical, public_key, public_pem, read_public_key, sign, verify

DOCUMENT: dict[str, Any] = {"tenant": "Café", "numbers": [1, 2.5, None], "nested": {"b": True, "a": "x"}}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def test_a_key_is_made_once_and_is_the_owners_alone(settings: Settings) -> None:
    first = sign(settings, DOCUMENT)
    path = settings.data_dir / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in settings.data_dir.iterdir()] == [KEY_FILE]
    assert sign(settings, DOCUMENT) == first
    verify(DOCUMENT, first, public_key(settings))


def test_what_went_through_json_verifies_with_the_public_key_alone(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "public.pem").write_text(public_pem(settings))
    document, signature = json.loads(json.dumps([DOCUMENT, sign(settings, DOCUMENT)], indent=4))
    verify(document, signature, read_public_key(tmp_path / "public.pem"))
    assert canonical(document) == b'{"nested":{"a":"x","b":true},"numbers":[1,2.5,null],"tenant":"Caf\xc3\xa9"}'


def altered(signature: Any, **changes: Any) -> Any:
    return copy.deepcopy(signature) | changes


def test_nothing_else_verifies(settings: Settings, tmp_path: Path) -> None:
    signature, trusted = sign(settings, DOCUMENT), public_key(settings)
    other = Settings(data_dir=tmp_path / "other")
    with pytest.raises(SignatureError, match="not what was signed"):
        verify(DOCUMENT | {"tenant": "Cafe"}, signature, trusted)
    with pytest.raises(SignatureError, match="another key"):
        verify(DOCUMENT, sign(other, DOCUMENT), trusted)
    forged = altered(sign(other, DOCUMENT), public_key=signature["public_key"])
    with pytest.raises(SignatureError, match="not what was signed"):
        verify(DOCUMENT, forged, trusted)
    with pytest.raises(SignatureError, match="'none'"):
        verify(DOCUMENT, altered(signature, algorithm="none"), trusted)
    nothings: list[Any] = [None, {}, "x", altered(signature, value="~"), altered(signature, value=None)]
    for nothing in nothings:
        with pytest.raises(SignatureError, match="no signature is there"):
            verify(DOCUMENT, nothing, trusted)
    with pytest.raises(SignatureError, match="not what was signed"):
        verify(DOCUMENT, altered(signature, value="AAAA"), trusted)


def test_a_given_key_is_used_and_never_made(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "given.pem"
    given = settings.model_copy(update={"signing_key_file": path})
    with pytest.raises(SignatureError, match=r"given\.pem: a private key in PEM"):
        sign(given, DOCUMENT)
    assert not path.exists()
    key = Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    verify(DOCUMENT, sign(given, DOCUMENT), key.public_key())
    assert not settings.data_dir.exists()


def test_a_key_of_another_kind_is_refused(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "given.pem"
    path.write_bytes(generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(SignatureError, match="an Ed25519 key is expected"):
        sign(settings.model_copy(update={"signing_key_file": path}), DOCUMENT)
    with pytest.raises(SignatureError, match="a public key in PEM is expected"):
        read_public_key(path)
