"""The conversation, as tables: what comes in, what is asked, what is said."""

import itertools
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processors.agents import Agent, CallerRecord, Escalation, Tool, load_agents
from processors.engine import CallOperation, CallTool, Embed, Embedded, Generate, Generated, ToolReturned
from processors.llm.caller import Caller
from processors.llm.chat import sayable
from processors.llm.core import Conversation
from processors.llm.decide import Call as Calling
from processors.llm.decide import Look, Say, decide
from processors.llm.knowledge import KnowledgeIndex, Vectors
from processors.llm.memory import Exchange, Memory, Pending, heard_until, remember_turn
from processors.llm.patience import MISSES_MAX, Patience
from processors.llm.requests import render_call, tool_call_id
from processors.llm.stage import create_core
from processors.llm.state import State
from processors.llm.turn import Turn
from processors.stage import (
    Answered,
    Ask,
    Cancel,
    Drop,
    Emit,
    End,
    Failed,
    Hold,
    Outcome,
    Position,
    Received,
    Refuse,
    Release,
    Wake,
    Woken,
    caused,
)
from processors.templates import Template
from schemas.event import Event
from schemas.events import (
    Alternative,
    Control,
    ControlKind,
    Entity,
    Intent,
    IntentKind,
    Response,
    ResponseKind,
    Session,
    SessionKind,
)
from streams.settings import REPOSITORY, Settings

SESSION = "5b0e6dc3-34f6-4dd4-9a35-6a3d6dd2c001"
NOW_US = 1_700_000_000_000_000
SHIPPED = {"status": "shipped", "carrier": "UPS", "delivery_date": "2026-11-27"}


def embed(texts: tuple[str, ...]) -> Vectors:
    """Bags of words, hashed: texts that share words are similar. Deterministic, and no model."""
    rows = np.zeros((len(texts), 512), dtype=np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.lower().replace(".", " ").replace(",", " ").replace("?", " ").split():
            if len(word) > 3:
                row[zlib.crc32(word.encode()) % 512] += 1.0
        row /= max(1e-6, float(np.linalg.norm(row)))
    return rows


AGENTS = load_agents(REPOSITORY / "infra" / "agents")
CORE = create_core(Settings(erp_url="http://erp:1/", data_dir=Path("/nowhere")), AGENTS, embed, {})


def envelope(number: int, turn: int) -> dict[str, Any]:
    return {
        "event_id": f"00000000-0000-0000-0000-{number:012d}",
        "session_id": SESSION,
        "tenant_id": "demo",
        "agent_id": "shop",
        "turn": turn,
        "seq": number,
        "occurred_at": NOW_US,
    }


def started(**more: Any) -> Session:
    return Session(**envelope(1, 0), kind=SessionKind.STARTED, caller="+15550123", **more)


def ended() -> Session:
    return Session(**envelope(2, 0), kind=SessionKind.ENDED)


def intent(turn: int, name: str, text: str, confidence: float = 0.9, **values: str) -> Intent:
    entities = []
    for entity, value in values.items():
        at = text.find(value)
        entities.append(Entity(entity, value, value, max(at, 0), max(at, 0) + len(value) if at >= 0 else 0))
    return Intent(
        **envelope(100 + turn, turn),
        kind=IntentKind.DETECTED,
        intent=name,
        confidence=confidence,
        entities=tuple(entities),
        text=text,
        speech_ended_at=NOW_US - 1000,
    )


def control(kind: ControlKind, turn: int, **more: Any) -> Control:
    return Control(**envelope(500 + turn, turn), kind=kind, **more)


@dataclass
class Call:
    """A call played against the core, with the log it writes: events by id, the first one counting."""

    core: Conversation = CORE
    state: State = field(default_factory=lambda: CORE.start(SESSION))
    log: list[Response] = field(default_factory=list)
    asks: dict[str, Ask] = field(default_factory=dict)
    other: list[Outcome] = field(default_factory=list)
    offset: int = 0

    def take(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Emit):
                event = outcome.event
                assert isinstance(event, Response)
                assert event.event_id not in {known.event_id for known in self.log}
                self.log.append(event)
            elif isinstance(outcome, Ask):
                assert outcome.ask_id not in self.asks
                self.asks[outcome.ask_id] = outcome
            elif isinstance(outcome, Cancel):
                self.asks.pop(outcome.ask_id, None)
            else:
                self.other.append(outcome)

    def apply(self, happening: Any) -> None:
        step = self.core.apply(self.state, happening, NOW_US)
        self.state = step.state
        self.take(step.outcomes)

    def receive(self, event: Event, recorded: tuple[Event, ...] = ()) -> None:
        self.offset += 1
        self.apply(Received(event, Position(event.TOPIC, 0, self.offset), recorded))

    def ask(self, role: str) -> Ask:
        found = [ask for ask in self.asks.values() if ask.role == role]
        assert len(found) == 1, f"expected one open ask of {role}, got {self.asks}"
        return found[0]

    def answer(self, role: str, reply: Any, last: bool = True) -> None:
        ask = self.ask(role)
        if last:
            del self.asks[ask.ask_id]
        self.apply(Answered(ask.ask_id, reply, last))

    def fail(self, role: str, reason: str) -> None:
        ask = self.ask(role)
        del self.asks[ask.ask_id]
        self.apply(Failed(ask.ask_id, reason))

    def tool(self, status: int, result: Any) -> None:
        self.answer("tools", ToolReturned(status, json.dumps(result).encode(), 5.0))

    def embedded(self) -> None:
        request = self.ask("embeddings").request
        assert isinstance(request, Embed)
        vectors = embed(request.texts)
        self.answer("embeddings", Embedded(vectors.astype("<f4").tobytes(), vectors.shape[1], "words", 1.0))

    def model(self, *pieces: str) -> None:
        """Streams pieces and then ends, unless the core stops it."""
        for piece in pieces:
            if not any(ask.role == "llm" for ask in self.asks.values()):
                return
            self.answer("llm", Generated(piece, "small", 0, 1, 2.0), last=False)
        if any(ask.role == "llm" for ask in self.asks.values()):
            self.answer("llm", None)

    def kinds(self, turn: int) -> list[str]:
        return [event.kind.value for event in self.log if event.turn == turn]

    def said(self, turn: int) -> str:
        return " ".join(e.text for e in self.log if e.turn == turn and e.kind is ResponseKind.SENTENCE)

    def last(self) -> Response:
        return self.log[-1]


@pytest.fixture
def call() -> Call:
    call = Call()
    call.receive(started())
    return call


def test_greets_as_turn_0(call: Call) -> None:
    assert call.kinds(0) == ["sentence", "sentence", "completed"]
    assert [event.source for event in call.log[:2]] == ["greeting", "greeting"]
    assert call.last().text == AGENTS["shop"].greeting[0].source
    assert call.last().sentence == 2
    assert all(event.causation_id == started().event_id for event in call.log)


def test_a_tool_answers_through_its_template(call: Call) -> None:
    call.receive(intent(1, "order_status", "where is order 1042", order_number="1042"))
    request = call.ask("tools").request
    assert isinstance(request, CallTool)
    assert (request.method, request.url) == ("GET", "http://erp:1/orders/1042")
    key = tool_call_id(SESSION, 1, "get_order", {"order_number": "1042"})
    assert request.idempotency_key == request.headers["Idempotency-Key"] == key
    call.tool(200, SHIPPED)
    assert call.kinds(1) == ["tool_called", "tool_returned", "sentence", "sentence", "completed"]
    assert call.said(1) == "Your order 1 0 4 2 is on its way with UPS. It should arrive on Friday, November 27."
    assert call.last().outcome == "answered"
    assert {event.intent for event in call.log if event.turn == 1} == {"order_status"}
    assert {event.speech_ended_at for event in call.log if event.turn == 1} == {NOW_US - 1000}


@pytest.mark.parametrize(
    ("status", "result", "outcome", "words", "completed"),
    [
        (404, {"detail": "no"}, "not_found", "could not find an order", "answered"),
        (500, {}, "failed", "cannot reach our order system", "failed"),
        (504, {}, "timeout", "cannot reach our order system", "failed"),
        (400, {}, "rejected", "cannot reach our order system", "failed"),
        (200, {"unexpected": 1}, "ok", "cannot reach our order system", "failed"),
        (200, [], "ok", "cannot reach our order system", "failed"),
    ],
)
def test_every_outcome_of_a_tool_has_words(
    call: Call, status: int, result: Any, outcome: str, words: str, completed: str
) -> None:
    call.receive(intent(1, "order_status", "order 1042", order_number="1042"))
    call.tool(status, result)
    returned = next(event for event in call.log if event.kind is ResponseKind.TOOL_RETURNED)
    assert returned.outcome == outcome
    assert words in call.said(1)
    assert call.last().outcome == completed


@pytest.mark.parametrize(("reason", "outcome"), [("timeout", "timeout"), ("crashed", "failed"), ("invalid", "failed")])
def test_a_tool_that_does_not_answer(call: Call, reason: str, outcome: str) -> None:
    call.receive(intent(1, "order_status", "order 1042", order_number="1042"))
    call.fail("tools", reason)
    assert call.kinds(1) == ["tool_called", "tool_returned", "sentence", "sentence", "completed"]
    assert call.log[-4].outcome == outcome
    assert call.last().outcome == "failed"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"status": "shipped", "carrier": "U\\ud800S", "delivery_date": "soon"}', "U?S"),
        (b"[" * 60_000, ""),
        (b"[" * 30_000 + b"]" * 30_000, ""),
        (b'{"status": ' * 500 + b"1" + b"}" * 500, ""),
        (b'[["shipped"]]', ""),
        (b"1e999", ""),
    ],
)
def test_whatever_a_system_answers_the_caller_hears_something(call: Call, body: bytes, said: str) -> None:
    call.receive(intent(1, "order_status", "where is 1042", order_number="1042"))
    call.answer("tools", ToolReturned(200, body, 5.0))
    assert said in call.said(1)
    assert call.said(1)
    assert call.kinds(1)[-1] == "completed"
    assert after_a_crash(call).state.memory == call.state.memory
    for event in call.log:
        f"{event.text}{event.result}{event.arguments}".encode()


