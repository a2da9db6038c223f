"""Numbers as people say them: "one oh four two", "ten forty-two", "double five", "one thousand and two", "1-0-4-2".

A run of number words is read in two ways: as digits said one after another (how order numbers are said) and as a
cardinal (how amounts are said). Which of the two counts, the caller of this module knows from what it looks for.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

UNITS = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
TENS = {
    word: value * 10
    for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
REPEATS = {"double": 2, "triple": 3}
ZEROS = {"oh", "o", "nought", "nil"}
# The longest part that is looked at of a longer run: no number that callers say has more words, and all parts of a long
# run would take its length cubed.
PARTS_TOKENS_MAX = 24
# Above it a float is not exact any more, and nothing is counted in such numbers.
WRITTEN_DIGITS_MAX = 15

_EXCLAIMED = {"oh", "o"}
_TOKEN = re.compile(r"[A-Za-z]+|\d+(?:[.,]\d+)*")
# What may stand between the tokens of one run: "1-0-4-2", "one, zero", "10 42".
_BETWEEN = re.compile(r"[\s,.\-–—]*")
_NO_PUNCTUATION = re.compile(r"\s*-?\s*")
_SENTENCE_ENDS = re.compile(r"[.!?…–—]")
_CLOSED = re.compile(r"\s*(?:[.!?;]|$)")
_SHARE = re.compile(r"\b(?:half|(?:half|quarters?|thirds?|fifths?|tenths?)\s+of)\s+$", re.IGNORECASE)
_SHARE_LENGTH_MAX = 24


@dataclass(frozen=True, slots=True)
class Token:
    """A word or a group of digits, with its place in the text."""

    text: str
    start: int
    end: int

    @property
    def is_number(self) -> bool:
        """True for digits and for words that are numbers by themselves."""
        return self.text[0].isdigit() or self.text in UNITS or self.text in TENS


class Group(NamedTuple):
    """Digits that are said together, such as "forty two" or "double five", and where."""

    digits: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Run:
    """Number tokens next to each other."""

    tokens: tuple[Token, ...]

    @property
    def start(self) -> int:
        """Index of its first character."""
        return self.tokens[0].start

    @property
    def end(self) -> int:
        """Index after its last character."""
        return self.tokens[-1].end

    def digits(self) -> str:
        """Read one after another: "ten forty two" is 1042, "double five one" is 551; a scale makes it a cardinal.

        Empty where it is neither, and for "a hundred" or "a thousand", which say how many and are no number to note.
        """
        if any(token.text in SCALES for token in self.tokens):
            value = self.cardinal()
            is_round = self.tokens[0].text == "a" and all(token.text in SCALES for token in self.tokens[1:])
            return "" if value is None or value != int(value) or is_round else str(int(value))
        return "".join(group.digits for group in self.groups())

    def groups(self) -> list["Group"]:
        """The digits as they are said one after another, each group with its place; scales say none."""
        return list(_digit_groups(self.tokens))

    def cardinal(self) -> float | None:
        """Read as one number: "one hundred and twenty" is 120; None where it is not one."""
        if len(self.tokens) == 1 and self.tokens[0].text[0].isdigit():
            return _written(self.tokens[0].text)
        return _spoken(self.tokens)

    def parts(self) -> Iterator["Run"]:
        """Itself, then every run of at most PARTS_TOKENS_MAX of its tokens, longest first, then from the left."""
        yield self
        count = len(self.tokens)
        for length in range(min(count - 1, PARTS_TOKENS_MAX), 0, -1):
            for first in range(count - length + 1):
                yield Run(self.tokens[first : first + length])


def tokens(text: str) -> list[Token]:
    """Words in lower case, and groups of digits."""
    return [Token(match[0].lower(), match.start(), match.end()) for match in _TOKEN.finditer(text)]


def runs(text: str) -> list[Run]:
    """All runs of numbers in the text, in order."""
    found: list[list[Token]] = [[]]
    every = tokens(text)
    leads = _leads(text, every)
    for index, token in enumerate(every):
        run = found[-1]
        begins = token.text == "a" and bool(run) and run[-1].text != "and"
        if run and (begins or not _BETWEEN.fullmatch(text, run[-1].end, token.start)):
            found.append([])
        if _belongs(text, every, index, leads, started=bool(found[-1])):
            found[-1].append(token)
        elif found[-1]:
            found.append([])
    return [Run(tuple(run)) for run in map(_trimmed, found) if run]


def _leads(text: str, every: Sequence[Token]) -> list[bool]:
    """Of each token, whether what comes next is a number, perhaps after some more zeros or a "double"."""
    leads = [False] * len(every)
    for index in range(len(every) - 2, -1, -1):
        following = every[index + 1]
        goes_on = following.text in ZEROS or following.text in REPEATS
        is_number = following.is_number or (goes_on and leads[index + 1])
        leads[index] = is_number and _BETWEEN.fullmatch(text, every[index].end, following.start) is not None
    return leads


def _belongs(text: str, every: Sequence[Token], index: int, leads: Sequence[bool], started: bool) -> bool:
    token = every[index]
    following = every[index + 1] if index + 1 < len(every) else None
    if token.is_number:
        return True
    if token.text in SCALES:
        return started
    if token.text in _EXCLAIMED:
        return _is_zero(text, every, index, leads[index], started)
    if token.text in ZEROS:
        return started or leads[index]
    if following is None:
        return False
    if token.text in REPEATS:
        return following.is_number or following.text in ZEROS
    if token.text == "a":
        begun = text[max(0, token.start - _SHARE_LENGTH_MAX) : token.start]
        is_one = following.text in SCALES and text[token.end : following.start].isspace()
        return is_one and _SHARE.search(begun) is None
    is_one = following.text == "a" and any(one.text in SCALES for one in every[index + 2 : index + 3])
    return token.text == "and" and started and every[index - 1].text in SCALES and (following.is_number or is_one)


def _is_zero(text: str, every: Sequence[Token], index: int, leads: bool, started: bool) -> bool:
    """Whether "oh" is a digit: "one oh four", "four, oh." but not "1042. Oh, one more thing" or "five o'clock"."""
    token = every[index]
    before = text[every[index - 1].end : token.start] if index else ""
    after = text[token.end : token.end + 1]
    if after in {"'", "’"} or (index + 1 < len(every) and every[index + 1].text == "clock"):
        return False
    if started and (_NO_PUNCTUATION.fullmatch(before) or (before.strip() == "," and _CLOSED.match(text, token.end))):
        return True
    is_exclaimed = after == "," and (not index or _SENTENCE_ENDS.search(before) is not None)
    return leads and not is_exclaimed


def _trimmed(run: list[Token]) -> list[Token]:
    """A run ends with a number, not with a word that only joins."""
    end = len(run)
    while end and run[end - 1].text in {"and", *REPEATS}:
        end -= 1
    return run[:end]


def _digit_groups(run: Sequence[Token]) -> Iterator[Group]:
    repeat = 1
    tens = 0
    start = end = 0
    for token in run:
        text = token.text
        if tens and text in UNITS and 0 < UNITS[text] < 10:
            yield Group(str(tens + UNITS[text]) * repeat, start, token.end)
            tens, repeat = 0, 1
            continue
        if tens:
            yield Group(str(tens) * repeat, start, end)
            tens, repeat = 0, 1
        start, end = start if repeat > 1 else token.start, token.end
        if text in REPEATS:
            repeat = REPEATS[text]
        elif text in TENS:
            tens = TENS[text]
        else:
            yield Group(_digits_of(text) * repeat, start, end)
            repeat = 1
    if tens:
        yield Group(str(tens) * repeat, start, end)


def _digits_of(text: str) -> str:
    if text in UNITS:
        return str(UNITS[text])
    if text in ZEROS:
        return "0"
    return re.sub(r"\D", "", text)


def _written(text: str) -> float | None:
    """1,042 and 1.042 are thousands; 12.50 and 12,50 have cents."""
    if sum(character.isdigit() for character in text) > WRITTEN_DIGITS_MAX:
        return None
    grouped = re.fullmatch(r"(\d{1,3}(?:[.,]\d{3})+)(?:[.,](\d{1,2}))?", text)
    if grouped:
        whole = re.sub(r"\D", "", grouped[1])
        return float(f"{whole}.{grouped[2] or 0}")
    plain = re.fullmatch(r"(\d+)(?:[.,](\d+))?", text)
    return float(f"{plain[1]}.{plain[2] or 0}") if plain else None


def _spoken(run: Sequence[Token]) -> float | None:
    """The usual grammar of English cardinals, up to the millions; "a" is one of what follows it."""
    total = group = 0.0
    room, scale = 1000.0, math.inf
    for token in run:
        text = "one" if token.text == "a" else token.text
        if text == "and":
            continue
        if text == "hundred":
            if not 0 < group < 100:
                return None
            group, room = group * 100, 100
        elif text in SCALES:
            if group == 0 or SCALES[text] >= scale:
                return None
            scale = SCALES[text]
            total, group, room = total + group * scale, 0, 1000
        else:
            value = _value(text)
            if value is None or value >= room:
                return None
            group += value
            room = 10 if text in TENS else 0
    return total + group


def _value(text: str) -> float | None:
    if text in UNITS:
        return UNITS[text]
    if text in TENS:
        return TENS[text]
    return _written(text) if text[0].isdigit() else None
