"""The tts core: order, the end of a turn, interruption, and going on where a crash cut a sentence."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.agents import Voice
from processors.engine import Speak, Spoken
from processors.stage import (
    Answered,
    Ask,
    Cancel,
    Drop,
    Emit,
    Failed,
    Happening,
    Outcome,
    Position,
    Received,
    Speculated,
)
from processors.tts.core import CHUNK_BYTES, SENTENCE_PAUSE_MS, Answer, State, TtsCore
from schemas.events import Control, ControlKind, Response, ResponseKind, SpeechChunk, SpeechChunkKind

NOW_US = 1_763_900_000_000_000
CORE = TtsCore(lambda agent_id: Voice(name="anna", speed=1.1))
PAUSE = bytes(SENTENCE_PAUSE_MS * 32)


def envelope(event_id: str, turn: int) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "session_id": "s1",
        "tenant_id": "demo",
        "agent_id": "shop",
        "turn": turn,
        "seq": 1,
        "occurred_at": NOW_US,
    }


def a_sentence(index: int, text: str = "Hello.", turn: int = 1) -> Response:
    return Response(**envelope(f"r{turn}-{index}", turn), kind=ResponseKind.SENTENCE, sentence=index, text=text)


def completed(turn: int = 1) -> Response:
    return Response(**envelope(f"c{turn}", turn), kind=ResponseKind.COMPLETED, sentence=2)


def received(event: Any, *recorded: Any) -> Received:
    return Received(event, Position(event.TOPIC, 0, 1), recorded)


def played(state: State, *happenings: Happening) -> tuple[State, list[Outcome]]:
    outcomes: list[Outcome] = []
    for happening in happenings:
        step = CORE.apply(state, happening, NOW_US)
        state = step.state
        outcomes.extend(step.outcomes)
    return state, outcomes


def chunks(outcomes: list[Outcome]) -> list[SpeechChunk]:
    return [
        outcome.event for outcome in outcomes if isinstance(outcome, Emit) and isinstance(outcome.event, SpeechChunk)
    ]


def asks(outcomes: list[Outcome]) -> list[Ask]:
    return [outcome for outcome in outcomes if isinstance(outcome, Ask)]


def spoken(ask_id: str, *pieces: bytes) -> list[Happening]:
    return [*(Answered(ask_id, Spoken(piece, "anna"), last=False) for piece in pieces), Answered(ask_id, None, True)]


def test_a_sentence_is_spoken_with_the_agents_voice_as_it_is_made() -> None:
    state, outcomes = played(CORE.start("s1"), received(a_sentence(0)))
    (ask,) = asks(outcomes)
    assert ask.request == Speak("Hello.", "anna", 1.1)
    state, early = played(state, Answered(ask.ask_id, Spoken(b"\1\0" * 3200, "anna"), last=False))
    (first,) = chunks(early)
    state, outcomes = played(state, *spoken(ask.ask_id, b"\2\0" * 50))
    (second,) = chunks(outcomes)
    assert (first.sample_index, first.text, first.last_of_sentence) == (0, "Hello.", False)
    assert (second.sample_index, second.text, second.last_of_sentence) == (3200, "", True)
    assert second.pcm == b"\2\0" * 50 + PAUSE
    assert second.model == "anna"


def test_a_sentence_whose_speech_fills_its_chunks_ends_with_a_pause_that_nobody_speaks() -> None:
    state, outcomes = played(CORE.start("s1"), received(a_sentence(0)))
    (ask,) = asks(outcomes)
    _, outcomes = played(state, *spoken(ask.ask_id, bytes(CHUNK_BYTES)))
    speech, pause = chunks(outcomes)
    assert (len(speech.pcm), speech.last_of_sentence) == (CHUNK_BYTES, False)
    assert (pause.sample_index, pause.pcm, pause.last_of_sentence) == (CHUNK_BYTES // 2, PAUSE, True)
    assert pause.model == ""


@pytest.mark.parametrize(
    ("said_ms", "after_ms", "first_ms"),
    [
        (200, 0, 200),
        (500, 0, 400),
        (1000, 0, 800),
        (5000, 0, 800),
        (1000, 500, 400),
        (1000, 800, 200),
        (1000, 9000, 200),
    ],
)
def test_a_sentence_begins_with_a_long_chunk_where_as_much_is_still_to_be_heard(
    said_ms: int, after_ms: int, first_ms: int
) -> None:
    state, outcomes = played(CORE.start("s1"), received(a_sentence(0)))
    state, outcomes = played(state, *spoken(asks(outcomes)[0].ask_id, bytes(32 * (said_ms - SENTENCE_PAUSE_MS))))
    second = replace(a_sentence(1), occurred_at=NOW_US + 1000 * after_ms)
    state, outcomes = played(state, received(second))
    _, outcomes = played(state, *spoken(asks(outcomes)[0].ask_id, *[bytes(640)] * 200))
    lengths_ms = [len(chunk.pcm) // 32 for chunk in chunks(outcomes)]
    assert lengths_ms[0] == first_ms
    assert set(lengths_ms[3:-1]) == {800}, "then as long as ever"


def test_a_sentence_that_began_with_a_long_chunk_goes_on_behind_it_after_a_crash() -> None:
    state, outcomes = played(CORE.start("s1"), received(a_sentence(0)))
    state, outcomes = played(state, *spoken(asks(outcomes)[0].ask_id, bytes(32 * 1000)))
    state, outcomes = played(state, received(a_sentence(1)))
    speech = bytes(range(1, 200)) * 400
    _, whole = played(state, *spoken(asks(outcomes)[0].ask_id, speech))
    snapshot, first = CORE.save(state), chunks(whole)[0]
    state, outcomes = played(CORE.load("s1", snapshot), received(a_sentence(1), first))
    _, again = played(state, *spoken(asks(outcomes)[0].ask_id, speech))
    assert [replace(chunk, seq=0) for chunk in chunks(again)] == [replace(chunk, seq=0) for chunk in chunks(whole)[1:]]


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=6), st.lists(st.integers(1, 9000), min_size=1, max_size=6))
def test_however_an_engine_cuts_its_speech_a_chunk_with_an_id_is_the_same(one: list[int], other: list[int]) -> None:
    pcm = bytes(2 * (sum(one) + sum(other)))
    said = []
    for cuts in (one, other):
        state, outcomes = played(CORE.start("s1"), received(a_sentence(0)))
        pieces = [pcm[2 * sum(cuts[:n]) : 2 * sum(cuts[: n + 1])] for n in range(len(cuts))] + [pcm[2 * sum(cuts) :]]
        _, outcomes = played(state, *spoken(asks(outcomes)[0].ask_id, *pieces))
        said.append([(chunk.event_id, chunk.sample_index, len(chunk.pcm)) for chunk in chunks(outcomes)])
    assert said[0] == said[1]


def test_sentences_wait_for_each_other_and_the_turn_ends_last() -> None:
    state, outcomes = played(
        CORE.start("s1"), received(a_sentence(0, "One.")), received(a_sentence(1, "Two.")), received(completed())
    )
    (first,) = asks(outcomes)
    state, outcomes = played(state, *spoken(first.ask_id, b"\1\0" * 10))
    (second,) = asks(outcomes)
    assert isinstance(second.request, Speak)
    assert second.request.text == "Two."
    state, outcomes = played(state, *spoken(second.ask_id, b"\1\0" * 10))
    *_, end = chunks(outcomes)
    assert end.kind is SpeechChunkKind.END_OF_TURN
    assert end.sample_index == 20 + 2 * SENTENCE_PAUSE_MS * 16
    assert state.queue == ()


def test_each_turn_counts_its_own_samples() -> None:
    state, outcomes = played(CORE.start("s1"), received(a_sentence(0)))
    state, _ = played(state, *spoken(asks(outcomes)[0].ask_id, b"\1\0" * 10))
    state, outcomes = played(state, received(a_sentence(0, turn=2)))
    state, outcomes = played(state, *spoken(asks(outcomes)[0].ask_id, b"\1\0" * 10))
    assert chunks(outcomes)[0].sample_index == 0


def test_barge_in_cancels_what_is_spoken_and_queued_and_silences_the_rest_of_the_turn() -> None:
    barge_in = Control(**envelope("b", 1), kind=ControlKind.BARGE_IN)
    state, outcomes = played(CORE.start("s1"), received(a_sentence(0)), received(a_sentence(1)), received(barge_in))
    assert outcomes[-1] == Cancel(asks(outcomes)[0].ask_id)
    state, outcomes = played(state, received(a_sentence(2)), received(completed()), received(a_sentence(0, turn=2)))
    assert outcomes[0] == Drop("interrupted_turn")
    assert [ask.ask_id for ask in asks(outcomes)] == ["r2-0/1"]
    assert [chunk.kind for chunk in chunks(outcomes)] == [SpeechChunkKind.END_OF_TURN]


@pytest.mark.parametrize("interrupted_first", [True, False])
def test_a_whole_answer_that_is_interrupted_ends_its_turn_once(interrupted_first: bool) -> None:
    """Whether the end of its words was known by then or comes later."""
    barge_in = Control(**envelope("b", 1), kind=ControlKind.BARGE_IN)
    last = [received(barge_in), received(completed())]
    _, outcomes = played(CORE.start("s1"), received(a_sentence(0)), *(last if interrupted_first else reversed(last)))
    (end,) = chunks(outcomes)
    assert (end.kind, end.turn) == (SpeechChunkKind.END_OF_TURN, 1)


def test_what_is_said_of_a_turn_that_was_answered_stays_silent() -> None:
    """By a worker that wakes up after it was replaced; the end that it comes to has the id of the one before."""
    state, outcomes = played(CORE.start("s1"), received(a_sentence(0)), received(completed()))
    state, _ = played(state, *spoken(asks(outcomes)[0].ask_id, b"\1\0" * 10))
    state = CORE.load("s1", CORE.save(state))
    again = replace(a_sentence(0, "Once more."), event_id="z1-0", causation_id="zombie")
    for late in (again, replace(again, turn=0)):
        assert played(state, received(late))[1] == [Drop("ended_turn")]
    assert asks(played(state, received(a_sentence(0, turn=2)))[1])


def test_a_turn_that_had_ended_without_a_word_is_answered_and_ends_again() -> None:
    silent = replace(completed(), sentence=0)
    state, outcomes = played(CORE.start("s1"), received(silent))
    (end,) = chunks(outcomes)
    assert end.kind is SpeechChunkKind.END_OF_TURN
    state = CORE.load("s1", CORE.save(state))
    state, outcomes = played(state, received(a_sentence(0)))
    state, outcomes = played(state, *spoken(asks(outcomes)[0].ask_id, b"\1\0" * 10))
    *audio, again = chunks(outcomes)
    assert {chunk.kind for chunk in audio} == {SpeechChunkKind.AUDIO}
    assert again.kind is SpeechChunkKind.END_OF_TURN
    assert again.event_id != end.event_id


def test_a_cancelled_answer_ends_its_turn() -> None:
    cancelled = Response(**envelope("x", 1), kind=ResponseKind.CANCELLED)
    _, outcomes = played(CORE.start("s1"), received(a_sentence(0)), received(cancelled))
    assert Cancel(asks(outcomes)[0].ask_id) in outcomes
    assert chunks(outcomes)[-1].kind is SpeechChunkKind.END_OF_TURN


def test_an_engine_that_fails_twice_leaves_the_words_as_text_and_the_next_sentence_is_spoken() -> None:
    state, outcomes = played(CORE.start("s1"), received(a_sentence(0)), received(a_sentence(1)))
    state, outcomes = played(state, Failed(asks(outcomes)[0].ask_id, "crashed"))
    (again,) = asks(outcomes)
    state, outcomes = played(state, Failed(again.ask_id, "timeout"))
    (text,) = chunks(outcomes)
    assert (text.kind, text.text, text.last_of_sentence) == (SpeechChunkKind.TEXT, "Hello.", True)
    assert [ask.ask_id for ask in asks(outcomes)] == ["r1-1/1"]


def test_an_engine_that_dies_in_mid_sentence_goes_on_where_it_stopped() -> None:
    state, outcomes = played(CORE.start("s1"), received(a_sentence(0)))
    first = asks(outcomes)[0]
    state, said = played(state, Answered(first.ask_id, Spoken(b"\1\0\2\0"), False), Failed(first.ask_id, "crashed"))
    state, rest = played(state, *spoken(asks(said)[0].ask_id, b"\1\0", b"\2\0\3\0"))
    assert b"".join(chunk.pcm for chunk in chunks([*said, *rest])) == b"\1\0\2\0\3\0" + PAUSE


def test_the_engine_is_told_what_was_heard_and_another_voice_may_say_the_rest() -> None:
    first_chunk = b"\1\0" * 3200
    state, outcomes = played(CORE.start("s1"), received(a_sentence(0)))
    ask = asks(outcomes)[0]
    state, said = played(state, Answered(ask.ask_id, Spoken(first_chunk, "anna"), False), Failed(ask.ask_id, "crashed"))
    (again,) = asks(said)
    assert again.request == Speak("Hello.", "anna", 1.1, heard_bytes=6400, heard_model="anna")
    resumed = Answered(again.ask_id, Spoken(b"\7\0" * 10, "bob", resumed=True), False)
    state, rest = played(state, resumed, Answered(again.ask_id, None, True))
    assert b"".join(chunk.pcm for chunk in chunks([*said, *rest])) == first_chunk + b"\7\0" * 10 + PAUSE


def test_after_a_crash_of_the_stage_the_engine_is_told_what_was_heard() -> None:
    state, outcomes = played(CORE.start("s1"), received(a_sentence(0)))
    _, said = played(state, Answered(asks(outcomes)[0].ask_id, Spoken(b"\1\0" * 3200, "bob"), False))
    _, outcomes = played(CORE.start("s1"), received(a_sentence(0), *chunks(said)))
    request = asks(outcomes)[0].request
    assert (request.heard_bytes, request.heard_model) == (6400, "bob")


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=6), st.integers(0, 8))
def test_whatever_was_recorded_before_a_crash_the_speech_is_whole_and_once(lengths: list[int], recorded: int) -> None:
    pieces = [bytes([index + 1, 0]) * length for index, length in enumerate(lengths)]
    state, outcomes = played(CORE.start("s1"), received(a_sentence(0)))
    _, outcomes = played(state, *spoken(asks(outcomes)[0].ask_id, *pieces))
    undisturbed = chunks(outcomes)
    kept = undisturbed[:recorded]

    state, outcomes = played(CORE.load("s1", b""), received(a_sentence(0), *kept), received(completed()))
    if asks(outcomes):
        state, more = played(state, *spoken(asks(outcomes)[0].ask_id, *pieces))
        outcomes += more
    redone = [*kept, *(chunk for chunk in chunks(outcomes) if chunk.kind is SpeechChunkKind.AUDIO)]
    assert b"".join(chunk.pcm for chunk in redone) == b"".join(pieces) + PAUSE
    assert len({chunk.event_id for chunk in redone}) == len(redone)
    indexes = [chunk.sample_index for chunk in redone]
    assert indexes == [sum(len(chunk.pcm) for chunk in redone[:n]) // 2 for n in range(len(redone))]
    assert chunks(outcomes)[-1].kind is SpeechChunkKind.END_OF_TURN


@pytest.mark.parametrize("state", [State(), State({"i1": Answer(480, 12.5), "i2": Answer(void=True)}, 2, 3, True)])
def test_the_position_survives(state: State) -> None:
    assert CORE.load("s1", CORE.save(state)) == state


# ---- answers that are not committed


def ahead(index: int, revision: int, text: str = "Hello.") -> Response:
    mine: dict[str, Any] = {"event_id": f"a{revision}-{index}", "causation_id": f"i{revision}"}
    return replace(a_sentence(index, text), **mine, revision=revision, committed=False)


def withdrawn(revision: int) -> Response:
    mine = {**envelope(f"x{revision}", 1), "causation_id": f"i{revision}"}
    return Response(**mine, kind=ResponseKind.CANCELLED, revision=revision, committed=False)


def test_what_is_not_committed_is_spoken_and_says_so() -> None:
    state, outcomes = played(CORE.start("s1"), received(ahead(0, 2)))
    (ask,) = asks(outcomes)
    state, outcomes = played(state, *spoken(ask.ask_id, b"\1\0" * 10))
    assert {(chunk.committed, chunk.revision) for chunk in chunks(outcomes)} == {(False, 2)}
    end = replace(completed(), causation_id="i2", revision=2)
    state, outcomes = played(state, received(end))
    (last,) = chunks(outcomes)
    assert (last.kind, last.committed, last.sample_index) == (SpeechChunkKind.END_OF_TURN, True, 10 + len(PAUSE) // 2)


def test_the_chunks_carry_what_every_piece_cost() -> None:
    state, outcomes = played(CORE.start("s1"), received(a_sentence(0)))
    (ask,) = asks(outcomes)
    pieces = [Spoken(b"\1\0" * samples, "anna", cost) for samples, cost in ((100, 3.0), (3200, 0.5), (50, 2.0))]
    _, said = played(state, *(Answered(ask.ask_id, piece, False) for piece in pieces), Answered(ask.ask_id, None, True))
    assert [chunk.compute_ms for chunk in chunks(said)] == [3.5, 2.0]


def test_a_void_answer_is_stopped_and_the_next_begins_at_its_own_first_sample() -> None:
    state, outcomes = played(CORE.start("s1"), received(ahead(0, 1)), received(ahead(1, 1)))
    state, outcomes = played(state, Answered(asks(outcomes)[0].ask_id, Spoken(b"\1\0" * 3200, "anna", 7.0), False))
    state, outcomes = played(state, received(withdrawn(1)), received(ahead(2, 1)), received(ahead(0, 2)))
    assert Cancel("a1-0/1") in outcomes
    assert Speculated("void", 7.0) in outcomes
    assert Drop("interrupted_turn") in outcomes
    assert [ask.ask_id for ask in asks(outcomes)] == ["a2-0/1"]
    assert chunks(outcomes) == []
    _, outcomes = played(CORE.load("s1", CORE.save(state)), received(ahead(2, 1)))
    assert outcomes == [Drop("interrupted_turn")]
    _, outcomes = played(state, *spoken("a2-0/1", b"\2\0" * 10))
    assert chunks(outcomes)[0].sample_index == 0


def test_a_turn_that_still_speaks_and_one_ahead_count_their_own_samples() -> None:
    first, second = a_sentence(0), replace(a_sentence(1), event_id="later")
    next_turn = replace(ahead(0, 1), turn=2)
    state, outcomes = played(CORE.start("s1"), received(first), received(next_turn), received(second))
    state, one = played(state, *spoken(asks(outcomes)[0].ask_id, b"\1\0" * 10))
    state, two = played(state, *spoken(asks(one)[0].ask_id, b"\2\0" * 20))
    state, three = played(state, *spoken(asks(two)[0].ask_id, b"\3\0" * 30))
    assert [chunks(said)[0].sample_index for said in (one, two, three)] == [0, 0, 10 + len(PAUSE) // 2]


def test_two_sentences_that_had_been_begun_before_a_crash_are_both_gone_on_with() -> None:
    begun = []
    for sentence in (a_sentence(0), replace(ahead(0, 1), turn=2)):
        state, outcomes = played(CORE.start("s1"), received(sentence))
        _, said = played(state, Answered(asks(outcomes)[0].ask_id, Spoken(b"\1\0" * 3200, "anna"), False))
        begun.append(received(sentence, *chunks(said)))
    state, outcomes = played(CORE.start("s1"), *begun)
    _, rest = played(state, *spoken(asks(outcomes)[0].ask_id, b"\1\0" * 3210))
    assert [ask.request.heard_bytes for ask in [*asks(outcomes), *asks(rest)]] == [6400, 6400]
    assert [chunk.sample_index for chunk in chunks(rest)] == [3200]