def test_asks_for_what_is_missing_and_goes_on_with_it_whatever_the_intent_is_then(call: Call) -> None:
    call.receive(intent(1, "order_status", "where is my order"))
    assert call.said(1).endswith("What is your order number?")
    assert call.last().source == "clarification"
    call.receive(intent(2, "none", "it is 1042", 0.1, order_number="1042"))
    assert call.ask("tools").request.url.endswith("/orders/1042")


def test_a_bare_answer_beats_a_wrongly_sure_intent(call: Call) -> None:
    call.receive(intent(1, "order_status", "where is my order"))
    call.receive(intent(2, "start_return", "it's 1042 please", 0.95, order_number="1042"))
    assert call.ask("tools").request.url.endswith("/orders/1042")


def test_another_wish_instead_of_the_answer_is_followed(call: Call) -> None:
    call.receive(intent(1, "order_status", "where is my order"))
    call.receive(intent(2, "start_return", "forget it and register the return of 1042", 0.9, order_number="1042"))
    assert call.ask("tools").request.url.endswith("/returns")


def test_asks_again_and_then_gives_up(call: Call) -> None:
    call.receive(intent(1, "order_status", "where is my order"))
    for turn in (2, 3):
        call.receive(intent(turn, "none", "well I am not sure", 0.1))
        assert "order number" in call.said(turn)
    call.receive(intent(4, "none", "hm", 0.1))
    assert "order number" not in call.said(4)
    assert call.state.memory.pending is None


def test_a_remembered_value_is_not_asked_for_again(call: Call) -> None:
    call.receive(intent(1, "order_status", "order 1042", order_number="1042"))
    call.tool(200, SHIPPED)
    call.receive(intent(2, "order_status", "when will it arrive"))
    assert call.ask("tools").request.url.endswith("/orders/1042")


def test_a_value_that_was_not_found_is_forgotten_and_a_new_one_alone_goes_on(call: Call) -> None:
    call.receive(intent(1, "order_status", "order 9999", order_number="9999"))
    call.tool(404, {})
    assert call.state.memory.known("order_number") is None
    call.receive(intent(2, "none", "sorry 1042", 0.1, order_number="1042"))
    assert call.ask("tools").request.url.endswith("/orders/1042")


def test_the_whole_utterance_is_the_problem_of_a_ticket(call: Call) -> None:
    call.receive(intent(1, "open_ticket", "open a ticket please"))
    call.receive(intent(2, "warranty", "the zipper of my tent broke", 0.8))
    request = call.ask("tools").request
    assert json.loads(request.body) == {
        "problem": "the zipper of my tent broke",
        "order_number": "",
        "caller": "+15550123",
    }
    call.tool(201, {"number": "7001"})
    assert "ticket 7 0 0 1" in call.said(2)


def test_what_acts_takes_from_memory_only_what_it_needs_and_only_fresh(call: Call) -> None:
    call.receive(intent(1, "order_status", "order 1042", order_number="1042"))
    call.tool(200, SHIPPED)
    call.receive(intent(2, "start_return", "I want to return it"))
    assert json.loads(call.ask("tools").request.body) == {"order_number": "1042"}
    call.tool(201, {})
    call.receive(intent(3, "open_ticket", "open a ticket"))
    call.receive(intent(4, "none", "it is broken", 0.1))
    assert json.loads(call.ask("tools").request.body)["order_number"] == ""
    call.tool(201, {"number": 1})
    call.receive(intent(9, "start_return", "I want to return it"))
    assert "order number" in call.said(9)


@pytest.mark.parametrize(("confidence", "answered"), [(0.9, "opening_hours"), (0.5, "greeting")])
def test_a_courtesy_gives_way_to_what_else_is_meant(call: Call, confidence: float, answered: str) -> None:
    hello = intent(1, "greeting", "hello. when are you open", 1.0)
    others = (Alternative("thanks", 0.9), Alternative("opening_hours", confidence))
    call.receive(replace(hello, alternatives=others))
    if call.asks:
        call.embedded()
    assert call.last().intent == answered


def test_words_cannot_change_a_tools_path(call: Call) -> None:
    call.receive(intent(1, "order_status", "x", order_number="../tickets?a=1"))
    assert call.ask("tools").request.url == "http://erp:1/orders/..%2Ftickets%3Fa%3D1"


def test_an_intents_documents_are_quoted(call: Call) -> None:
    call.receive(intent(1, "opening_hours", "what is the address of your shop"))
    call.embedded()
    assert call.said(1) == "Our shop is at 12 Mill Road in Boulder, right beside the climbing hall."
    assert call.last().documents == ("shop/opening_hours",)
    assert call.last().source == "knowledge"


def test_an_unknown_wish_is_answered_from_knowledge_when_a_passage_fits(call: Call) -> None:
    call.receive(intent(1, "none", "rinse the water filter backwards after each trip", 0.1))
    call.embedded()
    assert call.last().documents == ("shop/care",)
    assert call.last().sentence <= 2


def test_embeddings_down_still_quote_the_intents_document(call: Call) -> None:
    call.receive(intent(1, "return_policy", "how do returns work"))
    call.fail("embeddings", "crashed")
    assert "30 days" in call.said(1)


def test_the_model_answers_last_and_sentence_by_sentence(call: Call) -> None:
    call.receive(intent(1, "none", "which colours suit mountain people", 0.1))
    call.embedded()
    request = call.ask("llm").request
    assert isinstance(request, Generate)
    assert request.messages[-1].content == "which colours suit mountain people"
    call.answer("llm", Generated("**Bright** colours are"), last=False)
    assert call.kinds(1) == []
    call.answer("llm", Generated(" easy to see. They"), last=False)
    assert call.said(1) == "Bright colours are easy to see."
    call.answer("llm", Generated(" look good too."), last=False)
    call.answer("llm", None)
    assert call.said(1) == "Bright colours are easy to see. They look good too."
    assert call.kinds(1) == ["sentence", "sentence", "completed"]
    assert call.last().source == "model"


