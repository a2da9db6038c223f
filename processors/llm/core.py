"""The conversation: the pure core of the llm stage.

A turn is answered from the agent's tools and templates first, from its knowledge documents next, and by the language
model last. It says its sentences as they become known and ends with exactly one `completed` or `cancelled`. Only one
turn speaks at a time; a tool that changes something is never abandoned halfway, even when nobody listens any more.

What a caller says while listening ("mm-hm"), and what the line sends back of the agent's own words, wants no answer:
its turn completes without a word, and the reply that is being made or heard goes on.

An intent that is not committed is answered ahead (`ahead.py`): the same steps are taken beside the conversation, its
sentences go out with `committed` false, tools with effects wait. The committed intent on the same words takes all of
that over, and nothing is said twice; anything else makes it void with a `cancelled` that is not committed.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from processors.agents import Agent, CallerRecord
from processors.backchannel import is_backchannel, is_echo
from processors.engine import ToolReturned
from processors.json_text import json_in
from processors.llm import memory as remembering
from processors.llm.ahead import Ahead
from processors.llm.answers import Answers, plain
from processors.llm.decide import Call, Look, Plan, Say, ask, decide, pick, shared_values
from processors.llm.knowledge import KnowledgeIndex
from processors.llm.memory import Memory
from processors.llm.patience import Patience
from processors.llm.requests import render_lookup, tool_call_id
from processors.llm.sentences import split_sentences
from processors.llm.state import State
from processors.llm.turn import (
    Turn,
    cancelled,
    complete,
    opened,
    respond,
)
from processors.stage import (
    ABANDONED,
    Answered,
    Ask,
    Cancel,
    Drop,
    End,
    Failed,
    Happening,
    Hold,
    Outcome,
    Received,
    Refuse,
    Release,
    Speculated,
    Step,
    Woken,
    abandonment,
)
from processors.templates import RenderError
from schemas.events import Control, ControlKind, Intent, IntentKind, Response, ResponseKind, Session, SessionKind

_CALLER = "-caller"
_ALL = 2**62
_OVERHEARD = ("backchannel", "echo")


class Conversation:
    """The core. `variables` are what tools' URLs and headers may use: `erp_url` and `secrets`."""

    def __init__(
        self,
        agents: Mapping[str, Agent],
        knowledge: Mapping[str, KnowledgeIndex],
        variables: Mapping[str, Any],
        short: Callable[[], bool] = lambda: False,
        busy: Callable[[], bool] = lambda: False,
        patience: Patience | None = None,
    ) -> None:
        """`short` says whether answers from documents and the model are one sentence now, as they are under load.

        `busy` says that engines have no time for what may be in vain: a turn ahead then asks none before it is
        committed. What was already said of an answer stays said, so that a repeated step may find it otherwise.
        `patience` says whether the language model is asked at all; without one it always is.
        """
        self._agents = agents
        self._answers = Answers(agents, knowledge, variables, short, busy, patience or Patience(math.inf))

    def start(self, session_id: str) -> State:
        """See `Core`."""
        return State(session_id)

    def save(self, state: State) -> bytes:
        """See `Core`: open turns are not in it, since their records come again."""
        return b"" if state.memory == Memory() else msgspec.msgpack.encode(state.memory)

    def load(self, session_id: str, data: bytes) -> State:
        """See `Core`."""
        return State.remembered(session_id, msgspec.msgpack.decode(data, type=Memory) if data else Memory())

    def apply(self, state: State, happening: Happening, now_us: int) -> Step[State]:
        """See `Core`."""
        step = self._apply(state, happening, now_us)
        gone, held = state.held - step.state.held, step.state.held
        if not gone:
            return step
        before = min((position.offset for position in held), default=_ALL)
        return Step(step.state, (*step.outcomes, Release(Intent.TOPIC, before)))

    def _apply(self, state: State, happening: Happening, now_us: int) -> Step[State]:
        match happening:
            case Received(Session() as event):
                return self._session(state, event, happening.recorded, now_us)
            case Received(Intent() as event):
                return self._intent(state, event, happening, now_us)
            case Received(Control() as event):
                return self._control(state, event, now_us)
            case Woken(name) if name == ABANDONED:
                return Step(*self._leave(state, now_us))
            case Woken(name) | Answered(name) | Failed(name):
                ahead = state.ahead
                if ahead is not None and ahead.turn is not None and ahead.turn.ask_id == name:
                    return self._go_ahead(
                        state, ahead, self._turn(_beside(state, ahead), happening, name, now_us), now_us
                    )
                return self._ended_if_drained(self._turn(state, happening, name, now_us))
            case _:
                return Step(state)

    def _turn(self, state: State, happening: Woken | Answered | Failed, ask_id: str, now_us: int) -> Step[State]:
        """Goes on with the turn that asked."""
        turn = next((turn for turn in state.open if turn.ask_id == ask_id), None)
        if turn is None:
            return Step(state)
        if isinstance(happening, Woken):
            return self._answers.woken(state, turn, now_us)
        if ask_id.endswith(_CALLER):
            return self._introduced(state, turn, happening, now_us)
        return self._answers.advance(state, turn, happening, now_us)

    # ---- what comes in

    def _session(self, state: State, event: Session, recorded: tuple[Any, ...], now_us: int) -> Step[State]:
        agent = self._agents.get(event.agent_id)
        if event.kind is SessionKind.ENDED:
            return self._end(state, now_us)
        if agent is None:
            return Step(state, (Drop("unknown_agent"),))
        state = replace(state, memory=remembering.introduce(state.memory, event.caller, event.context))
        if event.kind is not SessionKind.STARTED:
            return Step(state)
        if state.memory.turn >= 0 and not recorded:
            return Step(state, (Drop("late_greeting"),))
        turn = opened(event, 0, recorded)
        if agent.caller_record is not None and state.memory.caller:
            return self._introduce(state, agent, turn, agent.caller_record, now_us)
        return self._greet(state, agent, turn, now_us)

    def _greet(self, state: State, agent: Agent, turn: Turn, now_us: int) -> Step[State]:
        greeting = pick(agent.greeting, 0)
        return self._answers.say(
            state, agent, turn, Say(self._answers.render(agent, state.memory, greeting), "greeting"), now_us
        )

    def _introduce(self, state: State, agent: Agent, turn: Turn, record: CallerRecord, now_us: int) -> Step[State]:
        """Asks who calls; the greeting waits for it, and does without where it does not come in time."""
        returned = turn.recorded_of(ResponseKind.TOOL_RETURNED)
        if returned is not None:
            state = _recognised(state, json_in(returned.result) if returned.outcome == "ok" else None)
        if returned is not None or turn.terminal is not None or turn.recorded_sentences():
            return self._greet(state, agent, turn, now_us)
        call_id = tool_call_id(state.session_id, turn.number, record.operation, {})
        try:
            request = render_lookup(record, call_id, shared_values(agent, state.memory))
        except RenderError:
            return self._greet(state, agent, turn, now_us)
        turn = replace(turn, ask_id=f"turn-{turn.number}{_CALLER}")
        called = respond(
            turn, "tool-called", ResponseKind.TOOL_CALLED, now_us, tool=record.operation, tool_call_id=call_id
        )
        return Step(state.with_turn(turn), (called, Ask(turn.ask_id, "tools", request, record.deadline_ms / 1000)))

    def _introduced(self, state: State, turn: Turn, happening: Answered | Failed, now_us: int) -> Step[State]:
        agent = self._agents[turn.cause.agent_id]
        assert agent.caller_record is not None, "its answer has come"
        reply = happening.reply if isinstance(happening, Answered) else None
        text, compute_ms, outcome = "", 0.0, "failed"
        if isinstance(reply, ToolReturned):
            text, compute_ms, outcome = reply.body.decode("utf-8", "replace"), reply.compute_ms, reply.outcome
        elif isinstance(happening, Failed) and happening.reason == "timeout":
            outcome = "timeout"
        known = json_in(text) if outcome == "ok" else None
        returned = respond(
            turn,
            "tool-returned",
            ResponseKind.TOOL_RETURNED,
            now_us,
            tool=agent.caller_record.operation,
            tool_call_id=tool_call_id(state.session_id, turn.number, agent.caller_record.operation, {}),
            result=text if known is not None else "",
            outcome=outcome,
            compute_ms=compute_ms,
        )
        step = self._greet(_recognised(state, known), agent, replace(turn, ask_id=""), now_us)
        return Step(step.state, (returned, *step.outcomes))

    def _intent(self, state: State, event: Intent, received: Received, now_us: int) -> Step[State]:
        agent = self._agents.get(event.agent_id)
        if agent is None:
            return Step(state, (Refuse("unknown_agent", f"no agent is called {event.agent_id!r}"),))
        ahead = state.ahead
        if event.kind is IntentKind.WITHDRAWN:
            void = ahead is not None and (ahead.intent.turn, ahead.intent.revision) <= (event.turn, event.revision)
            return Step(*self._leave(state, now_us)) if void else Step(state)
        if event.turn <= max(0, state.memory.turn) or state.memory.ending:
            return Step(state, (Drop("late_turn"),))
        was_overheard = _overheard_before(received.recorded)
        if event.committed and ahead is not None and ahead.is_committed_by(event) and not was_overheard:
            return self._commit(state, agent, ahead, now_us)
        state, outcomes = self._leave(state, now_us)
        if overheard := _overheard(state, event, received.recorded):
            step = self._let_be(state, event, received.recorded, overheard, now_us)
            return Step(step.state, (*outcomes, *step.outcomes))
        if not event.committed:
            # The turn before it is over once this one is committed; until then it goes on being answered.
            beside, _ = self._silence(state, now_us)
            ahead = Ahead(event, received.position, beside.memory)
            begun = self._begin(_beside(state, ahead), agent, event, received.recorded, now_us)
            step = self._go_ahead(state, ahead, begun, now_us)
            return Step(step.state, (*outcomes, Hold(), Speculated("begun"), abandonment(now_us), *step.outcomes))
        state, silenced = self._silence(state, now_us)
        step = self._begin(state, agent, event, received.recorded, now_us)
        return Step(step.state, (*outcomes, *silenced, *step.outcomes))

    def _let_be(self, state: State, event: Intent, recorded: tuple[Any, ...], outcome: str, now_us: int) -> Step[State]:
        """The turn takes place without a word; nothing is worked ahead on it."""
        if not event.committed:
            return Step(state)
        state = replace(state, memory=msgspec.structs.replace(state.memory, turn=event.turn))
        return Step(state, tuple(complete(opened(event, event.turn, recorded), outcome, now_us)))

    def _begin(self, state: State, agent: Agent, event: Intent, recorded: tuple[Any, ...], now_us: int) -> Step[State]:
        state = replace(state, memory=msgspec.structs.replace(state.memory, turn=event.turn))
        plan = self._plan(agent, state.memory, event, recorded)
        turn = opened(event, event.turn, recorded, _intent_of(plan))
        if not isinstance(plan, Say) and not turn.committed and self._answers.waits(agent, plan):
            return Step(state.with_turn(replace(turn, later=plan)))
        return self._answers.follow(state, agent, turn, plan, now_us)

    # ---- ahead of the commitment

    def _go_ahead(self, state: State, ahead: Ahead, step: Step[State], now_us: int) -> Step[State]:
        """Takes over a step that was taken beside the conversation."""
        turn = step.state.open[0] if step.state.open else None
        ahead, outcomes = ahead.went_on(step.state.memory, turn, step.outcomes, now_us)
        return Step(replace(state, ahead=ahead), tuple(outcomes))

    def _commit(self, state: State, agent: Agent, ahead: Ahead, now_us: int) -> Step[State]:
        """What was answered ahead becomes the answer."""
        state, outcomes = self._silence(state, now_us)
        memory = ahead.joined(state.memory, agent.limits.history_turns)
        state = replace(state, memory=memory, ahead=None)
        outcomes += [Speculated("used", ahead.spent_ms(now_us)), *ahead.committed_end(now_us)]
        if ahead.turn is None:
            return Step(state.says(ahead.intent.turn), tuple(outcomes))
        turn, later = replace(ahead.turn, committed=True, held=ahead.position, later=None), ahead.turn.later
        step = Step(state.with_turn(turn)) if later is None else self._answers.follow(state, agent, turn, later, now_us)
        return Step(step.state, (*outcomes, *step.outcomes))

    def _leave(self, state: State, now_us: int) -> tuple[State, tuple[Outcome, ...]]:
        """What was answered ahead is void."""
        if state.ahead is None:
            return state, ()
        return replace(state, ahead=None), tuple(state.ahead.leave(now_us))

    def _plan(self, agent: Agent, memory: Memory, event: Intent, recorded: tuple[Any, ...]) -> Plan:
        """The plan; a tool that was already called for this record stays the plan whatever is known now."""
        for known in recorded:
            if isinstance(known, Response) and known.kind is ResponseKind.TOOL_CALLED:
                spec = agent.intent(known.intent)
                if known.source == "model":
                    return Look(spec)
                if spec is not None and spec.tool == known.tool:
                    return Call(spec, json.loads(known.arguments))
        try:
            plan = decide(agent, memory, event)
            return _asked_before(agent, memory, event, recorded) or plan if isinstance(plan, Look) else plan
        except RenderError:
            return Say(plain(agent.texts.apology), "apology", event.intent, outcome="failed")

    def _control(self, state: State, event: Control, now_us: int) -> Step[State]:
        match event.kind:
            case ControlKind.BARGE_IN:
                step = self._barge_in(state, event, now_us)
                return Step(step.state.heard_out(event.turn, event.occurred_at), step.outcomes)
            case ControlKind.PLAYOUT if event.reason == "end_of_turn":
                return Step(state.heard_out(event.turn, event.occurred_at))
            case ControlKind.HANG_UP | ControlKind.ERASE | ControlKind.ERASED:
                return self._end(state, now_us)
            case ControlKind.TRANSFER:
                state, void = self._leave(state, now_us)
                silent, outcomes = self._silence(state, now_us)
                return Step(silent, (*void, *outcomes))
            case _:
                return Step(state)

    def _barge_in(self, state: State, event: Control, now_us: int) -> Step[State]:
        outcomes: list[Outcome] = []
        ahead = state.ahead
        if ahead is not None and ahead.intent.turn <= event.turn:
            # Its words are final, and were heard, though the intent that says so is still on its way.
            beside = self._barge_in(_beside(state, ahead), event, now_us)
            step = self._go_ahead(state, ahead, beside, now_us)
            state, outcomes = step.state, list(step.outcomes)
        if state.speaking is not None and state.speaking.number <= event.turn:
            state, silenced = self._silence(state, now_us)
            outcomes += silenced
        heard = remembering.heard_until(state.memory, event)
        return Step(replace(state, memory=heard), tuple(outcomes))

    def _end(self, state: State, now_us: int) -> Step[State]:
        state, void = self._leave(state, now_us)
        state, outcomes = self._silence(state, now_us)
        state = replace(state, memory=msgspec.structs.replace(state.memory, ending=True))
        return self._ended_if_drained(Step(state, (*void, *outcomes)))

    def _ended_if_drained(self, step: Step[State]) -> Step[State]:
        if step.state.memory.ending and not step.state.open:
            return Step(step.state, (*step.outcomes, End()))
        return step

    def _silence(self, state: State, now_us: int) -> tuple[State, list[Outcome]]:
        """Stops the turn that is speaking. A tool with an effect is let finish, so that what it did is on record."""
        turn = state.speaking
        if turn is None:
            return state, []
        if turn.call is not None and self._answers.acts(turn):
            return state.with_turn(replace(turn, void=True)), []
        outcomes: list[Outcome] = [Cancel(turn.ask_id)] if turn.ask_id else []
        outcomes += cancelled(turn, now_us)
        return self._answers.closed(state, turn), outcomes


