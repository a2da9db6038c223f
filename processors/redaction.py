"""What must not be passed on, found in words and masked: cards, national ids, e-mail, telephone numbers. Pure.

Numbers are found as they are written and as they are said ("four one one one", "double five"). A mask has the length of
what it hides, so that indexes into a text stay true; spaces stay, so that words stay words.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from processors.intent.numbers import Group, runs
from schemas.event import Event
from schemas.events import Control, Entity, Intent, Response, Session, SpeechChunk, Transcript, TranscriptKind, Word

CARD, EMAIL, PHONE, IBAN = "card", "email", "phone", "iban"
MASK = "*"

# Between digits that belong together, besides what `numbers` knows.
_FILLER = re.compile(r"\b(?:uh|uhm|um|er|erm|hmm|then|and)\b|[()/]", re.IGNORECASE)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_SPOKEN_EMAIL = re.compile(
    r"\b\w+(?:\s+(?:dot|point|underscore|dash|minus|plus)\s+\w+)*\s+at\s+\w+(?:\s+(?:dot|point)\s+\w+)+", re.IGNORECASE
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{2,4}){3,8}\b")
_DNI = re.compile(r"\b([XYZ]|\d)(\d{7})[- ]?([A-Z])\b", re.IGNORECASE)
_CODICE = re.compile(r"\b[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]\b", re.IGNORECASE)
_SSN = re.compile(r"\b(?!000|666|9)\d{3}[- ](?!00)\d{2}[- ](?!0000)\d{4}\b")
_SOCIAL_SECURITY = re.compile(r"social security", re.IGNORECASE)
_SAID_BEFORE = 80
# The shortest piece of a card's number that is taken for one while its speaker goes on.
_BEGUN = 6


class Span(NamedTuple):
    """A piece of a text that must not be passed on, and what it is."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What a tenant has masked: kinds (card, email, phone, iban), national ids by country, and own patterns by name."""

    kinds: frozenset[str] = frozenset({CARD})
    countries: frozenset[str] = frozenset()
    patterns: Mapping[str, re.Pattern[str]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Nothing is masked."""
        return not (self.kinds or self.countries or self.patterns)


# Texts.


def find(text: str, policy: Policy, unfinished: bool = False) -> list[Span]:
    """What the policy masks in the text, in order, without overlaps.

    `unfinished` says that the speaker may go on: then the beginning of a card's number counts, too.
    """
    if not text or policy.is_empty:
        return []
    found = [*_by_pattern(text, policy), *_by_digits(text, policy, unfinished)]
    merged: list[Span] = []
    for span in sorted(found):
        if merged and span.start < merged[-1].end:
            merged[-1] = merged[-1]._replace(end=max(span.end, merged[-1].end))
        else:
            merged.append(span)
    return merged


def redact(text: str, policy: Policy, unfinished: bool = False) -> str:
    """The text with what the policy finds masked; of the same length."""
    return mask(text, find(text, policy, unfinished))


def mask(text: str, spans: Iterable[Span]) -> str:
    """The text with those pieces masked."""
    pieces, at = [], 0
    for span in spans:
        pieces += [text[at : span.start], re.sub(r"\S", MASK, text[span.start : span.end])]
        at = span.end
    return "".join([*pieces, text[at:]])


def _by_pattern(text: str, policy: Policy) -> Iterator[Span]:
    for name, pattern in policy.patterns.items():
        yield from (Span(match.start(), match.end(), name) for match in pattern.finditer(text) if match[0])
    if EMAIL in policy.kinds:
        for pattern in (_EMAIL, _SPOKEN_EMAIL):
            yield from (Span(match.start(), match.end(), EMAIL) for match in pattern.finditer(text))
    if IBAN in policy.kinds:
        yield from (Span(m.start(), m.end(), IBAN) for m in _IBAN.finditer(text) if is_iban(m[0]))
    for country, pattern, holds in _LETTERED:
        if country in policy.countries:
            yield from (Span(m.start(), m.end(), f"id_{country}") for m in pattern.finditer(text) if holds(m[0]))


def _by_digits(text: str, policy: Policy, unfinished: bool) -> Iterator[Span]:
    blanked = _FILLER.sub(lambda match: " " * len(match[0]), text)
    for run in runs(blanked):
        groups = run.groups()
        if not groups:
            continue
        said = "".join(group.digits for group in groups)
        if CARD in policy.kinds:
            start = _card_at(groups, unfinished and not text[run.end :].strip(" .,-"))
            if start is not None:
                # What follows a card's number is its date and its check.
                yield Span(start, run.end, CARD)
                continue
        for country in policy.countries & _NUMBERED.keys():
            if _NUMBERED[country](said):
                yield Span(run.start, run.end, f"id_{country}")
        if "us" in policy.countries and len(said) == 9:
            before = text[max(0, run.start - _SAID_BEFORE) : run.start]
            if _SOCIAL_SECURITY.search(before):
                yield Span(run.start, run.end, "id_us")
        if PHONE in policy.kinds and is_phone(said, text[: run.start].rstrip(" (").endswith("+")):
            yield Span(run.start, run.end, PHONE)


# Numbers.


def luhn(digits: str) -> bool:
    """The check that every card's number passes (ISO/IEC 7812-1)."""
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + index % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_card(digits: str) -> bool:
    """A number of a known brand's form that passes its check."""
    return any(len(digits) in lengths and digits.startswith(prefixes) for prefixes, lengths in _BRANDS) and luhn(digits)


_BRANDS: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...] = (
    (("4",), (13, 16, 19)),
    (tuple(map(str, [*range(51, 56), *range(2221, 2721)])), (16,)),
    (("34", "37"), (15,)),
    (("6011", "65", *map(str, range(644, 650))), (16, 19)),
    (("36", "38", "39", *map(str, range(300, 306))), (14, 16)),
    (tuple(map(str, range(3528, 3590))), (16, 19)),
    (("62", "81"), (16, 17, 18, 19)),
    (("50", *map(str, range(56, 70))), (16, 18, 19)),
)
_PREFIXES = tuple(prefix for prefixes, _ in _BRANDS for prefix in prefixes)


