"""Voice to voice, seen by callers: recorded people and synthetic voices in real time, one and several at once.

All is measured at the caller's end of the wire. An answer counts from its first audible sample; speech ends with
the last frame that holds some (see `bench.utterances`). The words of every recording are known, so what was understood
is scored, too, and the log says how long each step took.
"""

import asyncio
import itertools
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from api.demo import SCRIPT, Script
from bench.caller import AUDIBLE_WITHIN_S, Call, Caller, Manner, NativeWire, Piece, Said, TwilioWire, Wire
from bench.logged import Logged
from bench.report import Distribution, Fact, Findings, Row
from bench.utterances import THINKING_MS, Utterance, fragmented, load
from bench.words import word_error_rate
from streams.settings import REPOSITORY
from streams.yamlfile import load_yaml

SPEECH = REPOSITORY / "tests" / "data" / "speech"
CALLS_AT_ONCE = (1, 2, 4, 8)
QUICK_CALLS_AT_ONCE = (1, 4)
# What too many calls at once do shall be seen; `bench.overload` sees to what is refused.
ENVIRONMENT = {"TRUNKLINE_LOAD__REFUSE": "false"}
AUDIBLE_ANSWER = "end of speech to audible answer"
PARTS = ("final", "transcript worked on", "intent", "first sentence", "first audio in the log")

_APART_S = 0.9  # callers do not begin in the same instant
_ABOUT_TO_END_S = 0.5  # who ends so soon after being spoken over need not have noticed
_BURSTS_APART_S = 1.0  # where a wire does not tell answers apart, such a silence between two sounds does
_FAMILY = {"human": "human voice", "synthetic": "synthetic voice"}


@dataclass(frozen=True, slots=True)
class Line:
    """One recorded turn, and the words in it."""

    path: Path
    words: str
    voice: str


@dataclass(frozen=True, slots=True)
class Scene:
    """How many callers at once, on which wire, and how they speak."""

    group: str
    calls: int
    wire: str = "twilio"
    manner: Manner = "polite"
    fragments: bool = False


class System(Protocol):
    """What is called: this platform, or another one on the same wire."""

    name: str
    url: str
    agent: str
    # Whether it is known to tell when it is to be silent; of another, a call in which it does shows that it does.
    tells_clear: bool

    def logged(self, callers: Sequence[str]) -> Mapping[str, Logged]:
        """What it wrote down about these calls; empty where it keeps no log."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance, with the agent's audio from its beginning to the next one's.

    `tells_clear`: the agent tells when it is to be silent; of one that does not, silence itself is the stop.
    """

    said: Said
    until_s: float
    pieces: tuple[Piece, ...]
    clears_s: tuple[float, ...]
    tells_clear: bool = True

    @property
    def early(self) -> bool:
        """The agent spoke before the caller had finished.

        Nothing to say of a caller who speaks over the agent; one who does so in a pause of it hears its next sentence.
        """
        said = self.said
        if said.over_agent:
            return False
        until_s = said.agent_heard_s if said.interrupts else 0.0
        for at_s, silent_s in self._sounds:
            if said.begins_s < at_s < said.ends_s:
                if at_s - until_s > _BURSTS_APART_S:
                    return True
                until_s = silent_s
        return False

    @property
    def answered_s(self) -> float | None:
        """When the first sound was heard after the end of speech."""
        return next((one.audible_s for one in self.pieces if (one.audible_s or 0.0) >= self.said.ends_s), None)

    @property
    def waited_ms(self) -> float | None:
        """From the end of speech to the answer; None where that was too early, or what was spoken over went on."""
        if self.answered_s is None or self.early or (self.said.over_agent and self.spoke_on):
            return None
        return (self.answered_s - self.said.ends_s) * 1000

    @property
    def answers(self) -> int:
        """How many answers were heard after the end of speech."""
        heard = [one for one in self.pieces if one.audible_s is not None and one.audible_s >= self.said.ends_s]
        if all(one.label for one in heard):
            return len({one.label for one in heard})
        gaps = (after.from_s - before.to_s for before, after in itertools.pairwise(heard))
        return bool(heard) + sum(gap_s > _BURSTS_APART_S for gap_s in gaps)

    @property
    def stopped_ms(self) -> float | None:
        """From the onset of speech over the agent until the agent was told to be silent; None where it never was.

        Of an agent that tells nobody, until it was silent, if that was before the caller was.
        """
        said = self.said
        played_s, silent_s = self._over
        clear_s = next((at_s for at_s in self.clears_s if at_s >= said.begins_s), None)
        if clear_s is not None and clear_s <= played_s + AUDIBLE_WITHIN_S:
            return (clear_s - said.begins_s) * 1000
        if self.tells_clear or silent_s >= said.ends_s:
            return None
        return max(0.0, silent_s - said.begins_s) * 1000

    @property
    def spoke_on(self) -> bool:
        """An agent that was not stopped spoke on, rather than having been about to end by itself."""
        return self.stopped_ms is None and self._over[1] - self.said.begins_s > _ABOUT_TO_END_S

    @property
    def _sounds(self) -> Iterator[tuple[float, float]]:
        """When each piece with a sound was audible, from its first to its last."""
        for one in self.pieces:
            if one.audible_s is not None and one.silent_s is not None:
                yield one.audible_s, one.silent_s

    @property
    def _over(self) -> tuple[float, float]:
        """Until when what the caller speaks over was played, and until when it was audible."""
        played_s = silent_s = self.said.agent_heard_s
        for one in self.pieces:
            if one.audible_s is not None and one.audible_s - silent_s > _BURSTS_APART_S:
                break
            played_s = max(played_s, one.to_s)
            silent_s = max(silent_s, one.silent_s or 0.0)
        return played_s, silent_s


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


