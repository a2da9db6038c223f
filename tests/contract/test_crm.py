"""Other systems: adapters against a real ERP (SAP CAP), and what calls leave there, whatever dies or is lost."""

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import websockets

from processors.adapters.adapter import load_adapters
from processors.adapters.client import Adapters
from processors.engine import EngineError
from schemas.event import Event
from schemas.events import (
    Access,
    Customer,
    DeadLetter,
    Delivery,
    Entity,
    Intent,
    IntentKind,
    Response,
    ResponseKind,
    Session,
    SessionKind,
    Suggestion,
)
from streams.client import Partition
from streams.codec import CodecError
from streams.consumer import BEGINNING, END, LogReader, read_range
from streams.producer import LogProducer
from streams.registry import codec_for, keyring_for
from streams.settings import ApiSettings, Settings
from tests.support.cap import SECRETS, Cap
from tests.support.component import Component
from tests.support.gateway import running_gateway
from tests.support.kafka import TestBroker, running_broker
from tests.support.leaky import leaking

PATIENCE_S = 120.0
KNOWN = {name.removeprefix("TRUNKLINE_SECRET_").lower(): value for name, value in SECRETS.items()}

AGENT = """
name: Service desk
greeting: "Hello{% if caller.name %}, {{ caller.name }}{% endif %}. What can I do for you?"
persona: You answer a service desk.
caller_record:
  operation: sap.find_customer
  arguments: {caller: "{{ caller }}"}
  deadline_ms: 5000
entities:
  - {name: problem, kind: text}
  - {name: order_number, kind: order_number}
tools:
  - name: open_ticket
    effect: write
    operation: sap.create_ticket
    arguments: {problem: "{{ problem }}", caller: "{{ caller }}"}
    timeout_s: 4
  - name: get_order
    operation: sap.order_status
    arguments: {order_number: "{{ order_number }}"}
intents:
  - name: report
    examples: [something is broken]
    required: [{entity: problem, question: "What is wrong?"}]
    tool: open_ticket
    templates: {ok: "Ticket {{ result.number }} is open.", failed: I could not open it.}
  - name: order_status
    examples: [where is my order]
    required: [{entity: order_number, question: "Which order?"}]
    tool: get_order
    templates: {ok: "It is {{ result.status }}.", not_found: There is no such order.}
  - name: call_back
    examples: [call me back]
    templates: {ok: We will call you back.}
"""

WORKFLOWS = """
workflows:
  - name: finish_ticket
    description: What the tool could not say for sure is done, under the key that the tool used.
    when: {intent: report, outcome: [failed, timeout]}
    operation: sap.create_ticket
    key: "{{ call_id }}"
    arguments: {problem: "{{ arguments.problem }}", caller: "{{ caller }}"}
  - name: call_back
    when: {intent: call_back, outcome: answered, condition: "caller.tier == 'gold'"}
    operation: sap.create_ticket
    arguments: {problem: "call back: {{ text }}", caller: "{{ caller }}"}
  - name: log_call
    when: {ended: call}
    operation: sap.log_call
    arguments:
      caller: "{{ caller }}"
      summary: "{{ summary }}"
      disposition: "{{ disposition }}"
      sentiment: "{{ sentiment }}"
      duration_s: "{{ duration_s }}"
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    """A broker of these tests' own: a stage that reads what other tests wrote would refuse it."""
    with running_broker(tmp_path_factory.mktemp("crm-kafka"), provisioned=True) as own:
        yield own


@pytest.fixture
def erp(tmp_path: Path) -> Iterator[Cap]:
    server = Cap(tmp_path)
    server.start()
    yield server
    server.kill()


def adapters_of(url: str, tmp_path: Path) -> Adapters:
    return Adapters(load_adapters(Settings(data_dir=tmp_path, adapter_urls={"sap": url}), KNOWN), KNOWN)


@pytest.fixture
async def adapters(erp: Cap, tmp_path: Path) -> AsyncIterator[Adapters]:
    made = adapters_of(erp.url, tmp_path)
    yield made
    await made.close()


# The ready adapter, as it ships.