def test_the_model_is_stopped_at_its_limit(call: Call) -> None:
    call.receive(intent(1, "none", "tell me about mountain weather", 0.1))
    call.embedded()
    call.model("It changes. It is cold. ", "It is windy. ")
    assert call.last().sentence == AGENTS["shop"].limits.sentences_max
    assert not call.asks


@pytest.mark.parametrize(
    "invented",
    [
        "Your order 4711 has been shipped.",
        "Your order is on its way.",
        "It costs 20 dollars.",
        "It costs twenty dollars.",
        "It will be there on Tuesday.",
        "You will get it tomorrow.",
        "I have cancelled your order.",
        "We'll refund you.",
        "Just write to help@ridgeline.com.",
        "You get a discount.",
        "It arrives next week.",
    ],
)
def test_the_model_cannot_invent_a_customers_facts(call: Call, invented: str) -> None:
    call.receive(intent(1, "none", "what about my thing", 0.1))
    call.embedded()
    call.model(f"{invented} ", "Have a nice day.")
    assert invented not in call.said(1)
    assert [event.source for event in call.log if event.turn == 1] == ["clarification"] * len(call.kinds(1))
    assert call.kinds(1)[-1] == "completed"
    assert not call.asks


def test_an_invented_fact_ends_an_answer_that_began_well(call: Call) -> None:
    call.receive(intent(1, "none", "what about mountains", 0.1))
    call.embedded()
    call.model("They are high. ", "Yours is 8848 metres. ", "Good bye.")
    assert call.said(1) == "They are high."
    assert call.last().outcome == "answered"


@pytest.mark.parametrize("pieces", [(), ("half of a",), ("Whole one. ", "half of a")])
def test_a_model_that_fails(call: Call, pieces: tuple[str, ...]) -> None:
    call.receive(intent(1, "none", "what about mountains", 0.1))
    call.embedded()
    for piece in pieces:
        call.answer("llm", Generated(piece), last=False)
    call.fail("llm", "timeout")
    if call.asks:
        call.fail("llm", "crashed")
    assert call.said(1) in ("Whole one.", "I am sorry, something went wrong on our side. Please try again in a moment.")
    assert call.last().outcome == "failed"


def test_an_answer_that_breaks_off_is_gone_on_with_once(call: Call) -> None:
    """The next model is told what was said, so that nothing is said twice and the half sentence is whole again."""
    call.receive(intent(1, "none", "what are mountains", 0.1))
    call.embedded()
    call.answer("llm", Generated("They are high. And they are ve"), last=False)
    first = call.ask("llm").request
    call.fail("llm", "crashed")
    again = call.ask("llm").request
    assert again.messages[:-1] == first.messages
    assert again.messages[-1].content == "They are high."
    call.model("They are high. ", "They are cold.")
    assert call.said(1) == "They are high. They are cold."
    assert call.kinds(1) == ["sentence", "sentence", "completed"]
    assert call.last().outcome == "answered"


def test_an_answer_that_breaks_off_twice_ends_with_its_last_whole_sentence(call: Call) -> None:
    call.receive(intent(1, "none", "what are mountains", 0.1))
    call.embedded()
    call.answer("llm", Generated("They are high. And"), last=False)
    call.fail("llm", "crashed")
    call.answer("llm", Generated("They are co"), last=False)
    call.fail("llm", "timeout")
    assert call.said(1) == "They are high."
    assert (call.kinds(1), call.last().outcome) == (["sentence", "completed"], "failed")
    assert not call.asks


CLOSE = "the filter water waterbottle freezes rinse glove tent poles"


@pytest.mark.parametrize("silent", ["failed", "late"])
def test_a_silent_model_leaves_the_word_to_the_document_that_comes_closest(call: Call, silent: str) -> None:
    call.receive(intent(1, "none", CLOSE, 0.1))
    call.embedded()
    assert call.ask("llm").role == "llm", "the passage is too far from the question to answer it by itself"
    if silent == "failed":
        call.fail("llm", "crashed")
    else:
        (patience,) = [one for one in call.other if isinstance(one, Wake) and one.at_us is not None]
        call.apply(Woken(patience.name))
    assert {event.source for event in call.log if event.turn == 1} == {"knowledge"}
    assert call.last().documents == ("shop/care",)
    assert not call.asks


@pytest.mark.parametrize("reason", ["timeout", "crashed", "refused"])
def test_a_tool_out_of_reach_without_words_of_its_own_is_not_guessed_at(call: Call, reason: str) -> None:
    agent = AGENTS["shop"]
    bare = [one.model_copy(update={"templates": {}}) if one.name == "order_status" else one for one in agent.intents]
    core = create_core(
        Settings(data_dir=Path("/nowhere")), {"shop": agent.model_copy(update={"intents": tuple(bare)})}, embed, {}
    )
    other = Call(core=core, state=core.start(SESSION))
    other.receive(intent(1, "order_status", "order 1042", order_number="1042"))
    other.fail("tools", reason)
    assert "cannot confirm" in other.said(1)
    assert other.last().outcome == "failed"


def test_what_no_engine_could_read_is_asked_for_again_as_a_turn_of_its_own(call: Call) -> None:
    call.receive(intent(1, "none", "", 0.0))
    assert call.said(1) in {str(text.source) for text in AGENTS["shop"].texts.unheard}
    assert call.kinds(1)[-1] == "completed"


@pytest.mark.parametrize("text", ["", "  ", "...", "?"])
def test_nothing_heard_is_asked_for_again_and_keeps_what_was_pending(call: Call, text: str) -> None:
    call.receive(intent(1, "order_status", "where is my order"))
    call.receive(intent(2, "none", text, 0.0))
    assert call.last().source == "clarification"
    assert call.state.memory.pending is not None


def test_a_person_is_reached_by_intent_and_by_phrase(call: Call) -> None:
    call.receive(intent(1, "person", "give me somebody"))
    assert (call.last().outcome, call.last().action, call.last().action_target) == (
        "escalated",
        "transfer",
        "+15550100",
    )
    call.receive(intent(2, "none", "I would like to talk to a human now!", 0.1))
    assert call.last().action == "transfer"
    assert call.log[-2].source == "escalation"


@pytest.mark.parametrize(
    ("phrases", "text", "transferred"),
    [
        (("оператор",), "where is my order", False),
        (("оператор",), "Соедините, оператор!", True),
        (("оператор",), "операторы", False),
        (("human_being",), "a human being please", True),
        (("", "!?", " "), "where is my order", False),
    ],
)
def test_phrases_are_words_in_whatever_script(phrases: tuple[str, ...], text: str, transferred: bool) -> None:
    agent = AGENTS["shop"].model_copy(update={"escalation": Escalation(target="desk", phrases=phrases)})
    plan = decide(agent, Memory(), intent(1, "none", text, 0.1))
    assert isinstance(plan, Say) is transferred


def test_words_in_any_script_are_more_than_a_bare_answer() -> None:
    memory = Memory(pending=Pending("order_status", "order_number", {}))
    event = intent(1, "start_return", "верните заказ 1187", order_number="1187")
    plan = decide(AGENTS["shop"], memory, event)
    assert isinstance(plan, Calling)
    assert plan.spec.name == "start_return"


def test_what_an_agent_no_longer_needs_is_not_asked_for() -> None:
    """Its file may change during a call, and the memory comes from a snapshot then."""
    agent = AGENTS["shop"]
    for pending in (
        Pending("order_status", "product", {}),
        Pending("order_status", "problem", {}),
        Pending("order_status", "product", {}, tries=9),
    ):
        assert decide(agent, Memory(pending=pending), intent(1, "none", "mountains", 0.1)) == Look(None)


def test_goodbye_hangs_up_after_it_was_heard(call: Call) -> None:
    call.receive(intent(1, "goodbye", "bye"))
    assert (call.last().outcome, call.last().action) == ("ended", "hang_up")


