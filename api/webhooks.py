"""REST for webhooks: who is told of which events, how that fares, and once more from an earlier place.

The log is the store: every request reads the compacted topic, so all gateways say the same. The relay
(`processors/webhooks/relay.py`) follows that topic.
"""

import asyncio
import secrets
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Self

import msgspec
from fastapi import APIRouter, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from api.problems import ProblemError, unknown_tenant
from api.session_router import SessionRouter
from api.visit import Asker
from processors.access.roles import Principal
from processors.webhooks import store
from processors.webhooks.guard import RefusedAddressError, guard_of, port_of, split_url
from processors.webhooks.message import headers_of, trial_body
from processors.webhooks.sender import Sender
from processors.webhooks.subscriber import open_secrets
from processors.webhooks.subscriptions import (
    SECRETS_MAX,
    TOPICS,
    Progress,
    Secret,
    Start,
    Subscription,
    disabled_of,
    event_types,
    state_of,
    unknown_patterns,
)
from processors.webhooks.vault import Vault, VaultError, check_secret, new_secret, vault_of
from schemas.events import RefusalKind
from streams.topics import SUBSCRIPTIONS

TESTS_MAX = 4
RESOLVERS_MAX = 2
RESOLVE_S = 5.0
OVERLAP_S = 24 * 3600
_ID_BYTES = 12


def _url(url: str) -> str:
    split_url(url)
    return url


def _patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := unknown_patterns(patterns):
        known = ", ".join(event_types())
        raise ValueError(f"{unknown[0][:64]!r} is no event type; expected *, NAME.* or one of {known}")
    return tuple(dict.fromkeys(patterns))


def _secret(secret: SecretStr) -> SecretStr:
    check_secret(secret.get_secret_value())
    return secret


