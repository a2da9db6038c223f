"""Word error rate: edits over normalised words."""

import re
from collections.abc import Sequence

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SAME = {"mr": "mister", "mrs": "missus", "dr": "doctor", "ok": "okay"}


def normalise(text: str) -> list[str]:
    """Lower case, without punctuation; hyphens part words, numbers become words, as a caller would say them.

    Up to 99 as a number, longer ones digit by digit: 42 is forty two, 1042 is one zero four two.
    """
    bare = re.sub(r"(?<=\d),(?=\d{3})", "", text.lower().replace("’", "'")).replace("'", "")
    words: list[str] = []
    for word in re.findall(r"\d+|[^\W\d_]+", bare):
        words += _spoken(word) if word.isdecimal() else [_SAME.get(word, word)]
    return words


def edit_distance(expected: Sequence[str], heard: Sequence[str]) -> int:
    """The least number of words to insert, delete or replace (Levenshtein, by dynamic programming)."""
    before = list(range(len(heard) + 1))
    for row, word in enumerate(expected, 1):
        current = [row]
        for column, other in enumerate(heard, 1):
            replaced = before[column - 1] + (word != other)
            current.append(min(replaced, before[column] + 1, current[-1] + 1))
        before = current
    return before[-1]


def word_error_rate(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Edits for each word expected, over all (expected, heard) texts; None where nothing was expected."""
    expected_words, edits = 0, 0
    for expected, heard in pairs:
        words = normalise(expected)
        expected_words += len(words)
        edits += edit_distance(words, normalise(heard))
    return edits / expected_words if expected_words else None


def _spoken(digits: str) -> list[str]:
    number = int(digits)
    if len(digits) > 2 or (len(digits) == 2 and digits[0] == "0"):
        return [_UNITS[int(digit)] for digit in digits]
    if number < 20:
        return [_UNITS[number]]
    tens = _TENS[number // 10 - 2]
    return [tens, _UNITS[number % 10]] if number % 10 else [tens]