def test_barge_in_stops_the_turn_and_history_keeps_what_was_heard(call: Call) -> None:
    call.receive(intent(1, "none", "tell me about mountains", 0.1))
    call.embedded()
    call.answer("llm", Generated("They are rather high and often cold. Also", "small", 20, 8, 90.0), last=False)
    call.receive(control(ControlKind.BARGE_IN, 1, sentence=0, heard_ms=1000, heard_text="They are"))
    assert call.kinds(1) == ["sentence", "cancelled"]
    end = call.last()
    assert (end.model, end.tokens_in, end.tokens_out, end.compute_ms) == ("small", 20, 8, 91.0)  # with the embedding
    assert not call.asks
    assert call.state.memory.history[-1].agent == ("They are …",)


# ---- what wants no answer


def test_a_backchannel_leaves_the_reply_alone_that_is_being_made(call: Call) -> None:
    call.receive(intent(1, "none", "tell me about mountains", 0.1))
    call.embedded()
    call.answer("llm", Generated("They are rather high. "), last=False)
    call.receive(replace(intent(2, "none", "Mm-hm.", 0.1), committed=False))
    call.receive(intent(2, "none", "Mm-hm.", 0.1))
    assert call.kinds(2) == ["completed"]
    assert (call.last().outcome, call.last().text, call.last().sentence) == ("backchannel", "", 0)
    call.model("And they are often cold. ")
    assert call.kinds(1) == ["sentence", "sentence", "completed"]
    assert [exchange.turn for exchange in call.state.memory.history] == [0, 1]
    call.receive(intent(3, "greeting", "hello"))
    assert call.kinds(3)[-1] == "completed"


def playout(turn: int, occurred_at: int, reason: str = "end_of_turn") -> Control:
    return replace(control(ControlKind.PLAYOUT, turn, reason=reason), occurred_at=occurred_at)


@pytest.mark.parametrize(
    ("controls", "outcome"),
    [
        ((), "backchannel"),
        ((playout(1, NOW_US - 5000, reason=""),), "backchannel"),  # a sentence of it
        ((playout(1, NOW_US - 5000),), "answered"),
        ((playout(1, NOW_US - 500),), "backchannel"),  # it was heard to its end after the words were
        ((control(ControlKind.BARGE_IN, 1),), "backchannel"),
        ((replace(control(ControlKind.BARGE_IN, 1), occurred_at=NOW_US - 5000),), "answered"),
    ],
)
def test_a_hum_is_an_answer_only_after_the_reply_was_heard(
    call: Call, controls: tuple[Control, ...], outcome: str
) -> None:
    call.receive(intent(1, "greeting", "hello"))
    for event in controls:
        call.receive(event)
    call.receive(intent(2, "greeting", "uh-huh"))
    assert call.last().outcome == outcome


def after_a_crash(call: Call) -> Call:
    again = Call()
    again.state = again.core.load(SESSION, call.core.save(call.state))
    return again


@pytest.mark.parametrize(("after_us", "outcome"), [(1_000_000, "backchannel"), (30_000_000, "answered")])
def test_after_a_crash_a_hum_is_an_answer_once_the_reply_can_have_been_heard(
    call: Call, after_us: int, outcome: str
) -> None:
    call.receive(intent(1, "greeting", "hello"))
    again = after_a_crash(call)
    again.receive(replace(intent(2, "greeting", "uh-huh"), speech_ended_at=NOW_US + after_us))
    assert again.last().outcome == outcome


@pytest.mark.parametrize(
    "told", [playout(1, NOW_US + 500_000), replace(control(ControlKind.BARGE_IN, 1), occurred_at=NOW_US + 500_000)]
)
def test_after_a_crash_the_log_tells_that_a_reply_was_heard(call: Call, told: Control) -> None:
    call.receive(intent(1, "greeting", "hello"))
    again = after_a_crash(call)
    again.receive(told)
    again.receive(replace(intent(2, "greeting", "uh-huh"), speech_ended_at=NOW_US + 1_000_000))
    assert again.last().outcome == "answered"


def test_after_a_crash_a_reply_that_was_cut_off_is_not_still_heard(call: Call) -> None:
    call.receive(intent(1, "greeting", "hello"))
    call.receive(control(ControlKind.BARGE_IN, 1, sentence=0, heard_text=""))
    again = after_a_crash(call)
    again.receive(replace(intent(2, "greeting", "uh-huh"), speech_ended_at=NOW_US + 1_000_000))
    assert again.last().outcome == "answered"


def test_what_is_answered_again_after_it_was_heard_is_not_heard_for_ever(call: Call) -> None:
    """After a crash the topics come again in no common order."""
    asked = intent(1, "greeting", "hello")
    call.receive(asked)
    again = Call()
    again.receive(started())
    again.receive(playout(1, NOW_US + 500_000))
    again.receive(asked, tuple(event for event in call.log if event.turn == 1))
    again.receive(replace(intent(2, "greeting", "uh-huh"), speech_ended_at=NOW_US + 1_000_000))
    assert again.last().outcome == "answered"


def test_a_hum_is_an_answer_where_the_agent_has_asked(call: Call) -> None:
    call.receive(intent(1, "order_status", "where is my order"))
    assert call.state.memory.pending is not None
    call.receive(intent(2, "none", "uh-huh", 0.1))
    assert "sentence" in call.kinds(2)


def test_an_echo_of_the_agent_is_not_answered(call: Call) -> None:
    call.receive(intent(1, "none", "tell me about mountains", 0.1))
    call.embedded()
    call.model("They are rather high and often cold. ")
    call.receive(intent(2, "none", "rather high and often", 0.1))
    assert (call.last().kind, call.last().outcome) == (ResponseKind.COMPLETED, "echo")
    call.receive(intent(3, "none", "how high and how cold", 0.1))
    call.embedded()
    assert call.ask("llm")


def test_what_the_log_has_of_a_turn_stays_as_it_was(call: Call) -> None:
    hum = intent(1, "none", "mm-hm", 0.1)
    call.receive(hum)
    assert call.kinds(1) == ["completed"]
    again = Call()
    again.receive(hum, tuple(event for event in call.log if event.turn == 1))
    assert again.kinds(1) == []
    answered = Call()
    answered.receive(intent(1, "greeting", "mm-hm"))
    assert answered.last().outcome == "answered"
    call = Call()
    call.receive(started())
    call.receive(intent(1, "greeting", "mm-hm"), tuple(answered.log))
    assert call.kinds(1) == []
    assert call.state.memory.history[-1].turn == 1


@pytest.mark.parametrize(
    ("sentence", "heard_text", "kept"),
    [
        (0, "", ()),
        (0, "It is on", ("It is on …",)),
        (1, "", ("It is on its way.",)),
        (0, "It is on its way.", ("It is on its way.",)),
    ],
)
def test_history_keeps_word_by_word_what_was_heard(sentence: int, heard_text: str, kept: tuple[str, ...]) -> None:
    memory = remember_turn(Memory(), Exchange(1, "where is it", ("It is on its way.", "It comes on Monday.")), 8, 0)
    barge_in = control(ControlKind.BARGE_IN, 1, sentence=sentence, heard_text=heard_text)
    assert heard_until(memory, barge_in).history[-1].agent == kept


CUT = {"sentence": 0, "heard_ms": 1000, "heard_text": "They are"}


@pytest.mark.parametrize("crashed", [False, True])
def test_a_cut_that_is_read_before_its_turn_is_kept_for_it(call: Call, crashed: bool) -> None:
    """After a crash the topics come again in no common order."""
    asked = intent(1, "none", "tell me about mountains", 0.1)
    call.receive(asked)
    call.embedded()
    call.model("They are rather high. ")
    recorded = tuple(event for event in call.log if event.turn == 1)
    again = Call()
    again.receive(started())
    again.receive(control(ControlKind.BARGE_IN, 1, **CUT))
    again = after_a_crash(again) if crashed else again
    again.receive(asked, recorded)
    assert again.state.memory.history[-1].agent == ("They are …",)
    assert (again.state.memory.answered_at, again.state.memory.cuts) == (0, ())