async def test_orders_stock_and_customers_are_what_the_erp_says(adapters: Adapters) -> None:
    async def ask(operation: str, **arguments: str) -> tuple[str, Any]:
        done = await adapters.perform(f"sap.{operation}", arguments, "")
        return done.outcome, done.result

    outcome, order = await ask("order_status", order_number="1042")
    assert (outcome, order["status"], order["delivery_date"]) == ("ok", "shipped", "2030-01-02")
    assert await ask("order_status", order_number="9999") == ("not_found", {})
    assert (await ask("order_status", order_number="1042') or ('1' eq '1"))[0] != "ok"
    outcome, tent = await ask("stock", product="Tent")
    assert (outcome, tent["available"], tent["title"]) == ("ok", 4, "Ridge Two Tent")
    assert (await ask("stock", product="rain jacket"))[0] == "sold_out"
    outcome, customer = await ask("find_customer", caller="+15550142")
    assert (outcome, customer["name"], customer["tier"]) == ("ok", "Ada O'Hara", "gold")
    assert await ask("find_customer", caller="' or 1 eq 1 or phone eq '") == ("not_found", {})


async def test_a_ticket_is_made_once_for_each_key(erp: Cap, adapters: Adapters) -> None:
    keys = [uuid.uuid4().hex for _ in range(5)]
    calls = [adapters.perform("sap.create_ticket", {"problem": key}, key, 60.0) for key in keys * 8]
    done = await asyncio.gather(*calls)
    assert {one.outcome for one in done} == {"ok"}
    numbers = {(key, one.result["number"]) for key, one in zip(keys * 8, done, strict=True)}
    assert len(numbers) == 5
    assert sorted(row["problem"] for row in erp.rows("Tickets")) == sorted(keys)


async def test_what_the_erp_refuses_is_not_done_again(adapters: Adapters) -> None:
    done = await adapters.perform("sap.create_ticket", {"problem": ""}, uuid.uuid4().hex)
    assert (done.outcome, done.status, done.may_pass) == ("rejected", 400, False)


async def test_a_wrong_password_is_told_and_may_pass(erp: Cap, tmp_path: Path) -> None:
    secrets = {**KNOWN, "sap_password": "another"}
    made = Adapters(load_adapters(Settings(data_dir=tmp_path, adapter_urls={"sap": erp.url}), secrets), secrets)
    done = await made.perform("sap.stock", {"product": "tent"}, "")
    await made.close()
    assert (done.outcome, done.status, done.may_pass) == ("rejected", 401, True)


async def test_an_erp_that_is_away_is_left_alone(erp: Cap, adapters: Adapters) -> None:
    erp.kill()
    reasons = []
    for _ in range(7):
        with pytest.raises(EngineError) as error:
            await adapters.perform("sap.stock", {"product": "tent"}, "")
        reasons.append(error.value.reason)
    assert (reasons[0], reasons[-1]) == ("crashed", "refused")


# What calls leave there.


