"""What must not be passed on is found as it is written and as it is said; all else stays as it was."""

import itertools
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.redaction import COUNTRIES, Policy, find, hidden_ms, is_card, luhn, redact, redacted, silenced
from schemas import json_form
from schemas.event import Event
from schemas.events import EVENTS, Entity, Intent, Response, Session, Transcript, TranscriptKind, Word

CARDS = Policy()
EVERYTHING = Policy(frozenset({"card", "email", "phone", "iban"}), COUNTRIES)
SAID = "zero one two three four five six seven eight nine".split()
# Test numbers that the card brands and their processors publish.
NUMBERS = {
    "visa": "4111111111111111",
    "visa of 13": "4222222222222",
    "mastercard": "5555555555554444",
    "mastercard of the 2 series": "2223003122003222",
    "amex": "378282246310005",
    "discover": "6011111111111117",
    "diners": "30569309025904",
    "jcb": "3530111333300000",
    "maestro": "6759649826438453",
    "unionpay": "6200000000000005",
}


def policy(*kinds: str, countries: str = "", **patterns: str) -> Policy:
    compiled = {name: re.compile(pattern) for name, pattern in patterns.items()}
    return Policy(frozenset(kinds), frozenset(countries.split()), compiled)


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_a_card_is_found_however_it_is_written_or_said(number: str) -> None:
    said = " ".join(SAID[int(digit)] for digit in number)
    grouped = " ".join(number[at : at + 4] for at in range(0, len(number), 4))
    for form in (number, grouped, grouped.replace(" ", "-"), "-".join(number), said, said.replace(" ", ", ")):
        text = f"My card is {form}. Thank you."
        shown = redact(text, CARDS)
        assert shown.startswith("My card is *"), form
        assert shown.endswith("*. Thank you."), form
        assert not re.search(r"\d", shown)
        assert not set(SAID) & set(re.findall(r"\w+", shown))


@pytest.mark.parametrize(
    "text",
    [
        "four triple one double one double one one one one one one one one one",
        "forty-one eleven eleven eleven eleven eleven eleven eleven",
        "Four, one, one, one, um, one one one one, uh, one one one one, then one one one one",
        "4111 1111 and then 1111 1111",
        "it is 4111 1111 1111 1111 expiring 12 27",
    ],
)
def test_a_card_is_found_as_people_say_it(text: str) -> None:
    assert find(text, CARDS), text


def test_the_date_and_the_check_that_follow_a_card_are_masked_too() -> None:
    assert redact("4111 1111 1111 1111, 12 27, 123", CARDS) == "**** **** **** ***** ** *** ***"
    assert "seven" not in redact("four " + "one " * 15 + "one two two seven", CARDS)


@pytest.mark.parametrize(
    "text",
    [
        "My order number is 1042.",
        "Order one oh four two, please.",
        "4111111111111112",
        "1234 5678 9012 3456",
        "There are 4111 of them, 1111 here.",
        "We are open from eight to six, every day but Monday.",
        "",
        "no numbers at all",
    ],
)
def test_other_numbers_stay(text: str) -> None:
    assert redact(text, CARDS) == text


def test_a_card_that_is_still_being_said_is_masked() -> None:
    text = "My card is four one one one one one one"
    assert redact(text, CARDS) == text
    assert redact(text, CARDS, unfinished=True) == "My card is **** *** *** *** *** *** ***"
    assert redact("My order is 1042", CARDS, unfinished=True) == "My order is 1042"
    assert redact("4111 1111 was the number", CARDS, unfinished=True) == "4111 1111 was the number"


@given(st.text(alphabet="0123456789 -,.onetwthrfuivsxgu", max_size=60))
def test_a_mask_has_the_length_of_what_it_hides(text: str) -> None:
    shown = redact(text, EVERYTHING, unfinished=True)
    assert len(shown) == len(text)
    assert all(masked in (plain, "*") for plain, masked in zip(text, shown, strict=True))
    assert [one.isspace() for one in text] == [one.isspace() for one in shown]


