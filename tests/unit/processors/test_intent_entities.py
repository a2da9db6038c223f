"""Values as callers say them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.agents import EntityType
from processors.intent.entities import extract
from processors.intent.numbers import UNITS, runs
from processors.intent.sentiment import sentiment

NOW_US = 1_763_900_000_000_000  # Sunday, 2025-11-23
ORDER = EntityType(name="order_number", kind="order_number", pattern="[0-9]{4}")
AMOUNT = EntityType(name="amount", kind="amount")
DATE = EntityType(name="date", kind="date")
PRODUCT = EntityType(name="product", kind="choice", values={"tent": ("two person tent",), "hiking boots": ("boots",)})
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


def test_no_number_of_the_right_length_is_no_order_number() -> None:
    assert values("I bought two tents and 12345 ropes", ORDER) == []


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("I paid twelve euros fifty", "12.50 EUR"),
        ("it cost €12.50", "12.50 EUR"),
        ("one hundred and twenty dollars", "120.00 USD"),
        ("1,200 pounds", "1200.00 GBP"),
    ],
)
def test_amounts(text: str, amount: str) -> None:
    assert values(text, AMOUNT) == [("amount", amount)]


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
    ],
)
def test_dates(text: str, day: str) -> None:
    assert values(text, DATE) == [("date", day)]


def test_an_impossible_date_is_none() -> None:
    assert values("February 30th", DATE) == []


def test_the_digits_of_a_price_or_date_are_no_order_number() -> None:
    assert values("€12.50 on 2026-12-01", ORDER, AMOUNT, DATE) == [("amount", "12.50 EUR"), ("date", "2026-12-01")]


def test_choices_take_the_longest_name_and_know_where_it_stands() -> None:
    text = "Do you have a two-person tent or boots?"
    found = extract(text, (PRODUCT,), NOW_US)
    assert [(entity.value, entity.raw) for entity in found] == [("tent", "two-person tent"), ("hiking boots", "boots")]
    assert all(text[entity.start : entity.end] == entity.raw for entity in found)


@given(st.text(alphabet="0123456789", min_size=4, max_size=4), st.sampled_from([" ", ", ", "-"]))
def test_any_four_digits_said_one_by_one(digits: str, between: str) -> None:
    said = between.join(WORD_OF[digit] for digit in digits)
    assert values(f"it is {said} thank you", ORDER) == [("order_number", digits)]


@given(st.text(max_size=60))
def test_no_text_breaks_it(text: str) -> None:
    for run in runs(text):
        assert 0 <= run.start < run.end <= len(text)
        run.digits()
        run.cardinal()
    extract(text, (ORDER, AMOUNT, DATE, PRODUCT), NOW_US)


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