def scenes(quick: bool) -> list[Scene]:
    """What is measured."""
    at_once = QUICK_CALLS_AT_ONCE if quick else CALLS_AT_ONCE
    found = [Scene(f"Twilio, {count} at once", count) for count in at_once]
    found.append(Scene("Twilio, fragments", 1, fragments=True))
    found.append(Scene("Twilio, interrupting", 1, manner="interrupting"))
    found += [Scene(f"native, {count} at once", count, wire="native") for count in at_once[: 1 if quick else None]]
    return found


def measure_voice(system: System, wanted: Sequence[Scene], quick: bool, found: Findings) -> None:
    """Plays the scenes one after the other, each with callers of its own; more calls where few are at once.

    What each finds is added to `found` at once, so that a run that is broken off has it.
    """
    for scene in wanted:
        rounds = 1 if quick or scene.calls > 2 else 3 // scene.calls
        calls = [call for before in range(rounds) for call in play(system, scene, quick, before)]
        logged = system.logged([call.caller for call in calls])
        found.add(findings_of(f"{system.name}: {scene.group}", calls, logged, system.tells_clear))


def play(system: System, scene: Scene, quick: bool, before: int = 0) -> list[Call]:
    """Plays the scene once; each of its callers says all lines, or with `quick` some.

    `before` is how many rounds were played already: fragments have the next pattern of pauses in each.
    """
    return asyncio.run(_play(system, scene, quick, before))


async def _play(system: System, scene: Scene, quick: bool, before: int) -> list[Call]:
    wire: Callable[[str, str], Wire] = TwilioWire if scene.wire == "twilio" else NativeWire
    rate_hz = TwilioWire.rate_hz if scene.wire == "twilio" else NativeWire.rate_hz
    # The goodbye would end the call.
    script = [load(one.path, one.words, one.voice, rate_hz) for one in lines(quick)[1] if "goodbye" not in one.words]
    thinking = itertools.islice(itertools.cycle(THINKING_MS), before, None)
    said = [fragmented(one, next(thinking)) for one in script] if scene.fragments else script

    async def one(number: int) -> Call:
        await asyncio.sleep(number * _APART_S)
        caller = f"bench-{uuid.uuid4()}"
        return await Caller(wire(system.agent, caller), caller, scene.manner).call(system.url, _rotated(said, number))

    return list(await asyncio.gather(*(one(number) for number in range(scene.calls))))