def test_the_latest_cuts_are_kept_and_no_more() -> None:
    memory = Memory()
    for turn in (1, 2, 2, 3, 4):
        memory = heard_until(memory, control(ControlKind.BARGE_IN, turn, **CUT))
    assert [cut.turn for cut in memory.cuts] == [2, 3, 4]
    said = ("They are rather high.",)
    memory = remember_turn(memory, Exchange(1, "", said), 8, NOW_US)
    assert memory.answered_at == NOW_US
    memory = remember_turn(memory, Exchange(3, "", said), 8, NOW_US)
    assert [known.agent for known in memory.history] == [said, ("They are …",)]
    assert ([cut.turn for cut in memory.cuts], memory.answered_at) == ([2, 4], 0)


def test_barge_in_after_the_end_only_trims_history(call: Call) -> None:
    before = len(call.log)
    call.receive(control(ControlKind.BARGE_IN, 0, sentence=1, heard_ms=4000))
    assert len(call.log) == before
    assert call.state.memory.history[0].agent[0] == "Hello, this is Ridgeline Outdoor."


def test_a_newer_utterance_replaces_the_answer_to_the_older(call: Call) -> None:
    call.receive(intent(1, "order_status", "order 1042", order_number="1042"))
    late = call.ask("tools").ask_id
    call.receive(intent(2, "thanks", "thanks"))
    assert call.kinds(1) == ["tool_called", "cancelled"]
    assert call.kinds(2)[-1] == "completed"
    before = len(call.log)
    call.apply(Answered(late, ToolReturned(200, b"{}", 1.0), last=True))
    assert len(call.log) == before


def test_a_tool_with_an_effect_is_let_finish_unheard(call: Call) -> None:
    call.receive(intent(1, "start_return", "return order 1042", order_number="1042"))
    call.receive(intent(2, "thanks", "thanks"))
    assert call.kinds(1) == ["tool_called"]
    assert call.kinds(2)[-1] == "completed"
    call.tool(201, {"number": "1"})
    assert call.kinds(1) == ["tool_called", "tool_returned", "cancelled"]


def test_hanging_up_waits_for_a_tool_with_an_effect(call: Call) -> None:
    call.receive(intent(1, "start_return", "return order 1042", order_number="1042"))
    call.receive(ended())
    assert End() not in call.other
    call.tool(201, {"number": "1"})
    assert call.other == [End()]
    assert call.kinds(1) == ["tool_called", "tool_returned", "cancelled"]


@pytest.mark.parametrize(
    "event", [ended(), *(control(kind, 1) for kind in (ControlKind.HANG_UP, ControlKind.ERASE, ControlKind.ERASED))]
)
def test_the_end_of_the_call_stops_everything(call: Call, event: Event) -> None:
    call.receive(intent(1, "order_status", "order 1042", order_number="1042"))
    call.receive(event)
    assert call.kinds(1) == ["tool_called", "cancelled"]
    assert not call.asks
    assert call.other == [End()]


def test_what_is_not_to_be_answered(call: Call) -> None:
    call.receive(replace(intent(1, "thanks", "thanks"), agent_id="nobody"))
    call.receive(intent(2, "thanks", "thanks"))
    call.receive(intent(1, "thanks", "thanks"))
    call.receive(replace(intent(1, "thanks", "thanks"), committed=False))
    assert [type(outcome) for outcome in call.other] == [Refuse, Drop, Drop]
    assert call.kinds(1) == []


# ---- crashes


def conversation(core: Conversation = CORE) -> list[tuple[Event, Callable[[Call], None]]]:
    """A call of several turns, each with how its asks are answered."""

    def nothing(call: Call) -> None:
        assert not call.asks

    def shipped(call: Call) -> None:
        call.tool(200, SHIPPED)

    def model(call: Call) -> None:
        if any(ask.role == "embeddings" for ask in call.asks.values()):
            call.embedded()
        if any(ask.role == "llm" for ask in call.asks.values()):
            said = call.ask("llm").request.messages[-1]
            whole = ("It is high. ", "It is cold.")
            rest = whole[1:] if said.role == "assistant" else whole
            call.model(*rest)

    return [
        (started(), nothing),
        (intent(1, "order_status", "where is my order"), nothing),
        (intent(2, "none", "1042", 0.1, order_number="1042"), shipped),
        (intent(3, "opening_hours", "when are you open on Saturday"), lambda call: call.embedded()),
        (intent(4, "none", "what is a mountain like", 0.1), model),
        (
            intent(5, "start_return", "please register the return of 1042", order_number="1042"),
            lambda c: c.tool(201, {}),
        ),
        (intent(6, "goodbye", "bye"), nothing),
    ]


def play(call: Call, turns: list[tuple[Event, Callable[[Call], None]]]) -> None:
    for event, answer in turns:
        call.receive(event)
        answer(call)


@pytest.mark.parametrize("turn", range(7))
def test_a_crash_anywhere_in_a_turn_changes_nothing_that_was_said(turn: int) -> None:
    whole = Call()
    turns = conversation()
    play(whole, turns)
    event, answer = turns[turn]
    emitted = [known for known in whole.log if known.causation_id == event.event_id]
    before = Call()
    play(before, turns[:turn])
    snapshot = CORE.save(before.state)
    for prefix in range(len(emitted) + 1):
        again = Call(state=CORE.load(SESSION, snapshot))
        again.receive(event, recorded=tuple(emitted[:prefix]))
        if again.asks:
            answer(again)
        new = [known.event_id for known in again.log]
        assert [known.event_id for known in emitted[:prefix]] + new == [known.event_id for known in emitted]
        assert [known.text for known in emitted[prefix:]] == [known.text for known in again.log]
        following = Call()
        play(following, turns[: turn + 1])
        assert CORE.save(again.state) == CORE.save(following.state)


def test_a_tool_that_returned_is_not_called_again_and_one_only_called_keeps_its_key(call: Call) -> None:
    event = intent(1, "start_return", "return order 1042", order_number="1042")
    snapshot = CORE.save(call.state)
    call.receive(event)
    key = call.ask("tools").request.idempotency_key
    called = call.log[-1]
    again = Call(state=CORE.load(SESSION, snapshot))
    again.receive(event, recorded=(called,))
    assert again.ask("tools").request.idempotency_key == key
    again.tool(201, {"number": "1"})
    returned = again.log[0]
    third = Call(state=CORE.load(SESSION, snapshot))
    third.receive(event, recorded=(called, returned))
    assert not third.asks
    assert third.kinds(1) == ["sentence", "sentence", "completed"]


def test_a_cancelled_turn_stays_cancelled(call: Call) -> None:
    event = intent(1, "order_status", "order 1042", order_number="1042")
    snapshot = CORE.save(call.state)
    call.receive(event)
    call.receive(control(ControlKind.BARGE_IN, 1))
    again = Call(state=CORE.load(SESSION, snapshot))
    again.receive(event, recorded=tuple(known for known in call.log if known.turn == 1))
    assert not again.asks
    assert not again.log


def test_the_model_goes_on_after_what_it_had_said(call: Call) -> None:
    event = intent(1, "none", "what are mountains", 0.1)
    snapshot = CORE.save(call.state)
    call.receive(event)
    call.embedded()
    call.answer("llm", Generated("They are high. And"), last=False)
    again = Call(state=CORE.load(SESSION, snapshot))
    again.receive(event, recorded=(call.last(),))
    again.embedded()
    assert again.ask("llm").request.messages[-1].content == "They are high."
    again.model("They are high. ", "They are cold.")
    assert again.said(1) == "They are cold."
    assert again.last().text == "They are high. They are cold."


# ---- invariants over random calls

NAMES = [spec.name for spec in AGENTS["shop"].intents] + ["none", "gone"]
TEXTS = ["", "order 1042", "where is it", "talk to a human", "x" * 3000, "the zipper broke " * 20, "ünïcödé " * 90]


