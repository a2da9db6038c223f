"""Tools that the language model chooses: what it is offered, what of that is called, and what is said of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from processors.agents import Agent, load_agents
from processors.engine import CallTool, Chosen, Generate, Generated, Message, ToolReturned
from processors.llm.core import Conversation
from processors.llm.offers import Wrong, checked, offers_of
from processors.llm.stage import create_core
from processors.stage import Answered, Ask, Wake, Woken
from schemas.events import Control, ControlKind, Intent, Response, ResponseKind
from streams.settings import Settings
from streams.yamlfile import ConfigError
from tests.unit.processors.test_llm_core import NOW_US, SESSION, Call, control, embed, envelope, intent, started

AGENT = """
name: Pine and Peak
greeting: Hello.
persona: You answer the telephone of a mountain school.
entities:
  - {name: booking, kind: order_number, pattern: "[0-9]{4}", description: the number on the confirmation}
  - {name: level, kind: choice, values: [beginner, expert], keep: false}
  - {name: day, kind: date, keep: false}
  - {name: wish, kind: text, keep: false}
tools:
  - name: get_booking
    description: Looks a booking up.
    url: "{{ erp_url }}/bookings/{{ booking }}"
    offered: true
  - name: weather
    description: Tells the weather on a day.
    url: "{{ erp_url }}/weather/{{ day }}/{{ level }}"
    offered: true
  - name: note_wish
    description: Adds what a guest would like to have.
    method: POST
    effect: write
    url: "{{ erp_url }}/wishes"
    body: {wish: "{{ wish }}", booking: "{{ booking }}"}
    offered: true
    outcomes: [{status: 202, outcome: pending}]
  - name: cancel
    method: POST
    effect: write
    url: "{{ erp_url }}/cancel"
intents:
  - name: booking
    examples: [my booking]
    required: [{entity: booking, question: "I can look. What is the booking number?"}]
    tool: get_booking
    templates:
      ok: You are booked for {{ result.day | spoken_date }}.
      failed: Our bookings cannot be read right now.
  - name: wish
    examples: [a wish]
    required: [{entity: wish, question: "What would you like?"}]
    optional: [booking]
    tool: note_wish
    templates: {ok: I have noted it.}
