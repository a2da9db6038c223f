"""How a caller feels, from the words: a lexicon with negation and emphasis, so that every score can be explained.

The scheme is that of VADER (Hutto and Gilbert, 2014) in small: word weights, a negation within three words before turns
and weakens a weight, an intensifier strengthens it, and the sum is squashed into -1 to 1.
"""

import math
import re

_WEIGHTS = {
    2.5: "excellent amazing fantastic wonderful perfect brilliant awesome love loved outstanding delighted",
    1.5: "great good happy thanks thank glad pleased helpful nice appreciate friendly best lovely satisfied super",
    0.8: "fine okay ok cool kind easy quick",
    -0.8: "wait waiting late slow problem issue delayed delay missing confused unclear wrong difficult",
    -1.5: "bad broken damaged unhappy disappointed disappointing annoyed annoying upset complaint complain poor "
    "frustrating frustrated useless unacceptable sad faulty defective lost ruined worse rude",
    -2.5: "terrible awful horrible worst hate furious angry ridiculous disgusting outrageous scam fraud pathetic",
}
LEXICON = {word: weight for weight, words in _WEIGHTS.items() for word in words.split()}
NEGATIONS = frozenset(
    "not no never nothing hardly isn't wasn't don't didn't doesn't can't cannot won't aren't without".split()
)
INTENSIFIERS = {"very": 1.3, "really": 1.3, "so": 1.2, "extremely": 1.5, "absolutely": 1.4, "too": 1.2, "totally": 1.3}

_SQUASH = 4.0
_NEGATED = -0.6


def sentiment(text: str) -> float:
    """-1 (upset) to 1 (pleased); 0 where no word tells."""
    words = re.findall(r"[a-z']+", text.lower().replace("’", "'"))
    total = 0.0
    for index, word in enumerate(words):
        weight = LEXICON.get(word, 0.0)
        if not weight:
            continue
        before = words[max(0, index - 3) : index]
        if before and before[-1] in INTENSIFIERS:
            weight *= INTENSIFIERS[before[-1]]
        if NEGATIONS.intersection(before):
            weight *= _NEGATED
        total += weight
    return max(-1.0, min(1.0, total / math.sqrt(total * total + _SQUASH)))