Url = Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(_url)]
Patterns = Annotated[tuple[str, ...], Field(min_length=1, max_length=100), AfterValidator(_patterns)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Agents = Annotated[tuple[Name, ...], Field(max_length=100)]
Description = Annotated[str, Field(max_length=500)]
SigningSecret = Annotated[SecretStr, AfterValidator(_secret)]
TimeUs = Annotated[int, Field(ge=0, lt=2**53, description="microseconds since the epoch, UTC")]


Changes = Callable[[Subscription], dict[str, Any]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class NewWebhook(_Body):
    """A subscription to be made. `since_us` tells it of what happened before, from then on; 0: all the log has."""

    url: Url
    events: Patterns
    agents: Agents = ()
    tenant: Name | None = None
    speculative: bool = False
    description: Description = ""
    enabled: bool = True
    secret: SigningSecret | None = None
    since_us: TimeUs | None = None


class ChangedWebhook(_Body):
    """What is to be different; what is left out stays. `enabled: true` also undoes that the relay switched it off."""

    url: Url | None = None
    events: Patterns | None = None
    agents: Agents | None = None
    speculative: bool | None = None
    description: Description | None = None
    enabled: bool | None = None


class NewSecret(_Body):
    """A change of secrets; without one, a new one is made. The old one signs, too, for `overlap_s`."""

    secret: SigningSecret | None = None
    overlap_s: Annotated[int, Field(ge=0, le=30 * OVERLAP_S)] = OVERLAP_S


class Replay(_Body):
    """Where to begin again: a time, or an offset of one topic's partition, as deliveries carry them."""

    since_us: TimeUs | None = None
    topic: str | None = None
    partition: Annotated[int, Field(ge=0)] | None = None
    offset: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        place = (self.topic, self.partition, self.offset)
        if (self.since_us is None) == (None in place) or (self.since_us is not None and place != (None, None, None)):
            raise ValueError("either since_us, or topic, partition and offset are expected")
        if self.topic is not None and self.topic not in TOPICS:
            raise ValueError(f"topic: one of {', '.join(TOPICS)} is expected")
        return self


class Webhooks:
    """The subscriptions of the platform, over the log."""

    def __init__(self, router: SessionRouter) -> None:
        self._router = router
        self._settings = router.settings
        self._guard = guard_of(router.settings)
        self._vault: Vault | None = None
        # One at a time: what is read before a change must still be so when it is written.
        self._turn = asyncio.Lock()
        self._tests = asyncio.Semaphore(TESTS_MAX)
        # Name servers that do not answer hold up nothing else of the gateway.
        self._resolvers = ThreadPoolExecutor(RESOLVERS_MAX, thread_name_prefix="webhook-resolver")

    async def all(self, asker: Principal) -> list[dict[str, Any]]:
        """Those that whoever asks may see, the oldest first."""
        async with self._turn:
            found, progress = await store.subscriptions(self._settings), await store.progress(self._settings)
        seen = [one for one in found.values() if asker.sees(one.tenant)]
        oldest_first = sorted(seen, key=lambda one: (one.created_at, one.id))
        return [_shown(one, progress.get(one.id)) for one in oldest_first]

    async def show(self, asker: Principal, identity: str) -> dict[str, Any]:
        """One of them."""
        async with self._turn:
            subscription = await self._find(asker, identity)
            progress = await store.progress(self._settings)
        return _shown(subscription, progress.get(identity))

    async def add(self, asker: Principal, wanted: NewWebhook) -> dict[str, Any]:
        """Makes one; the answer holds its secret, which is not told again."""
        tenant = wanted.tenant or asker.tenant or self._settings.tenant
        if not asker.sees(tenant):
            raise unknown_tenant()
        await self._check_address(wanted.url)
        identity = f"wh_{secrets.token_hex(_ID_BYTES)}"
        secret = wanted.secret.get_secret_value() if wanted.secret is not None else new_secret()
        now_us = self._router.clock.now_us()
        subscription = Subscription(
            id=identity,
            url=wanted.url,
            tenant=tenant,
            events=wanted.events,
            agents=wanted.agents,
            speculative=wanted.speculative,
            description=wanted.description,
            enabled=wanted.enabled,
            secrets=(Secret(sealed=self._sealed(secret, identity)),),
            start=Start(number=1, time_us=now_us if wanted.since_us is None else wanted.since_us),
            created_at=now_us,
            changed_at=now_us,
        )
        async with self._turn:
            limit = self._settings.webhooks.subscriptions_max
            if len(await store.subscriptions(self._settings)) >= limit:
                raise ProblemError(
                    409, "too_many", f"There are {limit} webhooks already.", "Delete one, or raise the setting."
                )
            await self._write(subscription)
        return {**_shown(subscription, None), "secret": secret}

    async def change(self, asker: Principal, identity: str, wanted: ChangedWebhook) -> dict[str, Any]:
        """Changes what is given."""
        if wanted.url is not None:
            await self._check_address(wanted.url)
        changes = {name: value for name, value in wanted.model_dump().items() if value is not None}
        return await self._changed(asker, identity, lambda one: _changes(one, changes))

    async def remove(self, asker: Principal, identity: str) -> None:
        """Removes it; what is on its way may still arrive."""
        async with self._turn:
            await self._find(asker, identity)
            await store.write(self._router.producer, identity, None, SUBSCRIPTIONS)

    async def rotate(self, asker: Principal, identity: str, wanted: NewSecret) -> dict[str, Any]:
        """A new secret, which is told once; the others sign on for the overlap."""
        secret = wanted.secret.get_secret_value() if wanted.secret is not None else new_secret()
        fresh = Secret(sealed=self._sealed(secret, identity))
        now_us = self._router.clock.now_us()
        until_us = now_us + wanted.overlap_s * 1_000_000

        def changes(one: Subscription) -> dict[str, Any]:
            old = [_until(each, until_us) for each in one.secrets]
            old = [each for each in old if each.until_us is not None and each.until_us > now_us]
            return {"secrets": (fresh, *old)[:SECRETS_MAX]}

        return {**await self._changed(asker, identity, changes), "secret": secret}

    async def replay(self, asker: Principal, identity: str, wanted: Replay) -> dict[str, Any]:
        """Everything from that place on is delivered once more, under the ids that it had."""

        def changes(one: Subscription) -> dict[str, Any]:
            number = one.start.number + 1
            if wanted.since_us is not None:
                return {"start": Start(number=number, time_us=wanted.since_us)}
            place = Start(
                number=number, topic=wanted.topic or "", partition=wanted.partition or 0, offset=wanted.offset or 0
            )
            return {"start": place}

        if (wanted.partition or 0) >= self._settings.kafka.partitions:
            raise _invalid("partition", f"less than {self._settings.kafka.partitions} is expected")
        return await self._changed(asker, identity, changes)

    async def test(self, asker: Principal, identity: str) -> dict[str, Any]:
        """Sends a signed `webhook.test` now, from here, and says what came of it."""
        async with self._turn:
            subscription = await self._find(asker, identity)
        clock, webhooks = self._router.clock, self._settings.webhooks
        body, now_us = trial_body(clock.now_us()), clock.now_us()
        headers = headers_of(f"msg_{uuid.uuid4().hex}", body, self._opened(subscription, now_us), now_us)
        async with self._tests:
            sender = Sender(subscription.url, self._guard, clock, webhooks.timeout_s, 1)
            try:
                answer = await sender.post(body, headers)
            finally:
                await sender.close()
        return {
            "delivered": answer.delivered,
            "status": answer.status,
            "reason": answer.reason,
            "duration_ms": round(answer.duration_ms, 1),
        }

    async def _changed(self, asker: Principal, identity: str, changes: Changes) -> dict[str, Any]:
        async with self._turn:
            before = await self._find(asker, identity)
            after = msgspec.structs.replace(before, changed_at=self._router.clock.now_us(), **changes(before))
            await self._write(after)
            progress = await store.progress(self._settings)
        return _shown(after, progress.get(identity))

    async def _find(self, asker: Principal, identity: str) -> Subscription:
        """The webhook; another tenant's is not there."""
        found = (await store.subscriptions(self._settings)).get(identity)
        if found is not None and asker.sees(found.tenant):
            return found
        problem = ProblemError(404, "unknown_webhook", "There is no such webhook.", "GET /v1/webhooks lists them.")
        raise problem.as_refusal(RefusalKind.FOREIGN, "tenant") if found is not None else problem

    async def _write(self, subscription: Subscription) -> None:
        await store.write(self._router.producer, subscription.id, subscription, SUBSCRIPTIONS)

    async def _check_address(self, url: str) -> None:
        """Refuses at once what the relay would never connect to; it looks again at each connection."""
        parts = split_url(url)
        try:
            async with asyncio.timeout(RESOLVE_S):
                await self._guard.addresses(parts.hostname or "", port_of(parts), parts.scheme, self._resolvers)
        except TimeoutError:
            raise _invalid("url", f"its host was not resolved within {RESOLVE_S:g} s") from None
        except RefusedAddressError as error:
            raise _invalid("url", str(error)) from None

    def _sealed(self, secret: str, identity: str) -> bytes:
        return self._keys().seal(secret, identity)

    def _opened(self, subscription: Subscription, now_us: int) -> list[str]:
        try:
            return open_secrets(subscription, self._keys(), now_us)
        except VaultError as error:
            raise ProblemError(
                409, "sealed_secret", "The webhook's secret is not readable.", f"{error}; rotate it."
            ) from None

    def _keys(self) -> Vault:
        try:
            self._vault = self._vault or vault_of(self._settings)
        except VaultError as error:
            raise ProblemError(503, "no_key", "Secrets cannot be kept.", f"{error}.") from None
        return self._vault


def _changes(before: Subscription, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Switching it on counts, even where it is on already: the relay may have switched it off."""
    return {**wanted, **({"enablings": before.enablings + 1} if wanted.get("enabled") else {})}


def _until(secret: Secret, until_us: int) -> Secret:
    """A secret that was replaced ends by then, or when it was to end anyway."""
    return Secret(sealed=secret.sealed, until_us=min(until_us, secret.until_us or until_us))


def _shown(one: Subscription, progress: Progress | None) -> dict[str, Any]:
    """As clients get it: without secrets; the counts are there before the relay's first report."""
    progress = progress or Progress(start=0, positions={})
    health = {
        "state": state_of(one, progress),
        "disabled": disabled_of(one, progress),
        "open": len(progress.open),
        "delivered": progress.delivered,
        "dead": progress.dead,
        "failures": progress.failures,
        "failing_since": progress.failing_since or None,
        "delivered_at": progress.delivered_at or None,
        "status": progress.status,
        "reason": progress.reason,
    }
    return {
        "id": one.id,
        "url": one.url,
        "tenant": one.tenant,
        "events": one.events,
        "agents": one.agents,
        "speculative": one.speculative,
        "description": one.description,
        "enabled": one.enabled,
        "secrets": len(one.secrets),
        "created_at": one.created_at,
        "changed_at": one.changed_at,
        "health": health,
    }


def _invalid(field: str, hint: str) -> ProblemError:
    return ProblemError(422, "invalid_field", f"The field {field} is not usable.", f"{field}: {hint}.")


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def routes(router: SessionRouter) -> APIRouter:
    """`/v1/webhooks`."""
    api = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])
    webhooks = Webhooks(router)

    @api.post("")
    async def add(asker: Asker, wanted: NewWebhook) -> Response:
        """Tells a URL of events from now on, or from `since_us`. The secret is shown here alone."""
        return _json(await webhooks.add(asker, wanted), 201)

    @api.get("")
    async def listed(asker: Asker) -> Response:
        """All webhooks, with how they fare."""
        return _json({"webhooks": await webhooks.all(asker)})

    @api.get("/{identity}")
    async def show(asker: Asker, identity: str) -> Response:
        """One webhook."""
        return _json(await webhooks.show(asker, identity))

    @api.patch("/{identity}")
    async def change(asker: Asker, identity: str, wanted: ChangedWebhook) -> Response:
        """Changes what is given; `enabled: true` switches it on again."""
        return _json(await webhooks.change(asker, identity, wanted))

    @api.delete("/{identity}")
    async def remove(asker: Asker, identity: str) -> Response:
        """Removes it."""
        await webhooks.remove(asker, identity)
        return Response(status_code=204)

    @api.post("/{identity}/secret")
    async def rotate(asker: Asker, identity: str, wanted: NewSecret) -> Response:
        """A new secret; both sign until the overlap is over."""
        return _json(await webhooks.rotate(asker, identity, wanted))

    @api.post("/{identity}/replay")
    async def replay(asker: Asker, identity: str, wanted: Replay) -> Response:
        """Delivers once more from a time or an offset on."""
        return _json(await webhooks.replay(asker, identity, wanted), 202)

    @api.post("/{identity}/test")
    async def test(asker: Asker, identity: str) -> Response:
        """Sends a test at once."""
        return _json(await webhooks.test(asker, identity))

    return api