class Line:
    """Calls as the gateway and the stages before the llm stage write them, and what the others made of them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def event(self, cls: type[Event], session_id: str, /, turn: int = 0, **fields: Any) -> Event:
        """An event of the call, with an id of its own."""
        envelope = {
            "event_id": str(uuid.uuid4()),
            "session_id": session_id,
            "tenant_id": "demo",
            "agent_id": "desk",
            "turn": turn,
            "seq": 0,
            "occurred_at": time.time_ns() // 1000,
        }
        return cls(**{**envelope, **fields})

    def begun(self, session_id: str, caller: str | None = "+15550142") -> Event:
        """The call begins."""
        return self.event(Session, session_id, kind=SessionKind.STARTED, channel="test", caller=caller)

    def said(self, session_id: str, intent: str, text: str, turn: int = 1, **entities: str) -> Event:
        """The caller wants something."""
        found = tuple(Entity(name, value, value, 0, 0) for name, value in entities.items())
        return self.event(
            Intent,
            session_id,
            turn,
            kind=IntentKind.DETECTED,
            intent=intent,
            confidence=0.95,
            text=text,
            entities=found,
        )

    def over(self, session_id: str) -> Event:
        """The call ends."""
        return self.event(
            Session, session_id, kind=SessionKind.ENDED, channel="test", reason="hung_up", duration_ms=61_000
        )

    async def write(self, *events: Event) -> None:
        """Puts them into the log."""
        async with LogProducer(self.settings, "test.crm") as producer:
            for event in events:
                await producer.publish(event)

    async def all(self, cls: type[Event]) -> list[Any]:
        """The first event with each id."""
        codec, found = codec_for(self.settings), dict[str, Event]()
        async with LogReader(self.settings, "test.crm") as reader:
            ranges: Mapping[Partition, tuple[int, int]] = dict.fromkeys(
                await reader.partitions(cls.TOPIC), (BEGINNING, END)
            )
        async for record in read_range(self.settings, ranges):
            try:
                event = codec.decode(record.topic, record.value)
            except CodecError:
                continue
            found.setdefault(event.event_id, event)
        return list(found.values())

    async def until(self, cls: type[Event], session_id: str, wanted: Callable[[list[Any]], bool]) -> list[Any]:
        """Those of one call, once that is so."""
        return (await self.until_each(cls, [session_id], wanted))[session_id]

    async def until_each(
        self, cls: type[Event], sessions: Iterable[str], wanted: Callable[[list[Any]], bool]
    ) -> dict[str, list[Any]]:
        """Those of each of the calls, once that is so of all of them."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            found: dict[str, list[Any]] = {session_id: [] for session_id in sessions}
            for event in await self.all(cls):
                if event.session_id in found:
                    found[event.session_id].append(event)
            missing = {session_id: events for session_id, events in found.items() if not wanted(events)}
            if not missing:
                return found
            assert time.monotonic() < deadline_s, missing
            await asyncio.sleep(0.2)


@pytest.fixture
def line(broker: TestBroker) -> Line:
    return Line(broker.settings())


@pytest.fixture
def start(broker: TestBroker, tmp_path: Path) -> Iterator[Any]:
    """Starts the llm stage or the clerk, with that address of the ERP; they end with the test."""
    agents, workflows = tmp_path / "agents", tmp_path / "workflows.yaml"
    agents.mkdir()
    (agents / "desk.yaml").write_text(AGENT)
    workflows.write_text(WORKFLOWS)
    running: list[Component] = []

    def begin(name: str, url: str, **environment: str) -> Component:
        module, arguments = {"llm": ("processors.worker", ("llm",)), "crm": ("processors.crm.clerk", ())}[name]
        given = {
            "TRUNKLINE_AGENTS_DIR": str(agents),
            "TRUNKLINE_WORKFLOWS_FILE": str(workflows),
            "TRUNKLINE_ADAPTER_URLS": json.dumps({"sap": url}),
            "TRUNKLINE_KAFKA__SESSION_TIMEOUT_MS": "1000",
            "TRUNKLINE_CRM__RETRY_S": json.dumps([0.2] * 300),
            "TRUNKLINE_CRM__SETTLE_S": "1",
            **SECRETS,
            **environment,
        }
        one = Component(
            name, module, *arguments, data_dir=tmp_path / name, bootstrap_servers=broker.bootstrap_servers, **given
        )
        running.append(one)
        one.start()
        return one

    yield begin
    for one in running:
        one.kill()


def kinds(events: list[Any]) -> list[str]:
    return [str(event.kind) for event in events]


