"""Calls as the CRM sees them, and the file of workflows."""

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from processors.adapters.adapter import load_adapters
from processors.crm.call import TURNS_MAX, Call, End
from processors.crm.workflows import When, load_workflows
from schemas import json_form
from schemas.event import Event
from schemas.events import EVENTS, Intent, IntentKind, Response, ResponseKind, Session, SessionKind
from streams.settings import Settings
from streams.yamlfile import ConfigError

SESSION = "0b5e7c1a-3d51-4b7e-9d1c-5f0a4a8c2e11"
KEY = b"a key of these tests"
SAP = {"sap_user": "u", "sap_password": "p"}
GOOD = """workflows:
  - name: follow_up
    when: {intent: report, outcome: [failed, timeout], condition: "sentiment < 0"}
    operation: sap.create_ticket
    key: "{{ call_id }}"
    arguments: {problem: "{{ text }}", caller: "{{ caller }}"}
  - name: log
    when: {ended: call}
    operation: sap.log_call
    arguments: {summary: "{{ summary }}"}
"""


class Line:
    """A call, event by event."""

    def __init__(self) -> None:
        self.call = Call(SESSION, KEY)
        self.ends: list[End] = []

    def take(self, cls: type[Event], turn: int = 0, **fields: Any) -> Event:
        envelope = {
            "event_id": str(uuid.uuid4()),
            "session_id": SESSION,
            "tenant_id": "demo",
            "agent_id": "shop",
            "turn": turn,
            "seq": 0,
            "occurred_at": 1_763_890_000_000_000,
        }
        event = cls(**{**envelope, **fields})
        end = self.call.take(event)
        self.ends += [end] if end is not None else []
        return event

    def begin(self, caller: str | None = "+15550142") -> None:
        self.take(Session, kind=SessionKind.STARTED, caller=caller)

    def say(self, turn: int, text: str, intent: str, sentiment: float = 0.0, committed: bool = True) -> str:
        return self.take(
            Intent,
            turn,
            kind=IntentKind.DETECTED,
            text=text,
            intent=intent,
            confidence=0.9,
            sentiment=sentiment,
            committed=committed,
        ).event_id

    def answer(self, turn: int, cause: str, outcome: str = "answered", tool: str = "", committed: bool = True) -> None:
        more: dict[str, Any] = {"causation_id": cause, "intent": "report"}
        if tool:
            called = {**more, "tool": "make", "tool_call_id": "c1", "committed": committed}
            self.take(Response, turn, kind=ResponseKind.TOOL_CALLED, arguments='{"problem": "x"}', **called)
            self.take(Response, turn, kind=ResponseKind.TOOL_RETURNED, outcome=tool, result='{"number": 7}', **called)
        self.take(
            Response, turn, kind=ResponseKind.COMPLETED, outcome=outcome, text="There.", source="template", **more
        )

    def end(self, reason: str = "hung_up") -> Event:
        return self.take(Session, kind=SessionKind.ENDED, reason=reason, duration_ms=61_400)


@pytest.fixture
def line() -> Line:
    one = Line()
    one.begin()
    return one


def test_a_turn_that_called_a_tool_ends_as_the_tool_did(line: Line) -> None:
    line.answer(1, line.say(1, "it broke", "report", -0.5), "answered", tool="rejected")
    (end,) = line.ends
    wanted = {
        "outcome": "rejected",
        "intent": "report",
        "text": "it broke",
        "arguments": {"problem": "x"},
        "result": {"number": 7},
        "call_id": "c1",
        "sentiment": -0.5,
        "turn": 1,
        "reply": "There.",
        "agent": "shop",
        "tenant": "demo",
    }
    assert {name: end.facts[name] for name in wanted} == wanted
    assert str(end.facts["caller"]) == "+15550142"


