"""The guard against loops: Whisper's decoder repeats itself now and then, the more so over short windows.

Aligned with the audio, words that were said twice take time twice, and a loop's copies take next to none.
"""

import re
from collections.abc import Iterator, Sequence

from processors.engine import HeardWord

NGRAM_BANNED = 4

_REPEATED_WORDS_MIN = 3  # a repetition of fewer words is how people talk
_REPEATED_LETTERS_MIN = 6
# A loop's copy lasts less than this part of the longest copy; what was said twice, more than 0.6.
_SQUEEZED_RATIO = 0.45
_SQUEEZED_WORD_MS = 60
_UNTIMED_MS_MAX = 20


def words_of(text: str) -> list[str]:
    """The words in lower case, without punctuation."""
    return re.findall(r"[\w']+", text.lower())


def repeats(text: str) -> bool:
    """Whether the text says something again, at a length that a loop would have too."""
    words = words_of(text)
    grams = [tuple(words[at : at + NGRAM_BANNED]) for at in range(len(words) - NGRAM_BANNED + 1)]
    return len(set(grams)) < len(grams) or next(_runs(words), None) is not None


def _runs(words: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Every n-gram of weight that is followed by itself: where it starts, its length, the copies in a row."""
    for length in range(1, len(words) // 2 + 1):
        start = 0
        while start + 2 * length <= len(words):
            copies = 1
            gram = words[start : start + length]
            while words[start + copies * length : start + (copies + 1) * length] == gram:
                copies += 1
            weight = length * (copies - 1)
            if weight >= _REPEATED_WORDS_MIN or (weight and len("".join(gram)) >= _REPEATED_LETTERS_MIN):
                yield start, length, copies
            start += (copies - 1) * length + 1


def said(heard: tuple[HeardWord, ...]) -> tuple[HeardWord, ...]:
    """The words without those copies of a repetition, and that tail, for which the audio has no time."""
    timed = len(heard)
    while timed and heard[timed - 1].end_ms - heard[timed - 1].start_ms <= _UNTIMED_MS_MAX:
        timed -= 1
    if 0 < timed <= len(heard) - _REPEATED_WORDS_MIN:
        return said(heard[:timed])
    words = [" ".join(words_of(word.word)) for word in heard]
    for start, length, copies in _runs(words):
        grams = [heard[at : at + length] for at in range(start, start + copies * length, length)]
        lasted_ms = [gram[-1].end_ms - gram[0].start_ms for gram in grams]
        least_ms = float(_SQUEEZED_WORD_MS * length)
        if length > 1:
            least_ms = max(least_ms, _SQUEEZED_RATIO * max(lasted_ms))
        kept = [gram for gram, ms in zip(grams, lasted_ms, strict=True) if ms >= least_ms]
        if len(kept) < copies:
            kept = kept or grams[:1]
            rest = heard[start + copies * length :]
            return said((*heard[:start], *(word for gram in kept for word in gram), *rest))
    return heard