@st.composite
def happenings(draw: st.DrawFn) -> list[tuple[str, Any]]:
    steps: list[tuple[str, Any]] = []
    for turn in range(1, draw(st.integers(1, 30))):
        entities = draw(st.sampled_from([{}, {"order_number": "1042"}, {"product": "tent"}, {"problem": "y" * 900}]))
        name, text = draw(st.sampled_from(NAMES)), draw(st.sampled_from(TEXTS))
        steps.append(("event", intent(turn, name, text, draw(st.sampled_from([0.1, 0.5, 0.95])), **entities)))
        for what in draw(st.lists(st.sampled_from(["ok", "bad", "fail", "piece", "barge", "playout"]), max_size=5)):
            steps.append((what, turn))
    if draw(st.booleans()):
        steps.append(("event", ended()))
    return steps


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(happenings())
def test_whatever_happens_a_turn_ends_once_and_state_stays_small(steps: list[tuple[str, Any]]) -> None:
    call = Call()
    call.receive(started(context={f"key{n}": "v" * 400 for n in range(50)}))
    for what, detail in steps:
        if what == "event":
            call.receive(detail)
        elif what in ("barge", "playout"):
            kind = ControlKind.BARGE_IN if what == "barge" else ControlKind.PLAYOUT
            call.receive(control(kind, detail, sentence=detail % 3, heard_ms=700))
        else:
            answer_any(call, what)
        assert len(CORE.save(call.state)) < 8192
        assert CORE.save(CORE.load(SESSION, CORE.save(call.state))) == CORE.save(call.state)
    while call.asks:
        answer_any(call, "ok")
    begun = {event.turn for _, event in [s for s in steps if s[0] == "event"] if isinstance(event, Intent)}
    for turn in begun | {0}:
        kinds = call.kinds(turn)
        assert kinds.count("completed") + kinds.count("cancelled") == 1
        assert kinds[-1] in ("completed", "cancelled")
        assert kinds.count("tool_called") == kinds.count("tool_returned") or kinds[-1] == "cancelled"
        indexes = [e.sentence for e in call.log if e.turn == turn and e.kind is ResponseKind.SENTENCE]
        assert indexes == list(range(len(indexes)))
    assert sum(isinstance(outcome, End) for outcome in call.other) == sum(1 for _, e in steps if e == ended())


def test_the_longest_of_everything_still_fits_a_snapshot() -> None:
    call = Call()
    wide = "𐐀" * 2000
    call.receive(replace(started(context={f"key{n}": wide[:200] for n in range(50)}), caller=wide))
    for turn in range(1, 40):
        call.receive(intent(turn, "order_status", wide, order_number=wide))
        call.tool(404, {})
        assert call.state.memory.history[-1].turn == turn
        assert len(CORE.save(call.state)) < 8192
    call.receive(intent(40, "open_ticket", wide))
    call.receive(intent(41, "none", wide, 0.1))
    assert len(CORE.save(call.state)) < 8192


def answer_any(call: Call, what: str) -> None:
    ask = next(iter(call.asks.values()), None)
    if ask is None:
        return
    if what == "piece" and ask.role == "llm":
        call.apply(Answered(ask.ask_id, Generated("A word. And "), last=False))
        return
    del call.asks[ask.ask_id]
    if what == "fail":
        call.apply(Failed(ask.ask_id, "timeout"))
    elif ask.role == "tools":
        body = b"not json" if what == "bad" else json.dumps({**SHIPPED, "number": "1", "available": 1}).encode()
        call.apply(Answered(ask.ask_id, ToolReturned(200, body, 1.0), last=True))
    elif ask.role == "embeddings":
        vectors = embed(ask.request.texts)
        short = vectors[:, :7] if what == "bad" else vectors
        call.apply(Answered(ask.ask_id, Embedded(short.tobytes(), short.shape[1], "w", 1.0), last=True))
    else:
        call.apply(Answered(ask.ask_id, None, last=True))


def test_the_index_finds_each_passage_once_and_only_in_the_documents_named() -> None:
    agent: Agent = AGENTS["shop"]
    index = KnowledgeIndex.build(agent, embed)
    vector = embed(("Repair prices of a zipper outside the warranty",))[0]
    hits = index.search(vector)
    assert hits[0].document == "shop/warranty"
    assert "zipper costs 25 dollars" in " ".join(hits[0].quote())
    assert len({hit.passage.text for hit in hits}) == len(hits) == 3
    assert {hit.document for hit in index.search(vector, ["shop/returns"])} == {"shop/returns"}
    assert index.search(vector[:5]) == []


def test_a_turn_has_one_end_whichever_way_a_worker_came_to_it() -> None:
    """One that was replaced may know less of the call, and end the turn another way when it wakes up."""
    core, ends = create_core(Settings(data_dir=Path("/nowhere")), AGENTS, embed, {}), []
    for ahead in (True, False):
        call = Call(core, core.start(SESSION))
        call.receive(started())
        asked = intent(1, "thanks", "thanks")
        if ahead:
            call.receive(replace(asked, event_id="0" * 32, committed=False))
            assert call.kinds(1)[-1] == "sentence"
        call.receive(asked)
        ends.append(call.last())
    answered, zombies = ends
    assert answered.causation_id != zombies.causation_id
    assert answered.event_id == zombies.event_id


def test_a_model_that_does_not_begin_in_time_is_not_waited_for(call: Call) -> None:
    call.receive(intent(1, "none", "which colours suit mountain people", 0.1))
    call.embedded()
    call.answer("llm", Generated("Bright colours"), last=False)
    (patience,) = [outcome for outcome in call.other if isinstance(outcome, Wake) and outcome.at_us is not None]
    assert patience.at_us == NOW_US + AGENTS["shop"].limits.first_sentence_ms_max * 1000
    call.apply(Woken(patience.name))
    assert call.kinds(1)[-1] == "completed"
    assert {event.source for event in call.log if event.turn == 1} == {"clarification"}
    assert not call.asks


def patient(patience: Patience) -> Call:
    """A call whose agent's model is waited for only as long as it is worth it."""
    core = create_core(Settings(data_dir=Path("/nowhere")), AGENTS, embed, {}, patience=patience)
    call = Call(core, core.start(SESSION))
    call.receive(started())
    return call


def test_a_model_that_never_begins_in_time_is_not_waited_for_until_a_rehearsal_says_so() -> None:
    patience = Patience()
    call = patient(patience)
    numbers = itertools.count(1)

    def asked(turn: int) -> bool:
        call.receive(intent(turn, "none", "which colours suit mountain people", 0.1))
        call.embedded()
        return any(ask.role == "llm" for ask in call.asks.values())

    def late() -> bool:
        turn = next(numbers)
        was_asked = asked(turn)
        if was_asked:
            call.apply(Woken(f"turn-{turn}-model"))
        assert {event.source for event in call.log if event.turn == turn} == {"clarification"}
        return was_asked

    assert [late() for _ in range(50)] == [True] + [False] * 49, "a single try at first"
    patience.rehearsed("shop", in_time=False)
    assert not late()
    patience.rehearsed("shop", in_time=True)
    assert [late() for _ in range(3)] == [True, False, False]
    patience.rehearsed("shop", in_time=True)
    assert asked(next(numbers))
    call.model("Bright colours are easy to see. ")
    assert call.last().source == "model"
    assert [late() for _ in range(MISSES_MAX + 2)] == [True] * MISSES_MAX + [False] * 2, "it can make it"


def test_an_answer_that_a_model_began_before_a_crash_is_its_own_however_late_it_is_now() -> None:
    call = patient(Patience())
    call.receive(intent(1, "none", "which colours suit mountain people", 0.1))
    call.embedded()
    call.apply(Woken("turn-1-model"))
    begun = intent(2, "none", "which colours suit mountain people", 0.1)
    text = "Bright colours are easy to see."
    sentence = caused(begun, Response, "sentence-0", NOW_US, kind=ResponseKind.SENTENCE, text=text, source="model")
    call.receive(begun, (sentence,))
    call.embedded()
    assert call.ask("llm")