@pytest.mark.parametrize(
    ("outcomes", "counted"),
    [(("ok", "rejected"), 0), (("rejected", "ok"), 1), (("ok", "ok"), 1), (("failed", "rejected"), 1), (("ok", ""), 0)],
)
def test_of_several_tools_in_a_turn_the_last_that_came_to_something_counts(
    line: Line, outcomes: tuple[str, ...], counted: int
) -> None:
    """The language model may choose more than one; the last one may not have returned."""
    cause = line.say(1, "it broke, and where is it", "none")
    for number, outcome in enumerate(outcomes):
        called = {"causation_id": cause, "tool": f"tool{number}", "tool_call_id": f"c{number}"}
        line.take(Response, 1, kind=ResponseKind.TOOL_CALLED, arguments=f'{{"number": {number}}}', **called)
        if outcome:
            line.take(Response, 1, kind=ResponseKind.TOOL_RETURNED, outcome=outcome, result="{}", **called)
    line.take(Response, 1, kind=ResponseKind.COMPLETED, outcome="answered", text="There.", causation_id=cause)
    (end,) = line.ends
    found = (end.facts["outcome"], end.facts["arguments"], end.facts["call_id"])
    assert found == (outcomes[counted], {"number": counted}, f"c{counted}")


def test_what_a_tool_read_ahead_counts_once_its_turn_is_committed(line: Line) -> None:
    cause = line.say(1, "where is it", "order_status", committed=False)
    line.answer(1, cause, "answered", tool="ok", committed=False)
    assert [end.facts["outcome"] for end in line.ends] == ["ok"]


def test_what_was_left_uncommitted_ends_nothing(line: Line) -> None:
    cause = line.say(1, "where is", "order_status", committed=False)
    line.take(Response, 1, kind=ResponseKind.CANCELLED, causation_id=cause, committed=False)
    assert line.ends == []


def test_a_repeat_ends_nothing_twice(line: Line) -> None:
    cause = line.say(1, "it broke", "report")
    done = line.take(Response, 1, kind=ResponseKind.COMPLETED, outcome="answered", causation_id=cause)
    assert line.call.take(done) is None
    assert len(line.ends) == 1


def test_the_greeting_ends_nothing_and_brings_the_callers_record(line: Line) -> None:
    record = '{"name": "Ada", "tier": "gold", "more": {"a": 1}, "none": null}'
    line.take(Response, kind=ResponseKind.TOOL_RETURNED, outcome="ok", result=record, tool="sap.find_customer")
    line.take(Response, kind=ResponseKind.COMPLETED, outcome="answered", text="Hello, Ada.")
    line.answer(1, line.say(1, "it broke", "report"))
    (end,) = line.ends
    caller = end.facts["caller"]
    assert (caller.name, caller.tier, caller.more, caller.unheard_of) == ("Ada", "gold", "", "")


@pytest.mark.parametrize(
    ("outcome", "tool", "reason", "disposition"),
    [
        ("answered", "ok", "hung_up", "resolved"),
        ("answered", "not_found", "hung_up", "unresolved"),
        ("failed", "failed", "hung_up", "unresolved"),
        ("escalated", "", "transferred", "escalated"),
        ("answered", "ok", "failed", "failed"),
    ],
)
def test_what_a_call_came_to(outcome: str, tool: str, reason: str, disposition: str, line: Line) -> None:
    line.answer(1, line.say(1, "it broke", "report"), outcome, tool)
    line.end(reason)
    assert line.call.disposition == disposition


def test_a_caller_who_says_nothing_has_left(line: Line) -> None:
    line.end()
    assert (line.call.disposition, line.call.summary()) == (
        "abandoned",
        "The caller said nothing. Came to: abandoned. Ended: hung_up.",
    )


def test_the_summary_is_in_the_callers_words(line: Line) -> None:
    line.answer(1, line.say(1, "my tent is broken, the pole snapped", "report"), tool="ok")
    for turn in range(2, 9):
        line.answer(turn, line.say(turn, "thanks", "thanks"))
    line.answer(9, line.say(9, "yes", "none"), "backchannel")
    end = line.call.call_end(line.end(), 64)
    summary = str(end.facts["summary"])
    assert '"my tent is broken, the pole snapped" (report: ok)' in summary
    assert '"yes"' not in summary
    assert len(summary) < 400
    assert (end.facts["duration_s"], end.facts["turns"], end.facts["health"]) == (61, 8, 64)
    assert str(end.facts["transcript"]).startswith("Caller: my tent is broken, the pole snapped\nAgent: There.\n")


