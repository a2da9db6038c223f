"""What wants no answer of the agent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.backchannel import is_backchannel, is_echo

SAID = "Your parcel left the warehouse in Leeds on Monday, and it will arrive by Wednesday."


@pytest.mark.parametrize(
    "text", ["Mm-hmm.", "Mm-hm", "Mhm.", "M-hm.", "Uh-huh.", "Uh huh", "Hmm...", "Mm, mm.", "Ah!", "Oh, aha.", "Um, uh"]
)
def test_sounds_of_a_listener(text: str) -> None:
    assert is_backchannel(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "Yes.",
        "Okay",
        "Right",
        "No",
        "Uh-uh.",
        "Mm-mm",
        "Huh?",
        "Stop",
        "Um, where is it?",
        "Oh no",
        "mm " * 7,
    ],
)
def test_answers_and_questions_are_none(text: str) -> None:
    assert not is_backchannel(text)


@pytest.mark.parametrize(
    "text",
    [
        "left the warehouse",
        "Your parcel left the warehouse in Leeds on Monday",
        "your parcel left warehouse in Leeds",
        "warehouse in leads on Monday and it will",
        "the warehouse in Leeds on on Monday",
    ],
)
def test_a_run_of_the_agents_words_is_an_echo(text: str) -> None:
    assert is_echo(text, SAID)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Leeds",
        "on Monday",
        "left my warehouse",
        "on Wednesday or on Monday",
        "your parcel left the warehouse but why?",
    ],
)
def test_own_words_are_no_echo(text: str) -> None:
    assert not is_echo(text, SAID)


@given(st.integers(0, 14), st.integers(3, 14))
def test_any_run_of_three_words_is_an_echo(begin: int, count: int) -> None:
    words = SAID.split()[begin : begin + count]
    assert is_echo(" ".join(words), SAID) is (len(words) >= 3)