def _card_at(groups: Sequence[Group], unfinished: bool) -> int | None:
    """Where a card's number begins among digits said one after another; it begins and ends with a group."""
    for first in range(len(groups)):
        said = ""
        for group in groups[first:]:
            said += group.digits
            if len(said) > 19:
                break
            if is_card(said):
                return groups[first].start
        if unfinished and _BEGUN <= len(said) <= 19 and said.startswith(_PREFIXES):
            return groups[first].start
    return None


def is_phone(digits: str, international: bool) -> bool:
    """Telephone numbers as they are dialled: with +, 00 or 0 in front, or ten digits as in North America."""
    if international:
        return 7 <= len(digits) <= 15
    if digits.startswith("0"):
        return 8 <= len(digits) <= 17
    national = digits.removeprefix("1") if len(digits) == 11 else digits
    return len(national) == 10 and national[0] in "23456789" and national[3] in "23456789"


def is_iban(text: str) -> bool:
    """ISO 13616: the check over the number with its country moved to the end."""
    plain = text.replace(" ", "").upper()
    return 15 <= len(plain) <= 34 and int("".join(str(int(one, 36)) for one in plain[4:] + plain[:4])) % 97 == 1


def is_german_tax_id(digits: str) -> bool:
    """Steuer-IdNr: eleven digits, ISO 7064 MOD 11,10."""
    if len(digits) != 11 or digits[0] == "0":
        return False
    product = 10
    for digit in digits[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def is_austrian_insurance_number(digits: str) -> bool:
    """Ten digits; the fourth is the check."""
    if len(digits) != 10 or digits[0] == "0":
        return False
    weights = (3, 7, 9, 0, 5, 8, 4, 2, 1, 6)
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True)) % 11 == int(digits[3])


def is_french_nir(digits: str) -> bool:
    """Fifteen digits, the last two are the check."""
    return len(digits) == 15 and digits[0] in "12" and 97 - int(digits[:13]) % 97 == int(digits[13:])


def is_polish_pesel(digits: str) -> bool:
    """Eleven digits."""
    return len(digits) == 11 and _weighed(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0


def is_dutch_bsn(digits: str) -> bool:
    """Nine digits, the eleven test."""
    return len(digits) == 9 and digits != "0" * 9 and _weighed(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def is_brazilian_cpf(digits: str) -> bool:
    """Eleven digits, the last two are checks."""
    if len(digits) != 11 or len(set(digits)) == 1:
        return False
    return all(_weighed(digits[:n], range(n + 1, 1, -1)) * 10 % 11 % 10 == int(digits[n]) for n in (9, 10))


def _weighed(digits: str, weights: Iterable[int]) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True))


def is_spanish_dni(text: str) -> bool:
    """DNI and NIE: eight digits, or a letter and seven, and the check letter."""
    match = _DNI.fullmatch(text)
    if match is None:
        return False
    number = int(str("XYZ".find(match[1].upper())) + match[2]) if match[1].isalpha() else int(match[1] + match[2])
    return "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] == match[3].upper()