async def test_the_caller_is_known_before_the_greeting_and_the_call_is_logged(erp: Cap, line: Line, start: Any) -> None:
    start("crm", erp.url)
    start("llm", erp.url)
    session_id = str(uuid.uuid4())
    await line.write(line.begun(session_id))
    said = await line.until(Response, session_id, lambda found: "completed" in kinds(found))
    assert kinds(said)[:3] == ["tool_called", "tool_returned", "sentence"]
    assert (said[1].tool, said[1].outcome, json.loads(said[1].result)["tier"]) == ("sap.find_customer", "ok", "gold")
    assert said[2].text == "Hello, Ada O'Hara."
    await line.write(line.said(session_id, "order_status", "where is 1042", order_number="1042"))
    said = await line.until(Response, session_id, lambda found: kinds(found).count("completed") == 2)
    assert said[-1].text == "It is shipped."
    await line.write(line.said(session_id, "call_back", "call me back, my card is 4111 1111 1111 1111", turn=2))
    await line.until(Response, session_id, lambda found: kinds(found).count("completed") == 3)
    await line.write(line.over(session_id))
    (scored,) = await line.until(Customer, session_id, bool)
    assert (scored.disposition, scored.turns, scored.intents) == ("resolved", 2, ("order_status", "call_back"))
    assert scored.calls >= 1
    assert scored.call_score > 50
    assert '"where is 1042" (order_status: ok)' in scored.summary
    told = await line.until(Delivery, session_id, lambda found: kinds(found).count("delivered") == 2)
    assert {event.endpoint_id for event in told} == {"workflow.call_back", "workflow.log_call"}
    (logged,) = [row for row in await asyncio.to_thread(erp.rows, "Calls") if row["summary"] == scored.summary]
    assert (logged["caller"], logged["disposition"], logged["durationS"]) == ("+15550142", "resolved", 61)
    problems = [row["problem"] for row in await asyncio.to_thread(erp.rows, "Tickets")]
    assert problems == [
        "call back: call me back, my card is **** **** **** ****"
    ]  # masked, as in whatever leaves the log


async def test_an_unknown_caller_is_greeted_all_the_same(erp: Cap, line: Line, start: Any) -> None:
    start("llm", erp.url)
    unknown, hidden = str(uuid.uuid4()), str(uuid.uuid4())
    await line.write(line.begun(unknown, "+15559999"), line.begun(hidden, None))
    for session_id in (unknown, hidden):
        said = await line.until(Response, session_id, lambda found: "completed" in kinds(found))
        assert said[-1].text == "Hello. What can I do for you?"


async def test_every_confirmed_request_is_one_ticket_whatever_dies_or_is_lost(erp: Cap, line: Line, start: Any) -> None:
    """The stage and the clerk are killed while they work, and three of ten answers of the ERP never arrive."""
    chosen = random.Random(7)
    sessions = {str(uuid.uuid4()): f"problem {number}" for number in range(24)}
    with leaking(erp.url, share=0.3) as proxy:
        components = [start("llm", proxy.url), start("crm", proxy.url)]
        waves = [list(sessions)[at : at + 6] for at in range(0, len(sessions), 6)]
        for number, wave in enumerate(waves):
            begun = [line.begun(session_id, f"+1555{number}") for session_id in wave]
            said = [line.said(one, "report", sessions[one], problem=sessions[one]) for one in wave]
            await line.write(*begun, *said)
            await asyncio.sleep(chosen.uniform(0.1, 1.5))
            for component in components:
                component.kill()
                await asyncio.to_thread(component.start)
        ended = await line.until_each(Response, sessions, lambda found: _turn_ended(found, 1))
        await line.write(*(line.over(session_id) for session_id in sessions))
        components[1].kill()
        await asyncio.to_thread(components[1].start)
        await line.until_each(Delivery, sessions, lambda found: "workflow.log_call" in _delivered(found))
        unsure = [
            session_id
            for session_id, events in ended.items()
            if any(event.turn == 1 and event.outcome in ("failed", "timeout") for event in events)
        ]
        await line.until_each(Delivery, unsure, lambda found: "workflow.finish_ticket" in _delivered(found))
        assert proxy.lost > 8
    tickets = Counter(row["problem"] for row in await asyncio.to_thread(erp.rows, "Tickets"))
    assert tickets == Counter(sessions.values())
    logged = Counter(row["summary"].split('"')[1] for row in await asyncio.to_thread(erp.rows, "Calls"))
    assert logged == Counter(sessions.values())
    scored = Counter(event.session_id for event in await line.all(Customer) if event.session_id in sessions)
    assert scored == Counter(list(sessions))


