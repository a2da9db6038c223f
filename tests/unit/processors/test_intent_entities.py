"""Values as callers say them."""

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from processors.agents import EntityType
from processors.intent import entities, numbers
from processors.intent.entities import extract
from processors.intent.numbers import UNITS, runs
from processors.intent.sentiment import sentiment

NOW_US = 1_763_900_000_000_000  # Sunday, 2025-11-23
ORDER = EntityType(name="order_number", kind="order_number", pattern="[0-9]{4}")
AMOUNT = EntityType(name="amount", kind="amount")
DATE = EntityType(name="date", kind="date")
PRODUCT = EntityType(name="product", kind="choice", values={"tent": ("two person tent",), "hiking boots": ("boots",)})
WEAR = EntityType(
    name="wear",
    kind="choice",
    values={"t-shirt": ("tee", "long-sleeved  shirt"), "Istanbul scarf": (), "C++ mug": ("mug-", "-"), "kilt": ()},
)
EVERY = (
    ORDER,
    AMOUNT,
    DATE,
    PRODUCT,
    WEAR,
    EntityType(name="long_order", kind="order_number"),
    EntityType(name="digits", kind="digits"),
    EntityType(name="text", kind="text"),
)
WORD_OF = {str(value): word for word, value in UNITS.items() if value < 10}


def values(text: str, *types: EntityType) -> list[tuple[str, str]]:
    return [(entity.name, entity.value) for entity in extract(text, types, NOW_US)]


@pytest.mark.parametrize(
    "text",
    [
        "My order number is one zero four two.",
        "It's 1042.",
        "order ten forty-two please",
        "It's 1-0-4-2",
        "one oh four two",
        "number 1,042",
        "one, zero, four, two",
        "one thousand and forty two",
        "order 1042, two of them",
        "Number 10 42, thanks",
        "a thousand and forty two",
        "Order one zero. Four two.",
        "one, oh, four, two",
        "One oh. Four two.",
        "It is 1042. Oh, and the box is broken",
        "It is 1042, oh, and the box is broken",
        "Oh, one zero four two",
        "Oh. It's 1042. Oh, one more thing: I moved",
    ],
)
def test_an_order_number_however_it_is_said(text: str) -> None:
    assert values(text, ORDER) == [("order_number", "1042")]


@pytest.mark.parametrize(
    ("text", "number"),
    [("double two one seven", "2217"), ("triple five one", "5551"), ("twenty one seventeen", "2117")],
)
def test_repeats_and_tens(text: str, number: str) -> None:
    assert values(text, ORDER) == [("order_number", number)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("at five o'clock", "5"),
        ("at five o’clock", "5"),
        ("at five o clock", "5"),
        ("It is 1042. Oh, and the box is broken", "1042"),
        ("It is 1042, oh, and the box is broken", "1042"),
        ("one oh four oh", "1040"),
        ("one, oh, four, oh.", "1040"),
        ("one, oh, oh, four", "1004"),
        ("one, oh, double four", "1044"),
        ("it is oh seven", "07"),
        ("four nil", "40"),
        ("a hundred and five", "105"),
    ],
)
def test_oh_is_a_digit_among_digits(text: str, number: str) -> None:
    assert values(text, EntityType(name="digits", kind="digits")) == [("digits", number)]


@pytest.mark.parametrize("text", ["I told you a hundred times", "A million thanks", "oh, no", "hundred " * 200])
def test_what_is_no_number_to_note(text: str) -> None:
    assert values(text, EntityType(name="digits", kind="digits")) == []


def test_parts_are_the_whole_and_then_what_is_short_enough() -> None:
    (run,) = runs("one " * 30)
    lengths = [len(part.tokens) for part in run.parts()]
    assert lengths == [30] + [length for length in range(numbers.PARTS_TOKENS_MAX, 0, -1) for _ in range(31 - length)]
    (long,) = runs("one " * 200)
    assert sum(len(part.tokens) for part in long.parts()) < 100_000, "it is linear in the length of the run"
    (short,) = runs("one two")
    assert [part.digits() for part in short.parts()] == ["12", "1", "2"]


def test_no_number_of_the_right_length_is_no_order_number() -> None:
    assert values("I bought two tents and 12345 ropes", ORDER) == []


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("I paid twelve euros fifty", "12.50 EUR"),
        ("it cost €12.50", "12.50 EUR"),
        ("one hundred and twenty dollars", "120.00 USD"),
        ("1,200 pounds", "1200.00 GBP"),
        ("a hundred and twenty dollars", "120.00 USD"),
        ("two thousand and a hundred dollars", "2100.00 USD"),
        ("a thousand two hundred euros", "1200.00 EUR"),
        ("a hundred dollars", "100.00 USD"),
        ("A hundred  dollars and five cents", "100.05 USD"),
        ("a voucher of a hundred dollars", "100.00 USD"),
        ("it was 5, a hundred dollars less", "100.00 USD"),
        ("twelve hundred euros", "1200.00 EUR"),
        ("two hundred thousand pounds", "200000.00 GBP"),
        ("12 dollarſ", "12.00 USD"),
    ],
)
def test_amounts(text: str, amount: str) -> None:
    assert values(text, AMOUNT) == [("amount", amount)]