def is_italian_tax_code(text: str) -> bool:
    """Codice fiscale: sixteen characters, the last is the check."""
    code = text.upper()
    odd = "BAKPLCQDREVOSFTGUHMINJWZYX"
    total = 0
    for index, one in enumerate(code[:15]):
        value = int(one) if one.isdigit() else ord(one) - ord("A")
        total += value if index % 2 else odd.index(chr(ord("A") + value))
    return chr(ord("A") + total % 26) == code[15]


_NUMBERED: Mapping[str, Callable[[str], bool]] = {
    "at": is_austrian_insurance_number,
    "br": is_brazilian_cpf,
    "de": is_german_tax_id,
    "fr": is_french_nir,
    "nl": is_dutch_bsn,
    "pl": is_polish_pesel,
}
_LETTERED: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("es", _DNI, is_spanish_dni),
    ("it", _CODICE, is_italian_tax_code),
    ("us", _SSN, lambda text: True),
)
COUNTRIES = frozenset(_NUMBERED) | {country for country, _, _ in _LETTERED}


# Events and audio.


def redacted(event: Event, policy: Policy) -> Event:
    """The event with what the policy finds in its words masked; the caller's own id stays."""
    if policy.is_empty:
        return event
    match event:
        case Transcript():
            unfinished = event.kind is not TranscriptKind.FINAL
            words = _masked_words(event.words, policy, unfinished)
            return replace(event, text=redact(event.text, policy, unfinished), words=words)
        case Intent():
            spans = find(event.text, policy, not event.committed)
            entities = tuple(_masked_entity(entity, spans, policy) for entity in event.entities)
            return replace(event, text=mask(event.text, spans), entities=entities)
        case Response():
            arguments, result = _masked_json(event.arguments, policy), _masked_json(event.result, policy)
            return replace(event, text=redact(event.text, policy), arguments=arguments, result=result)
        case SpeechChunk():
            return replace(event, text=redact(event.text, policy))
        case Control():
            return replace(event, heard_text=redact(event.heard_text, policy))
        case Session():
            return replace(event, context={name: redact(value, policy) for name, value in event.context.items()})
    return event


def hidden_ms(words: Sequence[Word], policy: Policy) -> list[tuple[int, int]]:
    """From when to when masked words are said, in milliseconds since the call's first sample; neighbours are one."""
    found: list[tuple[int, int]] = []
    for word, shown in zip(words, _masked_words(words, policy, unfinished=False), strict=True):
        if word == shown:
            continue
        if found and word.start_ms <= found[-1][1]:
            found[-1] = found[-1][0], max(word.end_ms, found[-1][1])
        else:
            found.append((word.start_ms, word.end_ms))
    return found


def silenced(pcm: bytes, start_ms: float, sample_rate_hz: int, hidden: Iterable[tuple[int, int]]) -> bytes:
    """PCM16 that begins at `start_ms`, with zeros from when to when something is hidden."""
    samples = bytearray(pcm)
    for since_ms, until_ms in hidden:
        first, last = (round((at_ms - start_ms) * sample_rate_hz / 1000) for at_ms in (since_ms, until_ms))
        first, last = max(0, first), min(len(samples) // 2, last)
        if first < last:
            samples[2 * first : 2 * last] = bytes(2 * (last - first))
    return bytes(samples)


def _masked_words(words: Sequence[Word], policy: Policy, unfinished: bool) -> tuple[Word, ...]:
    text = " ".join(word.word for word in words)
    masked = redact(text, policy, unfinished)
    if masked == text:
        return tuple(words)
    found, at = [], 0
    for word in words:
        found.append(replace(word, word=masked[at : at + len(word.word)]))
        at += len(word.word) + 1
    return tuple(found)


def _masked_entity(entity: Entity, spans: Sequence[Span], policy: Policy) -> Entity:
    if any(span.start < entity.end and entity.start < span.end for span in spans):
        return replace(entity, value=MASK * len(entity.value), raw=MASK * len(entity.raw))
    return replace(entity, value=redact(entity.value, policy), raw=redact(entity.raw, policy))


def _masked_json(text: str, policy: Policy) -> str:
    """JSON stays JSON: a number that is masked becomes a string."""
    try:
        value = json.loads(text)
    except ValueError:
        return redact(text, policy)
    masked = _masked_value(value, policy)
    return text if masked == value else json.dumps(masked, ensure_ascii=False)


def _masked_value(value: Any, policy: Policy) -> Any:
    if isinstance(value, dict):
        return {name: _masked_value(item, policy) for name, item in value.items()}
    if isinstance(value, list):
        return [_masked_value(item, policy) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    text = value if isinstance(value, str) else str(value)
    masked = redact(text, policy)
    return value if masked == text else masked
