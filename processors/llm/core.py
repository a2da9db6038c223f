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

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

import msgspec
import numpy as np

from processors.agents import Agent, CallerRecord, IntentSpec, Tool
from processors.backchannel import is_backchannel, is_echo
from processors.engine import Chosen, Embed, Embedded, Generated, ToolReturned
from processors.llm import memory as remembering
from processors.llm.afterwards import after_choice, after_tool, keep
from processors.llm.ahead import Ahead
from processors.llm.chat import asked, is_sayable, said
from processors.llm.decide import Call, Look, Plan, Say, ask, decide, pick, shared_values, template_values
from processors.llm.grounding import is_repetitive
from processors.llm.knowledge import Hit, KnowledgeIndex
from processors.llm.memory import Exchange, Memory
from processors.llm.offers import Wrong, checked, entities_of, intent_of, offers_of, question_for
from processors.llm.requests import choice_id, render_call, render_lookup, tool_call_id, tool_outcome
from processors.llm.sentences import split_sentences, take_sentences
from processors.llm.turn import (
    Consult,
    Consulted,
    Made,
    ToolCall,
    Turn,
    cancelled,
    complete,
    opened,
    respond,
    speak,
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
    Position,
    Received,
    Refuse,
    Release,
    Speculated,
    Step,
    Wake,
    Woken,
    abandonment,
)
from processors.templates import RenderError
from schemas.events import Control, ControlKind, Intent, IntentKind, Response, ResponseKind, Session, SessionKind

EMBED_DEADLINE_S = 2.0
HINTS_MAX = 2
HINT_SCORE_MIN = 0.25
CLOSEST_SCORE_MIN = 0.4  # of a passage that is said because the model is silent; one that answers has more
REST_S_MAX = 5.0
LEFT_S_MIN = 1.0
PREAMBLE_SENTENCES_MAX = 1  # "Let me look that up for you."
OTHER_DOCUMENT_MARGIN = 0.15

