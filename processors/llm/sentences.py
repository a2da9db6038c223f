"""Text to sentences fit for speech, also while the text is still being made."""

import re

SENTENCE_CHARS_MAX = 280

_ABBREVIATIONS = frozenset(
    ("mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "e.g", "i.e", "approx", "inc", "ltd", "co", "u.s", "u.k")
)
_END = re.compile(r"([.!?…]+[\"'”’)\]]*)(?=\s)|\n+")
_MARKUP = (
    (re.compile(r"```.*?(```|$)", re.DOTALL), " "),
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),
    # Not numbers: of one sentence nobody can tell an item's from an answer ("How many are left? 12. Shall I ...").
    (re.compile(r"^\s{0,3}(#{1,6}\s+|>\s?|[-*+•]\s+)", re.MULTILINE), ""),
    (re.compile(r"(\*\*|__|\*|`|~~|<[^>\s][^>]*>)"), ""),
    (re.compile(r"[\U0001F000-\U0001FAFF\u2600-\u27BF\uFE0F]"), ""),
)


def word_set(text: str) -> frozenset[str]:
    """The words between blanks: a readable way to write a set of words down."""
    return frozenset(text.split())


def speakable(text: str) -> str:
    """Without Markdown, tags, emoji and runs of blanks: what a voice can say."""
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return re.sub(r"\s+", " ", text).strip()


def take_sentences(buffer: str, *, complete: bool) -> tuple[tuple[str, ...], str]:
    """The sentences that are surely finished, fit for speech, and the rest, to be given again with what comes next.

    With `complete` nothing comes next, and the rest is a sentence too.
    """
    sentences: list[str] = []
    start = 0
    for match in _END.finditer(buffer):
        if match[1] == "." and _is_abbreviation(buffer[start : match.start()]):
            continue
        sentences.extend(_clauses(buffer[start : match.end()]))
        start = match.end()
    rest = buffer[start:]
    if complete or len(rest) > 2 * SENTENCE_CHARS_MAX:
        sentences.extend(_clauses(rest))
        rest = ""
    return tuple(sentences), rest


def split_sentences(text: str) -> tuple[str, ...]:
    """All sentences of a finished text."""
    return take_sentences(text, complete=True)[0]


def _is_abbreviation(before: str) -> bool:
    word = before.rsplit(None, 1)[-1].lower().lstrip("(\"'“") if before.strip() else ""
    # A list's number ("1.") and an initial ("J.") do not end a sentence either.
    return word in _ABBREVIATIONS or before.strip().isdigit() or (len(word) == 1 and word.isalpha() and word != "i")


def _clauses(text: str) -> list[str]:
    """The text, cut at commas or blanks where it is too long to be spoken as one sentence."""
    rest = speakable(text)
    clauses: list[str] = []
    while len(rest) > SENTENCE_CHARS_MAX:
        cut = max(rest.rfind(mark, 40, SENTENCE_CHARS_MAX) for mark in (", ", "; ", ": "))
        cut = cut + 1 if cut >= 0 else rest.rfind(" ", 1, SENTENCE_CHARS_MAX)
        cut = cut if cut > 0 else SENTENCE_CHARS_MAX
        clauses.append(rest[:cut].strip())
        rest = rest[cut:].strip()
    if any(character.isalnum() for character in rest):
        clauses.append(rest)
    return clauses
