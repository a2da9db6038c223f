"""Tokens made with real keys: which let in, as whom, and why others do not."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from processors.access.jwks import AGAIN_S
from processors.access.roles import Principal, Role
from processors.access.tokens import TokenError, Tokens, looks_like_token
from streams.settings import AccessSettings
from tests.support.issuer import AUDIENCE, Issuer


class HandClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def now_us(self) -> int:
        return time.time_ns() // 1000

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    one = Issuer()
    yield one
    one.stop()


@pytest.fixture
def tokens(issuer: Issuer, tmp_path: Path) -> Tokens:
    """With the issuer's keys in a file."""
    path = tmp_path / "jwks.json"
    path.write_text(issuer.jwks())
    return reading(issuer, jwks=str(path))


def reading(issuer: Issuer, clock: Any = None, **settings: Any) -> Tokens:
    access = AccessSettings(issuer=issuer.url, audience=AUDIENCE, **settings)
    return Tokens(access, clock or HandClock())


async def reason(tokens: Tokens, token: str) -> str:
    with pytest.raises(TokenError) as error:
        await tokens.principal(token)
    return error.value.reason


async def test_a_token_says_who_with_which_roles_and_of_which_tenant(issuer: Issuer, tokens: Tokens) -> None:
    both = frozenset({Role.ANALYST, Role.AUDITOR})
    assert await tokens.principal(issuer.token(("analyst", "auditor"))) == Principal("jwt:ann", both, "acme")
    assert await tokens.principal(issuer.token(tenant="*")) == Principal("jwt:ann", frozenset({Role.ANALYST}))
    spaced = await tokens.principal(issuer.token("openid operator"))
    assert spaced.roles == {Role.OPERATOR}


NOW = int(time.time())


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"exp": NOW - 120}, "expired_token"),
        ({"exp": None}, "bad_token"),
        ({"exp": "soon"}, "bad_token"),
        ({"nbf": NOW + 3600}, "bad_token"),
        ({"iss": "https://elsewhere.test"}, "token_for_others"),
        ({"iss": None}, "bad_token"),
        ({"aud": "another-product"}, "token_for_others"),
        ({"aud": None}, "bad_token"),
        ({"sub": None}, "bad_token"),
        ({"tenant": None}, "token_without_tenant"),
        ({"tenant": ""}, "token_without_tenant"),
        ({"tenant": ["acme", "beta"]}, "token_without_tenant"),
        ({"tenant": "t" * 101}, "token_without_tenant"),
        ({"roles": None}, "token_without_role"),
        ({"roles": []}, "token_without_role"),
        ({"roles": ["root"]}, "token_without_role"),
        ({"roles": {"admin": True}}, "token_without_role"),
    ],
)
async def test_a_claim_that_is_missing_or_wrong_lets_nobody_in(
    issuer: Issuer, tokens: Tokens, claims: dict[str, Any], expected: str
) -> None:
    assert await reason(tokens, issuer.token(**claims)) == expected


