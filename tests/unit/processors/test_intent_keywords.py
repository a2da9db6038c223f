"""Intents by words alone: other words than the examples', heard wrongly, or about nothing at all."""

from pathlib import Path

import pytest

from processors.agents import load_agents
from processors.intent import keywords

SHOP = load_agents(Path(__file__).parents[3] / "infra" / "agents")["shop"]


def best(text: str) -> tuple[str, float]:
    name, score = max(keywords.scores(SHOP, text).items(), key=lambda pair: pair[1])
    return name, score


@pytest.mark.parametrize(
    ("text", "intent"),
    [
        ("Where's my order?", "order_status"),
        ("Could you tell me the status of an order?", "order_status"),
        ("I want to return my order, please.", "start_return"),
        ("What is your returns policy?", "return_policy"),
        ("At what time are you opening on Sundays?", "opening_hours"),
        ("Is this rain jacket in stock?", "stock"),
        ("How long will the shipping take?", "shipping"),
        ("I would like to make a complaint.", "open_ticket"),
        ("Does the warrenty cover the zipper?", "warranty"),
        ("Hello!", "greeting"),
    ],
)
def test_other_words_for_the_same_thing_are_understood(text: str, intent: str) -> None:
    name, score = best(text)
    assert name == intent
    assert score >= SHOP.limits.confidence_min


@pytest.mark.parametrize("text", ["", "...", "What is the capital of France?", "My cat likes the rain in Spain"])
def test_what_has_nothing_to_do_with_it_is_no_intent(text: str) -> None:
    assert best(text)[1] < SHOP.limits.confidence_min


def test_words_alone_are_never_sure() -> None:
    for intent in SHOP.intents:
        for example in intent.examples:
            assert best(example)[1] <= keywords.CONFIDENCE_MAX


def test_the_examples_themselves_are_understood() -> None:
    pairs = [(intent.name, example) for intent in SHOP.intents for example in intent.examples]
    right = [best(example)[0] == name for name, example in pairs if keywords.telling(example)]
    assert sum(right) >= 0.95 * len(right)


@pytest.mark.parametrize(
    ("one", "other"), [("return", "returns"), ("return", "returned"), ("ship", "shipping"), ("delivery", "deliveries")]
)
def test_endings_do_not_tell_words_apart(one: str, other: str) -> None:
    assert keywords.stem(one) == keywords.stem(other)
