"""Access with a real gateway, a real broker and real keys: who gets in, who sees what, and what is recorded.

The broker is this file's own: a key in its log closes every gateway that reads it.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from pydantic import SecretStr
from twilio.request_validator import RequestValidator

from processors.access.keys import new_key, stored_keys, write
from processors.access.roles import Role
from schemas import json_form
from schemas.events import Refusal, Session, SessionKind, Suggestion, TranscriptKind
from streams.codec import default_codec
from streams.consumer import BEGINNING, END, LogReader, Record, read_range
from streams.producer import LogProducer
from streams.settings import REPOSITORY, Settings
from streams.topics import KEYS
from tests.support.gateway import PATIENCE_S, Caller, Gateway, Peer, running_gateway
from tests.support.issuer import AUDIENCE, Issuer
from tests.support.kafka import TestBroker, running_broker
from tests.support.sink import SinkProcess

AGENT = """
name: {name}
greeting: Hello.
persona: You answer.
{more}
intents:
  - name: hours
    examples: [when are you open, what are your hours]
    templates: {{ok: From eight to six.}}
"""
UNAUTHORIZED = {
    "code": "unauthorized",
    "message": "An API key is needed.",
    "hint": "Send Authorization: Bearer KEY, or X-API-Key: KEY, or WebSocket subprotocols trunkline and key.KEY.",
}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    with running_broker(tmp_path_factory.mktemp("access"), provisioned=True) as one:
        yield one


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[TestBroker]:
    """A broker without any key."""
    with running_broker(tmp_path / "kafka", provisioned=True) as one:
        yield one


@pytest.fixture(scope="module")
def agents_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent of everybody's and one of acme's."""
    folder = tmp_path_factory.mktemp("agents")
    (folder / "common.yaml").write_text(AGENT.format(name="Common", more=""))
    (folder / "acmes.yaml").write_text(AGENT.format(name="Acme's", more="tenant: acme"))
    return folder


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    one = Issuer()
    one.start()
    yield one
    one.stop()


@pytest.fixture
def settings(broker: TestBroker, agents_dir: Path, issuer: Issuer) -> Settings:
    """A gateway's, closed from the start."""
    return broker.settings(
        agents_dir=agents_dir,
        api={"port": 0},
        access={"closed": True, "issuer": issuer.url, "audience": AUDIENCE},
        webhooks={"private_networks": ["127.0.0.0/8"]},
    )


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    async with running_gateway(settings) as running:
        yield running


@pytest.fixture
async def peer(settings: Settings) -> AsyncIterator[Peer]:
    log_peer = Peer(settings)
    await log_peer.start()
    yield log_peer
    await log_peer.close()


