"""Who asks, without any log: when a gateway is open, and what counts as showing a key."""

import base64
from typing import Any

import pytest

from api.auth import KEY_OF_SETTINGS, LOCAL, Authenticator, UnauthenticatedError
from streams.clock import SystemClock
from streams.settings import Settings

KEY = "s3crét"


def authenticator(**fields: Any) -> Authenticator:
    return Authenticator(Settings(**fields), SystemClock())


async def reason(one: Authenticator, *headers: tuple[str, str], subprotocols: tuple[str, ...] = ()) -> str:
    """Why it lets nobody in."""
    with pytest.raises(UnauthenticatedError) as error:
        await one.principal(scope(*headers, subprotocols=subprotocols))
    return error.value.reason


def scope(*headers: tuple[str, str], subprotocols: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"headers": [(name.encode(), value.encode()) for name, value in headers], "subprotocols": subprotocols}


@pytest.mark.parametrize(
    ("fields", "is_open"),
    [
        ({}, True),
        ({"api": {"host": "::1"}}, True),
        ({"api": {"host": "localhost"}}, True),
        ({"api": {"key": ""}}, True),
        ({"api": {"host": "0.0.0.0"}}, False),
        ({"api": {"host": "::"}}, False),
        ({"api": {"host": ""}}, False),
        ({"api": {"host": "10.0.0.1"}}, False),
        ({"api": {"key": KEY}}, False),
        ({"access": {"closed": True}}, False),
        ({"access": {"issuer": "https://issuer.test", "audience": "trunkline"}}, False),
    ],
)
async def test_open_is_only_what_listens_on_loopback_and_has_no_key(fields: dict[str, Any], is_open: bool) -> None:
    one = authenticator(**fields)
    assert one.is_open is is_open
    if is_open:
        assert await one.principal(scope()) is LOCAL
    else:
        assert await reason(one) == "no_key"


@pytest.mark.parametrize(
    ("headers", "is_here"),
    [
        ((), True),
        ((("host", "127.0.0.1:8080"),), True),
        ((("host", "localhost"), ("origin", "http://localhost:3000")), True),
        ((("host", "[::1]:8080"), ("origin", "http://[::1]:8080")), True),
        ((("host", "127.0.0.1:8080"), ("origin", "https://evil.test")), False),
        ((("host", "127.0.0.1:8080"), ("origin", "null")), False),
        ((("host", "127.0.0.1:8080"), ("origin", "file://")), False),
        ((("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1.evil.test")), False),
        ((("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1@evil.test")), False),
        ((("host", "evil.test:8080"),), False),
        ((("host", "127.0.0.1@evil.test"),), False),
        ((("host", "[evil"),), False),
    ],
)
async def test_pages_of_other_sites_do_not_come_in_where_it_is_open(headers: Any, is_here: bool) -> None:
    if is_here:
        assert await authenticator().principal(scope(*headers)) is LOCAL
    else:
        assert await reason(authenticator(), *headers) == "foreign_site"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        (("authorization", f"Bearer {KEY}"),),
        (("authorization", f"bearer  {KEY} "),),
        (("x-api-key", KEY),),
        (("authorization", basic("anybody", KEY)),),
        (("x-api-key", "wrong"), ("authorization", f"Bearer {KEY}")),
    ],
)
async def test_a_key_may_be_shown_in_several_ways(headers: Any) -> None:
    assert await authenticator(api={"key": KEY}).principal(scope(*headers)) is KEY_OF_SETTINGS


async def test_a_browser_shows_its_key_as_a_subprotocol() -> None:
    one = authenticator(api={"key": "s3cret"})
    assert await one.principal(scope(subprotocols=("trunkline", "key.s3cret"))) is KEY_OF_SETTINGS
    assert await reason(one, subprotocols=("trunkline", "s3cret")) == "no_key"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ((), "no_key"),
        ((("authorization", "Bearer"),), "no_key"),
        ((("authorization", KEY),), "no_key"),
        ((("authorization", "Basic %%%"),), "no_key"),
        ((("authorization", basic(KEY, "")),), "no_key"),
        ((("authorization", "Bearer wrong"),), "unknown_key"),
        ((("x-api-key", KEY + "x"),), "unknown_key"),
        ((("x-api-key", "a.b.c"),), "unknown_key"),  # tokens of no issuer
        ((("x-api-key", "tlk_0123456789abcdef_" + "A" * 43),), "unknown_key"),
    ],
)
async def test_anything_else_lets_nobody_in(headers: Any, expected: str) -> None:
    assert await reason(authenticator(api={"key": KEY}), *headers) == expected


async def test_whoever_shows_very_many_is_not_listened_to_for_ever() -> None:
    wrong = [("x-api-key", "wrong")] * 1000
    assert await reason(authenticator(api={"key": KEY}), *wrong, ("x-api-key", KEY)) == "unknown_key"