def _rotated(said: Sequence[Utterance], number: int) -> list[Utterance]:
    """Callers at once say different things at a time; each number of the order follows its question."""
    pairs = [list(said[start : start + 2]) for start in range(0, len(said), 2)]
    start = number % len(pairs)
    return [one for pair in pairs[start:] + pairs[:start] for one in pair]


def turns_of(call: Call, tells_clear: bool) -> Iterator[Turn]:
    """Utterances that were said to their end, with what was heard from each one's beginning to the next one's."""
    for number, said in enumerate(call.said):
        if not said.ends_s:
            continue
        until_s = call.said[number + 1].begins_s if number + 1 < len(call.said) else float("inf")
        pieces = tuple(one for one in call.phone.pieces if said.begins_s <= one.to_s and one.from_s < until_s)
        clears_s = tuple(at_s for at_s in call.phone.clears_s if said.begins_s <= at_s < until_s)
        yield Turn(said, until_s, pieces, clears_s, tells_clear or bool(call.phone.clears_s))


@dataclass(slots=True)
class _Tally:
    """What calls add up to."""

    voice_to_voice_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    stopped_ms: list[float] = field(default_factory=list)
    parts_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    pairs: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, turn: Turn, logged: Logged | None) -> None:
        """One utterance."""
        self.counts["turns"] += 1
        self.counts["turns that can be answered too early"] += not turn.said.over_agent
        self.counts["answered too early"] += turn.early
        self.counts["answered twice"] += turn.answers > 1
        self.counts["unanswered"] += turn.answered_s is None and not turn.early
        if turn.said.over_agent:
            self.counts["interruptions"] += 1
            self.counts["interruptions that did not stop the agent"] += turn.spoke_on
            if turn.stopped_ms is not None:
                self.stopped_ms.append(turn.stopped_ms)
        if turn.waited_ms is not None:
            self.voice_to_voice_ms[turn.said.utterance.voice].append(turn.waited_ms)
        if logged is not None:
            self._add_logged(turn, logged)

    def _add_logged(self, turn: Turn, logged: Logged) -> None:
        finals = logged.finals(turn.said.begins_s, turn.until_s)
        self.counts["taken for several turns"] += len(finals) > 1
        said = turn.said.utterance
        self.pairs[said.voice].append((said.words, " ".join(final.text for final in finals)))
        if finals and turn.waited_ms is not None:
            for name, at_s in logged.parts_s(finals[-1]).items():
                self.parts_ms[name].append((at_s - turn.said.ends_s) * 1000)


def findings_of(group: str, calls: Sequence[Call], logged: Mapping[str, Logged], tells_clear: bool = True) -> Findings:
    """The distributions over all turns of the calls."""
    tally = _Tally()
    for call in calls:
        for turn in turns_of(call, tells_clear):
            tally.add(turn, logged.get(call.caller))
    every_ms = list(itertools.chain.from_iterable(tally.voice_to_voice_ms.values()))
    found = Findings([Row(group, AUDIBLE_ANSWER, Distribution.of(every_ms))])
    found.rows += [
        Row(group, f"{AUDIBLE_ANSWER}, {_FAMILY[voice]}", Distribution.of(values))
        for voice, values in sorted(tally.voice_to_voice_ms.items())
    ]
    found.rows += [
        Row(group, f"end of speech to {name}", Distribution.of(tally.parts_ms[name]))
        for name in PARTS
        if tally.parts_ms[name]
    ]
    if tally.counts["interruptions"]:
        found.rows.append(Row(group, "speech over the agent to its stop", Distribution.of(tally.stopped_ms)))
    for voice, pairs in sorted(tally.pairs.items()):
        rate = word_error_rate(pairs)
        percent = None if rate is None else round(100 * rate, 2)
        found.facts.append(Fact(group, f"word error rate, {_FAMILY[voice]}", percent, "%"))
    found.facts += [Fact(group, name, count) for name, count in tally.counts.items()]
    found.facts.append(Fact(group, "calls", len(calls)))
    found.facts.append(Fact(group, "calls failed", sum(bool(call.error) for call in calls)))
    for error, count in Counter(call.error for call in calls if call.error).items():
        found.facts.append(Fact(group, f"calls failed: {error}", count))
    return found