limits: {sentences_max: 3, tools_max: 2}
"""
SCHOOL = {"day": "2026-11-27", "guide": "Maria"}
ASKED = "what about 1042, who will be my guide"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    folder = tmp_path_factory.mktemp("agents")
    (folder / "shop.yaml").write_text(AGENT)  # the events of these tests are of the agent `shop`
    return load_agents(folder)["shop"]


@pytest.fixture(scope="module")
def core(agent: Agent) -> Conversation:
    return create_core(Settings(erp_url="http://erp:1/", data_dir=Path("/nowhere")), {"shop": agent}, embed, {})


@pytest.fixture
def call(core: Conversation) -> Call:
    call = Call(core, core.start(SESSION))
    call.receive(started())
    return call


def asks_for(call: Call, text: str = ASKED, turn: int = 1, **values: str) -> None:
    """The caller says what no intent fits, and the model is asked."""
    call.receive(intent(turn, "none", text, 0.1, **values))
    call.embedded()


def request(call: Call) -> Generate:
    found = call.ask("llm").request
    assert isinstance(found, Generate)
    return found


def chooses(call: Call, tool: str, *words: str, **arguments: Any) -> None:
    """The model says words, and chooses a tool, as an endpoint streams it."""
    for word in words:
        call.answer("llm", Generated(word), last=False)
    call.answer("llm", Generated("", choosing=True), last=False)
    call.answer("llm", Generated("", chosen=Chosen(tool, json.dumps(arguments))), last=False)
    call.answer("llm", Generated("", model="large", tokens_in=90, tokens_out=12, compute_ms=30.0))


def tool_request(call: Call) -> CallTool:
    found = call.ask("tools").request
    assert isinstance(found, CallTool)
    return found


# ---- what is offered


def test_only_what_the_agent_offers_is_offered_with_a_schema_of_its_values(agent: Agent) -> None:
    offers = {offer.name: json.loads(offer.parameters) for offer in offers_of(agent)}
    assert list(offers) == ["get_booking", "weather", "note_wish"]
    assert offers["get_booking"] == {
        "type": "object",
        "properties": {"booking": {"description": "the number on the confirmation: digits", "type": "string"}},
        "required": ["booking"],
        "additionalProperties": False,
    }
    assert offers["weather"]["properties"]["level"] == {"type": "string", "enum": ["beginner", "expert"]}
    assert offers["note_wish"]["properties"]["booking"]["type"] == ["string", "null"]
    assert offers["note_wish"]["required"] == ["booking", "wish"]


def test_an_offered_tool_needs_a_description(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(AGENT.replace("    description: Looks a booking up.\n", ""))
    with pytest.raises(ConfigError, match="expected a description beside offered"):
        load_agents(tmp_path)


def test_what_acts_needs_an_intent_that_has_words_for_it(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(AGENT.replace("    tool: note_wish\n", ""))
    with pytest.raises(ConfigError, match="offered: expected an intent with the tool"):
        load_agents(tmp_path)


TOLD = "my booking is 1042 on 2026-11-27 and I want vegetables please"


@pytest.mark.parametrize(
    ("tool", "arguments", "found"),
    [
        ("get_booking", '{"booking": "1042"}', {"booking": "1042"}),
        ("get_booking", '{"booking": 1042, "more": 1}', {"booking": "1042"}),
        ("get_booking", '{"booking": "10 42"}', {"booking": "1042"}),
        ("get_booking", '{"booking": "2117"}', "booking is not what the caller said: ask the caller for it"),
        ("get_booking", '{"booking": "104"}', "booking is not what the caller said: ask the caller for it"),
        ("get_booking", '{"booking": null}', "booking is missing: ask the caller for it"),
        ("get_booking", '{"booking": ["1042"]}', "booking is missing: ask the caller for it"),
        ("get_booking", "{", "the arguments are no JSON object"),
        ("get_booking", "[]", "the arguments are no JSON object"),
        ("cancel", "{}", "there is no such tool"),
        ("sudo", "{}", "there is no such tool"),
        ("weather", '{"level": "Expert", "day": "2026-11-27"}', {"level": "expert", "day": "2026-11-27"}),
        (
            "weather",
            '{"level": "guru", "day": "2026-11-27"}',
            "level is not what the caller said: ask the caller for it",
        ),
        (
            "weather",
            '{"level": "expert", "day": "2026-12-27"}',
            "day is not what the caller said: ask the caller for it",
        ),
        ("weather", '{"level": "expert", "day": "27/11"}', "day is not what the caller said: ask the caller for it"),
        ("note_wish", '{"wish": "vegetables"}', {"wish": "vegetables"}),
        ("note_wish", '{"wish": "vegetables", "booking": "1042"}', {"wish": "vegetables", "booking": "1042"}),
        ("get_booking", "[" * 100_000, "the arguments are no JSON object"),
        ("get_booking", '{"booking": "2026"}', "booking is not what the caller said: ask the caller for it"),
        (
            "get_booking",
            '{"booking": "\u00b2\u00b2\u00b2\u00b2"}',
            "booking is not what the caller said: ask the caller for it",
        ),
        ("note_wish", '{"wish": ".."}', "wish is missing: ask the caller for it"),
        ("note_wish", '{"wish": "\\ud83d vegetables\\u0007"}', {"wish": "? vegetables"}),
        ("note_wish", '{"wish": "12 steaks"}', "wish is not what the caller said: ask the caller for it"),
    ],
)
def test_only_what_was_said_is_taken(agent: Agent, tool: str, arguments: str, found: dict[str, str] | str) -> None:
    result = checked(agent, Chosen(tool, arguments), lambda tool: TOLD)
    if isinstance(result, Wrong):
        assert result.why == found
    else:
        assert (result[0].name, result[1]) == (tool, found)


# ---- what is done and said


def test_what_the_tool_said_goes_back_to_the_model_which_words_it(call: Call) -> None:
    asks_for(call, booking="1042")
    assert [tool.name for tool in request(call).tools] == ["get_booking", "weather", "note_wish"]
    assert request(call).may_choose
    chooses(call, "get_booking", booking="1042")
    assert tool_request(call).url == "http://erp:1/bookings/1042"
    called = call.last()
    assert (called.kind, called.source, called.model) == (ResponseKind.TOOL_CALLED, "model", "large")
    assert json.loads(called.arguments) == {"booking": "1042"}
    call.tool(200, SCHOOL)
    *_, question, choice, answer = request(call).messages
    assert question == Message("user", ASKED)
    assert (choice.role, answer.role) == ("assistant", "tool")
    assert choice.choice is not None
    assert choice.choice == answer.choice
    assert (choice.choice.tool, json.loads(choice.choice.arguments)) == ("get_booking", {"booking": "1042"})
    assert len(choice.choice.id) == 9
    assert json.loads(answer.content) == {"outcome": "ok", "result": SCHOOL}
    call.model("Your guide is Maria. ", "It begins on Friday, November 27.")
    assert call.said(1) == "Your guide is Maria. It begins on Friday, November 27."
    assert call.kinds(1) == ["tool_called", "tool_returned", "sentence", "sentence", "completed"]
    assert {e.source for e in call.log if e.kind is ResponseKind.SENTENCE and e.turn == 1} == {"model"}
    assert (call.last().outcome, call.last().tokens_in) == ("answered", 90)
    assert not call.asks


def test_what_was_said_before_the_choice_stays_before_it(call: Call) -> None:
    asks_for(call, booking="1042")
    chooses(call, "get_booking", "Let me look. ", booking="1042")
    assert call.kinds(1) == ["sentence", "tool_called"]
    call.tool(200, SCHOOL)
    assert [message.content for message in request(call).messages[-2:-1]] == ["Let me look."]
    call.model("It is Maria.")
    assert call.said(1) == "Let me look. It is Maria."


def test_of_what_was_said_before_a_tool_that_is_let_finish_the_history_has_what_was_heard(call: Call) -> None:
    asks_for(call, "vegetables please, my booking is 1042", booking="1042")
    chooses(call, "note_wish", "Let me look. ", wish="vegetables", booking="1042")
    call.receive(control(ControlKind.BARGE_IN, 1, sentence=0, heard_ms=300, heard_text="Let me"))
    call.tool(202, {})
    assert call.kinds(1) == ["sentence", "tool_called", "tool_returned", "cancelled"]
    assert call.state.memory.history[-1].agent == ("Let me …",)


@pytest.mark.parametrize("words", [("I will check that. ", "It is quick. "), ("I will check that.",)])
def test_a_promise_before_the_choice_is_not_said_and_the_tool_is_called_all_the_same(
    call: Call, words: tuple[str, ...]
) -> None:
    asks_for(call, booking="1042")
    chooses(call, "get_booking", *words, booking="1042")
    assert call.kinds(1) == ["tool_called"]
    call.tool(200, SCHOOL)
    call.model("It is Maria.")
    assert call.said(1) == "It is Maria."


def test_a_choice_that_is_being_written_is_waited_for(call: Call) -> None:
    asks_for(call, booking="1042")
    name = call.ask("llm").ask_id
    call.answer("llm", Generated("", choosing=True), last=False)
    for _ in range(3):
        call.other.clear()
        call.apply(Woken(name))
        assert call.kinds(1) == []
        assert [one.name for one in call.other if isinstance(one, Wake)] == [name]
    call.answer("llm", Generated("", chosen=Chosen("get_booking", '{"booking": "1042"}')), last=False)
    call.answer("llm", None)
    assert call.kinds(1) == ["tool_called"]


def test_a_choice_of_none_is_not_waited_for_longer_than_any_answer(call: Call) -> None:
    asks_for(call, booking="1042")
    name = call.ask("llm").ask_id
    call.answer("llm", Generated("", choosing=True), last=False)
    call.answer("llm", Generated("Well"), last=False)
    call.apply(Woken(name))
    assert call.last().source == "clarification"
    assert not call.asks


def test_what_the_model_invents_after_a_tool_is_not_said_but_the_intents_template(call: Call) -> None:
    asks_for(call, booking="1042")
    chooses(call, "get_booking", booking="1042")
    call.tool(200, SCHOOL)
    call.model("It costs 300 euros. ", "It is Maria.")
    assert call.said(1) == "You are booked for Friday, November 27."
    assert call.last().source == "template"


@pytest.mark.parametrize(
    ("tool", "said", "values", "words"),
    [
        ("get_booking", "1042", {"booking": "1042"}, "Our bookings cannot be read right now."),
        ("weather", "2026-11-27", {"level": "expert", "day": "2026-11-27"}, "our system is not answering right now"),
    ],
)
def test_a_tool_that_fails_is_not_left_to_the_model(
    call: Call, tool: str, said: str, values: dict[str, str], words: str
) -> None:
    asks_for(call, f"what about {said}")
    chooses(call, tool, **values)
    call.fail("tools", "timeout")
    assert words in call.said(1)
    assert call.last().outcome == "failed"
    assert not call.asks


def test_a_value_that_is_missing_is_asked_for_with_the_intents_question_and_completes_it(call: Call) -> None:
    asks_for(call, "who is my guide")
    chooses(call, "get_booking", booking="4711")
    assert call.said(1) == "I can look. What is the booking number?"
    assert (call.last().intent, call.last().source) == ("booking", "clarification")
    call.receive(intent(2, "none", "it is 1042", 0.1, booking="1042"))
    assert tool_request(call).url == "http://erp:1/bookings/1042"
    call.tool(200, SCHOOL)
    assert call.said(2) == "You are booked for Friday, November 27."


def test_what_no_intent_asks_for_the_model_is_told_of_as_often_as_tools_may_be_chosen(call: Call) -> None:
    asks_for(call, "how is the weather")
    for number in (1, 2):
        chooses(call, "weather", level="expert", day="2026-01-01")
        assert call.kinds(1) == []
        told = request(call).messages[-1]
        assert (told.role, "day is not what the caller said" in told.content) == ("tool", True)
        assert request(call).may_choose is (number < 2)
    call.answer("llm", Generated("", chosen=Chosen("get_booking", "{}")), last=False)  # not asked for, not heard
    call.model("For which day would you like to know?")
    assert call.said(1) == "For which day would you like to know?"


def test_the_same_choice_twice_is_one_call(call: Call) -> None:
    asks_for(call, booking="1042")
    for _ in range(2):
        chooses(call, "get_booking", booking="1042")
        if any(ask.role == "tools" for ask in call.asks.values()):
            call.tool(200, SCHOOL)
    call.model("It is Maria.")
    assert call.kinds(1) == ["tool_called", "tool_returned", "sentence", "completed"]


def test_two_tools_in_one_answer(call: Call) -> None:
    asks_for(call, "is 1042 good for an expert, then", booking="1042")
    chooses(call, "get_booking", booking="1042")
    call.tool(200, SCHOOL)
    chooses(call, "weather", level="expert", day="2026-11-27")  # the day is known from the booking
    assert tool_request(call).url == "http://erp:1/weather/2026-11-27/expert"
    call.tool(200, {"sky": "clear"})
    call.model("It is clear on Friday, November 27.")
    assert call.kinds(1) == ["tool_called", "tool_returned"] * 2 + ["sentence", "completed"]
    assert len({event.event_id for event in call.log}) == len(call.log)


@pytest.mark.parametrize(
    ("status", "claim", "said"),
    [
        (201, "I have added it to your file.", True),
        (201, "I have cancelled your booking.", False),
        (409, "I have added it to your file.", False),
        (404, "I have added it to your file.", False),
        (202, "I have added it to your file.", False),  # the agent says that this is another outcome
    ],
)
def test_only_that_is_said_to_be_done_which_was(call: Call, status: int, claim: str, said: bool) -> None:
    asks_for(call, "please note that I eat vegetables only")
    chooses(call, "note_wish", wish="eats vegetables only", booking=None)
    assert json.loads(tool_request(call).body) == {"wish": "eats vegetables only", "booking": ""}
    call.tool(status, {})
    call.model("We know it. ", claim)
    assert (claim in call.said(1)) is said


def test_nothing_is_said_of_what_was_not_found(call: Call) -> None:
    asks_for(call, booking="1042")
    chooses(call, "get_booking", booking="1042")
    call.tool(404, {})
    call.model("Your booking is on its way. ")
    assert "on its way" not in call.said(1)


def test_a_short_answer_after_a_tool_is_said_without_its_full_stop(call: Call) -> None:
    asks_for(call, booking="1042")
    chooses(call, "get_booking", "Let me look. ", booking="1042")
    call.tool(200, SCHOOL)
    call.model("Friday, November 27")
    assert call.said(1) == "Let me look. Friday, November 27"


def test_where_no_intent_has_words_for_a_result_it_is_no_failure(call: Call) -> None:
    asks_for(call, "how is it for an expert on 2026-11-27")
    chooses(call, "weather", level="expert", day="2026-11-27")
    call.tool(200, {"sky": "clear"})
    call.model("It costs 300 euros. ")
    assert (call.last().source, call.last().outcome) == ("clarification", "answered")


def test_a_tool_with_an_effect_takes_no_value_of_long_ago(call: Call) -> None:
    asks_for(call, "what about 1042", booking="1042")
    chooses(call, "get_booking", booking="1042")
    call.tool(200, SCHOOL)
    call.model("It is Maria.")
    for turn, taken in ((3, True), (9, False)):
        asks_for(call, "please note that I eat vegetables only", turn=turn)
        chooses(call, "note_wish", wish="eats vegetables only", booking="1042")
        assert any(ask.role == "tools" for ask in call.asks.values()) is taken
        call.receive(control(ControlKind.BARGE_IN, turn))
        if taken:
            call.tool(201, {})


def test_a_choice_that_broke_off_is_asked_for_once_more(call: Call) -> None:
    asks_for(call, booking="1042")
    for _ in range(2):
        call.answer("llm", Generated("", choosing=True), last=False)
        call.fail("llm", "crashed")
    assert call.last().source == "apology"


def test_an_answer_has_its_time_whatever_is_asked_for_it(call: Call) -> None:
    asks_for(call, booking="1042")
    first_s = call.ask("llm").deadline_s
    chooses(call, "get_booking", booking="1042")
    step = call.core.apply(
        call.state, Answered(call.ask("tools").ask_id, ToolReturned(200, b"{}", 5.0), True), NOW_US + 4_000_000
    )
    (ask,) = [outcome for outcome in step.outcomes if isinstance(outcome, Ask)]
    assert ask.deadline_s == first_s - 4.0


# ---- ahead of the commitment


def committed(event: Intent) -> Intent:
    return replace(event, event_id="00000000-0000-0000-0000-000000000999", committed=True)


def ahead(text: str, **values: str) -> Intent:
    return replace(intent(1, "none", text, 0.1, **values), committed=False, revision=1)


def test_what_has_an_effect_waits_for_the_commitment(call: Call) -> None:
    event = ahead("please note that I eat vegetables only")
    call.receive(event)
    call.embedded()
    chooses(call, "note_wish", wish="eats vegetables only", booking=None)
    assert not call.asks
    assert call.kinds(1) == []
    call.receive(committed(event))
    assert call.last().kind is ResponseKind.TOOL_CALLED
    assert call.last().committed
    call.tool(201, {})
    call.model("I have noted it.")
    assert call.said(1) == "I have noted it."


def test_what_only_reads_runs_ahead(call: Call) -> None:
    event = ahead(ASKED, booking="1042")
    call.receive(event)
    call.embedded()
    chooses(call, "get_booking", booking="1042")
    call.tool(200, SCHOOL)
    call.model("It is Maria.")
    assert not any(response.committed for response in call.log if response.turn == 1)
    call.receive(committed(event))
    assert call.said(1) == "It is Maria."
    assert (call.last().kind, call.last().committed) == (ResponseKind.COMPLETED, True)


def test_a_barge_in_stops_what_reads_and_lets_what_acts_finish(call: Call) -> None:
    asks_for(call, booking="1042")
    chooses(call, "get_booking", booking="1042")
    call.receive(control(ControlKind.BARGE_IN, 1))
    assert not call.asks
    assert call.kinds(1) == ["tool_called", "cancelled"]
    asks_for(call, "please note that I eat vegetables only", turn=2)
    chooses(call, "note_wish", wish="eats vegetables only", booking=None)
    call.receive(Control(**envelope(900, 2), kind=ControlKind.BARGE_IN))
    assert call.asks
    call.tool(201, {})
    assert call.kinds(2) == ["tool_called", "tool_returned", "cancelled"]


# ---- crashes


def plays(call: Call) -> None:
    """The model, in the same way whatever it is asked again: two tools, and an answer."""
    while call.asks:
        (ask,) = call.asks.values()
        if ask.role == "embeddings":
            call.embedded()
        elif ask.role == "tools":
            call.tool(200, SCHOOL if "/bookings/" in tool_request(call).url else {"sky": "clear"})
        else:
            consulted = [
                message.choice.tool for message in request(call).messages if message.role == "tool" and message.choice
            ]
            said = [message.content for message in request(call).messages[-1:] if message.role == "assistant"]
            if not consulted:
                chooses(call, "get_booking", *(() if said else ("Let me look. ",)), booking="1042")
            elif len(consulted) == 1:
                chooses(call, "weather", level="expert", day="2026-11-27")
            else:
                call.model(*("It is Maria. ", "The sky is clear.")[1 if said else 0 :])


def same(found: list[Response], expected: list[Response]) -> bool:
    """Whether they say and do the same; what models took before a crash is not known after it."""
    free: dict[str, Any] = {"tokens_in": 0, "tokens_out": 0, "compute_ms": 0.0, "model": ""}
    return [replace(one, **free) for one in found] == [replace(one, **free) for one in expected]


def test_a_crash_anywhere_neither_repeats_nor_loses_anything(call: Call, core: Conversation) -> None:
    event = intent(1, "none", "is 1042 good for an expert, then", 0.1, booking="1042")
    snapshot = core.save(call.state)
    call.receive(event)
    plays(call)
    made = [response for response in call.log if response.turn == 1]
    tool = ["tool_called", "tool_returned"]
    assert call.kinds(1) == ["sentence", *tool, *tool, "sentence", "sentence", "completed"]
    for kept in range(len(made) + 1):
        again = Call(core, core.load(SESSION, snapshot))
        again.receive(event, recorded=tuple(made[:kept]))
        plays(again)
        assert same([*made[:kept], *again.log], made)
        assert core.save(again.state) == core.save(call.state)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_question_that_a_choice_led_to_is_gone_on_with(call: Call, core: Conversation, kept: int) -> None:
    event = intent(1, "none", "who is my guide", 0.1)
    snapshot = core.save(call.state)
    call.receive(event)
    call.embedded()
    chooses(call, "get_booking", booking="4711")
    made = [response for response in call.log if response.turn == 1]
    assert call.kinds(1) == ["sentence", "sentence", "completed"]
    again = Call(core, core.load(SESSION, snapshot))
    again.receive(event, recorded=tuple(made[:kept]))
    assert not again.asks
    assert same([*made[:kept], *again.log], made)
    assert core.save(again.state) == core.save(call.state)


def test_what_acts_has_one_key_in_whatever_words_it_is_chosen_again(call: Call, core: Conversation) -> None:
    """A crash may come before the log knows of the call."""
    event = intent(1, "none", "please note that I eat vegetables only", 0.1)
    snapshot = core.save(call.state)
    keys = []
    for words in ("eats vegetables only", "vegetables only"):
        again = Call(core, core.load(SESSION, snapshot))
        again.receive(event)
        again.embedded()
        chooses(again, "note_wish", wish=words, booking=None)
        keys.append(tool_request(again).idempotency_key)
    assert keys[0] == keys[1]


def test_a_template_that_was_being_said_is_gone_on_with(call: Call, core: Conversation) -> None:
    event = intent(1, "none", ASKED, 0.1, booking="1042")
    snapshot = core.save(call.state)
    call.receive(event)
    call.embedded()
    chooses(call, "get_booking", booking="1042")
    call.tool(200, SCHOOL)
    call.model("It costs 300 euros. ")
    made = [response for response in call.log if response.turn == 1]
    again = Call(core, core.load(SESSION, snapshot))
    again.receive(event, recorded=tuple(made[:-1]))
    again.embedded()
    assert same([*made[:-1], *again.log], made)