class Keys:
    """Makes keys in the log, as the command line does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __call__(self, role: Role, tenant: str | None, **fields: Any) -> tuple[str, str]:
        """A key's id and text, which a gateway knows a moment later."""
        key, text = new_key(f"{role} of {tenant}", role, tenant, time.time_ns() // 1000, "test", **fields)
        async with LogProducer(self._settings, "test.access") as producer:
            await write(producer, key)
        return key.id, text


@pytest.fixture
def make_key(settings: Settings) -> Keys:
    return Keys(settings)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def asking(gateway: Gateway, key: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """A client that shows the key, once the gateway knows it."""
    headers = bearer(key) if key else {}
    async with httpx.AsyncClient(base_url=gateway.http, headers=headers, timeout=60) as http:

        async def known() -> bool:
            return not key or (await http.get("/v1/agents")).status_code != 401

        await until(known)
        yield http


async def until(condition: Any) -> None:
    deadline_s = time.monotonic() + 6 * PATIENCE_S
    while not await condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)


@asynccontextmanager
async def calling(gateway: Gateway, key: str) -> AsyncIterator[Caller]:
    async with websockets.connect(f"{gateway.ws}/v1/calls", additional_headers=bearer(key)) as socket:
        yield Caller(socket)


async def status_of_socket(gateway: Gateway, key: str = "") -> tuple[int, Any]:
    """What a socket is refused with."""
    with pytest.raises(websockets.InvalidStatus) as error:
        await websockets.connect(f"{gateway.ws}/v1/calls", additional_headers=bearer(key) if key else {})
    return error.value.response.status_code, json.loads(error.value.response.body or b"{}")


async def records(settings: Settings, topic: str) -> list[Record]:
    async with LogReader(settings, "test.access") as reader:
        ranges = dict.fromkeys(await reader.partitions(topic), (BEGINNING, END))
    return [record async for record in read_range(settings, ranges)]


async def refusals(settings: Settings, at_least: int = 1, **wanted: Any) -> list[Refusal]:
    """Those in the log with these fields, once they tell of so many: they are written after the answer."""
    found: list[Refusal] = []

    async def told() -> bool:
        found.clear()
        for record in await records(settings, Refusal.TOPIC):
            event = default_codec().decode_keyed(record.topic, record.key, record.value)
            assert isinstance(event, Refusal)
            if all(getattr(event, name) == value for name, value in wanted.items()):
                found.append(event)
        return sum(one.count for one in found) >= at_least

    await until(told)
    return found


# Who gets in.


async def test_nothing_that_is_shown_in_vain_is_answered_differently(
    gateway: Gateway, make_key: Keys, issuer: Issuer, settings: Settings
) -> None:
    identity, revoked = await make_key(Role.ADMIN, "acme")
    _, expired = await make_key(Role.ADMIN, "acme", expires_at=time.time_ns() // 1000 + 3_000_000)
    _, admin = await make_key(Role.ADMIN, "acme")
    async with asking(gateway, admin) as http, asking(gateway, revoked) as going, asking(gateway):
        assert (await http.delete(f"/v1/keys/{identity}")).json()["state"] == "revoked"

        async def gone() -> bool:
            return (await going.get("/v1/agents")).status_code == 401

        await until(gone)
    async with asking(gateway) as http:

        async def over() -> bool:
            return (await http.get("/v1/agents", headers=bearer(expired))).status_code == 401

        await until(over)
        stranger = Issuer()
        stranger.url = issuer.url
        shown = {
            "no_key": "",
            "unknown_key": "tlk_0123456789abcdef_" + "A" * 43,
            "revoked_key": revoked,
            "expired_key": expired,
            "expired_token": issuer.token(("admin",), exp=int(time.time()) - 600),
            "token_for_others": issuer.token(("admin",), aud="another"),
            "bad_token": stranger.token(("admin",)),
        }
        for reason, key in shown.items():
            headers = bearer(key) if key else {}
            answer = await http.get("/v1/sessions", headers=headers)
            assert (answer.status_code, answer.json()) == (401, UNAUTHORIZED), reason
            assert (await status_of_socket(gateway, key))[0] == 401
            assert await refusals(settings, kind="unauthenticated", reason=reason, action="GET /v1/sessions")
    (known,) = await refusals(settings, reason="revoked_key", action="GET /v1/sessions")
    assert (known.key_id, known.tenant_id, known.role) == (identity, "acme", "admin")
    every = b"".join(
        record.value or b"" for record in [*await records(settings, Refusal.TOPIC), *await records(settings, KEYS)]
    )
    for text in (revoked, expired, admin, shown["expired_token"]):
        assert text.rpartition("_")[2].encode() not in every


async def test_a_key_is_shown_in_any_of_the_ways(gateway: Gateway, make_key: Keys, issuer: Issuer) -> None:
    _, key = await make_key(Role.SERVICE, "acme")
    async with asking(gateway, key), asking(gateway) as http:
        for headers in (bearer(key), {"X-API-Key": key}, {"X-API-Key": "wrong", **bearer(key)}):
            assert (await http.get("/v1/agents", headers=headers)).status_code == 200
        assert (await http.get("/registry/subjects", auth=("any", key))).status_code == 200
        for text in (key, issuer.token(("service",))):
            protocols = [websockets.Subprotocol("trunkline"), websockets.Subprotocol(f"key.{text}")]
            async with websockets.connect(f"{gateway.ws}/v1/calls", subprotocols=protocols) as socket:
                await Caller(socket).start()


async def test_the_issuers_new_keys_are_known_and_its_old_ones_forgotten(gateway: Gateway, issuer: Issuer) -> None:
    async with asking(gateway) as http:

        async def ask(token: str) -> int:
            return (await http.get("/v1/sessions", headers=bearer(token))).status_code

        old = issuer.token()
        assert await ask(old) == 200
        issuer.rotate("new", "ES256", keep=False)

        async def known() -> bool:
            return await ask(issuer.token()) == 200

        await until(known)
        assert await ask(old) == 401


async def test_an_open_gateway_closes_with_the_first_key_and_stays_closed(fresh: TestBroker) -> None:
    """Made by the command line, known to two gateways, and to one that starts later."""
    first = fresh.settings(api={"port": 0})
    second = fresh.settings(api={"port": 0}, worker="1")
    async with running_gateway(first) as one, running_gateway(second) as two:
        async with asking(one) as http:
            assert (await http.get("/v1/sessions")).status_code == 200
            for headers in ({"Origin": "https://evil.test"}, {"Host": "evil.test:8080"}, {"Origin": "null"}):
                assert (await http.get("/v1/sessions", headers=headers)).status_code == 401
            for headers in ({"Origin": "http://localhost:3000"}, {"Host": "[::1]:8080"}):
                assert (await http.get("/v1/sessions", headers=headers)).status_code == 200
            assert (await http.get("/v1/keys")).json() == {"keys": []}
        created = await cli(fresh, "create", "ann", "--role", "analyst", "--tenant", "acme", "--json")
        key = json.loads(created)
        assert (key["tenant"], key["role"], key["state"]) == ("acme", "analyst", "valid")
        for gateway in (one, two):

            async def closed(at: Gateway = gateway) -> bool:
                async with asking(at) as http:
                    return (await http.get("/v1/sessions")).status_code == 401

            await until(closed)
            async with asking(gateway, key["key"]) as http:
                assert (await http.get("/v1/sessions")).status_code == 200
                assert (await http.get("/v1/keys")).status_code == 403
    async with running_gateway(first) as later:
        async with asking(later) as http:
            assert (await http.get("/v1/sessions")).status_code == 401
        async with asking(later, key["key"]) as http:
            assert (await http.get("/v1/sessions")).status_code == 200
            assert key["id"] in await cli(fresh, "list")
            assert (await cli(fresh, "revoke", key["id"])).strip() == "revoked"
            assert "revoked" in await cli(fresh, "list")

            async def gone() -> bool:
                return (await http.get("/v1/sessions")).status_code == 401

            await until(gone)
    assert await cli(fresh, "revoke", "0123456789abcdef", expect=2)
    assert await cli(fresh, "create", "x", "--role", "king", expect=2)
    assert "name" in await cli(fresh, "create", "", "--role", "admin", expect=2)


async def cli(kafka: TestBroker, *arguments: str, expect: int = 0) -> str:
    """`trunkline keys ...` on the broker; what it says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    addresses = {
        "TRUNKLINE_DATA_DIR": str(kafka.data_dir / "cli"),
        "TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
    }
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "api.cli.main", "keys", *arguments],
        cwd=REPOSITORY,
        env=kept | addresses,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == expect, done.stderr
    return done.stdout if expect == 0 else done.stderr


async def test_bound_to_more_than_loopback_nobody_gets_in_without_a_key(fresh: TestBroker) -> None:
    settings = fresh.settings(api={"port": 0, "host": "127.0.0.2"})
    async with running_gateway(settings) as gateway:
        base = gateway.http.replace("127.0.0.1", "127.0.0.2")
        async with httpx.AsyncClient(base_url=base, timeout=60) as http:
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/v1/agents")).status_code == 401
            twiml = await http.post("/v1/twilio/voice", data={"CallSid": "CA1"})
            assert (twiml.status_code, twiml.json()["code"]) == (403, "no_auth_token")
            assert await refusals(settings, reason="no_auth_token")


# Who sees what.


async def test_a_tenants_calls_are_nobody_elses(
    gateway: Gateway, make_key: Keys, peer: Peer, settings: Settings
) -> None:
    _, service = await make_key(Role.SERVICE, "acme")
    _, ours = await make_key(Role.ADMIN, "acme")
    stranger_id, theirs = await make_key(Role.ADMIN, "beta")
    _, everybodys = await make_key(Role.ADMIN, None)
    async with (
        asking(gateway, ours) as own,
        asking(gateway, theirs) as foreign,
        asking(gateway, everybodys) as platform,
        asking(gateway, service),
        calling(gateway, service) as caller,
    ):
        await caller.start()
        sid = caller.session_id
        started = await peer.seen(lambda e: isinstance(e, Session) and e.session_id == sid)
        assert started.tenant_id == "acme"

        async def listed(http: httpx.AsyncClient) -> list[str]:
            return [one["session_id"] for one in (await http.get("/v1/sessions")).json()["sessions"]]

        assert sid in await listed(own)
        assert sid in await listed(platform)
        assert sid not in await listed(foreign)
        unknown = str(uuid.uuid4())
        for method, path in (
            ("GET", "/v1/sessions/{}"),
            ("GET", "/v1/sessions/{}/events"),
            ("POST", "/v1/sessions/{}/hang_up"),
            ("DELETE", "/v1/sessions/{}"),
        ):
            alike = [await foreign.request(method, path.format(which)) for which in (sid, unknown, "no-uuid")]
            assert {answer.status_code for answer in alike} == {404}
            assert alike[0].content == alike[1].content == alike[2].content
            assert alike[0].headers.keys() == alike[1].headers.keys()
        (told,) = await refusals(settings, kind="foreign", action="GET /v1/sessions/{session_id}", target=sid)
        assert (told.key_id, told.tenant_id, told.reason) == (stranger_id, "beta", "tenant")
        assert not await refusals(settings, at_least=0, target=unknown)
        assert (await own.get(f"/v1/sessions/{sid}")).json()["tenant"] == "acme"
        assert (await own.get(f"/v1/sessions/{sid}/events")).status_code == 200

        # The call has not noticed, and its own tenant may end it.
        await peer.publish(peer.transcript(sid, TranscriptKind.FINAL, 0, 1, "still there"))
        await caller.heard("final")
        assert (await own.post(f"/v1/sessions/{sid}/hang_up")).status_code == 200
        ended = await peer.seen(
            lambda e: isinstance(e, Session) and e.session_id == sid and e.kind is SessionKind.ENDED
        )
        assert ended.tenant_id == "acme"
        assert sid not in await listed(foreign)
        assert (await foreign.delete(f"/v1/sessions/{sid}")).status_code == 404


async def test_hints_about_a_call_are_its_tenants(
    gateway: Gateway, make_key: Keys, peer: Peer, settings: Settings
) -> None:
    _, ours = await make_key(Role.ANALYST, "acme")
    stranger_id, theirs = await make_key(Role.ANALYST, "beta")
    sid = str(uuid.uuid4())
    address = f"{gateway.ws}/v1/assist/{sid}"
    async with (
        asking(gateway, ours),
        asking(gateway, theirs),
        websockets.connect(address, additional_headers=bearer(ours)) as follower,
        websockets.connect(address, additional_headers=bearer(theirs)) as stranger,
    ):
        example = json_form.examples(Suggestion)[0]
        await peer.publish(replace(example, event_id=str(uuid.uuid4()), session_id=sid, tenant_id="acme"))
        assert json.loads(await asyncio.wait_for(follower.recv(), 6 * PATIENCE_S))["type"] == "suggestion"

        action = "WEBSOCKET /v1/assist/{session_id}"
        assert await refusals(settings, kind="foreign", action=action, target=sid, key_id=stranger_id)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stranger.recv(), 0.1)


async def test_a_call_is_resumed_by_its_tenant_alone(gateway: Gateway, make_key: Keys, settings: Settings) -> None:
    _, ours = await make_key(Role.SERVICE, "acme")
    _, theirs = await make_key(Role.SERVICE, "beta")
    async with asking(gateway, ours), asking(gateway, theirs), calling(gateway, ours) as caller:
        token = (await caller.start())["resume_token"]
        answers = []
        for text in (token, token[:-4] + "AAAA", "x"):
            async with calling(gateway, theirs) as thief:
                await thief.say(type="resume", resume_token=text)
                answers.append(await thief.heard("error"))
                assert await thief.closed() == 1008
        assert answers[0] == answers[1] == answers[2]
        assert answers[0]["code"] == "bad_resume_token"
        assert await refusals(settings, kind="foreign", target=caller.session_id, action="WEBSOCKET /v1/calls")
        assert len(await refusals(settings, 2, reason="bad_resume_token")) == 2
        async with calling(gateway, ours) as back:
            await back.say(type="resume", resume_token=token)
            assert (await back.heard("resumed"))["session_id"] == caller.session_id


async def test_an_agent_of_one_tenant_is_not_there_for_another(gateway: Gateway, make_key: Keys, peer: Peer) -> None:
    _, ours = await make_key(Role.SERVICE, "acme")
    _, theirs = await make_key(Role.SERVICE, "beta")
    _, everybodys = await make_key(Role.SERVICE, None)
    async with asking(gateway, ours) as own, asking(gateway, theirs) as foreign, asking(gateway, everybodys):

        async def agents(http: httpx.AsyncClient) -> set[str]:
            return {one["id"] for one in (await http.get("/v1/agents")).json()["agents"]}

        assert await agents(own) == {"acmes", "common"}
        assert await agents(foreign) == {"common"}
        async with calling(gateway, theirs) as caller:
            answers = []
            for name in ("acmes", "nobody"):
                await caller.say(type="start", agent=name)
                answers.append(await caller.heard("error"))
            assert answers[0] == answers[1]
            assert "acmes" not in answers[0]["hint"]
            assert (await caller.start())["agent"] == "common"  # the first one that is theirs
        # Whoever is of all tenants calls in the name of the agent's.
        async with calling(gateway, everybodys) as caller:
            await caller.start(agent="acmes")
            sid = caller.session_id
            started = await peer.seen(lambda e: isinstance(e, Session) and e.session_id == sid)
            assert started.tenant_id == "acme"


async def test_a_telephone_call_is_its_agents_tenants(settings: Settings, peer: Peer) -> None:
    api = settings.api.model_copy(update={"twilio_auth_token": SecretStr("t0ken"), "public_url": "https://voice.test"})
    path, form = "/v1/twilio/voice?agent=acmes", {"CallSid": f"CA{uuid.uuid4().hex}", "From": "+15550001"}
    proof = RequestValidator("t0ken").compute_signature(f"https://voice.test{path}", form)
    async with running_gateway(settings.model_copy(update={"api": api})) as gateway:
        async with httpx.AsyncClient(base_url=gateway.http, timeout=60) as http:
            forged = await http.post(path, data=form, headers={"X-Twilio-Signature": "forged"})
            assert (forged.status_code, forged.json()["code"]) == (403, "bad_signature")
            twiml = await http.post(path, data=form, headers={"X-Twilio-Signature": proof})
        given = dict(re.findall(r'<Parameter name="(\w+)" value="([^"]*)"/>', twiml.text))
        start: dict[str, Any] = {"streamSid": "MZ1", "callSid": form["CallSid"], "tracks": ["inbound"]}
        start |= {"mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}}
        for parameters in ({**given, "trunkline_token": "guess"}, given):
            async with websockets.connect(f"{gateway.ws}/v1/twilio/media") as socket:
                await socket.send(json.dumps({"event": "connected", "protocol": "Call", "version": "1.0.0"}))
                message = {"event": "start", "start": {**start, "customParameters": parameters}, "streamSid": "MZ1"}
                await socket.send(json.dumps(message))
                if parameters is given:
                    started = await peer.seen(lambda e: isinstance(e, Session) and e.channel == "twilio")
                    assert (started.tenant_id, started.agent_id) == ("acme", "acmes")
                else:
                    assert await Caller(socket).closed() == 1008
    for reason, action in (
        ("bad_signature", "POST /v1/twilio/voice"),
        ("bad_call_token", "WEBSOCKET /v1/twilio/media"),
    ):
        assert await refusals(settings, kind="unauthenticated", reason=reason, action=action)


async def test_roles_hold_on_the_wire(gateway: Gateway, make_key: Keys, settings: Settings) -> None:
    identity, analyst = await make_key(Role.ANALYST, "acme")
    _, operator = await make_key(Role.OPERATOR, None)
    async with asking(gateway, analyst) as http:
        answer = await http.get("/v1/webhooks")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert "webhooks:read" in answer.json()["message"]
        assert (await http.get("/metrics")).status_code == 403
        status, body = await status_of_socket(gateway, analyst)
        assert (status, body["code"]) == (403, "forbidden")
        found = await refusals(settings, 3, kind="forbidden", key_id=identity)
        assert {(one.action, one.permission) for one in found} == {
            ("GET /v1/webhooks", "webhooks:read"),
            ("GET /metrics", "metrics:read"),
            ("WEBSOCKET /v1/calls", "call"),
        }
    async with asking(gateway, operator) as http:
        metrics = await http.get("/metrics")
        assert 'trunkline_access_refused_total{kind="forbidden",reason="role"}' in metrics.text
        assert (await http.get(f"/v1/sessions/{uuid.uuid4()}/events")).status_code == 403


async def test_a_key_that_asks_too_often_is_slowed_down_and_others_are_not(
    gateway: Gateway, make_key: Keys, settings: Settings
) -> None:
    identity, slow = await make_key(Role.ANALYST, "acme", requests_per_s=0.2)
    _, other = await make_key(Role.ANALYST, "acme")
    async with asking(gateway, other) as http, asking(gateway, slow):
        answers = [await http.get("/v1/agents", headers=bearer(slow)) for _ in range(5)]
        limited = [answer for answer in answers if answer.status_code == 429]
        assert len(limited) >= 4
        assert (limited[0].json()["code"], limited[0].headers["retry-after"]) == ("rate_limited", "5")
        assert (await http.get("/v1/agents")).status_code == 200
        assert (await status_of_socket(gateway, slow))[0] == 429
        assert await refusals(settings, 5, kind="limited", key_id=identity)


# Webhooks and keys.


async def test_webhooks_are_those_of_the_own_tenant(gateway: Gateway, make_key: Keys) -> None:
    _, ours = await make_key(Role.ADMIN, "acme")
    _, theirs = await make_key(Role.ADMIN, "beta")
    hook = {"url": "http://127.0.0.1:9/x", "events": ["session.ended"]}
    async with asking(gateway, ours) as own, asking(gateway, theirs) as foreign:
        made = (await own.post("/v1/webhooks", json=hook)).json()
        assert made["tenant"] == "acme"
        for tenant in ("acme", "nowhere", "*"):
            answer = await foreign.post("/v1/webhooks", json={**hook, "tenant": tenant})
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_tenant")
        assert (await own.post("/v1/webhooks", json={**hook, "tenant": "acme"})).status_code == 201
        assert (await foreign.get("/v1/webhooks")).json() == {"webhooks": []}
        for method, path, body in (
            ("GET", "", None),
            ("PATCH", "", {"enabled": False}),
            ("DELETE", "", None),
            ("POST", "/secret", {}),
            ("POST", "/replay", {"since_us": 0}),
            ("POST", "/test", None),
        ):
            alike = [
                await foreign.request(method, f"/v1/webhooks/{which}{path}", json=body)
                for which in (made["id"], "wh_000000000000000000000000")
            ]
            assert [answer.status_code for answer in alike] == [404, 404]
            assert alike[0].content == alike[1].content
        assert (await own.get(f"/v1/webhooks/{made['id']}")).json()["enabled"] is True


async def test_an_admin_of_a_tenant_makes_keys_of_that_tenant_alone(gateway: Gateway, make_key: Keys) -> None:
    identity, ours = await make_key(Role.ADMIN, "acme")
    other_id, theirs = await make_key(Role.ADMIN, "beta")
    _, everybodys = await make_key(Role.ADMIN, None)
    async with asking(gateway, ours) as own, asking(gateway, theirs), asking(gateway, everybodys) as platform:
        made = (await own.post("/v1/keys", json={"name": "bob", "role": "analyst", "days": 30})).json()
        assert (made["tenant"], made["created_by"], made["state"]) == ("acme", identity, "valid")
        assert made["expires_at"] - made["created_at"] == 30 * 86_400_000_000
        async with asking(gateway, made["key"]) as http:
            assert (await http.get("/v1/sessions")).status_code == 200
        for tenant in ("beta", "nowhere", "*"):
            answer = await own.post("/v1/keys", json={"name": "eve", "role": "admin", "tenant": tenant})
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_tenant")
        listed = (await own.get("/v1/keys")).json()["keys"]
        assert {one["tenant"] for one in listed} == {"acme"}
        assert not [one for one in listed if "key" in one or "digest" in one]
        alike = [await own.delete(f"/v1/keys/{which}") for which in (other_id, "0" * 16)]
        assert [answer.status_code for answer in alike] == [404, 404]
        assert alike[0].content == alike[1].content
        everyone = (await platform.post("/v1/keys", json={"name": "c", "role": "auditor", "tenant": "*"})).json()
        assert everyone["tenant"] == "*"
        assert everyone["id"] not in str((await own.get("/v1/keys")).json())


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"name": ""}, "name"),
        ({"name": 7}, "name"),
        ({"role": "king"}, "role"),
        ({"role": None}, "role"),
        ({"tenant": ""}, "tenant"),
        ({"tenant": "t" * 101}, "tenant"),
        ({"days": 0}, "days"),
        ({"days": "soon"}, "days"),
        ({"requests_per_s": -1}, "requests_per_s"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_every_field_of_a_key_is_looked_at(
    gateway: Gateway, make_key: Keys, fields: dict[str, Any], name: str
) -> None:
    _, admin = await make_key(Role.ADMIN, "acme")
    async with asking(gateway, admin) as http:
        answer = await http.post("/v1/keys", json={"name": "bob", "role": "analyst", **fields})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")
        assert name in answer.json()["message"]
        broken = await http.post("/v1/keys", content=b"{no json", headers={"content-type": "application/json"})
        assert (broken.status_code, broken.json()["code"]) == (422, "invalid_json")


# What is kept.


async def test_the_log_holds_digests_and_garbage_in_it_locks_nobody_out(
    broker: TestBroker, settings: Settings, make_key: Keys
) -> None:
    identity, key = await make_key(Role.ADMIN, "acme")
    async with LogProducer(settings, "test.access") as producer:
        await producer.publish_raw(KEYS, b"garbage", b"\xff{")
        await producer.publish_raw(KEYS, b"empty", b"{}")
    assert identity in await stored_keys(settings)
    async with running_gateway(settings) as gateway, asking(gateway, key) as http:
        assert (await http.get("/v1/keys")).status_code == 200
    values = b"".join(record.value or b"" for record in await records(settings, KEYS))
    assert identity.encode() in values
    assert key.rpartition("_")[2].encode() not in values


async def questioned(sink: SinkProcess, password: str, query: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60) as http:
        return await http.post(f"http://127.0.0.1:{sink.port}/", content=query, auth=("anybody", password))


async def test_refusals_are_rows_of_clickhouse_which_takes_keys_for_passwords(
    gateway: Gateway, make_key: Keys, broker: TestBroker, tmp_path: Path
) -> None:
    identity, key = await make_key(Role.SERVICE, "gamma")
    async with asking(gateway, key) as http:
        assert (await http.get("/v1/keys")).status_code == 403
        assert (await http.get("/v1/sessions")).status_code == 403
    sink = SinkProcess(tmp_path, broker.bootstrap_servers)
    try:
        await asyncio.to_thread(sink.start)
        where = f"FROM refusals FINAL WHERE key_id = '{identity}' AND kind = 'forbidden'"
        await asyncio.to_thread(sink.wait_for, f"SELECT count() {where}", 2)
        rows = sink.ask(f"SELECT tenant_id, role, action, permission, reason {where} ORDER BY action FORMAT TSV").text
        assert rows.splitlines() == [
            "gamma\tservice\tGET /v1/keys\tkeys:read\trole",
            "gamma\tservice\tGET /v1/sessions\tsessions:read\trole",
        ]
        # A key is a password there, too.
        _, analyst = await make_key(Role.ANALYST, "gamma")
        _, other = await make_key(Role.ANALYST, "delta")
        counted = "SELECT count() FROM refusals WHERE tenant_id = 'gamma'"
        for shown, expected in ((analyst, "2"), (other, "0")):

            async def answered(password: str = shown) -> bool:
                return (await questioned(sink, password, counted)).status_code == 200

            await until(answered)
            assert (await questioned(sink, shown, counted)).text.strip() == expected
        refused = await questioned(sink, key, counted)
        assert (refused.status_code, refused.headers["x-clickhouse-exception-code"]) == (403, "516")
        assert "service" not in refused.text
        where = f"FROM refusals FINAL WHERE key_id = '{identity}' AND action = 'SQL' AND component = 'clickhouse.0'"
        await asyncio.to_thread(sink.wait_for, f"SELECT count() {where}", 1)
    finally:
        sink.kill()


async def test_the_command_line_shows_a_key(gateway: Gateway, make_key: Keys) -> None:
    _, admin = await make_key(Role.ADMIN, "delta")
    async with asking(gateway, admin):
        pass

    def webhooks(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "api.cli.main", "webhooks", "list", "--url", gateway.http, *arguments],
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    for done in (
        await asyncio.to_thread(webhooks, "--key", admin),
        await asyncio.to_thread(webhooks, TRUNKLINE_API__KEY=admin),
    ):
        assert done.returncode == 0, done.stderr
    refused = await asyncio.to_thread(webhooks)
    assert refused.returncode == 1
    assert "An API key is needed" in refused.stderr