@given(st.text())
def test_any_text_can_be_redacted_and_a_second_time_nothing_changes(text: str) -> None:
    once = redact(text, EVERYTHING)
    assert redact(once, EVERYTHING) == once
    spans = find(text, EVERYTHING)
    assert all(0 <= span.start < span.end <= len(text) for span in spans)
    assert all(left.end <= right.start for left, right in itertools.pairwise(spans))


@given(st.integers(0, 10**15 - 1).map(lambda number: f"4{number:014d}"[:15]), st.sampled_from(["", " ", "-", ", "]))
def test_every_visa_number_is_found(stem: str, between: str) -> None:
    number = next(stem + check for check in "0123456789" if luhn(stem + check))
    assert is_card(number)
    assert not re.search(r"\d", redact(f"it is {between.join(number)}.", CARDS))
    altered = stem[:-1] + str((int(stem[-1]) + 1) % 10) + number[-1]
    assert not is_card(altered), "one digit off is no card"


@pytest.mark.parametrize(
    ("country", "numbers", "wrong"),
    [
        ("at", ["1237010180", "1237 010180"], "1238010180"),
        ("br", ["52998224725", "529.982.247-25"], "52998224724"),
        ("de", ["86095742719", "47036892816", "65 929 970 489"], "86095742718"),
        ("es", ["12345678Z", "X1234567L", "12345678-Z", "x1234567l"], "12345678A"),
        ("fr", ["255081416802538", "2 55 08 14 168 025 38"], "255081416802537"),
        ("it", ["RSSMRA85T10A562S"], "RSSMRA85T10A562T"),
        ("nl", ["111222333", "123456782"], "123456789"),
        ("pl", ["44051401359"], "44051401358"),
        ("us", ["536-90-4399", "536 90 4399"], "000-12-3456"),
    ],
)
def test_national_ids_are_found_by_their_checks(country: str, numbers: list[str], wrong: str) -> None:
    one = policy(countries=country)
    for number in numbers:
        (span,) = find(f"it is {number}.", one)
        assert span.kind == f"id_{country}"
        assert not find(f"it is {number}.", policy()), "only where the tenant asks for it"
    assert not find(f"it is {wrong}.", one)


def test_a_social_security_number_is_said_without_dashes() -> None:
    said = "five three six nine oh four three nine nine"
    one = policy(countries="us")
    assert find(f"My social security number is {said}", one)
    assert not find(f"My order is {said}", one)


@pytest.mark.parametrize(
    "text",
    [
        "+1 212 555 0100",
        "+43 660 1234567",
        "0043 660 1234567",
        "(212) 555-0123",
        "212 555 0123",
        "1-800-234-5678",
        "two one two five five five oh one double two",
        "030/1234567",
    ],
)
def test_telephone_numbers_are_found(text: str) -> None:
    assert re.search(r"\w", redact(text, policy("phone"))) is None, redact(text, policy("phone"))
    assert redact(text, policy("email")) == text


@pytest.mark.parametrize("text", ["order 1042", "in 2026", "10 42", "1200 dollars and 50 cents"])
def test_what_is_no_telephone_number_stays(text: str) -> None:
    assert redact(text, policy("phone")) == text


@pytest.mark.parametrize(
    "text",
    [
        "john.smith+shop@mail.example.com",
        "john dot smith at example dot com",
        "Ann at example dot co dot uk",
        "a_b@example.org",
    ],
)
def test_addresses_are_found(text: str) -> None:
    (span,) = find(f"Write to {text}", policy("email"))
    assert (span.kind, span.start) == ("email", 9)


@pytest.mark.parametrize("text", ["meet me at example", "I am at home. Dot is here", "at 5 dot"])
def test_what_is_no_address_stays(text: str) -> None:
    assert redact(text, policy("email")) == text


def test_account_numbers_are_found() -> None:
    for text in ("DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "AT611904300234573201"):
        assert find(text, policy("iban")), text
    assert not find("DE89 3704 0044 0532 0130 01", policy("iban"))


def test_a_tenants_own_patterns() -> None:
    own = policy(member=r"M-\d{6}")
    assert redact("Member M-204881, order 1042", own) == "Member ********, order 1042"


# Events.


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.NAME)
def test_examples_without_secrets_stay_as_they_are(event: type[Event]) -> None:
    for example in json_form.examples(event):
        assert redacted(example, CARDS) == example