def _overheard(state: State, event: Intent, recorded: tuple[Any, ...]) -> str:
    """The outcome of a turn that wants no answer, empty for any other; what the log has of it stays as it was.

    Where the agent has asked for something, any words are an answer.
    """
    if recorded:
        return _overheard_before(recorded)
    asked = state.memory.pending is not None and not state.memory.pending.optional
    if asked or not state.is_over_reply(event):
        return ""
    if is_backchannel(event.text):
        return "backchannel"
    return "echo" if is_echo(event.text, state.said) else ""


def _overheard_before(recorded: tuple[Any, ...]) -> str:
    """The outcome of a turn that an earlier owner left without an answer, empty for any other."""
    return next((known.outcome for known in recorded if known.outcome in _OVERHEARD), "")


def _asked_before(agent: Agent, memory: Memory, event: Intent, recorded: tuple[Any, ...]) -> Say | None:
    """The question that the log has of this turn, where it came of a choice of the model's; raises RenderError.

    What else the model had chosen by then is not known any more: it is asked for again.
    """
    told = [known for known in recorded if isinstance(known, Response) and known.kind is ResponseKind.SENTENCE]
    spec = agent.intent(told[0].intent) if told and told[0].source == "clarification" else None
    for slot in spec.required if spec is not None else ():
        question = ask(agent, memory, spec, slot, {}) if spec is not None else None
        if question is not None and split_sentences(question.text)[: len(told)] == tuple(one.text for one in told):
            return question
    return None


def _intent_of(plan: Plan) -> str:
    if isinstance(plan, Say):
        return plan.intent
    return plan.spec.name if plan.spec is not None else ""


def _recognised(state: State, record: Any) -> State:
    return replace(state, memory=remembering.recognise(state.memory, record))


def _beside(state: State, ahead: Ahead) -> State:
    """The conversation as it would be if the intent were committed."""
    return State(state.session_id, ahead.memory, () if ahead.turn is None else (ahead.turn,))