def test_the_score_follows_mood_and_effect() -> None:
    scores = []
    for sentiment, tool in ((0.8, "ok"), (0.0, "ok"), (0.0, "failed"), (-0.8, "failed")):
        line = Line()
        line.begin()
        line.answer(1, line.say(1, "it broke", "report", sentiment), tool=tool)
        line.end()
        scores.append(line.call.score())
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 100 for score in scores)
    assert len(set(scores)) == 4


def test_a_customer_is_the_same_in_every_call_and_without_a_name() -> None:
    first, second, other, unknown = (Line() for _ in range(4))
    for line, caller in ((first, "+1"), (second, "+1"), (other, "+2"), (unknown, None)):
        line.begin(caller)
    assert first.call.customer == second.call.customer != other.call.customer
    assert "+1" not in first.call.customer
    assert replace(first.call, key=b"another").customer != first.call.customer
    assert unknown.call.customer == ""


def test_a_call_without_end_does_not_grow_without_end(line: Line) -> None:
    for turn in range(1, TURNS_MAX + 50):
        line.answer(turn, line.say(turn, "again", "report"))
    assert len(line.call.turns) == TURNS_MAX


@pytest.mark.parametrize("event", [event for cls in EVENTS for event in json_form.examples(cls)], ids=lambda e: e.NAME)
def test_every_kind_of_event_can_be_taken(event: Event) -> None:
    Call(event.session_id, KEY).take(event)


# ---- the file


def load(text: str, tmp_path: Path) -> Any:
    path = tmp_path / "workflows.yaml"
    path.write_text(text, encoding="utf-8")
    return load_workflows(path, load_adapters(Settings(data_dir=tmp_path, adapter_urls={"sap": "https://x"}), SAP))


def test_a_workflow_holds_where_all_that_it_names_holds(tmp_path: Path) -> None:
    follow_up, log = load(GOOD, tmp_path)
    facts = {"intent": "report", "outcome": "failed", "agent": "shop", "tenant": "demo", "sentiment": -0.2}
    assert follow_up.when.holds(facts)
    for name, value in (("intent", "other"), ("outcome", "ok"), ("sentiment", 0.2)):
        assert not follow_up.when.holds({**facts, name: value})
    assert log.when == When(ended="call")
    assert follow_up.errand_id("a") == follow_up.errand_id("a") != log.errand_id("a")
    assert load_workflows(None, {}) == ()


@pytest.mark.parametrize(
    ("given", "found", "line", "field", "expected"),
    [
        ("sap.create_ticket", "sap.create_tickets", 4, "workflows[0].operation", "sap.create_ticket"),
        ("sap.create_ticket", "sap.stock", 4, "workflows[0].operation", "an operation that writes, sap.stock reads"),
        ("problem: ", "problm: ", 6, "workflows[0].arguments.problm", "expected one of problem, order_number, caller"),
        ("{{ text }}", "{{ txt }}", 6, "workflows[0].arguments.problem", "unknown variable 'txt'"),
        ("{{ call_id }}", "{{ cal_id }}", 5, "workflows[0].key", "unknown variable 'cal_id'"),
        ("sentiment < 0", "sentiment <", 3, "workflows[0].when.condition", "expected a Jinja2 expression"),
        ("sentiment < 0", "mood < 0", 3, "workflows[0].when.condition", "unknown variable 'mood'"),
        ("name: log", "name: follow_up", 7, "workflows[1].name", "is used above"),
        ("{ended: call}", "{ended: calls}", 8, "workflows[1].when.ended", "found 'calls'"),
        ("{ended: call}", "{ended: call, intent: x}", 8, "workflows[1].when.intent", "expected none"),
        ("{{ summary }}", "{{ text }}", 10, "workflows[1].arguments.summary", "unknown variable 'text'"),
    ],
)
def test_a_mistake_is_named(given: str, found: str, line: int, field: str, expected: str, tmp_path: Path) -> None:
    assert given in GOOD
    with pytest.raises(ConfigError) as error:
        load(GOOD.replace(given, found, 1), tmp_path)
    said = [str(problem).removeprefix(f"{tmp_path}/") for problem in error.value.problems]
    assert any(one.startswith(f"workflows.yaml:{line}: {field}") and expected in one for one in said), said