def transcript(text: str, **fields: Any) -> Transcript:
    words = tuple(Word(word, 100 * at, 100 * at + 90, 0.9) for at, word in enumerate(text.split()))
    example = json_form.examples(Transcript)[-1]
    return replace(example, **{"text": text, "words": words, "kind": TranscriptKind.FINAL, **fields})


def test_a_transcript_is_masked_in_text_and_words() -> None:
    shown = redacted(transcript("it is 4111 1111 1111 1111 thanks"), CARDS)
    assert isinstance(shown, Transcript)
    assert shown.text == "it is **** **** **** **** thanks"
    assert [word.word for word in shown.words] == ["it", "is", "****", "****", "****", "****", "thanks"]
    assert [word.start_ms for word in shown.words] == [0, 100, 200, 300, 400, 500, 600]


def test_a_partial_shows_no_half_of_a_card() -> None:
    begun = transcript("it is 4111 1111", kind=TranscriptKind.PARTIAL)
    shown = redacted(begun, CARDS)
    assert isinstance(shown, Transcript)
    assert shown.text == "it is **** ****"


def test_an_intents_entities_are_masked_where_its_text_is() -> None:
    text = "charge 4111 1111 1111 1111 for order 1042"
    entities = (
        Entity("card", "4111111111111111", "4111 1111 1111 1111", 7, 26),
        Entity("order", "1042", "1042", 37, 41),
    )
    shown = redacted(replace(json_form.examples(Intent)[0], text=text, entities=entities), CARDS)
    assert isinstance(shown, Intent)
    assert shown.text == "charge **** **** **** **** for order 1042"
    assert [(entity.value, entity.raw) for entity in shown.entities] == [("*" * 16, "*" * 19), ("1042", "1042")]


def test_arguments_and_results_stay_json() -> None:
    given = {"card": 4111111111111111, "notes": ["4111-1111-1111-1111", None, True], "order": {"number": "1042"}}
    example = replace(json_form.examples(Response)[0], arguments=json.dumps(given), result="4111 1111 1111 1111, ok")
    shown = redacted(example, CARDS)
    assert isinstance(shown, Response)
    assert json.loads(shown.arguments) == {
        "card": "*" * 16,
        "notes": ["*" * 19, None, True],
        "order": {"number": "1042"},
    }
    assert shown.result == "**** **** **** ****, ok", "what is no JSON is masked as text"
    untouched = replace(example, arguments='{"b": 1,"a": 2}', result="")
    assert redacted(untouched, CARDS) == untouched


def test_the_caller_stays_who_he_is() -> None:
    example = replace(json_form.examples(Session)[0], caller="+12125550100", context={"card": NUMBERS["visa"]})
    shown = redacted(example, EVERYTHING)
    assert isinstance(shown, Session)
    assert (shown.caller, shown.context) == ("+12125550100", {"card": "*" * 16})


def test_a_policy_of_nothing_leaves_everything() -> None:
    event = transcript("4111 1111 1111 1111")
    assert redacted(event, policy()) is event


# Audio.


def test_masked_words_are_silent() -> None:
    words = transcript("it is 4111 1111 1111 1111 thanks").words
    hidden = hidden_ms([replace(word, end_ms=word.start_ms + 100) for word in words], CARDS)
    assert hidden == [(200, 600)]
    pcm = b"\x01\x00" * 800 * 2
    quiet = silenced(pcm, 150, 16_000, hidden)
    assert quiet == b"\x01\x00" * 800 + bytes(2 * 800)


@given(st.integers(0, 500), st.integers(-1000, 2000), st.integers(0, 1000), st.sampled_from([8000, 16_000, 24_000]))
def test_silencing_keeps_the_length(samples: int, since_ms: int, length_ms: int, rate_hz: int) -> None:
    pcm = b"\x01\x00" * samples
    quiet = silenced(pcm, 0, rate_hz, [(since_ms, since_ms + length_ms)])
    assert len(quiet) == len(pcm)
    for at in range(samples):
        inside = round(since_ms * rate_hz / 1000) <= at < round((since_ms + length_ms) * rate_hz / 1000)
        assert quiet[2 * at] == (0 if inside else 1)
