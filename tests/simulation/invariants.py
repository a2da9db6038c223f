"""What must hold after any history, read from the log, from the business system and from the callers' ears."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise

from schemas.events import (
    DeadLetter,
    Intent,
    Response,
    ResponseKind,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)
from tests.simulation.gateway import Caller, Line
from tests.simulation.plans import plan_of
from tests.simulation.platform import Plan, Platform, agents, leftovers, play
from tests.simulation.speech import silence, voice

TERMINAL = (ResponseKind.COMPLETED, ResponseKind.CANCELLED)
PAUSE = silence(100)
LATE_S = 20.0  # topics have no common order: what is read after the end of its call is dropped


@cache
def undisturbed(script: Sequence[Line]) -> dict[int, tuple[str, ...]]:
    """The sentences of each turn on a good day."""
    platform = play(Plan(0, (tuple(script),)))
    caller = platform.callers[0]
    said: dict[int, tuple[str, ...]] = {}
    for event in answers(platform.log.truth(Response, caller.session_id)):
        if event.kind is ResponseKind.SENTENCE:
            said[event.turn] = (*said.get(event.turn, ()), "" if event.source == "model" else event.text)
    return said


def answers(responses: Sequence[Response]) -> list[Response]:
    """Without what was made for words that were not all that the caller said.

    Everything of an answer has one cause; the one that counts is that of the turn's end, which is committed.
    """
    causes = {event.turn: event.causation_id for event in responses if event.kind in TERMINAL and event.committed}
    return [event for event in responses if event.committed or causes.get(event.turn) == event.causation_id]


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a seed: what was broken, a digest of the history, and the history itself where asked for."""

    plan: Plan
    found: list[str]
    trace: str
    history: list[str]


def play_seed(seed: int, *, verbose: bool = False) -> Played:
    """Plays a seed and looks whether everything holds that must."""
    plan = plan_of(seed)
    platform = play(plan, verbose=verbose)
    return Played(plan, violations(platform), platform.world.trace, platform.world.history)


def violations(platform: Platform) -> list[str]:
    """Everything that is wrong, in words; empty on a good day and on every other."""
    found = [f"an error in {error}" for error in platform.world.errors]
    for caller in platform.callers:
        found += [f"call {caller.session_id[:8]}: {what}" for what in _call(platform, caller)]
    found += [f"{count} records are left undone: {where}" for where, count in platform.behind.items()]
    if not platform.plan.stragglers:
        found += [f"state is left over: {where}" for where in leftovers(platform)]
    found += _dead_letters(platform)
    found += _effects(platform)
    return found


def _call(platform: Platform, caller: Caller) -> Iterator[str]:
    if caller.stuck:
        yield f"the caller waited in vain for {caller.stuck}"
        return
    if not caller.done:
        yield "the call did not come to its end"
        return
    finals = [
        event for event in platform.log.truth(Transcript, caller.session_id) if event.kind is TranscriptKind.FINAL
    ]
    yield from _transcripts(platform, caller, finals)
    yield from _intents(platform, caller, finals)
    yield from _replies(platform, caller, len(finals))


def _transcripts(platform: Platform, caller: Caller, finals: list[Transcript]) -> Iterator[str]:
    texts = [event.text for event in finals]
    spoken = [line.text for line in caller.spoken]
    if platform.plan.engines_fail:
        # Whoever is not understood is asked to repeat, and may have been heard both times, perhaps in one go.
        texts = [_said_once(text, spoken) for text in texts]
        texts, spoken = ([text for text, _ in groupby(filter(None, said))] for said in (texts, spoken))
    if texts != spoken:
        yield f"said {spoken}, heard {texts}"
    if [event.turn for event in finals] != list(range(1, len(finals) + 1)):
        yield f"turns are {[event.turn for event in finals]}"


def _said_once(text: str, lines: Sequence[str]) -> str:
    """The line, where the text is nothing but that line again and again."""
    return next((line for line in lines if line and text.replace(line, "").isspace()), text)


