"""Values in what a caller says, normalised: order numbers, digits, dates, amounts and choices of the agent."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

from processors.agents import EntityType
from processors.intent.numbers import Run, runs
from schemas.events import Entity

CURRENCIES = {
    "$": "USD",
    "dollar": "USD",
    "dollars": "USD",
    "bucks": "USD",
    "usd": "USD",
    "€": "EUR",
    "euro": "EUR",
    "euros": "EUR",
    "eur": "EUR",
    "£": "GBP",
    "pound": "GBP",
    "pounds": "GBP",
    "gbp": "GBP",
}
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
ORDINALS = {
    word: number
    for number, word in enumerate(
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
        "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth".split(),
        start=1,
    )
} | {"thirtieth": 30}

# Blanks of all kinds, and the letters that a pattern without case takes for one of ASCII, while lower() does not.
_ODD = re.compile(r"\s|[ſıİ\u212a]")
_PLAIN = {"ſ": "s", "ı": "i", "İ": "I", "\u212a": "K"}
# A date without a year may be a 29 February: from one to the next it is eight years where a century is between.
_YEARS = range(-1, 9)

_PLAIN_DIGITS = frozenset({"order_number", "digits"})
_WITH_DIGITS = frozenset({"amount", "date"})

_MONTH = "|".join((*MONTHS, *(month[:3] for month in MONTHS), "sept"))
_DAY = r"\d{1,2}(?:st|nd|rd|th)?|(?:twenty|thirty)[\s-]" + f"(?:{'|'.join(list(ORDINALS)[:9])})|{'|'.join(ORDINALS)}"
_DATE_FORMS = (
    re.compile(r"\b(?P<year>\d{4})-(?P<month_number>\d{2})-(?P<day>\d{2})\b"),
    re.compile(
        rf"\b(?P<month>{_MONTH})\.?\s+(?:the\s+)?(?P<day>{_DAY})(?:,?\s+(?P<year>\d{{4}}))?\b",
        re.IGNORECASE,
    ),
    re.compile(
        rf"\b(?:the\s+)?(?P<day>{_DAY})\s+(?:of\s+)?(?P<month>{_MONTH})\b\.?(?:,?\s+(?P<year>\d{{4}}))?",
        re.IGNORECASE,
    ),
)
_RELATIVE = re.compile(
    rf"\b(?:(?P<word>today|tomorrow|yesterday)|(?:(?P<which>next|last|this|on)\s+)?(?P<weekday>{'|'.join(WEEKDAYS)}))\b",
    re.IGNORECASE,
)


def extract(text: str, types: Iterable[EntityType], now_us: int) -> tuple[Entity, ...]:
    """Every value of those types in the text, in order of place; `now_us` is what "tomorrow" counts from (UTC).

    Types of kind `text` are not found here: they are the whole utterance, when the agent has asked for one.
    """
    plain = _ODD.sub(lambda match: _PLAIN.get(match[0], " "), text)
    found: list[Entity] = []
    taken: list[Entity] = []
    for kind in sorted(types, key=lambda kind: kind.kind in _PLAIN_DIGITS):
        extractor = _EXTRACTORS.get(kind.kind)
        values = list(extractor(plain, kind, now_us)) if extractor is not None else []
        if kind.kind in _PLAIN_DIGITS:
            # The digits of a price or a date are not an order number.
            values = [value for value in values if not any(_overlap(value, other) for other in taken)]
        else:
            taken += values if kind.kind in _WITH_DIGITS else []
        found += values
    as_said = (replace(entity, raw=text[entity.start : entity.end]) for entity in found)
    return tuple(sorted(as_said, key=lambda entity: (entity.start, -entity.end, entity.name)))


def _overlap(one: Entity, other: Entity) -> bool:
    return one.start < other.end and other.start < one.end


def _digits(text: str, kind: EntityType, now_us: int) -> Iterator[Entity]:
    """In each run of numbers the longest part that fits the pattern: "order 1042, two of them" has one order number."""
    pattern = re.compile(kind.pattern or (r"\d{3,}" if kind.kind == "order_number" else r"\d+"))
    for run in runs(text):
        part = next((part for part in run.parts() if pattern.fullmatch(part.digits())), None)
        if part is not None:
            yield _entity(kind, part.digits(), text, part.start, part.end)


def _amount(text: str, kind: EntityType, now_us: int) -> Iterator[Entity]:
    """Money with its currency: "12.50 EUR" for "twelve euros fifty" as for "€12.50"."""
    every = runs(text)
    for index, run in enumerate(every):
        before = re.search(r"([$€£])\s*$", text[: run.start])
        after = re.match(r"\s*(" + "|".join(map(re.escape, CURRENCIES)) + r")(?![a-z])", text[run.end :], re.IGNORECASE)
        value = run.cardinal()
        if value is None or not (before or after):
            continue
        start = before.start() if before else run.start
        end = run.end + (after.end() if after else 0)
        currency = CURRENCIES[(before or after)[1].lower()]  # type: ignore[index]
        cents, end = _cents(text, every[index + 1 :], end)
        yield _entity(kind, f"{value + cents / 100:.2f} {currency}", text, start, end)


def _cents(text: str, following: list[Run], end: int) -> tuple[float, int]:
    if following and re.fullmatch(r"\s*(and\s+)?", text[end : following[0].start]):
        value = following[0].cardinal()
        if value is not None and 0 < value < 100:
            named = re.match(r"\s*(cents?|pence)\b", text[following[0].end :])
            return value, following[0].end + (named.end() if named else 0)
    return 0, end


def _date(text: str, kind: EntityType, now_us: int) -> Iterator[Entity]:
    """ISO dates; one without a year is the nearest to come, unless it was less than half a year ago."""
    today = datetime.fromtimestamp(now_us / 1e6, UTC).date()
    taken: list[tuple[int, int]] = []
    for form in _DATE_FORMS:
        for match in form.finditer(text):
            day = _calendar_date(match, today)
            if day is not None and not any(start < match.end() and match.start() < end for start, end in taken):
                taken.append(match.span())
                yield _entity(kind, day.isoformat(), text, *match.span())
    for match in _RELATIVE.finditer(text):
        yield _entity(kind, _relative_date(match, today).isoformat(), text, *match.span())


def _calendar_date(match: re.Match[str], today: date) -> date | None:
    groups = match.groupdict()
    month_number = groups.get("month_number")
    month = int(month_number) if month_number else _month(groups["month"])
    day, year = _day(groups["day"]), groups["year"]
    years = [int(year)] if year else [today.year + offset for offset in _YEARS]
    found = [day_of for number in years if (day_of := _date_of(number, month, day)) is not None]
    return next((one for one in found if year or one > today - timedelta(days=182)), None)


def _date_of(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:
        return None


def _month(name: str) -> int:
    return next(number for number, month in enumerate(MONTHS, 1) if month.startswith(name.lower()[:3]))


def _day(said: str) -> int:
    digits = re.match(r"\d+", said)
    if digits:
        return int(digits[0])
    tens, _, last = said.lower().replace("-", " ").rpartition(" ")
    return {"": 0, "twenty": 20, "thirty": 30}[tens] + ORDINALS[last]


def _relative_date(match: re.Match[str], today: date) -> date:
    word = (match["word"] or "").lower()
    if word:
        return today + timedelta(days={"yesterday": -1, "today": 0, "tomorrow": 1}[word])
    ahead = (WEEKDAYS.index(match["weekday"].lower()) - today.weekday()) % 7
    match (match["which"] or "").lower():
        case "last":
            return today + timedelta(days=ahead - 7)
        case "next":
            return today + timedelta(days=ahead or 7)
        case _:
            return today + timedelta(days=ahead)


def _choice(text: str, kind: EntityType, now_us: int) -> Iterator[Entity]:
    """Canonical values and their other names as whole words; of overlapping ones the longest."""
    names = {_words(said): value for value, others in kind.values.items() for said in (value, *others)}
    longest_first = sorted(filter(None, names), key=lambda words: len(" ".join(words)), reverse=True)
    if not longest_first:
        return
    # Which name it is, its group tells: how lower() writes what a pattern without case finds, is another matter.
    groups = ("(" + r"[\s-]+".join(map(re.escape, words)) + ")" for words in longest_first)
    pattern = r"(?<!\w)(?:" + "|".join(groups) + r")(?!\w)"
    for match in re.finditer(pattern, text, re.IGNORECASE):
        assert match.lastindex is not None, "each alternative is a group"
        yield _entity(kind, names[longest_first[match.lastindex - 1]], text, *match.span())


def _words(said: str) -> tuple[str, ...]:
    """Blanks and hyphens part words alike, so that "T-shirt" is said in any way."""
    return tuple(word for word in re.split(r"[\s-]+", said.lower()) if word)


def _entity(kind: EntityType, value: str, text: str, start: int, end: int) -> Entity:
    return Entity(name=kind.name, value=value, raw=text[start:end], start=start, end=end)


_EXTRACTORS: dict[str, Callable[[str, EntityType, int], Iterator[Entity]]] = {
    "order_number": _digits,
    "digits": _digits,
    "amount": _amount,
    "date": _date,
    "choice": _choice,
}