def test_a_model_that_has_begun_is_let_finish(call: Call) -> None:
    call.receive(intent(1, "none", "which colours suit mountain people", 0.1))
    call.embedded()
    call.answer("llm", Generated("Bright colours are easy to see. They"), last=False)
    call.apply(Woken("turn-1-model"))
    assert call.kinds(1) == ["sentence"]
    assert call.ask("llm")


def test_a_model_in_a_loop_is_stopped(call: Call) -> None:
    call.receive(intent(1, "none", "which colours suit mountain people", 0.1))
    call.embedded()
    call.model("I am sorry, I am sorry, ", "I am sorry, I am sorry", "I am sorry. ")
    assert call.kinds(1)[-1] == "completed"
    assert {event.source for event in call.log if event.turn == 1} == {"clarification"}


def under_load(short: bool) -> Call:
    """A call to an agent that gives short answers, or ordinary ones."""
    settings = Settings(erp_url="http://erp:1/", data_dir=Path("/nowhere"))
    core = create_core(settings, AGENTS, embed, {}, short=lambda: short)
    call = Call(core, core.start(SESSION))
    call.receive(started())
    return call


def test_under_load_documents_and_the_model_give_one_sentence_and_templates_stay_whole() -> None:
    said = {}
    for short in (False, True):
        call = under_load(short)
        call.receive(intent(1, "return_policy", "how long do I have to return an item and in what state"))
        call.embedded()
        call.receive(intent(2, "none", "which colours suit mountain people", 0.1))
        call.embedded()
        call.model("Bright colours are easy to see. ", "They look good too. ")
        call.receive(intent(3, "order_status", "where is my order"))
        said[short] = [call.said(turn) for turn in (1, 2, 3)]
    assert said[False][0].startswith(said[True][0])
    assert said[False][0] != said[True][0]
    assert said[True][1] == "Bright colours are easy to see."
    assert said[False][1] == "Bright colours are easy to see. They look good too."
    assert said[True][2] == said[False][2]
    assert len(said[True][2].split(". ")) > 1


# ---- ahead of the commitment


def ahead(known: Intent, revision: int = 1) -> Intent:
    """The same, while the caller may go on."""
    event_id = f"00000000-0000-0000-{revision:04d}-{known.turn:012d}"
    return replace(known, event_id=event_id, revision=revision, committed=False)


def final(known: Intent, revision: int = 1) -> Intent:
    return replace(known, revision=revision)


def withdrawn(turn: int, revision: int) -> Intent:
    fields: dict[str, Any] = {"intent": "none", "confidence": 0.0, "revision": revision, "committed": False}
    return Intent(**envelope(800 + 10 * turn + revision, turn), kind=IntentKind.WITHDRAWN, **fields)


def flags(call: Call, turn: int = 1) -> list[tuple[str, bool]]:
    return [(event.kind.value, event.committed) for event in call.log if event.turn == turn]


THANKS = intent(1, "thanks", "thanks")
ORDER = intent(1, "order_status", "order 1042", order_number="1042")
TICKET = intent(1, "open_ticket", "I want to make a complaint.")


def test_a_turn_that_nobody_commits_or_withdraws_is_let_go(call: Call) -> None:
    before = call.state.memory
    call.receive(ahead(THANKS))
    (timer,) = [outcome for outcome in call.other if isinstance(outcome, Wake)]
    call.apply(Woken(timer.name))
    assert (call.state.ahead, call.state.memory) == (None, before)
    assert flags(call)[-1] == ("cancelled", False)
    assert [outcome.topic for outcome in call.other if isinstance(outcome, Release)] == [Intent.TOPIC]


def test_a_template_is_said_ahead_and_completed_when_it_is_committed(call: Call) -> None:
    before = call.state.memory
    call.receive(ahead(THANKS))
    assert set(flags(call)) == {("sentence", False)}
    assert call.state.memory == before
    assert Hold() in call.other
    call.receive(final(THANKS))
    assert flags(call) == [("sentence", False), ("sentence", False), ("completed", True)]
    assert (call.last().revision, call.last().text) == (1, call.said(1))
    usual = Call()
    usual.receive(started())
    usual.receive(final(THANKS))
    assert call.state.memory == usual.state.memory
    assert Release(Intent.TOPIC, 2**62) in call.other


def test_a_caller_who_goes_on_leaves_no_trace_in_the_memory(call: Call) -> None:
    before = call.state
    call.receive(ahead(ORDER))
    (request,) = [ask.request for ask in call.asks.values()]
    assert isinstance(request, CallTool)
    call.receive(withdrawn(1, 1))
    assert not call.asks
    assert flags(call) == [("tool_called", False), ("cancelled", False)]
    assert call.state == before
    assert Release(Intent.TOPIC, 2**62) in call.other
    call.receive(final(THANKS, 2))
    assert flags(call)[-2:] == [("sentence", True), ("completed", True)]


def test_a_read_only_tool_runs_ahead_and_its_answer_is_not_fetched_again(call: Call) -> None:
    call.receive(ahead(ORDER))
    call.tool(200, SHIPPED)
    assert ("sentence", False) in flags(call)
    said = call.said(1)
    call.receive(final(ORDER))
    assert not call.asks
    assert call.said(1) == said
    assert flags(call)[-1] == ("completed", True)
    assert call.state.memory.known("order_number") is not None


def test_what_has_an_effect_waits_for_the_commitment(call: Call) -> None:
    problem = replace(intent(2, "none", "The zipper is broken.", 0.2), revision=1)
    call.receive(final(TICKET))
    call.receive(ahead(problem))
    assert not call.asks
    assert flags(call, 2) == []
    call.receive(final(problem))
    assert flags(call, 2) == [("tool_called", True)]
    call.tool(201, {"number": "7"})
    assert flags(call, 2)[-1] == ("completed", True)


def test_a_goodbye_ahead_ends_nothing(call: Call) -> None:
    goodbye = intent(1, "goodbye", "goodbye")
    call.receive(ahead(goodbye))
    assert all(not event.action for event in call.log)
    call.receive(final(goodbye))
    assert call.last().action == "hang_up"


@pytest.mark.parametrize("other", [final(ORDER, 2), replace(final(THANKS), text="thank you")])
def test_a_final_of_other_words_is_answered_anew(call: Call, other: Intent) -> None:
    call.receive(ahead(THANKS))
    call.receive(other)
    assert flags(call)[:3] == [("sentence", False), ("sentence", False), ("cancelled", False)]
    assert all(committed for _, committed in flags(call)[3:])
    assert len(flags(call)) > 3


def test_the_model_goes_on_over_the_commitment(call: Call) -> None:
    question = intent(1, "none", "which colours suit mountain people", 0.1)
    call.receive(ahead(question))
    call.embedded()
    call.answer("llm", Generated("Bright colours are easy to see. They"), last=False)
    call.receive(final(question))
    call.model(" look good. ")
    assert flags(call) == [("sentence", False), ("sentence", True), ("completed", True)]
    assert call.said(1) == "Bright colours are easy to see. They look good."
    assert len({event.causation_id for event in call.log if event.turn == 1}) == 1


def test_a_turn_goes_on_until_the_next_is_committed(call: Call) -> None:
    call.receive(final(ORDER))
    call.receive(ahead(intent(2, "thanks", "thanks")))
    assert call.ask("tools")
    call.receive(withdrawn(2, 1))
    call.tool(200, SHIPPED)
    assert flags(call)[-1] == ("completed", True)
    assert flags(call, 2)[-1] == ("cancelled", False)
    assert not any(committed for _, committed in flags(call, 2))


def test_speech_that_is_cut_before_its_commitment_was_read_ends_cancelled(call: Call) -> None:
    call.receive(ahead(ORDER))
    call.receive(control(ControlKind.BARGE_IN, 1))
    assert not call.asks
    call.receive(final(ORDER))
    assert flags(call) == [("tool_called", False), ("cancelled", True)]
    assert not call.asks


