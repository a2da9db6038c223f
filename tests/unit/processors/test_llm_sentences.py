import pytest

from processors.llm.sentences import split_sentences, take_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("How many do you have? 12. Anything else?", ("How many do you have?", "12. Anything else?")),
        ("Your PIN is 4. 2. 7. 1.", ("Your PIN is 4.", "2. 7.", "1.")),
        ("12. Shall I reserve one?", ("12. Shall I reserve one?",)),
        ("Two ways:\n1. By train.\n2) By bus.", ("Two ways:", "1. By train.", "2) By bus.")),
        ("# Ways\n- By *train*.\n> By [bus](http://x.y).", ("Ways", "By train.", "By bus.")),
    ],
)
def test_a_number_is_said_wherever_it_stands(text: str, sentences: tuple[str, ...]) -> None:
    assert split_sentences(text) == sentences
    streamed: list[str] = []
    rest = ""
    for letter in text:
        found, rest = take_sentences(rest + letter, complete=False)
        streamed += found
    assert (*streamed, *take_sentences(rest, complete=True)[0]) == sentences
