"""The intent core: which intent, when none, and what a repeat or a lost engine changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from processors.agents import load_agents
from processors.engine import Embed, Embedded
from processors.intent import keywords
from processors.intent.core import Examples, IntentCore, State, confidence_of, readings
from processors.stage import (
    Answered,
    Ask,
    Cancel,
    Drop,
    Emit,
    End,
    Failed,
    Hold,
    Position,
    Received,
    Refuse,
    Release,
    Speculated,
    Wake,
    Woken,
    event_id,
)
from schemas.events import Intent, IntentKind, Session, SessionKind, Transcript, TranscriptKind

AGENTS = load_agents(Path(__file__).parents[3] / "infra" / "agents")
NOW_US = 1_763_900_000_000_000
AXES = {"order_status": 0, "goodbye": 1}


def core() -> IntentCore:
    vectors = np.eye(2, 3, dtype=np.float32)
    return IntentCore(AGENTS, {"shop": Examples(tuple(AXES), vectors)})


def a_final(text: str, **fields: Any) -> Transcript:
    envelope: dict[str, Any] = {
        "event_id": "f1",
        "session_id": "s1",
        "tenant_id": "demo",
        "agent_id": "shop",
        "turn": 1,
        "seq": 3,
        "occurred_at": NOW_US,
    }
    return Transcript(**{**envelope, "kind": TranscriptKind.FINAL, "utterance": 0, "text": text, **fields})


def received(event: Any, recorded: tuple[Any, ...] = ()) -> Received:
    return Received(event, Position(event.TOPIC, 0, 7), recorded)


def embedded(*rows: tuple[float, float, float]) -> Embedded:
    return Embedded(np.array(rows, np.float32).tobytes(), 3, "minilm", 4.0)


def judged(text: str, *rows: tuple[float, float, float]) -> Intent:
    stage = core()
    asked = stage.apply(stage.start("s1"), received(a_final(text)), NOW_US)
    (ask,) = asked.outcomes
    assert isinstance(ask, Ask)
    answered = stage.apply(asked.state, Answered(ask.ask_id, embedded(*rows), last=True), NOW_US)
    (emit,) = answered.outcomes
    assert isinstance(emit, Emit)
    assert isinstance(emit.event, Intent)
    assert answered.state.pending == {}
    return emit.event


def test_the_nearest_example_names_the_intent() -> None:
    intent = judged("Where is order one zero four two?", (0.9, 0.1, 0.4))
    assert intent.intent == "order_status"
    assert intent.confidence == 1.0
    assert [(entity.name, entity.value) for entity in intent.entities] == [("order_number", "1042")]
    assert intent.event_id == event_id("f1", "detected")
    assert intent.causation_id == "f1"


def test_none_of_these_is_an_answer_and_names_what_came_nearest() -> None:
    intent = judged("Purple monkeys.", (0.2, 0.3, 0.9))
    assert intent.intent == "none"
    assert intent.confidence == pytest.approx(1 - confidence_of(0.3))
    assert intent.alternatives[0].intent == "goodbye"


def test_one_clear_sentence_of_several_is_enough() -> None:
    intent = judged("Hello there my friend. Goodbye then.", (0.1, 0.3, 0.9), (0.0, 0.1, 1.0), (0.0, 0.95, 0.1))
    assert intent.intent == "goodbye"


def test_without_embeddings_the_words_decide_and_the_confidence_says_so() -> None:
    stage = core()
    asked = stage.apply(stage.start("s1"), received(a_final("Where is my order?")), NOW_US)
    step = stage.apply(asked.state, Failed("f1", "crashed"), NOW_US)
    (emit,) = step.outcomes
    assert isinstance(emit, Emit)
    assert isinstance(emit.event, Intent)
    assert (emit.event.intent, emit.event.model) == ("order_status", keywords.MODEL)
    assert emit.event.confidence <= 0.6


def test_vectors_of_another_size_count_as_no_answer() -> None:
    """They come of an engine that was restarted with another model; a core must not fall over them."""
    stage = core()
    asked = stage.apply(stage.start("s1"), received(a_final("where is my order")), NOW_US)
    other = Embedded(np.ones((1, 5), np.float32).tobytes(), 5, "other", 4.0)
    (emit,) = stage.apply(asked.state, Answered("f1", other, last=True), NOW_US).outcomes
    assert isinstance(emit, Emit)
    assert isinstance(emit.event, Intent)
    assert (emit.event.intent, emit.event.model) == ("order_status", keywords.MODEL)


def test_what_no_engine_could_read_is_passed_on_as_no_intent() -> None:
    stage = core()
    step = stage.apply(stage.start("s1"), received(a_final("", failure="timeout")), NOW_US)
    (emit,) = step.outcomes
    assert isinstance(emit, Emit)
    assert isinstance(emit.event, Intent)
    assert (emit.event.intent, emit.event.text, emit.event.turn) == ("none", "", 1)
    assert step.state.pending == {}


def test_what_is_recorded_is_not_asked_again() -> None:
    stage = core()
    said = judged("Goodbye.", (0.0, 1.0, 0.0))
    assert stage.apply(stage.start("s1"), received(a_final("Goodbye."), (said,)), NOW_US).outcomes == ()


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (a_final("Hello.", agent_id="nobody"), Refuse),
        (a_final("  "), Drop),
        (
            Session(
                event_id="e",
                session_id="s1",
                tenant_id="demo",
                agent_id="shop",
                turn=0,
                seq=9,
                occurred_at=NOW_US,
                kind=SessionKind.ENDED,
            ),
            End,
        ),
    ],
)
def test_what_is_not_judged(event: Any, outcome: type) -> None:
    stage = core()
    (found,) = stage.apply(stage.start("s1"), received(event), NOW_US).outcomes
    assert isinstance(found, outcome)


def test_partials_and_foreign_answers_change_nothing() -> None:
    stage = core()
    state = stage.start("s1")
    partial = a_final("Where is", kind=TranscriptKind.PARTIAL)
    assert stage.apply(state, received(partial), NOW_US).outcomes == ()
    assert stage.apply(state, Answered("other", embedded((1, 0, 0)), last=True), NOW_US).outcomes == ()


def test_a_text_of_one_sentence_has_one_reading() -> None:
    assert readings("Where is my order?") == ["Where is my order?"]
    assert readings("Hi. Where is my order? It is 1042.") == [
        "Hi. Where is my order? It is 1042.",
        "Where is my order?",
        "It is 1042.",
    ]
    assert isinstance(Embed(tuple(readings("x"))), Embed)


# ---- ahead of the final


def a_partial(text: str, revision: int = 1, **fields: Any) -> Transcript:
    given = {"event_id": f"p{revision}", "kind": TranscriptKind.PARTIAL, "pause_ms": 100, "revision": revision}
    return a_final(text, **{**given, **fields})


def resumed(revision: int = 1) -> Transcript:
    return a_final("", event_id=f"r{revision}", kind=TranscriptKind.SPEECH_RESUMED, revision=revision)


def stepped(stage: IntentCore, *happenings: Any) -> tuple[State, list[Any]]:
    state, outcomes = stage.start("s1"), list[Any]()
    for happening in happenings:
        step = stage.apply(state, happening, NOW_US)
        state = step.state
        outcomes += step.outcomes
    return state, outcomes


def intents(outcomes: list[Any]) -> list[Intent]:
    events = [outcome.event for outcome in outcomes if isinstance(outcome, Emit)]
    return [event for event in events if isinstance(event, Intent)]


GOODBYE = Answered("p1", embedded((0.0, 1.0, 0.0)), last=True)


def test_words_at_a_pause_are_judged_and_the_final_takes_the_judgement_over() -> None:
    heard = (received(a_partial("Goodbye.")), GOODBYE, received(a_final("Goodbye.", revision=1)))
    state, outcomes = stepped(core(), *heard)
    ahead, final = intents(outcomes)
    assert (ahead.committed, ahead.revision, ahead.turn) == (False, 1, 1)
    assert (final.committed, final.event_id, final.causation_id) == (True, event_id("f1", "detected"), "f1")
    assert (final.intent, final.confidence, final.text) == (ahead.intent, ahead.confidence, "Goodbye.")
    assert len([outcome for outcome in outcomes if isinstance(outcome, Ask)]) == 1
    assert Hold() in outcomes
    assert Release(Transcript.TOPIC, 8) in outcomes
    assert (dict(state.pending), state.ahead) == ({}, None)


def test_words_that_nobody_commits_or_withdraws_are_let_go() -> None:
    state, outcomes = stepped(core(), received(a_partial("Goodbye.")))
    (timer,) = [outcome for outcome in outcomes if isinstance(outcome, Wake)]
    state, outcomes = stepped(core(), received(a_partial("Goodbye.")), GOODBYE, Woken(timer.name))
    assert Release(Transcript.TOPIC, 8) in outcomes
    assert state == core().start("s1")


def test_a_final_that_comes_before_the_judgement_is_what_is_judged() -> None:
    state, outcomes = stepped(
        core(), received(a_partial("Goodbye.")), received(a_final("Goodbye.", revision=1)), GOODBYE
    )
    (only,) = intents(outcomes)
    assert (only.committed, only.causation_id, only.intent) == (True, "f1", "goodbye")
    assert (dict(state.pending), state.ahead) == ({}, None)


@pytest.mark.parametrize(("text", "revision"), [("Goodbye now.", 1), ("Goodbye.", 2)])
def test_a_final_of_other_words_is_judged_anew(text: str, revision: int) -> None:
    heard = (received(a_partial("Goodbye.")), GOODBYE, received(a_final(text, revision=revision)))
    state, outcomes = stepped(core(), *heard)
    assert [outcome.ask_id for outcome in outcomes if isinstance(outcome, Ask)] == ["p1", "f1"]
    assert Speculated("void", 4.0) in outcomes
    assert state.ahead is None


def test_a_caller_who_goes_on_makes_what_was_begun_void() -> None:
    state, outcomes = stepped(core(), received(a_partial("Goodbye.")), GOODBYE, received(resumed()))
    ahead, withdrawn = intents(outcomes)
    assert (withdrawn.kind, withdrawn.committed, withdrawn.revision) == (IntentKind.WITHDRAWN, False, 1)
    assert withdrawn.turn == ahead.turn
    assert Release(Transcript.TOPIC, 8) in outcomes
    assert state.ahead is None


def test_a_caller_who_goes_on_stops_the_judgement_that_is_on_its_way() -> None:
    state, outcomes = stepped(core(), received(a_partial("Goodbye.")), received(resumed()), GOODBYE)
    assert intents(outcomes) == []
    assert Cancel("p1") in outcomes
    assert state == core().start("s1")


def test_after_a_crash_the_recorded_judgement_is_the_one_that_is_committed() -> None:
    (said,) = intents(stepped(core(), received(a_partial("Goodbye.")), GOODBYE)[1])
    _, outcomes = stepped(core(), received(a_partial("Goodbye."), (said,)), received(a_final("Goodbye.", revision=1)))
    (final,) = intents(outcomes)
    assert (final.committed, final.intent) == (True, "goodbye")
    assert not [outcome for outcome in outcomes if isinstance(outcome, Ask)]


@pytest.mark.parametrize("first_comes_again", [True, False])
def test_after_a_crash_a_recorded_withdrawal_is_no_judgement(first_comes_again: bool) -> None:
    vectors = Examples(tuple(AXES), np.eye(2, 3, dtype=np.float32))
    times = iter([True, False])
    busy = IntentCore(AGENTS, {"shop": vectors}, lambda: next(times))
    one, two = a_partial("Goodbye."), a_partial("Goodbye then.", revision=2)
    said, withdrawn = intents(stepped(busy, received(one), GOODBYE, received(two))[1])
    assert (withdrawn.kind, withdrawn.causation_id) == (IntentKind.WITHDRAWN, "p2")

    again = (received(one, (said,)),) if first_comes_again else ()
    final = (received(a_final("Goodbye then.", revision=2)), Answered("f1", embedded((0.0, 1.0, 0.0)), last=True))
    *repeated, last = intents(stepped(core(), *again, received(two, (withdrawn,)), *final)[1])
    assert [event.event_id for event in repeated] == [withdrawn.event_id] * first_comes_again
    assert (last.kind, last.committed, last.intent) == (IntentKind.DETECTED, True, "goodbye")
    assert (last.event_id, last.text) == (event_id("f1", "detected"), "Goodbye then.")


def test_after_a_crash_a_judgement_is_found_among_all_that_is_recorded() -> None:
    (said,) = intents(stepped(core(), received(a_partial("Goodbye.")), GOODBYE)[1])
    both = (replace(said, event_id="w1", kind=IntentKind.WITHDRAWN), said)
    _, outcomes = stepped(core(), received(a_partial("Goodbye."), both), received(a_final("Goodbye.", revision=1)))
    (final,) = intents(outcomes)
    assert (final.kind, final.intent) == (IntentKind.DETECTED, "goodbye")


@pytest.mark.parametrize("partial", [a_partial("Goodbye.", pause_ms=0), a_partial(" ")])
def test_words_in_full_flow_are_not_judged(partial: Transcript) -> None:
    assert stepped(core(), received(partial)) == (core().start("s1"), [])


def test_nothing_is_begun_where_there_is_no_time_or_the_agent_does_not_want_it() -> None:
    vectors = Examples(tuple(AXES), np.eye(2, 3, dtype=np.float32))
    busy = IntentCore(AGENTS, {"shop": vectors}, lambda: False)
    assert stepped(busy, received(a_partial("Goodbye.")))[1] == [Drop("no_time_to_speculate")]
    shop = AGENTS["shop"]
    patient = shop.model_copy(update={"pauses": shop.pauses.model_copy(update={"speculate": False})})
    assert stepped(IntentCore({"shop": patient}, {"shop": vectors}), received(a_partial("Goodbye.")))[1] == []


ORDER = embedded((0.9, 0.1, 0.4))


def in_two_parts(first: str, gap_ms: int, second: str, *between: Any, **fields: Any) -> list[Any]:
    """A final that ended at 2300 ms, and one that follows it after so long; each is answered."""
    one = a_final(first, audio_end_ms=2000, pause_ms=300)
    two = a_final(second, event_id="f2", turn=2, utterance=1, audio_start_ms=2300 + gap_ms, **fields)
    return [received(one), Answered("f1", ORDER, last=True), *between, received(two), Answered("f2", ORDER, last=True)]


@pytest.mark.parametrize(
    ("gap_ms", "text", "number"), [(0, "Order one zero. Four two.", "1042"), (250, "Order one zero. Four two.", "1042")]
)
def test_a_caller_who_goes_on_before_there_was_a_reply_is_understood_as_a_whole(
    gap_ms: int, text: str, number: str
) -> None:
    last = intents(stepped(core(), *in_two_parts("Order one zero.", gap_ms, "Four two."))[1])[-1]
    assert (last.text, last.turn) == (text, 2)
    assert [entity.value for entity in last.entities if entity.name == "order_number"] == [number]


@pytest.mark.parametrize("gap_ms", [-100, 251, 5000])
def test_what_is_said_after_a_reply_stands_alone(gap_ms: int) -> None:
    last = intents(stepped(core(), *in_two_parts("Order one zero.", gap_ms, "Four two."))[1])[-1]
    assert last.text == "Four two."


def test_a_third_part_goes_on_with_both() -> None:
    three = a_final("And where is it?", event_id="f3", turn=3, utterance=2, audio_start_ms=4000)
    parts = in_two_parts("Order one zero.", 100, "Four two.", audio_end_ms=3500, pause_ms=300)
    last = intents(stepped(core(), *parts, received(three), Answered("f3", ORDER, last=True))[1])[-1]
    assert last.text == "Order one zero. Four two. And where is it?"


def test_what_goes_on_is_judged_ahead_as_a_whole_too() -> None:
    one = a_final("Order one zero.", audio_end_ms=2000, pause_ms=300)
    more = {"turn": 2, "utterance": 1, "revision": 1, "audio_start_ms": 2400}
    ahead = a_partial("Four two.", **more)
    final = a_final("Four two.", event_id="f2", **more)
    heard = (received(one), Answered("f1", ORDER, last=True), received(ahead), Answered("p1", ORDER, last=True))
    _, *rest = intents(stepped(core(), *heard, received(final))[1])
    assert [(intent.committed, intent.text) for intent in rest] == [
        (False, "Order one zero. Four two."),
        (True, "Order one zero. Four two."),
    ]


RETURN = "I want to return my tent."
RETURNED = Answered("f1", embedded((0.9, 0.1, 0.4)), last=True)


def returning() -> IntentCore:
    """Takes what is near the first axis for a return, which has an effect."""
    return IntentCore(AGENTS, {"shop": Examples(("start_return",), np.eye(1, 3, dtype=np.float32))})


def said_first(text: str, **fields: Any) -> Transcript:
    return a_final(text, audio_end_ms=2000, pause_ms=300, **fields)


def said_next(text: str, **fields: Any) -> Transcript:
    given: dict[str, Any] = {"event_id": "f2", "turn": 2, "utterance": 1, "audio_start_ms": 2400}
    return a_final(text, **{**given, **fields})


def next_ahead(text: str) -> Transcript:
    return said_next(text, event_id="p2", kind=TranscriptKind.PARTIAL, pause_ms=100, revision=1)


def test_what_may_have_had_its_effect_is_not_judged_again() -> None:
    last = intents(stepped(returning(), *in_two_parts(RETURN, 100, "Please."))[1])[-1]
    assert last.text == "Please."


@pytest.mark.parametrize(
    "before",
    [
        pytest.param((), id="the final alone"),
        pytest.param((received(a_partial(RETURN)),), id="its words are being judged"),
        pytest.param((received(a_partial(RETURN)), replace(RETURNED, ask_id="p1")), id="its words are judged"),
    ],
)
def test_what_had_its_effect_before_a_crash_is_not_judged_again(before: tuple[Any, ...]) -> None:
    first = said_first(RETURN, revision=1)
    recorded = intents(stepped(returning(), received(first), RETURNED)[1])
    heard = (*before, received(first, tuple(recorded)), received(said_next("Please.")))
    last = intents(stepped(returning(), *heard, replace(RETURNED, ask_id="f2"))[1])[-1]
    assert (last.turn, last.text) == (2, "Please.")


def test_what_is_recorded_of_an_agent_that_is_gone_is_passed_over() -> None:
    (said,) = intents(stepped(core(), received(a_final("Goodbye.")), replace(GOODBYE, ask_id="f1"))[1])
    final, known = a_final("Goodbye.", agent_id="nobody"), replace(said, agent_id="nobody")
    assert stepped(core(), received(final, (known,)))[1] == []


def test_after_a_crash_a_third_part_goes_on_with_what_was_judged() -> None:
    parts = in_two_parts("Order one zero.", 100, "Four two.", audio_end_ms=3500, pause_ms=300)
    whole = intents(stepped(core(), *parts)[1])[-1]
    three = a_final("And where is it?", event_id="f3", turn=3, utterance=2, audio_start_ms=4000)
    heard = (received(parts[2].event, (whole,)), received(three), Answered("f3", ORDER, last=True))
    assert intents(stepped(core(), *heard)[1])[-1].text == "Order one zero. Four two. And where is it?"


@pytest.mark.parametrize(
    ("ahead", "order"),
    [
        (False, "first final next"),
        (False, "final first next"),
        (False, "final next first"),
        (True, "first final next"),
        (True, "final first next"),
        (True, "first next final"),
        (True, "next first final"),
    ],
)
def test_what_is_still_being_judged_is_not_judged_together_with_what_follows(ahead: bool, order: str) -> None:
    """Whichever comes first of the slow answer, the final of the next words, and the answer to those."""
    partial = (received(next_ahead("Please.")),) if ahead else ()
    come = {
        "first": RETURNED,
        "final": received(said_next("Please.", revision=int(ahead))),
        "next": Answered("p2" if ahead else "f2", embedded((0.0, 0.0, 1.0)), last=True),
    }
    heard = (received(said_first(RETURN)), *partial, *(come[name] for name in order.split()))
    committed = [intent for intent in intents(stepped(returning(), *heard)[1]) if intent.committed]
    found = sorted((intent.turn, intent.text, intent.intent) for intent in committed)
    assert found == [(1, RETURN, "start_return"), (2, "Please.", "none")]


def test_words_judged_by_themselves_are_committed_so() -> None:
    """Whoever went on from the judgement goes by the words alone; what comes third goes on with what was judged."""
    first = (received(said_first("Order one zero.")), received(next_ahead("Four two.")))
    answers = (Answered("f1", ORDER, last=True), Answered("p2", ORDER, last=True))
    final = received(said_next("Four two.", revision=1, audio_end_ms=3500, pause_ms=300))
    three = a_final("And where is it?", event_id="f3", turn=3, utterance=2, audio_start_ms=4000)
    third = (received(three), Answered("f3", ORDER, last=True))
    found = intents(stepped(core(), *first, *answers, final, *third)[1])
    assert [(intent.text, intent.committed) for intent in found] == [
        ("Order one zero.", True),
        ("Four two.", False),
        ("Four two.", True),
        ("Four two. And where is it?", True),
    ]
