"""Webhooks: a real broker, gateway and relay, and real HTTP servers that verify with unmodified libraries."""

import asyncio
import base64
import json
import random
import re
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from schemas import json_form
from schemas.event import Event
from schemas.events import (
    DeadLetter,
    Delivery,
    DeliveryKind,
    Response,
    ResponseKind,
    Session,
    SessionKind,
    Transcript,
    TranscriptKind,
)
from streams.consumer import BEGINNING, END, LogReader, Record, read_range
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import REPOSITORY, Settings
from streams.topics import SUBSCRIPTIONS
from tests.support.gateway import running_gateway
from tests.support.kafka import TestBroker
from tests.support.webhooks import LOOPBACK, PATIENCE_S, Delivered, Receiver, RelayProcess

NETWORKS = {"private_networks": json.loads(LOOPBACK)}
FAST = {"TRUNKLINE_WEBHOOKS__RETRY_S": json.dumps([0.2] * 200)}


class Api:
    """The gateway's REST interface, as one of these tests has it: events of a tenant of its own."""

    def __init__(self, http: httpx.AsyncClient, settings: Settings) -> None:
        self.http = http
        self.settings = settings
        self.tenant = f"t-{uuid.uuid4()}"
        self.ids: list[str] = []

    async def add(self, receiver: Receiver, *events: str, **fields: Any) -> str:
        """Subscribes the receiver; returns the webhook's id."""
        body = {"url": receiver.url, "events": events or ["*"], "tenant": self.tenant, **fields}
        answer = await self.http.post("/v1/webhooks", json=body)
        assert answer.status_code == 201, answer.text
        receiver.secret = answer.json()["secret"]
        self.ids.append(answer.json()["id"])
        return self.ids[-1]

    async def show(self, identity: str) -> dict[str, Any]:
        """What GET says of it."""
        answer = await self.http.get(f"/v1/webhooks/{identity}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def until(self, identity: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Its health, once that is so."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition(health := (await self.show(identity))["health"]):
            assert time.monotonic() < deadline_s, health
            await asyncio.sleep(0.2)
        return dict(health)

    def event(self, session_id: str, cls: type[Event] = Session, /, **fields: Any) -> Event:
        """An event of this test's tenant."""
        fields |= {"event_id": str(uuid.uuid4()), "occurred_at": time.time_ns() // 1000, "tenant_id": self.tenant}
        return replace(json_form.examples(cls)[0], session_id=session_id, **fields)

    async def publish(self, events: Sequence[Event]) -> None:
        """Writes them, each topic's in order."""
        async with LogProducer(self.settings, "test.webhooks") as producer:
            await asyncio.gather(*(producer.publish(event) for event in events))


@pytest.fixture
async def api(kafka: TestBroker, tmp_path: Path) -> AsyncIterator[Api]:
    settings = kafka.settings(data_dir=tmp_path, api={"port": 0}, webhooks=NETWORKS)
    async with running_gateway(settings) as gateway, httpx.AsyncClient(base_url=gateway.http, timeout=60) as http:
        one = Api(http, settings)
        yield one
        for identity in one.ids:
            await http.delete(f"/v1/webhooks/{identity}")


@pytest.fixture
def make_relay(api: Api, kafka: TestBroker) -> Any:
    """Starts relays that share the gateway's key; they end with the test."""
    running: list[RelayProcess] = []

    def make(**environment: str) -> RelayProcess:
        relay = RelayProcess(api.settings.data_dir, kafka.bootstrap_servers, **{**FAST, **environment})
        running.append(relay)
        relay.start()
        return relay

    yield make
    for relay in running:
        relay.kill()


@pytest.fixture
def receivers() -> Any:
    """Makes receivers, which listen until the test ends."""
    made: list[Receiver] = []

    def make(*arguments: Any, **options: Any) -> Receiver:
        made.append(Receiver(*arguments, **options))
        return made[-1]

    yield make
    for receiver in made:
        receiver.stop()


async def wait_for(condition: Callable[[], bool], what: Callable[[], Any] = lambda: "") -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, what()
        await asyncio.sleep(0.05)


async def whole(settings: Settings, topic: str) -> list[Record]:
    async with LogReader(settings, "test.webhooks") as reader:
        ranges = dict.fromkeys(await reader.partitions(topic), (BEGINNING, END))
    return [record async for record in read_range(settings, ranges)]


async def deliveries(api: Api, identity: str) -> list[Delivery]:
    """What the log says of the webhook, each event once, in the order in which the relay told it."""
    found: dict[str, Delivery] = {}
    for record in await whole(api.settings, "voice.deliveries"):
        if record.value and identity.encode() in record.value:
            event = codec_for(api.settings).decode(record.topic, record.value)
            assert isinstance(event, Delivery)
            found.setdefault(event.event_id, event)
    return sorted(found.values(), key=lambda event: (event.occurred_at, event.seq))


def firsts(delivered: Sequence[Delivered]) -> list[Delivered]:
    """The deliveries without what came again under its id."""
    return list({one.message_id: one for one in reversed(delivered)}.values())[::-1]


def assert_in_order(delivered: Sequence[Delivered]) -> None:
    """The first copies of each session's events came in the order of its topic."""
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for one in firsts(delivered):
        places[one.session_id, one.place[0]].append(one.place[2])
    assert all(offsets == sorted(offsets) for offsets in places.values())


# What arrives.


async def test_a_call_arrives_signed_in_the_order_in_which_it_happened(
    api: Api, make_relay: Any, receivers: Any
) -> None:
    receiver: Receiver = receivers()
    identity = await api.add(receiver, "session.*", "transcript.final", "response.completed")
    make_relay()
    session_id = str(uuid.uuid4())
    call = [
        api.event(session_id, Session, kind=SessionKind.STARTED),
        api.event(session_id, Transcript, kind=TranscriptKind.PARTIAL),
        api.event(session_id, Transcript, kind=TranscriptKind.FINAL, text="where is it"),
        api.event(session_id, Response, kind=ResponseKind.COMPLETED, committed=False),
        api.event(session_id, Response, kind=ResponseKind.COMPLETED, committed=True),
        api.event(session_id, Session, kind=SessionKind.ENDED),
    ]
    for event in call:
        await api.publish([event])
        await asyncio.sleep(0.01)  # the broker's stamps have milliseconds
    await wait_for(lambda: len(receiver.delivered) >= 4, lambda: receiver.refused)
    assert [one.type for one in receiver.delivered] == [
        "session.started",
        "transcript.final",
        "response.completed",
        "session.ended",
    ]
    first, words = receiver.delivered[:2]
    assert words.data["event"] == json_form.to_json(call[2])
    records = await whole(api.settings, "voice.transcripts")
    (record,) = [one for one in records if one.value and call[2].event_id.encode() in one.value]
    assert words.place == (record.topic, record.partition, record.offset)
    assert first.message_id.startswith("msg_")
    assert receiver.refused == []
    await api.until(identity, lambda health: health["delivered"] == 4 and health["state"] == "healthy")
    told = await deliveries(api, identity)
    assert [event.kind for event in told] == [DeliveryKind.DELIVERED] * 4
    assert [event.causation_id for event in told] == [call[at].event_id for at in (0, 2, 4, 5)]


async def test_a_thousand_events_reach_three_subscribers_through_ten_kills(
    api: Api, make_relay: Any, receivers: Any
) -> None:
    healthy, slow, dead = receivers(), receivers(delay_s=0.03), receivers()
    identities = [await api.add(one, "session.updated") for one in (healthy, slow, dead)]
    dead.stop()
    relay: RelayProcess = make_relay()
    chosen = random.Random(5)
    sessions = [str(uuid.uuid4()) for _ in range(40)]
    events = [api.event(sessions[number % 40], kind=SessionKind.UPDATED, seq=number) for number in range(1000)]
    for kill in range(10):
        await api.publish(events[100 * kill : 100 * kill + 100])
        await asyncio.sleep(chosen.uniform(0.1, 1.0))
        relay.kill()
        if kill == 7:
            dead.start()
        await asyncio.to_thread(relay.start)
    wanted = {event.event_id for event in events}
    for receiver in (healthy, slow, dead):

        def missing(receiver: Receiver = receiver) -> set[str]:
            return wanted - {one.data["event"]["event_id"] for one in list(receiver.delivered)}

        await wait_for(lambda missing=missing: not missing(), lambda missing=missing: len(missing()))  # type: ignore[misc]
        assert len(firsts(receiver.delivered)) == 1000  # a repeat has the id that it had
        assert {one.data["event"]["event_id"] for one in receiver.delivered} == wanted
        assert_in_order(receiver.delivered)
        assert receiver.refused == []
    for identity in identities:
        await api.until(identity, lambda health: health["open"] == 0)
        told = await deliveries(api, identity)
        delivered = {event.causation_id for event in told if event.kind is DeliveryKind.DELIVERED}
        assert delivered == wanted
    assert relay.stop() == 0


async def test_an_orderly_restart_repeats_nothing(api: Api, make_relay: Any, receivers: Any) -> None:
    receiver: Receiver = receivers()
    identity = await api.add(receiver, "session.updated")
    relay: RelayProcess = make_relay()
    for count in (20, 40):
        await api.publish([api.event(str(uuid.uuid4()), kind=SessionKind.UPDATED) for _ in range(20)])
        await api.until(identity, lambda health, count=count: health["delivered"] == count)  # type: ignore[misc]
        assert relay.stop() == 0
        await asyncio.to_thread(relay.start)
    await api.publish([api.event(str(uuid.uuid4()), kind=SessionKind.ENDED)])
    await asyncio.sleep(1)
    assert len(receiver.requests) == 40


async def test_a_dead_endpoint_with_more_than_is_held_delays_nobody(api: Api, make_relay: Any, receivers: Any) -> None:
    """It is held to ten messages in memory; the rest waits in the log, and comes when it is back."""
    healthy, dead = receivers(), receivers()
    await api.add(healthy, "session.updated")
    behind = await api.add(dead, "session.updated")
    dead.stop()
    make_relay(TRUNKLINE_WEBHOOKS__OPEN_MAX="10")
    sessions = [str(uuid.uuid4()) for _ in range(30)]
    await api.publish([api.event(sessions[number % 30], kind=SessionKind.UPDATED) for number in range(300)])
    await wait_for(lambda: len(healthy.delivered) >= 300, lambda: len(healthy.delivered))
    health = await api.until(behind, lambda health: health["state"] == "failing")
    assert health["open"] <= 10
    assert health["reason"] == "no connection"
    dead.start()
    await wait_for(lambda: len(firsts(dead.delivered)) >= 300, lambda: len(dead.delivered))
    assert_in_order(dead.delivered)


# When it does not arrive.


async def test_retries_keep_the_id_and_are_told(api: Api, make_relay: Any, receivers: Any) -> None:
    receiver = receivers(lambda number: (500, 302, 404, 204)[min(number, 3)], location="http://127.0.0.1:1/")
    identity = await api.add(receiver, "session.started")
    make_relay()
    await api.publish([api.event(str(uuid.uuid4()), kind=SessionKind.STARTED)])
    await wait_for(lambda: len(receiver.delivered) == 1, lambda: receiver.requests)
    assert len({headers["webhook-id"] for headers in receiver.requests}) == 1
    await api.until(identity, lambda health: health["delivered"] == 1)
    told = await deliveries(api, identity)
    assert [(event.kind, event.attempt, event.status_code) for event in told] == [
        ("attempted", 1, 500),
        ("attempted", 2, 302),
        ("attempted", 3, 404),
        ("delivered", 4, 204),
    ]
    assert "redirects are not followed" in told[1].reason


async def test_what_nobody_takes_becomes_a_dead_letter_and_the_session_goes_on(
    api: Api, make_relay: Any, receivers: Any
) -> None:
    receiver = receivers(lambda number: 422 if number < 3 else 204)
    identity = await api.add(receiver, "session.*")
    make_relay(TRUNKLINE_WEBHOOKS__RETRY_S="[0.1, 0.1]")
    session_id = str(uuid.uuid4())
    lost, kept = (api.event(session_id, kind=kind) for kind in (SessionKind.STARTED, SessionKind.ENDED))
    await api.publish([lost, kept])
    await wait_for(lambda: len(receiver.delivered) == 1)
    assert receiver.delivered[0].type == "session.ended"
    await api.until(identity, lambda health: (health["delivered"], health["dead"]) == (1, 1))
    assert [event.kind for event in await deliveries(api, identity)] == ["attempted", "attempted", "dead", "delivered"]
    letters = [
        codec_for(api.settings).decode(record.topic, record.value)
        for record in await whole(api.settings, "voice.deadletters")
        if record.key == session_id.encode()
    ]
    (letter,) = [letter for letter in letters if isinstance(letter, DeadLetter)]
    assert (letter.stage, letter.reason, letter.causation_id) == ("webhooks", "undelivered", lost.event_id)
    assert codec_for(api.settings).decode("voice.sessions", letter.record_value) == lost


async def test_gone_switches_it_off_until_it_is_switched_on_again(api: Api, make_relay: Any, receivers: Any) -> None:
    receiver = receivers(lambda number: 410 if number == 0 else 204)
    identity = await api.add(receiver, "session.started")
    relay: RelayProcess = make_relay()
    await api.publish([api.event(str(uuid.uuid4()), kind=SessionKind.STARTED)])
    health = await api.until(identity, lambda health: health["state"] == "disabled")
    assert "410" in health["disabled"]
    relay.stop()
    await asyncio.to_thread(relay.start)
    await api.publish([api.event(str(uuid.uuid4()), kind=SessionKind.STARTED)])
    await asyncio.sleep(1)
    assert len(receiver.requests) == 1
    answer = await api.http.patch(f"/v1/webhooks/{identity}", json={"enabled": True})
    assert answer.json()["health"]["state"] == "healthy"
    await wait_for(lambda: len(receiver.delivered) == 2, lambda: len(receiver.requests))
    kinds = [event.kind for event in await deliveries(api, identity)]
    assert sorted(kinds[:2]) == ["attempted", "disabled"]


async def test_retry_after_is_obeyed(api: Api, make_relay: Any, receivers: Any) -> None:
    receiver = receivers(lambda number: 429 if number == 0 else 204, retry_after="2")
    await api.add(receiver, "session.started")
    make_relay()
    began_s = time.monotonic()
    await api.publish([api.event(str(uuid.uuid4()), kind=SessionKind.STARTED)])
    await wait_for(lambda: len(receiver.delivered) == 1)
    assert time.monotonic() - began_s >= 2
    first, second = (int(headers["webhook-timestamp"]) for headers in receiver.requests)
    assert second - first >= 1


# Once more.


async def test_replay_from_a_time_and_from_an_offset_and_backfill(api: Api, make_relay: Any, receivers: Any) -> None:
    receiver = receivers()
    identity = await api.add(receiver, "session.updated")
    make_relay()
    session_id = str(uuid.uuid4())
    await api.publish([api.event(session_id, kind=SessionKind.UPDATED, seq=number) for number in range(10)])
    await wait_for(lambda: len(receiver.delivered) == 10)
    topic, partition, offset = receiver.delivered[6].place
    place = {"topic": topic, "partition": partition, "offset": offset}
    assert (await api.http.post(f"/v1/webhooks/{identity}/replay", json=place)).status_code == 202
    await wait_for(lambda: len(receiver.delivered) == 14)
    ids = [one.message_id for one in receiver.delivered]
    assert ids[10:] == ids[6:10]
    since = {"since_us": (await api.show(identity))["created_at"]}
    assert (await api.http.post(f"/v1/webhooks/{identity}/replay", json=since)).status_code == 202
    await wait_for(lambda: len(receiver.delivered) == 24)
    assert [one.message_id for one in receiver.delivered][14:] == ids[:10]
    late = receivers()
    await api.add(late, "session.updated", since_us=0)
    await wait_for(lambda: len(late.delivered) == 10, lambda: len(late.delivered))
    assert [one.place for one in late.delivered] == [one.place for one in receiver.delivered[:10]]


async def test_a_large_event_is_told_by_its_place(api: Api, make_relay: Any, receivers: Any) -> None:
    receiver = receivers()
    await api.add(receiver, "response.completed")
    make_relay(TRUNKLINE_WEBHOOKS__PAYLOAD_BYTES_MAX="5000")
    session_id = str(uuid.uuid4())
    await api.publish([api.event(session_id, Response, kind=ResponseKind.COMPLETED, committed=True, text="x" * 6000)])
    await wait_for(lambda: len(receiver.delivered) == 1, lambda: receiver.refused)
    data = receiver.delivered[0].data
    assert (data["topic"], data["session_id"]) == ("voice.responses", session_id)
    assert data["omitted_bytes"] > 6000
    assert "event" not in data


# Secrets.


async def test_two_secrets_sign_while_they_change_and_none_is_in_the_log(
    api: Api, make_relay: Any, receivers: Any
) -> None:
    receiver = receivers()
    old = "whsec_" + base64.b64encode(b"o" * 32).decode()
    identity = await api.add(receiver, "session.started", secret=old)
    assert receiver.secret == old
    make_relay()
    fresh = (await api.http.post(f"/v1/webhooks/{identity}/secret", json={})).json()["secret"]
    await api.publish([api.event(str(uuid.uuid4()), kind=SessionKind.STARTED)])
    await wait_for(lambda: len(receiver.delivered) == 1, lambda: receiver.refused)
    assert len(receiver.requests[0]["webhook-signature"].split()) == 2
    receiver.secret = fresh
    await api.publish([api.event(str(uuid.uuid4()), kind=SessionKind.STARTED)])
    await wait_for(lambda: len(receiver.delivered) == 2, lambda: receiver.refused)
    answer = await api.http.post(f"/v1/webhooks/{identity}/secret", json={"overlap_s": 0})
    receiver.secret = answer.json()["secret"]
    await api.publish([api.event(str(uuid.uuid4()), kind=SessionKind.STARTED)])
    await wait_for(lambda: len(receiver.delivered) == 3, lambda: receiver.refused)
    assert len(receiver.requests[2]["webhook-signature"].split()) == 1
    stored = b"".join(record.value or b"" for record in await whole(api.settings, SUBSCRIPTIONS))
    for secret in (old, fresh, receiver.secret):
        assert secret.removeprefix("whsec_").encode() not in stored
        assert base64.b64decode(secret.removeprefix("whsec_")) not in stored
    assert "secret" not in (await api.show(identity))


# REST.


async def test_it_is_listed_changed_tested_and_removed(api: Api, receivers: Any) -> None:
    receiver = receivers()
    identity = await api.add(receiver, "session.*", agents=["shop"], description="the CRM")
    shown = await api.show(identity)
    assert (shown["url"], shown["agents"], shown["tenant"]) == (receiver.url, ["shop"], api.tenant)
    listed = (await api.http.get("/v1/webhooks")).json()["webhooks"]
    assert shown in listed
    changed = await api.http.patch(f"/v1/webhooks/{identity}", json={"events": ["transcript.final"], "agents": []})
    assert (changed.json()["events"], changed.json()["agents"]) == (["transcript.final"], [])
    assert changed.json()["description"] == "the CRM"
    tested = (await api.http.post(f"/v1/webhooks/{identity}/test")).json()
    assert (tested["delivered"], tested["status"]) == (True, 204)
    assert [one.type for one in receiver.delivered] == ["webhook.test"]
    receiver.stop()
    tested = (await api.http.post(f"/v1/webhooks/{identity}/test")).json()
    assert (tested["delivered"], tested["status"], tested["reason"]) == (False, 0, "no connection")
    assert (await api.http.delete(f"/v1/webhooks/{identity}")).status_code == 204
    for answer in (
        await api.http.get(f"/v1/webhooks/{identity}"),
        await api.http.patch(f"/v1/webhooks/{identity}", json={}),
        await api.http.delete(f"/v1/webhooks/{identity}"),
        await api.http.post(f"/v1/webhooks/{identity}/test"),
        await api.http.post(f"/v1/webhooks/{identity}/replay", json={"since_us": 0}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_webhook")


def trunkline(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, against that API."""
    return subprocess.run(
        [sys.executable, "-m", "api.cli.main", "webhooks", *arguments, "--url", url],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


async def test_the_command_line_does_the_same(api: Api, receivers: Any) -> None:
    receiver, url = receivers(), str(api.http.base_url)

    async def said(*arguments: str) -> str:
        done = await asyncio.to_thread(trunkline, url, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    made = json.loads(await said("add", receiver.url, "--event", "session.*", "--since", "start", "--json"))
    identity, receiver.secret = made["id"], made["secret"]
    api.ids.append(identity)
    assert "taken, HTTP 204" in await said("test", identity)
    assert f"{identity}  healthy" in await said("list")
    assert (await said("off", identity)).strip() == "disabled"
    assert (await said("on", identity)).strip() == "healthy"
    assert json.loads(await said("show", identity))["events"] == ["session.*"]
    receiver.secret = json.loads(await said("rotate", identity, "--overlap-s", "0", "--json"))["secret"]
    await said("test", identity)
    assert receiver.refused == []
    await said("replay", identity, "--from", "voice.sessions:0:0")
    await said("replay", identity, "--since", "2026-01-01T00:00:00+00:00")
    receiver.stop()
    failed = await asyncio.to_thread(trunkline, url, "test", identity)
    assert (failed.returncode, "no connection" in failed.stdout) == (1, True)
    refused = await asyncio.to_thread(trunkline, url, "add", "https://10.0.0.1/", "--event", "*")
    assert refused.returncode == 1
    assert "url: 10.0.0.1 is no public address" in refused.stderr
    assert (await said("remove", identity)).strip() == "removed"


GOOD = {"url": "http://127.0.0.1:9/x", "events": ["session.ended"]}
BAD = [
    ({"url": "http://10.1.2.3/"}, "url", "no public address"),
    ({"url": "https://169.254.169.254/latest/meta-data"}, "url", "no public address"),
    ({"url": "https://[::1]/"}, "url", "no public address"),
    ({"url": "https://[::ffff:10.0.0.1]/"}, "url", "no public address"),
    ({"url": "https://nowhere.invalid/"}, "url", "cannot be resolved"),
    ({"url": "http://93.184.216.34/"}, "url", "https is expected"),
    ({"url": "ftp://127.0.0.1/"}, "url", "https://host/path"),
    ({"url": "https://me:pw@example.org/"}, "url", "without user"),
    ({"url": "http://127.0.0.1:99999/"}, "url", "ort"),
    ({"url": ""}, "url", ""),
    ({"url": None}, "url", ""),
    ({"events": []}, "events", ""),
    ({"events": ["call.exploded"]}, "events", "no event type"),
    ({"events": "session.ended"}, "events", ""),
    ({"secret": "hush-hush"}, "secret", "whsec_"),
    ({"secret": "whsec_" + base64.b64encode(b"short").decode()}, "secret", "24 to 64"),
    ({"agents": [""]}, "agents.0", ""),
    ({"tenant": ""}, "tenant", ""),
    ({"since_us": -1}, "since_us", ""),
    ({"enabled": "perhaps"}, "enabled", ""),
    ({"colour": "red"}, "colour", ""),
]


@pytest.mark.parametrize(("field", "named", "hint"), BAD)
async def test_bad_fields_are_named(api: Api, field: dict[str, Any], named: str, hint: str) -> None:
    answer = await api.http.post("/v1/webhooks", json={**GOOD, **field})
    body = answer.json()
    assert (answer.status_code, body["code"]) == (422, "invalid_field")
    assert named in body["message"]
    assert hint in body["hint"]
    assert "hush-hush" not in answer.text


async def test_bad_replays_and_bodies_are_named(api: Api, receivers: Any) -> None:
    identity = await api.add(receivers())
    replay = f"/v1/webhooks/{identity}/replay"
    for body, hint in [
        ({}, "either since_us"),
        ({"since_us": 1, "offset": 3}, "either since_us"),
        ({"topic": "voice.sessions", "partition": 1}, "either since_us"),
        ({"topic": "voice.audio.in", "partition": 1, "offset": 0}, "topic: one of"),
        ({"topic": "voice.sessions", "partition": 10_000, "offset": 0}, "partition: less than"),
        ({"since_us": "yesterday"}, "since_us"),
    ]:
        answer = await api.http.post(replay, json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field"), body
        assert hint in answer.json()["hint"]
    assert (await api.http.post("/v1/webhooks", content=b"{")).status_code == 422
    assert (await api.http.patch(f"/v1/webhooks/{identity}", json={"url": "https://10.0.0.1/"})).status_code == 422


# At rest.


async def test_without_subscriptions_it_reads_no_calls(api: Api, make_relay: Any, receivers: Any) -> None:
    for shown in (await api.http.get("/v1/webhooks")).json()["webhooks"]:
        await api.http.delete(f"/v1/webhooks/{shown['id']}")
    relay: RelayProcess = make_relay()

    async def readers() -> set[str]:
        page = (await api.http.get(f"http://127.0.0.1:{relay.metrics_port}/metrics")).text
        return set(re.findall(r'trunkline_log_waiting{client="([^"]+)"}', page))

    assert "trunkline.webhooks.tail" not in await readers()
    await api.add(receivers(), "session.*")
    deadline_s = time.monotonic() + PATIENCE_S
    while "trunkline.webhooks.tail" not in await readers():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.1)
