"""Which intent a text means, by its words alone: what is left when the embedding model cannot be asked.

Words count by how few of the agent's intents use them in their examples, after their endings are cut and the commonest
words are left out. An example's score is the share of its weight that the text holds, and the share of the text's that
it explains, as in an F-score: so "where is my order" is not taken for "return my order", and one word in common among
many is little. To a smaller part all words of an intent count together. One letter wrong or left out in a long word, as
speech recognition leaves it, still counts in part.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from processors.agents import Agent

CONFIDENCE_MAX = 0.6  # words alone are never as sure as meaning
MODEL = "keywords"
EXAMPLE_SHARE = 0.7
NEARLY = 0.7  # what a word counts that is only nearly the same
NEARLY_LETTERS_MIN = 5

_STOP_WORDS = frozenset(
    "a an the i you we my our your me it is are am was do does did can could would will shall to of for in on at and "
    "or please have has had be been this that these those with there by from as so just if m d".split()
)
_ENDINGS = ("ings", "ing", "ies", "ied", "ers", "es", "ed", "er", "ly", "s", "y", "e")


def stem(word: str) -> str:
    """The word without its ending; three letters at least are left."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            base = word.removesuffix(ending)
            return base[:-1] if len(base) > 3 and base[-1] == base[-2] and base[-1] not in "ls" else base
    return word


def scores(agent: Agent, text: str) -> dict[str, float]:
    """0 to CONFIDENCE_MAX for each intent, from the example that fits best and from all its words."""
    said = telling(text)
    learnt = _learnt(tuple((one.name, one.examples) for one in agent.intents))
    found = dict.fromkeys((one.name for one in agent.intents), 0.0)
    for intent, examples in learnt.examples.items():
        fit = max((learnt.fit(said, words) for words in examples), default=0.0)
        explained = learnt.fit(said, said & frozenset().union(*examples))
        found[intent] = CONFIDENCE_MAX * min(1.0, EXAMPLE_SHARE * fit + (1 - EXAMPLE_SHARE) * explained)
    return found


def telling(text: str) -> frozenset[str]:
    """The stems of its words, less the commonest words."""
    words = (word for word in re.findall(r"[^\W\d_]+", text.lower().replace("'s", "")) if word not in _STOP_WORDS)
    return frozenset(stem(word) for word in words)


@dataclass(frozen=True, slots=True)
class _Learnt:
    """The words of each intent's examples, and what each word weighs: the fewer intents use it, the more."""

    examples: Mapping[str, tuple[frozenset[str], ...]]
    weights: Mapping[str, float]
    unknown: float  # the weight of a word that no example has: it is about something else

    def fit(self, said: frozenset[str], words: frozenset[str]) -> float:
        """0 to 1: how much of the words is in what was said, and how much of that is in the words."""
        common = sum(self.weights[word] * _present(word, said) for word in words & self.weights.keys())
        total = sum(self.weights.get(word, self.unknown) for word in (*words, *said))
        return 2 * common / total if common else 0.0


@lru_cache(maxsize=64)
def _learnt(intents: tuple[tuple[str, tuple[str, ...]], ...]) -> _Learnt:
    examples = {name: tuple(words for text in texts if (words := telling(text))) for name, texts in intents}
    used = Counter(word for sets in examples.values() for word in frozenset[str]().union(*sets))
    weights = {word: math.log(1 + len(intents) / count) for word, count in used.items()}
    return _Learnt(examples, weights, sum(weights.values()) / max(1, len(weights)))


def _present(word: str, said: Iterable[str]) -> float:
    if word in said:
        return 1.0
    return NEARLY if any(_nearly(word, other) for other in said) else 0.0


def _nearly(one: str, other: str) -> bool:
    """Whether at most one letter was changed, added or left out in a long word."""
    if min(len(one), len(other)) < NEARLY_LETTERS_MIN or abs(len(one) - len(other)) > 1:
        return False
    short, long = sorted((one, other), key=len)
    same = next((at for at, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    rest = short[same + 1 :] if len(short) == len(long) else short[same:]
    return rest == long[same + 1 :]