@pytest.mark.parametrize(
    "text",
    [
        "half a million dollars",
        "a quarter of a million dollars",
        "a dollar",
        "one zero dollars",
        "a hundred hundred dollars",
        "two thousand million thousand dollars",
        "three quarters of a million dollars",
        "hundred " * 200 + "dollars",
        "9" * 400 + " dollars",
    ],
)
def test_what_is_no_amount(text: str) -> None:
    assert values(text, AMOUNT) == []


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("tomorrow", "2025-11-24"),
        ("on Friday", "2025-11-28"),
        ("next Sunday", "2025-11-30"),
        ("last Monday", "2025-11-17"),
        ("March 3rd", "2026-03-03"),
        ("the twenty-first of October", "2025-10-21"),
        ("3 May 2027", "2027-05-03"),
        ("2026-12-01", "2026-12-01"),
        ("29 February", "2028-02-29"),
        ("29 February 2024", "2024-02-29"),
        ("the twenty\nfirst of October", "2025-10-21"),
        ("the twenty-firſt of October", "2025-10-21"),
        ("5 Auguſt", "2025-08-05"),
        ("5 Aprİl", "2026-04-05"),
        ("on ſunday", "2025-11-23"),
    ],
)
def test_dates(text: str, day: str) -> None:
    assert values(text, DATE) == [("date", day)]


def test_an_impossible_date_is_none() -> None:
    assert values("February 30th, or 29 February 2027", DATE) == []


@pytest.mark.parametrize(
    ("now", "day"),
    [((2024, 4, 1), "2024-02-29"), ((2023, 12, 1), "2024-02-29"), ((2024, 12, 1), "2028-02-29")],
)
def test_a_leap_day_is_of_the_nearest_leap_year(now: tuple[int, int, int], day: str) -> None:
    now_us = int(datetime(*now, tzinfo=UTC).timestamp()) * 1_000_000
    assert [entity.value for entity in extract("on February 29th", (DATE,), now_us)] == [day]


def test_the_digits_of_a_price_or_date_are_no_order_number() -> None:
    assert values("€12.50 on 2026-12-01", ORDER, AMOUNT, DATE) == [("amount", "12.50 EUR"), ("date", "2026-12-01")]


def test_choices_take_the_longest_name_and_know_where_it_stands() -> None:
    text = "Do you have a two-person tent or boots?"
    found = extract(text, (PRODUCT,), NOW_US)
    assert [(entity.value, entity.raw) for entity in found] == [("tent", "two-person tent"), ("hiking boots", "boots")]
    assert all(text[entity.start : entity.end] == entity.raw for entity in found)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a t-shirt", "t-shirt"),
        ("a T shirt", "t-shirt"),
        ("a t -\n\u00a0shirt", "t-shirt"),
        ("a T-ſhİrt", "t-shirt"),
        ("a long sleeved-shirt", "t-shirt"),
        ("an İSTANBUL SCARF", "Istanbul scarf"),
        ("an ıstanbul scarf", "Istanbul scarf"),
        ("one C++ mug", "C++ mug"),
        ("the mug", "C++ mug"),
        ("a \u212ailt", "kilt"),
    ],
)
def test_choices_however_they_are_written(text: str, value: str) -> None:
    (found,) = extract(text, (WEAR,), NOW_US)
    assert (found.value, found.raw) == (value, text[found.start : found.end])


def test_a_choice_without_a_word_is_never_said() -> None:
    assert values("a - b", EntityType(name="odd", kind="choice", values={"-": (" ",)})) == []


@given(st.text(alphabet="0123456789", min_size=4, max_size=4), st.sampled_from([" ", ", ", "-"]))
def test_any_four_digits_said_one_by_one(digits: str, between: str) -> None:
    said = between.join(WORD_OF[digit] for digit in digits)
    assert values(f"it is {said} thank you", ORDER) == [("order_number", digits)]


VOCABULARY = [
    *numbers.UNITS,
    *numbers.TENS,
    *numbers.SCALES,
    *numbers.REPEATS,
    *numbers.ZEROS,
    *entities.CURRENCIES,
    *entities.WEEKDAYS,
    *entities.MONTHS,
    *entities.ORDINALS,
    *(said for kind in (PRODUCT, WEAR) for value, others in kind.values.items() for said in (value, *others)),
    *"a and of the on next last this sept feb 3rd 29 31 1042 12.50 1,042 2026 0000 2026-12-01 cents tomorrow".split(),
]
# The letters that a pattern without case takes for one of ASCII.
ODD_LETTERS = str.maketrans({"s": "ſ", "i": "İ", "k": "\u212a"})
SPOKEN_WORDS = st.sampled_from(VOCABULARY)
WORDS = st.one_of(
    SPOKEN_WORDS,
    SPOKEN_WORDS.map(str.upper),
    SPOKEN_WORDS.map(lambda word: word.translate(ODD_LETTERS)),
    SPOKEN_WORDS.map(lambda word: word.replace("i", "ı")),
    st.text(max_size=5),
)
BETWEEN = st.sampled_from(
    [" ", "-", "\n", "\t", "\u00a0", "\u2028", "\x1f", "  ", " - ", ", ", ". ", "–", "", "'", "!"]
)
SPOKEN = st.lists(st.tuples(WORDS, BETWEEN), max_size=30).map(lambda parts: "".join(map("".join, parts)))


@given(st.one_of(st.text(max_size=60), SPOKEN))
@example("t-shirt and a two-person tent")
@example("twenty\nfirst of may")
@example("on ſunday 5 auguſt 5 dollarſ")
@example("one " + "hundred " * 200 + "dollars")
def test_no_text_breaks_it(text: str) -> None:
    for run in runs(text):
        assert 0 <= run.start < run.end <= len(text)
        run.digits()
        run.cardinal()
        run.groups()
    for found in extract(text, EVERY, NOW_US):
        assert found.raw == text[found.start : found.end] != ""
        assert found.value


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("Where is my order?", 0, 0),
        ("That is great, thank you very much!", 0.5, 1),
        ("This is not good.", -1, -0.1),
        ("I am extremely disappointed, the tent arrived broken.", -1, -0.7),
    ],
)
def test_sentiment(text: str, low: float, high: float) -> None:
    assert low <= sentiment(text) <= high