_REST = "-rest"
_CALLER = "-caller"
_ALL = 2**62
_ENDS = (".", "!", "?", "…", '"', "”", ")")
_OVERHEARD = ("backchannel", "echo")


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered, the turns that are open (the last one that is not void is speaking), and one ahead.

    `saying` is the turn whose reply the caller is hearing, or is about to, -1 for none; the last one was heard to its
    end, or cut, at `heard_at`. After a crash that is not known, and counts as heard.
    """

    session_id: str
    memory: Memory = field(default_factory=Memory)
    open: tuple[Turn, ...] = field(default=(), repr=False)
    ahead: Ahead | None = field(default=None, repr=False)
    saying: int = -1
    heard_at: int = 0

    @property
    def held(self) -> set[Position]:
        """Records that are needed again after a crash, since they began what is not over."""
        ahead = {self.ahead.position} if self.ahead is not None else set()
        return ahead | {turn.held for turn in self.open if turn.held is not None}

    @property
    def speaking(self) -> Turn | None:
        """The turn that is being answered."""
        return next((turn for turn in self.open if not turn.void), None)

    def is_over_reply(self, intent: Intent) -> bool:
        """Whether a reply was still being made or heard when the words of the intent were said."""
        unheard = self.speaking is not None or self.saying >= 0
        return unheard or (intent.speech_ended_at is not None and intent.speech_ended_at < self.heard_at)

    @property
    def said(self) -> str:
        """The latest words of the agent."""
        if self.speaking is not None and self.speaking.sentences:
            return " ".join(self.speaking.sentences)
        return " ".join(next((known.agent for known in reversed(self.memory.history) if known.agent), ()))


class Conversation:
    """The core. `variables` are what tools' URLs and headers may use: `erp_url` and `secrets`."""

    def __init__(
        self,
        agents: Mapping[str, Agent],
        knowledge: Mapping[str, KnowledgeIndex],
        variables: Mapping[str, Any],
        short: Callable[[], bool] = lambda: False,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`short` says whether answers from documents and the model are one sentence now, as they are under load.

        `busy` says that engines have no time for what may be in vain: a turn ahead then asks none before it is
        committed. What was already said of an answer stays said, so that a repeated step may find it otherwise.
        """
        self._short = short
        self._busy = busy
        self._agents = agents
        self._knowledge = knowledge
        self._offers = {name: offers_of(agent) for name, agent in agents.items()}
        self._variables = variables

    def start(self, session_id: str) -> State:
        """See `Core`."""
        return State(session_id)

    def save(self, state: State) -> bytes:
        """See `Core`: open turns are not in it, since their records come again."""
        return b"" if state.memory == Memory() else msgspec.msgpack.encode(state.memory)

    def load(self, session_id: str, data: bytes) -> State:
        """See `Core`."""
        return State(session_id, msgspec.msgpack.decode(data, type=Memory) if data else Memory())

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
            return self._woken(state, turn, now_us)
        return self._advance(state, turn, happening, now_us)

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
        return self._say(state, agent, turn, Say(self._render(agent, state.memory, greeting), "greeting"), now_us)

    def _introduce(self, state: State, agent: Agent, turn: Turn, record: CallerRecord, now_us: int) -> Step[State]:
        """Asks who calls; the greeting waits for it, and does without where it does not come in time."""
        returned = turn.recorded_of(ResponseKind.TOOL_RETURNED)
        if returned is not None:
            state = _recognised(state, _json(returned.result) if returned.outcome == "ok" else None)
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
        return Step(_with(state, turn), (called, Ask(turn.ask_id, "tools", request, record.deadline_ms / 1000)))

    def _introduced(self, state: State, turn: Turn, happening: Answered | Failed, now_us: int) -> Step[State]:
        agent = self._agents[turn.cause.agent_id]
        assert agent.caller_record is not None, "its answer has come"
        reply = happening.reply if isinstance(happening, Answered) else None
        text, compute_ms, outcome = "", 0.0, "failed"
        if isinstance(reply, ToolReturned):
            text, compute_ms, outcome = reply.body.decode("utf-8", "replace"), reply.compute_ms, reply.outcome
        elif isinstance(happening, Failed) and happening.reason == "timeout":
            outcome = "timeout"
        known = _json(text) if outcome == "ok" else None
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
        if not isinstance(plan, Say) and not turn.committed and self._waits(agent, plan):
            return Step(_with(state, replace(turn, later=plan)))
        return self._follow(state, agent, turn, plan, now_us)

    def _follow(self, state: State, agent: Agent, turn: Turn, plan: Plan | Consult, now_us: int) -> Step[State]:
        match plan:
            case Say():
                return self._say(state, agent, turn, plan, now_us)
            case Call():
                return self._call(state, agent, turn, plan, now_us)
            case Look():
                return self._look(state, agent, replace(turn, look=plan), now_us)
            case Consult():
                return self._consult(state, agent, turn, plan, now_us)
            case _:
                assert_never(plan)

    # ---- ahead of the commitment

    def _waits(self, agent: Agent, plan: Call | Look) -> bool:
        """What has effects waits for the commitment, and under load all that takes an engine's time."""
        acts = isinstance(plan, Call) and agent.tool(plan.spec.tool or "").effect != "read"
        return acts or self._busy()

    def _go_ahead(self, state: State, ahead: Ahead, step: Step[State], now_us: int) -> Step[State]:
        """Takes over a step that was taken beside the conversation."""
        turn = step.state.open[0] if step.state.open else None
        ahead, outcomes = ahead.went_on(step.state.memory, turn, step.outcomes, now_us)
        return Step(replace(state, ahead=ahead), tuple(outcomes))

    def _commit(self, state: State, agent: Agent, ahead: Ahead, now_us: int) -> Step[State]:
        """What was answered ahead becomes the answer."""
        state, outcomes = self._silence(state, now_us)
        memory = ahead.joined(state.memory, agent.limits.history_turns)
        saying = state.saying if ahead.turn is not None else ahead.intent.turn
        state = replace(state, memory=memory, ahead=None, saying=saying)
        outcomes += [Speculated("used", ahead.spent_ms(now_us)), *ahead.committed_end(now_us)]
        if ahead.turn is None:
            return Step(state, tuple(outcomes))
        turn, later = replace(ahead.turn, committed=True, held=ahead.position, later=None), ahead.turn.later
        step = Step(_with(state, turn)) if later is None else self._follow(state, agent, turn, later, now_us)
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
            return Say(_plain(agent.texts.apology), "apology", event.intent, outcome="failed")

    def _control(self, state: State, event: Control, now_us: int) -> Step[State]:
        match event.kind:
            case ControlKind.BARGE_IN:
                step = self._barge_in(state, event, now_us)
                return Step(_heard_out(step.state, event), step.outcomes)
            case ControlKind.PLAYOUT if event.reason == "end_of_turn" and event.turn == state.saying:
                return Step(_heard_out(state, event))
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
        if turn.call is not None and self._acts(turn):
            return _with(state, replace(turn, void=True)), []
        outcomes: list[Outcome] = [Cancel(turn.ask_id)] if turn.ask_id else []
        outcomes += cancelled(turn, now_us)
        return self._closed(state, turn), outcomes

    def _acts(self, turn: Turn) -> bool:
        agent = self._agents[turn.cause.agent_id]
        return turn.call is not None and agent.tool(turn.call.tool).effect == "write"

    # ---- answers at hand

    def _say(self, state: State, agent: Agent, turn: Turn, plan: Say, now_us: int) -> Step[State]:
        turn, outcomes = self._speak_all(turn, split_sentences(plan.text), plan.source, now_us)
        outcomes += complete(turn, plan.outcome, now_us, plan.action, plan.action_target)
        memory = keep(agent, state.memory, turn.number, plan.values)
        memory = msgspec.structs.replace(memory, turn=max(memory.turn, turn.number))
        memory = remembering.wait_for(memory, plan.pending)
        return Step(self._closed(replace(state, memory=memory), turn), tuple(outcomes))

    def _speak_all(
        self, turn: Turn, texts: tuple[str, ...], source: str, now_us: int, documents: tuple[str, ...] = ()
    ) -> tuple[Turn, list[Outcome]]:
        """Says texts from the turn's beginning; a turn that has ended in the log says what it said there."""
        recorded = turn.recorded_sentences()
        if turn.terminal is not None:
            texts = tuple(event.text for event in recorded)
        elif recorded:
            texts = tuple(event.text for event in recorded) + texts[len(recorded) :]
        return speak(turn, texts, source, now_us, documents)

    def _adopt(self, state: State, turn: Turn, now_us: int) -> Step[State]:
        """Takes a turn over that has ended in the log."""
        agent, memory = self._agents[turn.cause.agent_id], state.memory
        for choice in turn.recorded_choices():
            if (returned := turn.recorded_return(choice.tool_call_id)) is not None:
                values = json.loads(choice.arguments)
                memory = after_choice(agent, memory, turn.number, choice.tool, values, returned.outcome)
        state = replace(state, memory=memory)
        turn, outcomes = self._speak_all(turn, (), "", now_us)
        return Step(self._closed(state, turn), tuple(outcomes))

    def _closed(self, state: State, turn: Turn) -> State:
        """The state without the turn, which goes into the history with what was said."""
        agent = self._agents[turn.cause.agent_id]
        exchange = Exchange(turn.number, turn.question, turn.sentences)
        memory = remembering.remember_turn(state.memory, exchange, agent.limits.history_turns)
        saying = turn.number if turn.sentences else state.saying
        return replace(state, memory=memory, open=_without(state, turn), saying=saying)

    def _render(self, agent: Agent, memory: Memory, template: Any) -> str:
        try:
            return str(template.render(shared_values(agent, memory)))
        except RenderError:
            return _plain((template,))

    # ---- tools

    def _call(self, state: State, agent: Agent, turn: Turn, plan: Call, now_us: int) -> Step[State]:
        tool = agent.tool(plan.spec.tool or "")
        values = {name: value for name, value in plan.values.items() if value}
        recorded = turn.recorded_of(ResponseKind.TOOL_CALLED)
        call_id = recorded.tool_call_id if recorded else tool_call_id(state.session_id, turn.number, tool.name, values)
        turn = replace(turn, call=ToolCall(plan.spec, tool.name, values, call_id))
        memory = keep(agent, state.memory, turn.number, values)
        state = replace(state, memory=msgspec.structs.replace(memory, pending=None))
        if turn.terminal is not None and turn.terminal.kind is ResponseKind.CANCELLED:
            return self._adopt(state, turn, now_us)
        returned = turn.recorded_of(ResponseKind.TOOL_RETURNED)
        if returned is not None or turn.terminal is not None:
            outcome, result = (returned.outcome, _json(returned.result)) if returned else ("failed", None)
            return self._tool_answer(state, agent, turn, outcome, result, now_us)
        facts = template_values(agent, memory, plan.spec, values)
        step = self._ask_tool(state, agent, turn, facts, recorded is not None, now_us)
        return step or self._tool_answer(state, agent, turn, "failed", None, now_us)

    def _ask_tool(
        self, state: State, agent: Agent, turn: Turn, facts: Mapping[str, object], recorded: bool, now_us: int
    ) -> Step[State] | None:
        """Puts the turn's call to the tool, and says so unless that is recorded; None where it cannot be written."""
        call = turn.call
        assert call is not None
        tool = agent.tool(call.tool)
        try:
            request = render_call(tool, call.id, facts, self._variables)
        except RenderError:
            return None
        number = f"-{call.number}" if call.number else ""
        turn = replace(turn, ask_id=f"turn-{turn.number}-tool{number}")
        ask = Ask(turn.ask_id, "tools", request, tool.timeout_s)
        if recorded:
            return Step(_with(state, turn), (ask,))
        called = respond(
            turn,
            f"tool-called{number}",
            ResponseKind.TOOL_CALLED,
            now_us,
            tool=tool.name,
            tool_call_id=call.id,
            arguments=json.dumps(call.values, sort_keys=True),
            **({} if call.spec is not None else _by_model(turn)),
        )
        return Step(_with(state, turn), (called, ask))

    def _tool_returned(self, state: State, turn: Turn, happening: Answered | Failed, now_us: int) -> Step[State]:
        agent, call = self._agents[turn.cause.agent_id], turn.call
        assert call is not None
        tool: Tool = agent.tool(call.tool)
        text, compute_ms = "", 0.0
        if isinstance(happening, Failed):
            outcome = "timeout" if happening.reason == "timeout" else "failed"
        elif isinstance(happening.reply, ToolReturned):
            text, compute_ms = happening.reply.body.decode("utf-8", "replace"), happening.reply.compute_ms
            outcome = tool_outcome(tool, happening.reply, _json(text), call.values)
        else:
            outcome = "failed"
        returned = respond(
            turn,
            f"tool-returned-{call.number}" if call.number else "tool-returned",
            ResponseKind.TOOL_RETURNED,
            now_us,
            tool=tool.name,
            tool_call_id=call.id,
            result=text if _json(text) is not None else "",
            outcome=outcome,
            compute_ms=compute_ms,
        )
        if turn.void:
            return Step(self._closed(state, turn), (returned, *cancelled(turn, now_us)))
        answer = self._tool_answer if call.spec is not None else self._consulted
        step = answer(state, agent, replace(turn, ask_id=""), outcome, _json(text), now_us)
        return Step(step.state, (returned, *step.outcomes))

    def _tool_answer(
        self, state: State, agent: Agent, turn: Turn, outcome: str, result: Any, now_us: int
    ) -> Step[State]:
        """Speaks the template for a tool's outcome."""
        assert turn.call is not None
        assert turn.call.spec is not None
        spec, values = turn.call.spec, turn.call.values
        text, source, failed = self._outcome_words(agent, state.memory, turn, spec, values, outcome, result)
        turn, outcomes = self._speak_all(turn, split_sentences(text), source, now_us)
        outcomes += complete(turn, "failed" if failed else "answered", now_us)
        memory = after_tool(agent, state.memory, spec, values, outcome)
        return Step(self._closed(replace(state, memory=memory), turn), tuple(outcomes))

    def _outcome_words(
        self,
        agent: Agent,
        memory: Memory,
        turn: Turn,
        spec: IntentSpec | None,
        values: Mapping[str, str],
        outcome: str,
        result: Any,
    ) -> tuple[str, str, bool]:
        """What the intent's template says for the outcome, else an apology; its source, and whether it failed."""
        away = outcome in ("failed", "timeout")
        if spec is not None:
            shared = template_values(agent, memory, spec, values, result=result or {}, outcome=outcome)
            for name in dict.fromkeys((outcome, "failed")):
                with contextlib.suppress(KeyError, RenderError):
                    text = pick(spec.templates[name], turn.number).render(shared)
                    return text, "template", away or name != outcome
        if spec is None and not away:
            return self._render(agent, memory, pick(agent.texts.unknown, turn.number)), "clarification", False
        variants = agent.texts.unreachable if away else agent.texts.apology
        return self._render(agent, memory, pick(variants, turn.number)), "apology", True

    # ---- knowledge

    def _look(self, state: State, agent: Agent, turn: Turn, now_us: int) -> Step[State]:
        """Asks for the question's embedding, with which `_found` goes on."""
        state = replace(state, memory=msgspec.structs.replace(state.memory, pending=None))
        if turn.terminal is not None:
            return self._adopt(state, turn, now_us)
        turn = replace(turn, ask_id=f"turn-{turn.number}-embed")
        return Step(_with(state, turn), (Ask(turn.ask_id, "embeddings", Embed((turn.question,)), EMBED_DEADLINE_S),))

    def _found(self, state: State, turn: Turn, happening: Answered | Failed, now_us: int) -> Step[State]:
        agent = self._agents[turn.cause.agent_id]
        spec = turn.look.spec if turn.look else None
        documents = spec.documents if spec else ()
        index = self._knowledge[agent.id]
        hits: list[Hit] = []
        if isinstance(happening, Answered) and isinstance(happening.reply, Embedded):
            made = replace(turn.made, compute_ms=turn.made.compute_ms + happening.reply.compute_ms)
            turn = replace(turn, made=made)
            vector = np.frombuffer(happening.reply.vectors, dtype="<f4")
            hits = _chosen(index.search(vector, documents), index.search(vector) if documents else [], agent)
        elif (first := index.first(documents)) is not None:
            hits = [first]
        turn = replace(turn, ask_id="")
        said = turn.recorded_sentences()
        quoted = bool(hits) and (spec is not None or hits[0].score >= agent.limits.knowledge_score_min)
        if said or turn.recorded_choices():
            # Whatever was chosen before the crash is gone on with.
            quoted = bool(said) and said[0].source == "knowledge"
            hits = [hit for hit in hits if hit.document in said[0].documents] if quoted else hits
        if not quoted:
            return self._generate(state, agent, turn, hits, now_us)
        texts = hits[0].quote()[: 1 if self._short() else None] if hits else ()
        turn, outcomes = self._speak_all(turn, texts, "knowledge", now_us, (hits[0].document,) if hits else ())
        outcomes += complete(turn, "answered", now_us)
        return Step(self._closed(state, turn), tuple(outcomes))

    # ---- the language model

    def _generate(self, state: State, agent: Agent, turn: Turn, hits: list[Hit], now_us: int) -> Step[State]:
        """Asks the model, with the passages that come closest; what was already said is given for it to go on."""
        facts = [hit.passage.text for hit in hits[:HINTS_MAX] if hit.score >= HINT_SCORE_MIN]
        turn, outcomes = self._speak_all(turn, (), "model", now_us)
        if hits and hits[0].score >= CLOSEST_SCORE_MIN:
            turn = replace(turn, closest=hits[0].quote(), closest_document=hits[0].document)
        step = self._ask_model(state, agent, replace(turn, facts=tuple(facts)), now_us)
        return Step(step.state, (*outcomes, *step.outcomes))

    def _ask_model(self, state: State, agent: Agent, turn: Turn, now_us: int) -> Step[State]:
        """Asks the model; a tool that it chose before a crash is consulted first."""
        for choice in turn.recorded_choices()[turn.calls : turn.calls + 1]:
            if any(tool.name == choice.tool for tool in agent.tools):
                plan = Consult(choice.tool, json.loads(choice.arguments))
                return self._consult_when_sure(state, agent, turn, plan, now_us)
        if turn.sources and turn.sources[-1] != "model":
            # What is said instead of the model's words was on its way.
            return self._give_up(state, agent, turn, turn.sources[-1], now_us)
        number = f"-{len(turn.consulted)}" if turn.consulted else ""
        turn = replace(turn, ask_id=f"turn-{turn.number}-model{number}")
        return self._put(state, agent, turn, agent.limits.turn_s_max, now_us)

    def _put(self, state: State, agent: Agent, turn: Turn, limit_s: float, now_us: int) -> Step[State]:
        """Puts the question to the model, within what is left of the turn's time, and waits for a first sentence."""
        turn = replace(turn, began_us=turn.began_us or now_us)
        left_s = agent.limits.turn_s_max - (now_us - turn.began_us) / 1e6
        turn, ask = asked(agent, state.memory, turn, max(LEFT_S_MIN, min(limit_s, left_s)), self._offers[agent.id])
        return Step(_with(state, turn), (ask, _patience(agent, turn, now_us)))

    def _woken(self, state: State, turn: Turn, now_us: int) -> Step[State]:
        """The model has not made a sentence in time: callers would rather hear that there is no answer."""
        agent = self._agents[turn.cause.agent_id]
        if turn.answer:
            return Step(state)
        if turn.choosing:
            return Step(state, (_patience(agent, turn, now_us),))
        step = self._give_up(state, agent, replace(turn, ask_id=""), "clarification", now_us)
        return Step(step.state, (Cancel(turn.ask_id), *step.outcomes))

    def _generated(self, state: State, turn: Turn, happening: Answered | Failed, now_us: int) -> Step[State]:
        agent = self._agents[turn.cause.agent_id]
        reply = happening.reply if isinstance(happening, Answered) else None
        over = isinstance(happening, Failed) or happening.last
        if isinstance(reply, Generated):
            turn = self._heard_of(agent, turn, reply)
        done = over and not isinstance(happening, Failed)
        texts, rest = take_sentences(turn.buffer, complete=done)
        if done and len(texts) > (0 if turn.answer else 1) and not texts[-1].endswith(_ENDS):
            # The model ran into its limit in the middle of a sentence.
            texts = texts[:-1]
        turn, outcomes, full = self._speak_grounded(agent, replace(turn, buffer=rest), texts, now_us)
        if full and not over and len(turn.answer) <= PREAMBLE_SENTENCES_MAX and self._may_choose(agent, turn):
            # It may go on to choose a tool, which may know what it must not say of itself.
            turn, full = replace(turn, muted=True), False
        if not full and not over:
            return Step(_with(state, turn), tuple(outcomes))
        if full and not over:
            outcomes.append(Cancel(turn.ask_id))
        step = self._made(state, agent, turn, isinstance(happening, Failed), full, now_us)
        return Step(step.state, (*outcomes, *step.outcomes))

    def _made(self, state: State, agent: Agent, turn: Turn, failed: bool, full: bool, now_us: int) -> Step[State]:
        """The model has ended its answer, or shall: `failed` where it broke off, `full` where it is enough."""
        if turn.chosen is not None:
            return self._choose(state, agent, replace(turn, ask_id=""), turn.chosen, now_us)
        if failed and (turn.answer or turn.choosing) and not full and not turn.ask_id.endswith(_REST):
            # It broke off in its answer: what was said is given to the next one, which goes on from there.
            turn = replace(turn, buffer="", ask_id=turn.ask_id + _REST)
            return self._put(state, agent, turn, REST_S_MAX, now_us)
        turn = replace(turn, ask_id="")
        if turn.answer:
            outcomes = complete(turn, "failed" if failed else "answered", now_us)
            return Step(self._closed(state, turn), tuple(outcomes))
        return self._give_up(state, agent, turn, "apology" if failed else "clarification", now_us)

    def _heard_of(self, agent: Agent, turn: Turn, reply: Generated) -> Turn:
        """The turn with a further piece of the model's answer."""
        turn = replace(turn, made=_sum(turn.made, reply), buffer="" if turn.muted else turn.buffer + reply.text)
        if not self._may_choose(agent, turn):
            return turn
        choosing = reply.choosing or (turn.choosing and not reply.text)
        return replace(turn, choosing=choosing, chosen=reply.chosen or turn.chosen)

    def _speak_grounded(
        self, agent: Agent, turn: Turn, texts: tuple[str, ...], now_us: int
    ) -> tuple[Turn, list[Outcome], bool]:
        """Says what is grounded; true when the answer shall end here, for its length or at an invented fact."""
        outcomes: list[Outcome] = []
        for text in texts:
            if text in turn.sentences:
                continue
            if not is_sayable(text, turn) or is_repetitive(text):
                return turn, outcomes, True
            turn, spoken = speak(turn, (text,), "model", now_us)
            outcomes += spoken
            if len(turn.sentences) >= (1 if self._short() else agent.limits.sentences_max):
                return turn, outcomes, True
        return turn, outcomes, is_repetitive(turn.buffer)

    def _give_up(self, state: State, agent: Agent, turn: Turn, source: str, now_us: int) -> Step[State]:
        """Says what is known without the model, else that there is no answer: never an invented one.

        That is what an intent's template says of the tool that was chosen, or what a document has that comes close.
        """
        failed, documents = source == "apology", tuple[str, ...]()
        last = turn.consulted[-1] if turn.consulted else None
        if last is not None and last.tool is not None:
            spec, values = intent_of(agent, last.tool), json.loads(last.choice.arguments)
            text, source, failed = self._outcome_words(
                agent, state.memory, turn, spec, values, last.outcome, last.result
            )
            texts = split_sentences(text)
        elif turn.closest and not turn.sentences:
            texts, source, failed, documents = turn.closest, "knowledge", False, (turn.closest_document,)
        else:
            variants = agent.texts.apology if failed else agent.texts.unknown
            texts = split_sentences(self._render(agent, state.memory, pick(variants, turn.number)))
        # What the log already has of it was said before a crash.
        turn, outcomes = speak(turn, texts[len(turn.answer) :], source, now_us, documents)
        outcomes += complete(turn, "failed" if failed else "answered", now_us)
        return Step(self._closed(state, turn), tuple(outcomes))

    # ---- tools that the language model chooses

    def _may_choose(self, agent: Agent, turn: Turn) -> bool:
        return bool(self._offers[agent.id]) and len(turn.consulted) < agent.limits.tools_max

    def _choose(self, state: State, agent: Agent, turn: Turn, chosen: Chosen, now_us: int) -> Step[State]:
        """Calls what the model chose, if it may be called; an intent may have the question for what is missing."""
        found = checked(agent, chosen, lambda tool: said(turn, state.memory, tool))
        if not isinstance(found, Wrong):
            tool, values = found
            return self._consult_when_sure(state, agent, turn, Consult(tool.name, values), now_us)
        asking = question_for(agent, found)
        if asking is not None and not turn.sentences:
            spec, slot = asking
            with contextlib.suppress(RenderError):
                question = ask(agent, state.memory, spec, slot, found.values)
                return self._say(state, agent, replace(turn, intent=spec.name), question, now_us)
        choice = msgspec.structs.replace(chosen, id=f"wrong{len(turn.consulted):04}")
        refused = Consulted(choice, "invalid", {"error": found.why}, len(turn.sentences))
        return self._ask_model(state, agent, replace(turn, consulted=(*turn.consulted, refused)), now_us)

    def _consult_when_sure(self, state: State, agent: Agent, turn: Turn, plan: Consult, now_us: int) -> Step[State]:
        """Calls the tool; one with an effect, and under load any, once the turn is committed."""
        if not turn.committed and (agent.tool(plan.tool).effect != "read" or self._busy()):
            return Step(_with(state, replace(turn, later=plan)))
        return self._consult(state, agent, turn, plan, now_us)

    def _consult(self, state: State, agent: Agent, turn: Turn, plan: Consult, now_us: int) -> Step[State]:
        """Calls the tool; where it was called before a crash, the call is the same, or its answer is there.

        Its key knows nothing of the values: a model that is asked again after a crash may write them in other words.
        """
        tool, values = agent.tool(plan.tool), dict(plan.values)
        known = next(
            (one for one in turn.consulted if one.tool == tool and json.loads(one.choice.arguments) == values), None
        )
        if known is not None:
            again = replace(known, said=len(turn.sentences))
            return self._ask_model(state, agent, replace(turn, consulted=(*turn.consulted, again)), now_us)
        call_id = tool_call_id(state.session_id, turn.number, tool.name, {"choice": str(turn.calls)})
        turn = replace(turn, call=ToolCall(None, tool.name, values, call_id, turn.calls))
        returned = turn.recorded_return(call_id)
        if returned is not None:
            return self._consulted(state, agent, turn, returned.outcome, _json(returned.result), now_us)
        entities = dict.fromkeys((entity.name for entity in entities_of(agent, tool)), "")
        facts = {**shared_values(agent, state.memory), **entities, **values}
        recorded = any(choice.tool_call_id == call_id for choice in turn.recorded_choices())
        step = self._ask_tool(state, agent, turn, facts, recorded, now_us)
        return step or self._consulted(state, agent, turn, "failed", None, now_us)

    def _consulted(self, state: State, agent: Agent, turn: Turn, outcome: str, result: Any, now_us: int) -> Step[State]:
        """Lets the model put into words what the tool said; that a system does not answer needs no model."""
        call = turn.call
        assert call is not None
        tool = agent.tool(call.tool)
        choice = Chosen(tool.name, json.dumps(call.values, sort_keys=True), choice_id(call.id))
        recorded = next((known for known in turn.recorded_choices() if known.tool_call_id == call.id), None)
        said = recorded.sentence if recorded is not None else len(turn.sentences)
        turn = replace(turn, call=None, consulted=(*turn.consulted, Consulted(choice, outcome, result, said, tool)))
        memory = after_choice(agent, state.memory, turn.number, tool.name, call.values, outcome)
        state = replace(state, memory=memory)
        if outcome in ("failed", "timeout"):
            return self._give_up(state, agent, turn, "apology", now_us)
        return self._ask_model(state, agent, turn, now_us)

    def _advance(self, state: State, turn: Turn, happening: Answered | Failed, now_us: int) -> Step[State]:
        """Goes on with a turn whose ask was answered."""
        if turn.call is not None:
            return self._tool_returned(state, turn, happening, now_us)
        if turn.ask_id.endswith(_CALLER):
            return self._introduced(state, turn, happening, now_us)
        if turn.ask_id.endswith("-embed"):
            return self._found(state, turn, happening, now_us)
        return self._generated(state, turn, happening, now_us)


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


def _heard_out(state: State, control: Control) -> State:
    """The caller has heard all that it will of that turn."""
    over = control.turn >= state.saying
    return replace(state, saying=-1, heard_at=control.occurred_at) if over else state


def _chosen(own: list[Hit], all_: list[Hit], agent: Agent) -> list[Hit]:
    """The intent's own documents, unless another clearly fits better: intents are guessed too."""
    if not own or not all_:
        return own
    clearly = max(own[0].score + OTHER_DOCUMENT_MARGIN, agent.limits.knowledge_score_min)
    return all_ if all_[0].score >= clearly else own


def _intent_of(plan: Plan) -> str:
    if isinstance(plan, Say):
        return plan.intent
    return plan.spec.name if plan.spec is not None else ""


def _patience(agent: Agent, turn: Turn, now_us: int) -> Wake:
    """How long the caller waits for the first sentence of what the model is asked."""
    return Wake(turn.ask_id, now_us + agent.limits.first_sentence_ms_max * 1000)


def _by_model(turn: Turn) -> dict[str, Any]:
    return {"source": "model", "model": turn.made.model, "sentence": len(turn.sentences)}


def _recognised(state: State, record: Any) -> State:
    return replace(state, memory=remembering.recognise(state.memory, record))


def _sum(made: Made, piece: Generated) -> Made:
    return Made(
        piece.model or made.model,
        made.tokens_in + piece.tokens_in,
        made.tokens_out + piece.tokens_out,
        made.compute_ms + piece.compute_ms,
    )


def _beside(state: State, ahead: Ahead) -> State:
    """The conversation as it would be if the intent were committed."""
    return State(state.session_id, ahead.memory, () if ahead.turn is None else (ahead.turn,))


def _with(state: State, turn: Turn) -> State:
    return replace(state, open=(*_without(state, turn), turn))


def _without(state: State, turn: Turn) -> tuple[Turn, ...]:
    return tuple(known for known in state.open if known.number != turn.number)


def _json(text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def _plain(variants: tuple[Any, ...]) -> str:
    """The text of a template that cannot be rendered, without its placeholders."""
    return str(variants[0].source).split("{", 1)[0].strip() or "I am sorry, something went wrong."
