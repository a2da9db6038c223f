"""Endpointing by words: how long a pause must be before the caller's turn counts as over."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from processors.agents import Agent

_GOES_ON = frozenset(
    """
    a an the my your its our their every and or but because if when while whose although unless until whether
    of from into onto between i i'm i'd i'll i've we're you're there's would should might must
    um uh er erm hmm mm called named
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
_ENDS = ".!?。！？"
_OPEN = ("...", "…", "-", "–", "—", ",", ";", ":")


@dataclass(frozen=True, slots=True)
class SttRules:
    """What an agent says about listening: the pauses that decide, words to expect, and the language."""

    hesitation_ms: int = 100
    turn_ms: int = 300
    completion_ms: int = 800
    vocabulary: tuple[str, ...] = ()
    language: str = "en"


def pause_needed_ms(text: str, rules: SttRules) -> int:
    """The silence after which these words are the whole of what the caller wants to say.

    `turn_ms` when they sound complete (or when nothing was said), `completion_ms` when they break off or a number may
    still be going on, and half way between where the words do not tell.
    """
    text = text.strip()
    if not text or text.endswith("?"):
        return rules.turn_ms
    words = re.findall(r"[\w'-]+", text.lower())
    if not words or text.endswith(_OPEN) or words[-1] in _GOES_ON or _is_number(words[-1]):
        return rules.completion_ms
    if text[-1] in _ENDS and words[-1] not in _MAY_GO_ON:
        return rules.turn_ms
    return (rules.turn_ms + rules.completion_ms) // 2


def _is_number(word: str) -> bool:
    return word in _NUMBERS or any(character.isdigit() for character in word)


def rules_of(agents: Mapping[str, Agent]) -> Callable[[str], SttRules]:
    """What each agent says about listening, by its id; an unknown id gives the defaults."""
    rules = {
        name: SttRules(
            hesitation_ms=agent.pauses.hesitation_ms,
            turn_ms=agent.pauses.turn_ms,
            completion_ms=agent.pauses.completion_ms,
            vocabulary=agent.vocabulary,
            language=agent.languages[0],
        )
        for name, agent in agents.items()
    }
    return lambda agent_id: rules.get(agent_id, SttRules())