def test_where_engines_are_busy_nothing_is_asked_before_the_commitment() -> None:
    core = create_core(
        Settings(erp_url="http://erp:1/", data_dir=Path("/nowhere")), AGENTS, embed, {}, busy=lambda: True
    )
    call = Call(core, core.start(SESSION))
    call.receive(started())
    question = intent(1, "none", "which colours suit mountain people", 0.1)
    call.receive(ahead(question))
    assert not call.asks
    call.receive(final(question))
    assert call.ask("embeddings")


@pytest.mark.parametrize("kept", range(5))
def test_after_a_crash_what_was_said_ahead_stays_said(kept: int) -> None:
    """However much of it had reached the log, the turn is whole, and the tool was called under one key."""
    first = Call()
    first.receive(started())
    first.receive(ahead(ORDER))
    first.tool(200, SHIPPED)
    first.receive(final(ORDER))
    made = [event for event in first.log if event.turn == 1]
    again = Call()
    again.receive(started())
    log = again.log = [*again.log, *made[:kept]]
    known = {event.event_id for event in log}
    core = again.core
    step = core.apply(again.state, Received(ahead(ORDER), Position(Intent.TOPIC, 0, 9), tuple(made[:kept])), NOW_US)
    again.state = step.state
    again.take([one for one in step.outcomes if not (isinstance(one, Emit) and one.event.event_id in known)])
    if again.asks:
        again.tool(200, SHIPPED)
    again.receive(final(ORDER))
    assert [(e.kind, e.text) for e in again.log if e.turn == 1] == [(e.kind, e.text) for e in made]
    assert {e.tool_call_id for e in again.log if e.tool} == {e.tool_call_id for e in made if e.tool}
    assert again.state.memory == first.state.memory


# ---- the caller's record


ADA = {"name": "Ada Park", "tier": "gold", "open": None, "orders": [1]}


def knowing() -> Call:
    """A call of an agent that asks who calls."""
    greeting = Template("Hello{% if caller.name %}, {{ caller.name }}{% endif %}.")
    record = CallerRecord(operation="crm.find", arguments={"phone": "{{ caller }}"}, deadline_ms=250)
    agent = AGENTS["shop"].model_copy(update={"greeting": (greeting,), "caller_record": record})
    core = create_core(Settings(erp_url="http://erp:1/", data_dir=Path("/nowhere")), {"shop": agent}, embed, {})
    return Call(core=core, state=core.start(SESSION))


def found(record: Any, outcome: str = "ok") -> ToolReturned:
    return ToolReturned(200 if outcome == "ok" else 404, json.dumps(record).encode(), 5.0, outcome)


def test_the_greeting_waits_for_the_callers_record() -> None:
    call = knowing()
    call.receive(started())
    assert call.kinds(0) == ["tool_called"]
    ask = call.ask("tools")
    assert (ask.request, ask.deadline_s) == (
        CallOperation("crm.find", {"phone": "+15550123"}, call.last().tool_call_id),
        0.25,
    )
    call.answer("tools", found(ADA))
    assert call.kinds(0) == ["tool_called", "tool_returned", "sentence", "completed"]
    assert call.said(0) == "Hello, Ada Park."
    assert call.state.memory.record == {"name": "Ada Park", "tier": "gold"}
    assert call.core.load(SESSION, call.core.save(call.state)).memory == call.state.memory


@pytest.mark.parametrize("reason", ["timeout", "crashed", "refused", "absent", "no record"])
def test_without_a_record_the_caller_is_greeted_all_the_same(reason: str) -> None:
    call = knowing()
    call.receive(started())
    if reason == "absent":
        call.answer("tools", found({}, "not_found"))
    elif reason == "no record":
        call.answer("tools", found("what?"))
    else:
        call.fail("tools", reason)
    assert call.said(0) == "Hello."
    assert call.kinds(0)[1:] == ["tool_returned", "sentence", "completed"]


def test_who_does_not_say_who_calls_is_not_looked_up() -> None:
    call = knowing()
    call.receive(replace(started(), caller=None))
    assert call.kinds(0) == ["sentence", "completed"]


def test_a_record_that_is_in_the_log_is_not_asked_for_again() -> None:
    call = knowing()
    call.receive(started())
    call.answer("tools", found(ADA))
    for known in range(1, len(call.log) + 1):
        other = knowing()
        other.receive(started(), recorded=tuple(call.log[:known]))
        if known == 1:
            assert other.ask("tools").request == CallOperation(
                "crm.find", {"phone": "+15550123"}, call.log[0].tool_call_id
            )
            continue
        assert not other.asks
        assert [event.event_id for event in other.log] == [event.event_id for event in call.log[known:]]
        assert other.state.memory.record == call.state.memory.record


def test_the_model_is_told_who_calls_and_may_say_so() -> None:
    call = knowing()
    call.receive(started())
    call.answer("tools", found(ADA))
    call.receive(intent(1, "none", "what do you know about me", 0.1))
    call.embedded()
    request = call.ask("llm").request
    assert isinstance(request, Generate)
    assert "The caller: name: Ada Park; tier: gold" in request.messages[0].content
    call.model("You are a gold customer, Ada Park.")
    assert call.said(1) == "You are a gold customer, Ada Park."


def test_what_is_the_same_in_every_turn_stands_first_for_the_models_cache() -> None:
    call = knowing()
    agent = AGENTS["shop"]
    call.receive(started())
    call.answer("tools", found(ADA))
    call.receive(intent(1, "none", "what do you know about me", 0.1))
    call.embedded()
    request = call.ask("llm").request
    assert isinstance(request, Generate)
    assert request.messages[0].content.startswith("\n".join([agent.persona, *agent.rules]))


@pytest.mark.parametrize(
    ("told", "text", "said"),
    [
        ("nothing", "1. By train.", "By train."),
        ("nothing", "12. Anything else?", "Anything else?"),
        ("There are 12 left.", "12. Anything else?", "12. Anything else?"),
        ("nothing", "1. It takes 3 days.", ""),
        ("nothing", "It takes 3 days.", ""),
        ("nothing", "By bus.", "By bus."),
    ],
)
def test_a_number_that_nobody_told_is_left_out_where_it_only_counts(told: str, text: str, said: str) -> None:
    turn = Turn(intent(1, "none", "how do people travel"), 1, told=told)
    assert sayable(text, turn) == said


@pytest.mark.parametrize(("turns", "told"), [(1, 1), (3, 3), (20, 8)])
def test_the_model_is_told_as_many_turns_as_the_agent_says(turns: int, told: int) -> None:
    limits = AGENTS["shop"].limits.model_copy(update={"history_turns": turns})
    agent = AGENTS["shop"].model_copy(update={"limits": limits})
    call = Call(create_core(Settings(data_dir=Path("/nowhere")), {"shop": agent}, embed, {}))
    for turn in range(1, 9):
        call.receive(intent(turn, "greeting", f"hello {turn}"))
    call.receive(intent(9, "none", "which colours suit mountain people", 0.1))
    call.embedded()
    request = call.ask("llm").request
    assert isinstance(request, Generate)
    before = [message.content for message in request.messages if message.role == "user"][:-1]
    assert before == [f"hello {turn}" for turn in range(9 - told, 9)]
    assert len(call.state.memory.history) == 8  # of which a tool's values may come


def test_what_a_client_sent_in_a_url_is_a_value() -> None:
    sent = {"tenant": "../a?b", "more": ["x/y", {"z": "&"}], "count": 3}
    tool = Tool(
        name="t",
        url="http://erp/{{ context.tenant }}/{{ context['more'][0] }}{{ context['more'][1].z }}/{{ context['count'] }}",
    )
    request = render_call(tool, "k", {"context": sent}, {})
    assert isinstance(request, CallTool)
    assert request.url == "http://erp/..%2Fa%3Fb/x%2Fy%26/3"


def test_a_caller_in_a_url_is_a_value() -> None:
    caller = Caller("+1 555/0", {"name": "A&B"})
    tool = Tool(name="t", url="http://erp/{{ caller }}?name={{ caller.name }}")
    request = render_call(tool, "k", {"caller": caller}, {})
    assert isinstance(request, CallTool)
    assert request.url == "http://erp/%2B1%20555%2F0?name=A%26B"