def _intents(platform: Platform, caller: Caller, finals: list[Transcript]) -> Iterator[str]:
    judged = platform.log.truth(Intent, caller.session_id)
    intents = {event.causation_id: event for event in judged if event.committed}
    for final, line in zip(finals, caller.spoken, strict=False):
        intent = intents.pop(final.event_id, None)
        if intent is None and not _hung_up_in(caller, final.turn):
            yield f"turn {final.turn} has no intent"
        elif intent is not None and line.intent and intent.intent != line.intent and not platform.plan.engines_fail:
            yield f"turn {final.turn} was understood as {intent.intent}"
    if intents and not platform.plan.engines_fail:
        yield f"intents without a transcript: {len(intents)}"


def _hung_up_in(caller: Caller, turn: int) -> bool:
    """Whether the call ended before the turn could: what came of it then is nobody's."""
    return caller.ear.over == "hung_up" and turn >= len(caller.spoken)


def _replies(platform: Platform, caller: Caller, turns: int) -> Iterator[str]:
    everything = platform.log.truth(Response, caller.session_id)
    yield from _ahead(everything)
    responses = answers(everything)
    chunks = platform.log.truth(SpeechChunk, caller.session_id)
    expected = undisturbed(tuple(caller.script))
    for turn in range(turns + 1):
        mine = [event for event in responses if event.turn == turn]
        sentences = [event for event in mine if event.kind is ResponseKind.SENTENCE]
        yield from _reply(platform, caller, turn, mine, sentences)
        if not platform.plan.engines_fail:
            for event, text in zip(sentences, expected.get(turn, ()), strict=False):
                if text and event.text != text:
                    yield f"turn {turn}: said {event.text!r}, on a good day {text!r}"
        causes = {event.event_id for event in mine}
        spoken = [event for event in chunks if event.causation_id in causes]
        texts = {event.causation_id for event in spoken if event.kind is SpeechChunkKind.TEXT}
        for sentence in sentences:
            own = [
                event
                for event in spoken
                if event.causation_id == sentence.event_id and event.kind is SpeechChunkKind.AUDIO
            ]
            if texts and platform.plan.stragglers:
                continue  # one worker gave up on the voice, another did not
            cut = _unfinished(platform, caller, turn) or sentence.event_id in texts
            yield from _speech(sentence, own, whole=not cut)
        # Where the call was over before it was committed, what was heard of a reply is not known to count.
        left = not any(event.kind in TERMINAL for event in mine) and _hung_up_in(caller, turn)
        if not texts and not left:
            yield from _ear(platform, caller, turn, [event.text for event in sentences])


def _ahead(responses: Sequence[Response]) -> Iterator[str]:
    """What is not committed does nothing: it changes nothing elsewhere and ends no call."""
    for event in responses:
        if not event.committed and event.action:
            yield f"turn {event.turn} would {event.action} before it is committed"
        if not event.committed and event.tool and agents()[event.agent_id].tool(event.tool).effect != "read":
            yield f"turn {event.turn} calls {event.tool} before it is committed"
        if not event.committed and event.kind is ResponseKind.COMPLETED:
            yield f"turn {event.turn} is completed before it is committed"


