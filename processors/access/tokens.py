"""Tokens of an OpenID Connect issuer (JWT): who shows one, with which roles, of which tenant."""

from collections.abc import Mapping
from typing import Any

import jwt

from processors.access.jwks import Jwks
from processors.access.roles import ALL_TENANTS, Principal, Role
from streams.clock import Clock
from streams.settings import AccessSettings

# With keys that the issuer alone has; never with a shared secret, never unsigned.
ALGORITHMS = frozenset("RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA".split())
LEEWAY_S = 30
SUBJECT_CHARS_MAX = 200
TENANT_CHARS_MAX = 100
PREFIX = "jwt:"


class TokenError(Exception):
    """The token does not let in; `reason` says why in a word, for the record and not for who showed it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Tokens:
    """Reads the tokens of the issuer of the settings."""

    def __init__(self, access: AccessSettings, clock: Clock) -> None:
        self._access = access
        self._jwks = Jwks(access, clock)

    async def principal(self, token: str) -> Principal:
        """Who shows it; raises TokenError."""
        claims = await self._claims(token)
        tenant = claims.get(self._access.tenant_claim)
        if not isinstance(tenant, str) or not 0 < len(tenant) <= TENANT_CHARS_MAX:
            raise TokenError("token_without_tenant")
        roles = self._roles(claims)
        if not roles:
            raise TokenError("token_without_role")
        subject = f"{PREFIX}{claims['sub']}"[:SUBJECT_CHARS_MAX]
        return Principal(subject, roles, None if tenant == ALL_TENANTS else tenant)

    async def _claims(self, token: str) -> dict[str, Any]:
        """What it says, once it is known to be the issuer's, for us, and of now."""
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid")
            if algorithm not in ALGORITHMS:
                raise TokenError("bad_token")
            key = await self._jwks.key(key_id if isinstance(key_id, str) else None, algorithm)
            if key is None:
                raise TokenError("unknown_token_key")
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self._access.issuer,
                audience=self._access.audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise TokenError("expired_token") from None
        except (jwt.InvalidIssuerError, jwt.InvalidAudienceError):
            raise TokenError("token_for_others") from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise TokenError("bad_token") from None

    def _roles(self, claims: Mapping[str, Any]) -> frozenset[Role]:
        named = _claim(claims, self._access.role_claim)
        named = named.split() if isinstance(named, str) else named
        if not isinstance(named, list):
            return frozenset()
        known = {role.value: role for role in Role}
        meant = (self._access.role_names.get(name, name) for name in named if isinstance(name, str))
        return frozenset(known[name] for name in meant if name in known)


def looks_like_token(text: str) -> bool:
    """Whether it has the form of one."""
    return text.count(".") == 2


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of that name, or the one that its dots lead to."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
