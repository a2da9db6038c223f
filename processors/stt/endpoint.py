"""Endpointing by words: how long a pause must be before the caller's turn counts as over.

Recognition closes nearly every text with a full stop, also one that breaks off in mid-sentence; but then it is not sure
of it. So what counts beside the words is how sure it was of their end, and whether a language model would end a
sentence there (`completeness.py`). How sure it was of the last word tells nothing: a rare word ends a sentence as well
as a common one.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from processors.agents import Agent
from processors.intent.numbers import runs

_GOES_ON = frozenset(
    """
    a an the my your its our their every and or but because if when while whose although unless until whether
    of from into onto between i i'm i'd i'll i've we're you're there's would should might must
    um uh er erm hmm mm called named mr mrs ms dr
    """.split()
)
_MAY_GO_ON = frozenset(
    """
    is are am have has this that these those his her some any it he she they we you who which where than as so then
    to in on at for with without by about over under through during before after near since
    also just very really like number
    """.split()
)
_NUMBERS = frozenset(
    """
    zero oh one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand double triple
    """.split()
)
_DETERMINERS = frozenset("a the this that which another any each every first last".split())
# Words that people end with and models are seldom sure of, for they could have come anywhere.
_CLOSES = frozenset("please thanks goodbye bye yes yeah yep no nope okay ok sure hello hi".split())
_ENDS = ".!?。！？"
_ASKS = "?？"
_OPEN = ("...", "…", "-", "–", "—", ",", ";", ":")

# How much to doubt a mark that recognition is so sure of, at least, and words that end a sentence so probably. Together
# these tell whether the caller has finished. Chosen on speech over the telephone, cut behind its words: see
# `bench/turns.py` and docs/performance.md.
_DOUBT_OF_MARK = ((0.9, 0), (0.8, 1), (0.6, 2), (0.4, 3))
_DOUBT_OF_IMPROBABLE_MARK = 5
WHOLE = 0.25
BROKEN_OFF = 0.05
_DOUBT_OF_WORDS = ((0.5, 0), (WHOLE, 1), (BROKEN_OFF, 2))
_DOUBT_OF_BROKEN_OFF = 4
_DOUBT_OF_UNJUDGED = 1
_DOUBT_OF_LAST_WORD = 2
_NO_DOUBT_MAX = 2
_IN_DOUBT_MAX = 4
# How far it is from the turn pause to the completion pause in doubt.
_IN_DOUBT = 0.5
# What a mark must be to end a question after a number, and a sentence with a closing word.
_SURE = 0.8
_UNSURE = 0.6
_NUMBER_KINDS = frozenset({"order_number", "digits"})


@dataclass(frozen=True, slots=True)
class SttRules:
    """What an agent says about listening: the pauses that decide, words to expect, and the language.

    `numbers` are the patterns (regular expressions) of numbers that are whole once they match. `sentences` are what
    callers are expected to say, as `spoken` gives it: whole, whatever they look like to a language model. Where
    `languages` are several, callers may speak any of them and change between utterances; `language` is the one they
    begin with.
    """

    hesitation_ms: int = 100
    turn_ms: int = 300
    completion_ms: int = 900
    vocabulary: tuple[str, ...] = ()
    language: str = "en"
    languages: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    sentences: frozenset[str] = frozenset()


def spoken(text: str) -> str:
    """The words alone, in lower case: what a text sounds like."""
    return " ".join(re.findall(r"[\w'-]+", text.lower()))


def pause_needed_ms(
    text: str, rules: SttRules, sure: float = 1.0, complete: float | None = None, patience_ms: int = 0
) -> int:
    """The silence after which these words are the whole of what the caller wants to say.

    `sure` is the confidence (0 to 1) in the mark that ends the sentence, `complete` the probability that a sentence
    ends there by its words alone, None where that is not known. `turn_ms` when they sound complete (or when nothing was
    said), `completion_ms` when they break off, end without a mark or with a number that may still be going on; half way
    between them where mark and words leave it in doubt. At least `patience_ms`, the pause that this caller may make
    within a turn, unless the words are certainly all: a number of known form, a "yes", a sentence that the agent knows.
    """
    text = text.strip()
    if not text:
        return rules.turn_ms
    said = spoken(text)
    words = said.split()
    if not words or text.endswith(_OPEN) or words[-1] in _GOES_ON:
        return rules.completion_ms
    if _is_number(words):
        asked = text[-1] in _ASKS and sure >= _SURE
        return rules.turn_ms if asked or _is_whole(text, rules.numbers) else rules.completion_ms
    if text[-1] not in _ENDS:
        return rules.completion_ms
    if words[-1] in _CLOSES and sure >= _UNSURE:
        return rules.turn_ms
    if said in rules.sentences:
        complete = None if complete is None else 1.0
        patience_ms = 0
    may_go_on = text[-1] not in _ASKS and words[-1] in _MAY_GO_ON
    way = _IN_DOUBT if words[-1] in _CLOSES else _way(_doubt(sure, may_go_on, complete))
    return max(patience_ms, rules.turn_ms + round(way * (rules.completion_ms - rules.turn_ms)))


def _doubt(sure: float, may_go_on: bool, complete: float | None) -> int:
    """What speaks against the end of a sentence: its mark, its words, and its last word where those do not decide."""
    of_mark = next((doubt for least, doubt in _DOUBT_OF_MARK if sure >= least), _DOUBT_OF_IMPROBABLE_MARK)
    if complete is None:
        return of_mark + _DOUBT_OF_UNJUDGED + (_DOUBT_OF_LAST_WORD if may_go_on else 0)
    of_words = next((doubt for least, doubt in _DOUBT_OF_WORDS if complete >= least), _DOUBT_OF_BROKEN_OFF)
    return of_mark + of_words + (_DOUBT_OF_LAST_WORD if may_go_on and complete < WHOLE else 0)


def _way(doubt: int) -> float:
    """How far it is from the turn pause to the completion pause (0 to 1)."""
    if doubt <= _NO_DOUBT_MAX:
        return 0.0
    return _IN_DOUBT if doubt <= _IN_DOUBT_MAX else 1.0


def _is_number(words: Sequence[str]) -> bool:
    """Whether they end with a number: "four one", but not "the cheaper one"."""
    *before, last = words
    if last == "one" and before and before[-1] not in _NUMBERS and not _DETERMINERS.isdisjoint(before[-2:]):
        return False
    return last in _NUMBERS or any(character.isdigit() for character in last)


def _is_whole(text: str, patterns: tuple[str, ...]) -> bool:
    """Whether the number at the end is one that the agent knows the form of, said to its last digit."""
    said = runs(text)
    return bool(said) and any(re.fullmatch(pattern, said[-1].digits()) for pattern in patterns)


def rules_of(agents: Mapping[str, Agent]) -> Callable[[str], SttRules]:
    """What each agent says about listening, by its id; an unknown id gives the defaults."""
    rules = {
        name: SttRules(
            hesitation_ms=agent.pauses.hesitation_ms,
            turn_ms=agent.pauses.turn_ms,
            completion_ms=agent.pauses.completion_ms,
            vocabulary=agent.vocabulary,
            language=agent.languages[0],
            languages=agent.languages if len(agent.languages) > 1 else (),
            sentences=frozenset(spoken(example) for intent in agent.intents for example in intent.examples),
            numbers=tuple(one.pattern for one in agent.entities if one.kind in _NUMBER_KINDS and one.pattern),
        )
        for name, agent in agents.items()
    }
    return lambda agent_id: rules.get(agent_id, SttRules())
