"""Voice to voice over the WebSocket: recorded callers in real time, one and several at once.

Times begin when the caller sends the last frame with speech in it. The words of every recording are known, so the
transcripts are scored, too.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from api.client import CallError, CallResult, TurnSummary, load_turns, place_call
from api.demo import SCRIPT, Script
from bench.report import Distribution, Fact, Findings, Row
from bench.words import word_error_rate
from streams.settings import REPOSITORY
from streams.yamlfile import load_yaml

SPEECH = REPOSITORY / "tests" / "data" / "speech"
CALLS_AT_ONCE = (1, 4)

_APART_S = 0.7  # callers do not begin in the same instant
_FAMILY = {"human": "human voice", "synthetic": "synthetic voice"}


@dataclass(frozen=True, slots=True)
class Line:
    """One recorded turn, and the words in it."""

    path: Path
    words: str
    voice: str


@dataclass(frozen=True, slots=True)
class Answered:
    """One turn of one call: what was said and what became of it."""

    line: Line
    summary: TurnSummary


def lines(quick: bool = False) -> tuple[str, list[Line]]:
    """The agent to call, and the turns: the demo's caller with the human speech before the goodbye."""
    script = load_yaml(SCRIPT, Script)
    demo = [Line((SCRIPT.parent / turn.file).resolve(), turn.says, turn.voice) for turn in script.turns]
    human = [Line(path, words, "human") for path, words in human_speech() if path not in {one.path for one in demo}]
    if quick:
        return script.agent, [*demo[:2], *(one for one in demo if one.voice == "human")]
    return script.agent, [*demo[:-1], *human, demo[-1]]


def human_speech() -> list[tuple[Path, str]]:
    """The recordings of people, with their words, from the table that describes them."""
    rows = re.findall(r"^\| (\S+\.wav) \| ([^|]+) \|", (SPEECH / "README.md").read_text(), re.MULTILINE)
    return [(SPEECH / name, words.strip()) for name, words in rows]


def measure_voice(url: str, quick: bool = False) -> Findings:
    """Calls the API at base `url`, once for each of `CALLS_AT_ONCE`."""
    agent, script = lines(quick)
    found = Findings()
    for count in CALLS_AT_ONCE:
        results = asyncio.run(_calls(url, agent, script, count))
        found.add(findings_of(f"{count} call{'s' if count > 1 else ''} at once", script, results))
    return found


async def _calls(url: str, agent: str, script: Sequence[Line], count: int) -> list[CallResult | CallError]:
    turns = load_turns([line.path for line in script])

    async def one(number: int) -> CallResult | CallError:
        await asyncio.sleep(number * _APART_S)
        try:
            return await place_call(url, turns, agent=agent, caller=f"bench-{number}")
        except CallError as error:
            return error

    return list(await asyncio.gather(*(one(number) for number in range(count))))


def findings_of(group: str, script: Sequence[Line], results: Sequence[CallResult | CallError]) -> Findings:
    """The distributions over all turns of the calls; every turn of a call that failed counts as unanswered."""
    calls = [result for result in results if isinstance(result, CallResult)]
    turns = [Answered(line, turn) for call in calls for line, turn in zip(script, call.turns, strict=True)]
    asked = len(script) * len(results)
    answered = sum(not turn.summary.error for turn in turns)
    found = Findings(rows=_latencies(group, [turn.summary for turn in turns]))
    for voice, name in _FAMILY.items():
        pairs = [(turn.line.words, turn.summary.transcript) for turn in turns if turn.line.voice == voice]
        rates = [rate for pair in pairs if (rate := word_error_rate([pair])) is not None]
        found.rows.append(Row(group, f"word error rate, {name}", Distribution.of(100 * rate for rate in rates), "%"))
        overall = word_error_rate(pairs)
        percent = None if overall is None else round(100 * overall, 2)
        found.facts.append(Fact(group, f"word error rate over all words, {name}", percent, "%"))
    found.facts += [
        Fact(group, "turns", asked),
        Fact(group, "unanswered", asked - answered),
        Fact(group, "answered twice", sum(answered_twice(call) for call in calls)),
        Fact(group, "calls failed", len(results) - len(calls)),
    ]
    return found


def answered_twice(call: CallResult) -> int:
    """Turns that were completed more than once."""
    completed = Counter(event.message.get("turn") for event in call.events if event.type == "completed")
    return sum(count > 1 for count in completed.values())


def _latencies(group: str, turns: Sequence[TurnSummary]) -> list[Row]:
    def after(name: str) -> Distribution:
        times = [(getattr(turn, name), turn.end_of_speech_ms) for turn in turns]
        return Distribution.of(at_ms - end_ms for at_ms, end_ms in times if at_ms is not None)

    voice_to_voice = [turn.voice_to_voice_ms for turn in turns if turn.voice_to_voice_ms is not None]
    audible = [
        turn.voice_to_voice_ms + turn.audible_after_ms
        for turn in turns
        if turn.voice_to_voice_ms is not None and turn.audible_after_ms is not None
    ]
    return [
        Row(group, "final", after("final_ms")),
        Row(group, "intent", after("intent_ms")),
        Row(group, "first sentence", after("first_sentence_ms")),
        Row(group, "first audio (voice to voice)", Distribution.of(voice_to_voice)),
        Row(group, "first audible sample", Distribution.of(audible)),
    ]