def _reply(
    platform: Platform, caller: Caller, turn: int, mine: list[Response], sentences: list[Response]
) -> Iterator[str]:
    terminals = [event for event in mine if event.kind in TERMINAL]
    if not terminals and _hung_up_in(caller, turn):
        return
    if len(terminals) != 1:
        yield f"turn {turn} ended {len(terminals)} times: {[str(event.kind) for event in terminals]}"
        return
    if platform.plan.stragglers and platform.plan.engines_fail:
        return  # what failed for one worker may have been answered to the other, with more sentences or fewer
    numbers = [event.sentence for event in sentences]
    if numbers != list(range(len(numbers))):
        yield f"turn {turn} has the sentences {numbers}"
    if mine[-1].kind not in TERMINAL:
        yield f"turn {turn} goes on after its end with {mine[-1].kind}"
    text = " ".join(event.text for event in sentences)
    if terminals[0].sentence != len(sentences):
        yield f"turn {turn} ends with {terminals[0].sentence} sentences of {len(sentences)}"
    # A straggler's sentences may stand among those of a model that was asked again: the first with an id is the truth.
    if terminals[0].text != text and not platform.plan.stragglers:
        yield f"turn {turn} ends with another text than its sentences have"
    calls = Counter(event.kind for event in mine if event.tool)
    if calls[ResponseKind.TOOL_CALLED] != calls[ResponseKind.TOOL_RETURNED] or calls[ResponseKind.TOOL_CALLED] > 1:
        yield f"turn {turn} has tool events {dict(calls)}"


def _speech(sentence: Response, chunks: list[SpeechChunk], whole: bool) -> Iterator[str]:
    where = f"turn {sentence.turn}, sentence {sentence.sentence}"
    pcm, wanted = b"".join(chunk.pcm for chunk in chunks), voice(sentence.text) + PAUSE
    if (pcm != wanted) if whole else not wanted.startswith(pcm):
        yield f"{where}: speech of {len(pcm)} bytes in the log is not the {len(wanted)} of its text"
    for before, after in pairwise(chunks):
        if after.sample_index != before.sample_index + len(before.pcm) // 2:
            yield f"{where}: samples jump from {before.sample_index}+{len(before.pcm) // 2} to {after.sample_index}"


def _unfinished(platform: Platform, caller: Caller, turn: int) -> bool:
    """Whether the turn may have been left before its end.

    An agent that hangs up waits for a voice that does not come for a while, and then does it all the same.
    """
    last = turn >= len(caller.spoken) and (caller.ear.over == "hung_up" or platform.plan.engines_fail)
    return last or turn in caller.ear.cut


def _ear(platform: Platform, caller: Caller, turn: int, texts: list[str]) -> Iterator[str]:
    pcm = b"".join(chunk.pcm for chunk in caller.ear.chunks if chunk.turn == turn)
    wanted = b"".join(voice(text) + PAUSE for text in texts)
    if (pcm != wanted) if not _unfinished(platform, caller, turn) else not wanted.startswith(pcm):
        yield f"turn {turn}: the ear got {len(pcm)} bytes that are not the {len(wanted)} of the reply"


def _dead_letters(platform: Platform) -> Iterator[str]:
    """Bad input is all there, and nothing else."""
    letters = platform.log.events(DeadLetter)
    refused = {(letter.source_topic, letter.source_partition, letter.source_offset) for letter in letters}
    poison = {(*poison.where, poison.offset): poison for poison in platform.poisoned}
    for letter in letters:
        source = (letter.source_topic, letter.source_partition, letter.source_offset)
        doubled = (*source[:2], source[2] - 1)
        if source not in poison and doubled not in poison:
            yield f"a dead letter that is none: {source} {letter.reason}"
    for source, known in poison.items():
        if source not in refused and known.caller.over_s > known.at_s + LATE_S:
            yield f"bad input is not among the dead letters: {source}"


def _effects(platform: Platform) -> Iterator[str]:
    lines = [line for caller in platform.callers for line in caller.spoken]
    hung_up = any(caller.ear.over == "hung_up" for caller in platform.callers)
    returns = sum(line.intent == "start_return" for line in lines)
    tickets = sum(line.text.startswith("The zipper") for line in lines)
    # The language model chooses to open one, unless it is too late for that, or the caller speaks over it.
    chosen = sum("cats" in line.text for line in lines)
    for what, done, wanted, more in (
        ("returns", platform.erp.returns, returns, 0),
        ("tickets", platform.erp.tickets, tickets, chosen),
    ):
        least = 0 if platform.plan.engines_fail or hung_up else wanted
        if not least <= len(done) <= wanted + more:
            yield f"{len(done)} {what} were registered for {wanted} to {wanted + more}"