async def test_a_token_a_few_seconds_over_still_counts_since_clocks_differ(issuer: Issuer, tokens: Tokens) -> None:
    assert (await tokens.principal(issuer.token(exp=int(time.time()) - 5))).tenant == "acme"


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_a_signature_is_the_issuers_own_or_none(issuer: Issuer, tokens: Tokens) -> None:
    good = issuer.token()
    head, body, tail = good.split(".")
    admin = encoded({**jwt.decode(good, options={"verify_signature": False}), "roles": ["admin"]})
    assert await reason(tokens, f"{head}.{admin}.{tail}") == "bad_token"
    assert await reason(tokens, f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{body}.") == "bad_token"
    # The public key is no secret, and must not count as one: the attack on those who let the token choose.
    forged = f"{encoded({'alg': 'HS256', 'kid': 'first'})}.{admin}"
    mac = hmac.digest(issuer.jwks().encode(), forged.encode(), hashlib.sha256)
    assert await reason(tokens, f"{forged}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}") == "bad_token"
    another = Issuer()
    another.url = issuer.url
    assert await reason(tokens, another.token()) == "bad_token"


@pytest.mark.parametrize("text", ["..", "a.b.c", "é.é.é", "ey." * 2 + "x", "e" * 10_000 + ".."])
async def test_what_is_no_token_is_refused(tokens: Tokens, text: str) -> None:
    assert looks_like_token(text)
    assert await reason(tokens, text) == "bad_token"


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
async def test_other_kinds_of_keys_are_taken(issuer: Issuer, tmp_path: Path, algorithm: str) -> None:
    issuer.rotate("other", algorithm)
    (tmp_path / "jwks.json").write_text(issuer.jwks())
    tokens = reading(issuer, jwks=str(tmp_path / "jwks.json"))
    assert (await tokens.principal(issuer.token())).id == "jwt:ann"


async def test_keys_are_found_where_the_issuer_says_and_rotated(issuer: Issuer) -> None:
    issuer.start()
    clock = HandClock()
    tokens = reading(issuer, clock)
    old = issuer.token()
    await tokens.principal(old)
    await tokens.principal(old)
    assert issuer.served == 1
    issuer.rotate("second")
    assert await reason(tokens, issuer.token()) == "unknown_token_key"  # asked a moment ago
    clock.now_s += AGAIN_S
    await asyncio.gather(*(tokens.principal(issuer.token()) for _ in range(20)))
    await tokens.principal(old)
    assert issuer.served == 2
    issuer.rotate("third", keep=False)
    clock.now_s += AGAIN_S
    await tokens.principal(issuer.token())
    assert await reason(tokens, old) == "unknown_token_key"


async def test_invented_key_ids_do_not_make_us_ask_again_and_again(issuer: Issuer) -> None:
    issuer.start()
    stranger = Issuer()
    stranger.url = issuer.url
    tokens = reading(issuer)
    for number in range(50):
        stranger.rotate(f"invented-{number}", "EdDSA")
        assert await reason(tokens, stranger.token()) == "unknown_token_key"
    assert issuer.served == 1


async def test_an_issuer_that_is_away_locks_nobody_out_who_was_in(issuer: Issuer) -> None:
    issuer.start()
    clock = HandClock()
    tokens = reading(issuer, clock, jwks_s=60)
    issuer.is_away = True
    assert await reason(tokens, issuer.token()) == "unknown_token_key"
    issuer.is_away = False
    clock.now_s += AGAIN_S
    await tokens.principal(issuer.token())
    issuer.is_away = True
    clock.now_s += 3600
    assert (await tokens.principal(issuer.token())).tenant == "acme"


async def test_a_discovery_document_of_another_issuer_is_not_believed(issuer: Issuer) -> None:
    address = issuer.start()
    issuer.url = "https://issuer.test"
    tokens = Tokens(AccessSettings(issuer=address, audience=AUDIENCE), HandClock())
    assert await reason(tokens, issuer.token(iss=address)) == "unknown_token_key"


async def test_roles_are_found_below_a_claim_and_under_the_issuers_names(issuer: Issuer, tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_text(issuer.jwks())
    tokens = reading(
        issuer,
        jwks=str(tmp_path / "jwks.json"),
        role_claim="realm_access.roles",
        role_names={"voice-auditors": "auditor"},
        tenant_claim="https://trunkline.test/tenant",
    )
    claims: dict[str, Any] = {"realm_access": {"roles": ["voice-auditors", "offline"]}}
    principal = await tokens.principal(issuer.token(None, None, **{"https://trunkline.test/tenant": "acme"}, **claims))
    assert (principal.roles, principal.tenant) == (frozenset({Role.AUDITOR}), "acme")
    claims["realm_access"] = "admin"
    assert await reason(tokens, issuer.token(None, "acme", **{"https://trunkline.test/tenant": "acme"}, **claims)) == (
        "token_without_role"
    )


def test_an_issuer_without_an_audience_is_refused() -> None:
    with pytest.raises(ValueError, match="audience"):
        AccessSettings(issuer="https://issuer.test")
