"""How a turn is answered: by the intent's tool and template, by the agent's documents, by the language model last."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, assert_never

import msgspec
import numpy as np

from processors.agents import Agent, IntentSpec, Tool
from processors.engine import Chosen, Embed, Embedded, Generated, ToolReturned
from processors.json_text import json_in
from processors.llm import memory as remembering
from processors.llm.afterwards import after_choice, after_tool, keep
from processors.llm.chat import asked, sayable, sources_of
from processors.llm.decide import Call, Look, Plan, Say, ask, pick, shared_values, template_values
from processors.llm.grounding import is_repetitive
from processors.llm.knowledge import Hit, KnowledgeIndex
from processors.llm.memory import Exchange, Memory
from processors.llm.offers import Wrong, checked, entities_of, intent_of, offers_of, question_for
from processors.llm.patience import Patience
from processors.llm.requests import choice_id, render_call, tool_call_id, tool_outcome
from processors.llm.sentences import split_sentences, take_sentences
from processors.llm.state import State
from processors.llm.turn import (
    Consult,
    Consulted,
    Made,
    ToolCall,
    Turn,
    cancelled,
    complete,
    respond,
    speak,
)
from processors.outcomes import AWAY
from processors.stage import (
    Answered,
    Ask,
    Cancel,
    Failed,
    Outcome,
    Step,
    Wake,
)
from processors.templates import RenderError
from schemas.events import ResponseKind

EMBED_DEADLINE_S = 2.0
HINTS_MAX = 2
HINT_SCORE_MIN = 0.25
CLOSEST_SCORE_MIN = 0.4  # of a passage that is said because the model is silent; one that answers has more
REST_S_MAX = 5.0
LEFT_S_MIN = 1.0
PREAMBLE_SENTENCES_MAX = 1  # "Let me look that up for you."
OTHER_DOCUMENT_MARGIN = 0.15

_REST = "-rest"
_EMBED = "-embed"
_ENDS = (".", "!", "?", "…", '"', "”", ")")


class Answers:
    """The steps of a turn's answer. `variables` are what tools' URLs and headers may use: `erp_url` and `secrets`."""

    def __init__(
        self,
        agents: Mapping[str, Agent],
        knowledge: Mapping[str, KnowledgeIndex],
        variables: Mapping[str, Any],
        short: Callable[[], bool],
        busy: Callable[[], bool],
        patience: Patience,
    ) -> None:
        """See `Conversation`."""
        self._agents = agents
        self._knowledge = knowledge
        self._offers = {name: offers_of(agent) for name, agent in agents.items()}
        self._variables = variables
        self._short = short
        self._busy = busy
        self._patience = patience

    def follow(self, state: State, agent: Agent, turn: Turn, plan: Plan | Consult, now_us: int) -> Step[State]:
        """Begins with what is to be done."""
        match plan:
            case Say():
                return self.say(state, agent, turn, plan, now_us)
            case Call():
                return self._call(state, agent, turn, plan, now_us)
            case Look():
                return self._look(state, agent, replace(turn, look=plan), now_us)
            case Consult():
                return self._consult(state, agent, turn, plan, now_us)
            case _:
                assert_never(plan)

    def waits(self, agent: Agent, plan: Call | Look | Consult) -> bool:
        """What has effects waits for the commitment, and under load all that takes an engine's time."""
        tool = "" if isinstance(plan, Look) else plan.spec.tool or "" if isinstance(plan, Call) else plan.tool
        return (bool(tool) and agent.tool(tool).effect != "read") or self._busy()

    def acts(self, turn: Turn) -> bool:
        """Whether a tool with an effect is under way."""
        agent = self._agents[turn.cause.agent_id]
        return turn.call is not None and agent.tool(turn.call.tool).effect == "write"

    def advance(self, state: State, turn: Turn, happening: Answered | Failed, now_us: int) -> Step[State]:
        """Goes on with a turn whose ask was answered."""
        if turn.call is not None:
            return self._tool_returned(state, turn, happening, now_us)
        if turn.ask_id.endswith(_EMBED):
            return self._found(state, turn, happening, now_us)
        return self._generated(state, turn, happening, now_us)

    # ---- answers at hand

    def say(self, state: State, agent: Agent, turn: Turn, plan: Say, now_us: int) -> Step[State]:
        """Says what is at hand, to the turn's end."""
        turn, outcomes = self._speak_all(turn, split_sentences(plan.text), plan.source, now_us)
        outcomes += complete(turn, plan.outcome, now_us, plan.action, plan.action_target)
        memory = keep(agent, state.memory, turn.number, plan.values)
        memory = msgspec.structs.replace(memory, turn=max(memory.turn, turn.number))
        memory = remembering.wait_for(memory, plan.pending)
        return Step(self.closed(replace(state, memory=memory), turn), tuple(outcomes))

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
        return Step(self.closed(state, turn), tuple(outcomes))

    def closed(self, state: State, turn: Turn) -> State:
        """The state without the turn, which goes into the history with what was said."""
        agent = self._agents[turn.cause.agent_id]
        exchange = Exchange(turn.number, turn.question, turn.sentences)
        asked_at, turns_max = turn.cause.occurred_at, agent.limits.history_turns
        memory = remembering.remember_turn(state.memory, exchange, turns_max, asked_at)
        state = replace(state, memory=memory, open=state.without(turn))
        return state.says(turn.number) if turn.sentences else state

    def render(self, agent: Agent, memory: Memory, template: Any) -> str:
        """The text; of one that cannot be rendered, what stands before its first placeholder."""
        try:
            return str(template.render(shared_values(agent, memory)))
        except RenderError:
            return plain((template,))

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
            outcome, result = (returned.outcome, json_in(returned.result)) if returned else ("failed", None)
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
            return Step(state.with_turn(turn), (ask,))
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
        return Step(state.with_turn(turn), (called, ask))

    def _tool_returned(self, state: State, turn: Turn, happening: Answered | Failed, now_us: int) -> Step[State]:
        agent, call = self._agents[turn.cause.agent_id], turn.call
        assert call is not None
        tool: Tool = agent.tool(call.tool)
        text, result, compute_ms = "", None, 0.0
        if isinstance(happening, Failed):
            outcome = "timeout" if happening.reason == "timeout" else "failed"
        elif isinstance(happening.reply, ToolReturned):
            text, compute_ms = happening.reply.body.decode("utf-8", "replace"), happening.reply.compute_ms
            result = json_in(text)
            outcome = tool_outcome(tool, happening.reply, result, call.values)
        else:
            outcome = "failed"
        returned = respond(
            turn,
            f"tool-returned-{call.number}" if call.number else "tool-returned",
            ResponseKind.TOOL_RETURNED,
            now_us,
            tool=tool.name,
            tool_call_id=call.id,
            result=text if result is not None else "",
            outcome=outcome,
            compute_ms=compute_ms,
        )
        if turn.void:
            return Step(self.closed(state, turn), (returned, *cancelled(turn, now_us)))
        answer = self._tool_answer if call.spec is not None else self._consulted
        step = answer(state, agent, replace(turn, ask_id=""), outcome, result, now_us)
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
        return Step(self.closed(replace(state, memory=memory), turn), tuple(outcomes))

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
        away = outcome in AWAY
        if spec is not None:
            shared = template_values(agent, memory, spec, values, result=result or {}, outcome=outcome)
            for name in dict.fromkeys((outcome, "failed")):
                with contextlib.suppress(KeyError, RenderError):
                    text = pick(spec.templates[name], turn.number).render(shared)
                    return text, "template", away or name != outcome
        if spec is None and not away:
            return self.render(agent, memory, pick(agent.texts.unknown, turn.number)), "clarification", False
        variants = agent.texts.unreachable if away else agent.texts.apology
        return self.render(agent, memory, pick(variants, turn.number)), "apology", True

    # ---- knowledge

    def _look(self, state: State, agent: Agent, turn: Turn, now_us: int) -> Step[State]:
        """Asks for the question's embedding, with which `_found` goes on."""
        state = replace(state, memory=msgspec.structs.replace(state.memory, pending=None))
        if turn.terminal is not None:
            return self._adopt(state, turn, now_us)
        turn = replace(turn, ask_id=f"turn-{turn.number}{_EMBED}")
        return Step(state.with_turn(turn), (Ask(turn.ask_id, "embeddings", Embed((turn.question,)), EMBED_DEADLINE_S),))

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
        begun = bool(said or turn.recorded_choices())
        if begun:
            # Whatever was chosen before the crash is gone on with.
            quoted = bool(said) and said[0].source == "knowledge"
            hits = [hit for hit in hits if hit.document in said[0].documents] if quoted else hits
        if not quoted:
            return self._generate(state, agent, turn, hits, begun, now_us)
        texts = hits[0].quote()[: 1 if self._short() else None] if hits else ()
        turn, outcomes = self._speak_all(turn, texts, "knowledge", now_us, (hits[0].document,) if hits else ())
        outcomes += complete(turn, "answered", now_us)
        return Step(self.closed(state, turn), tuple(outcomes))

    # ---- the language model

    def _generate(
        self, state: State, agent: Agent, turn: Turn, hits: list[Hit], begun: bool, now_us: int
    ) -> Step[State]:
        """Asks the model, with the passages that come closest; what was already said is given for it to go on.

        One that never begins in time is not waited for, unless the answer was `begun` or it may have a tool to choose.
        """
        facts = [hit.passage.text for hit in hits[:HINTS_MAX] if hit.score >= HINT_SCORE_MIN]
        turn, outcomes = self._speak_all(turn, (), "model", now_us)
        if hits and hits[0].score >= CLOSEST_SCORE_MIN:
            turn = replace(turn, closest=hits[0].quote(), closest_document=hits[0].document)
        if begun or self._offers[agent.id] or self._patience.is_worth(agent.id):
            step = self._ask_model(state, agent, replace(turn, facts=tuple(facts)), now_us)
        else:
            step = self._give_up(state, agent, turn, "clarification", now_us)
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
        return Step(state.with_turn(turn), (ask, _patience(agent, turn, now_us)))

    def woken(self, state: State, turn: Turn, now_us: int) -> Step[State]:
        """The model has not made a sentence in time: callers would rather hear that there is no answer."""
        agent = self._agents[turn.cause.agent_id]
        if turn.answer:
            return Step(state)
        if turn.choosing:
            return Step(state, (_patience(agent, turn, now_us),))
        self._patience.missed(agent.id)
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
        if texts:
            self._patience.began(agent.id)
        turn, outcomes, full = self._speak_grounded(agent, replace(turn, buffer=rest), texts, now_us)
        if full and not over and len(turn.answer) <= PREAMBLE_SENTENCES_MAX and self._may_choose(agent, turn):
            # It may go on to choose a tool, which may know what it must not say of itself.
            turn, full = replace(turn, muted=True), False
        if not full and not over:
            return Step(state.with_turn(turn), tuple(outcomes))
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
            return Step(self.closed(state, turn), tuple(outcomes))
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
        for text in (sayable(text, turn) for text in texts):
            if text in turn.sentences:
                continue
            if not text or is_repetitive(text):
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
        last = next((one for one in reversed(turn.consulted) if one.tool is not None), None)
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
            texts = split_sentences(self.render(agent, state.memory, pick(variants, turn.number)))
        # What the log already has of it was said before a crash.
        turn, outcomes = speak(turn, texts[len(turn.answer) :], source, now_us, documents)
        outcomes += complete(turn, "failed" if failed else "answered", now_us)
        return Step(self.closed(state, turn), tuple(outcomes))

    # ---- tools that the language model chooses

    def _may_choose(self, agent: Agent, turn: Turn) -> bool:
        return bool(self._offers[agent.id]) and len(turn.consulted) < agent.limits.tools_max

    def _choose(self, state: State, agent: Agent, turn: Turn, chosen: Chosen, now_us: int) -> Step[State]:
        """Calls what the model chose, if it may be called; an intent may have the question for what is missing."""
        found = checked(agent, chosen, lambda tool: sources_of(turn, state.memory, tool))
        if not isinstance(found, Wrong):
            tool, values = found
            return self._consult_when_sure(state, agent, turn, Consult(tool.name, values), now_us)
        asking = question_for(agent, found)
        if asking is not None and not turn.sentences:
            spec, slot = asking
            with contextlib.suppress(RenderError):
                question = ask(agent, state.memory, spec, slot, found.values)
                return self.say(state, agent, replace(turn, intent=spec.name), question, now_us)
        choice = msgspec.structs.replace(chosen, id=f"wrong{len(turn.consulted):04}")
        refused = Consulted(choice, "invalid", {"error": found.why}, len(turn.sentences))
        return self._ask_model(state, agent, replace(turn, consulted=(*turn.consulted, refused)), now_us)

    def _consult_when_sure(self, state: State, agent: Agent, turn: Turn, plan: Consult, now_us: int) -> Step[State]:
        """Calls the tool; one with an effect, and under load any, once the turn is committed."""
        if not turn.committed and self.waits(agent, plan):
            return Step(state.with_turn(replace(turn, later=plan)))
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
            return self._consulted(state, agent, turn, returned.outcome, json_in(returned.result), now_us)
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
        if outcome in AWAY:
            return self._give_up(state, agent, turn, "apology", now_us)
        return self._ask_model(state, agent, turn, now_us)


def _chosen(own: list[Hit], all_: list[Hit], agent: Agent) -> list[Hit]:
    """The intent's own documents, unless another clearly fits better: intents are guessed too."""
    if not own or not all_:
        return own
    clearly = max(own[0].score + OTHER_DOCUMENT_MARGIN, agent.limits.knowledge_score_min)
    return all_ if all_[0].score >= clearly else own


def _patience(agent: Agent, turn: Turn, now_us: int) -> Wake:
    """How long the caller waits for the first sentence of what the model is asked."""
    return Wake(turn.ask_id, now_us + agent.limits.first_sentence_ms_max * 1000)


def _by_model(turn: Turn) -> dict[str, Any]:
    return {"source": "model", "model": turn.made.model, "sentence": len(turn.sentences)}


def _sum(made: Made, piece: Generated) -> Made:
    return Made(
        piece.model or made.model,
        made.tokens_in + piece.tokens_in,
        made.tokens_out + piece.tokens_out,
        made.compute_ms + piece.compute_ms,
    )


def plain(variants: tuple[Any, ...]) -> str:
    """The text of a template that cannot be rendered, without its placeholders."""
    return str(variants[0].source).split("{", 1)[0].strip() or "I am sorry, something went wrong."
