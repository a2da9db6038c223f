"""What people say while they listen, and what a line sends back: words over the agent that want nothing of it."""

import re

# As Whisper writes them. "Yes", "okay" and "right" are not among them: they are answers, and so is a hummed no.
SOUNDS = frozenset(
    "mm mmm mhm mmhm mmhmm mhmm mmmhmm hm hmm hmmm uhhuh ahhuh um umm uh uhm er erm"
    " ah aah ahh aha ahah oh ooh ohh".split()
)
NO = frozenset({"uh-uh", "mm-mm", "nuh-uh", "unh-unh"})
SOUNDS_MAX = 6
ECHO_WORDS_MIN = 3
ECHO_WORDS_AN_ERROR = 5

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


def is_backchannel(text: str) -> bool:
    """Whether it is nothing but a few sounds that mean "I am listening"; false for no words at all."""
    words = _words(text)
    if not 0 < len(words) <= SOUNDS_MAX or not NO.isdisjoint(words):
        return False
    return "".join(words) in SOUNDS or all(_is_sound(word) for word in words)


def is_echo(text: str, said: str) -> bool:
    """Whether the text is a run of what the agent `said`, of three words or more, with one wrong in five at most.

    A few words of one's own may well be the agent's, too, so fewer are never taken for an echo.
    """
    words = _words(text)
    if len(words) < ECHO_WORDS_MIN:
        return False
    return _errors_within(words, _words(said)) <= len(words) // ECHO_WORDS_AN_ERROR


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _is_sound(word: str) -> bool:
    """Also with hyphens, as in mm-hm; a run of sounds, as in ah-mm, is one, too."""
    parts = word.split("-")
    return "".join(parts) in SOUNDS or all(part in SOUNDS for part in parts)


def _errors_within(words: list[str], said: list[str]) -> int:
    """The fewest words wrong, missing or too many, wherever in `said` the run begins and ends."""
    row = [0] * (len(said) + 1)
    for count, word in enumerate(words, 1):
        before, row = row, [count]
        for index, other in enumerate(said, 1):
            row.append(min(before[index - 1] + (word != other), before[index] + 1, row[index - 1] + 1))
    return min(row)