async def test_what_the_erp_does_not_take_becomes_a_dead_letter_and_the_rest_goes_on(
    erp: Cap, line: Line, start: Any
) -> None:
    start("crm", erp.url, TRUNKLINE_CRM__RETRY_S="[0.1]")
    session_id = str(uuid.uuid4())
    wanted = line.said(session_id, "report", "x")
    cause = {"causation_id": wanted.event_id, "intent": "report"}
    call = {**cause, "tool": "open_ticket", "tool_call_id": uuid.uuid4().hex}
    await line.write(
        line.begun(session_id),
        wanted,
        line.event(Response, session_id, 1, kind=ResponseKind.TOOL_CALLED, arguments='{"problem": ""}', **call),
        line.event(Response, session_id, 1, kind=ResponseKind.TOOL_RETURNED, outcome="failed", **call),
        line.event(Response, session_id, 1, kind=ResponseKind.COMPLETED, outcome="failed", text="Sorry.", **cause),
        line.over(session_id),
    )
    told = await line.until(Delivery, session_id, lambda found: "workflow.log_call" in _delivered(found))
    assert [(event.kind, event.status_code) for event in told if event.endpoint_id == "workflow.finish_ticket"] == [
        ("dead", 400)
    ]
    (letter,) = [one for one in await line.until(DeadLetter, session_id, bool) if one.stage == "crm"]
    assert letter.reason == "undelivered"
    assert "workflow finish_ticket" in letter.detail


def _turn_ended(found: list[Any], turn: int) -> bool:
    return any(event.turn == turn and event.kind in ("completed", "cancelled") for event in found)


def _delivered(found: list[Any]) -> set[str]:
    return {event.endpoint_id for event in found if event.kind == "delivered"}


async def test_of_a_call_that_was_erased_nothing_more_is_told(line: Line, start: Any) -> None:
    start("crm", "http://127.0.0.1:1")  # where nobody listens
    session_id = str(uuid.uuid4())
    await line.write(line.begun(session_id), line.over(session_id))
    await line.until(Delivery, session_id, lambda found: "attempted" in kinds(found))
    keyring_for(line.settings).destroy(session_id, "demo")
    told = await line.until(Delivery, session_id, lambda found: "dead" in kinds(found))
    assert told[-1].reason == "the call was erased"


async def test_a_person_who_follows_the_call_gets_hints(erp: Cap, line: Line, start: Any, tmp_path: Path) -> None:
    start("crm", erp.url)
    start("llm", erp.url)
    session_id = str(uuid.uuid4())
    await line.write(line.begun(session_id))
    await line.until(Suggestion, session_id, bool)
    settings = line.settings.model_copy(update={"data_dir": tmp_path, "api": ApiSettings(port=0)})
    async with (
        running_gateway(settings) as gateway,
        websockets.connect(f"{gateway.ws}/v1/assist/{session_id}") as follower,
    ):
        hints = [json.loads(await asyncio.wait_for(follower.recv(), PATIENCE_S))]
        assert (hints[0]["type"], hints[0]["kind"]) == ("suggestion", "record")
        assert "name: Ada O'Hara; tier: gold" in hints[0]["text"]
        (followed,) = await line.until(Access, session_id, bool)
        assert (followed.kind, followed.actor) == ("followed", "local")
        await line.write(line.said(session_id, "order_status", "where is 1042", order_number="1042"))
        hints.append(json.loads(await asyncio.wait_for(follower.recv(), PATIENCE_S)))
        assert (hints[1]["kind"], hints[1]["title"], hints[1]["text"]) == ("action", "get_order", "order_number: 1042")
        await line.write(line.said(session_id, "call_back", "call me back", turn=2))
        hints.append(json.loads(await asyncio.wait_for(follower.recv(), PATIENCE_S)))
        assert (hints[2]["kind"], hints[2]["text"]) == ("answer", "We will call you back.")
        await line.write(line.over(session_id))
        rest = [json.loads(message) async for message in follower]
        assert rest == [{"type": "ended", "reason": "hung_up"}]
        assert follower.close_code == 1000
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            async with websockets.connect(f"{gateway.ws}/v1/assist/nobody") as other:
                await other.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
