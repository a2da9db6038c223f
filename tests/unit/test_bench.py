"""The pure parts of the benchmark: percentiles, word error rate, and the recordings."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.report import Distribution, Fact, Findings, Row, percentile, write
from bench.voice import human_speech, lines
from bench.words import edit_distance, normalise, word_error_rate

WORDS = st.lists(st.sampled_from("abc"), max_size=8)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (0, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert percentile([7.0], 99) == 7.0


def test_a_percentile_of_nothing_or_beyond_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 50)
    with pytest.raises(ValueError, match="expected 0 to 100"):
        percentile([1.0], 101)


def test_a_distribution_takes_values_in_any_order_and_may_be_empty() -> None:
    assert Distribution.of([3, 1, 2]) == Distribution(3, 2, 3, 3, 3)
    assert Distribution.of([]) == Distribution(0, None, None, None, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The order number is 1042.", "the order number is one zero four two"),
        ("an ill-disposed young man,", "an ill disposed young man"),
        ("Mr. John’s 2 tents", "mister johns two tents"),
        ("42 of 1,042, 07 and 90", "forty two of one zero four two zero seven and ninety"),
        ("", ""),
    ],
)
def test_words_are_compared_as_they_are_spoken(text: str, words: str) -> None:
    assert normalise(text) == words.split()


@pytest.mark.parametrize(("expected", "heard", "edits"), [("abc", "abc", 0), ("abc", "", 3), ("kitten", "sitting", 3)])
def test_edits(expected: str, heard: str, edits: int) -> None:
    assert edit_distance(list(expected), list(heard)) == edits


@given(WORDS, WORDS, WORDS)
def test_edits_are_a_distance(one: list[str], two: list[str], three: list[str]) -> None:
    assert edit_distance(one, two) == edit_distance(two, one)
    assert (edit_distance(one, two) == 0) == (one == two)
    assert edit_distance(one, three) <= edit_distance(one, two) + edit_distance(two, three)


def test_word_error_rate_weighs_every_word_alike() -> None:
    assert word_error_rate([("one two three", "One, two, tree."), ("four", "four")]) == 0.25
    assert word_error_rate([("one", "one and more")]) == 2.0
    assert word_error_rate([]) is None


def test_every_recording_is_there_and_its_words_are_known() -> None:
    assert len(human_speech()) == 3
    for quick in (True, False):
        agent, script = lines(quick)
        assert agent == "shop"
        assert all(line.path.is_file() and line.words for line in script)
        assert len({line.path for line in script}) == len(script)
        assert {line.voice for line in script} == {"human", "synthetic"}


def test_the_file_holds_what_was_measured(tmp_path: Path) -> None:
    found = Findings([Row("hop", "reader", Distribution.of([1.0]))], [Fact("hop", "lost", 0)])
    document = json.loads(write(found, {"cores": 2}, tmp_path).read_text())
    assert document["machine"] == {"cores": 2}
    assert document["rows"][0]["distribution"]["p99"] == 1.0
    assert document["facts"] == [{"group": "hop", "name": "lost", "value": 0, "unit": ""}]
