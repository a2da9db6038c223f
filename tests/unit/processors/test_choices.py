"""Which generation of a role's engines a turn asks: by the file, the session's beginning and the turn alone."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from processors import choices
from processors.choices import Choice, History, Kept, Watched, needed, routed, superseded_us, without
from processors.session import Live, read_snapshot
from streams.settings import EngineSettings, Settings

OWN = Choice(0, "hibari")


def took(generation: int, scope: choices.Scope, since_us: int) -> Choice:
    return Choice(generation, "hibari", f"voice-{generation}", scope=scope, since_us=since_us)


def of_agents(generation: int, since_us: int, *agents: str) -> Choice:
    return replace(took(generation, "agents", since_us), agents=agents)


ALL, NEW, STANDBY = took(1, "all", 100), took(1, "new", 100), took(1, "standby", 100)
BACK = replace(OWN, since_us=200)


@pytest.mark.parametrize(
    ("listed", "began_us", "turns", "turn", "generation"),
    [
        ((OWN,), 50, {}, 3, 0),
        ((OWN, STANDBY), 150, {}, 3, 0),  # it is nobody's yet
        ((OWN, ALL), 50, {}, 3, 1),
        ((OWN, ALL), 50, {3: 0}, 3, 0),  # a turn keeps what it began with
        ((OWN, ALL), 50, {3: 0}, 4, 1),
        ((OWN, NEW), 99, {}, 3, 0),
        ((OWN, NEW), 100, {}, 3, 1),
        ((OWN, NEW), 0, {}, 3, 0),  # nobody knows when it began: then it was before
        ((OWN, NEW, took(2, "all", 200)), 50, {}, 3, 2),
        ((OWN, NEW, took(2, "new", 200)), 150, {}, 3, 1),
        ((OWN, ALL, BACK), 50, {4: 1}, 4, 1),
        ((OWN, ALL, BACK), 50, {4: 1}, 5, 0),
        ((NEW,), 50, {}, 3, 1),  # the old one is gone
        ((ALL,), 50, {3: 0}, 3, 1),
    ],
)
def test_a_turn_asks_the_newest_generation_that_is_meant_for_it(
    listed: tuple[Choice, ...], began_us: int, turns: dict[int, int], turn: int, generation: int
) -> None:
    assert routed(listed, began_us, turns, turn) == generation


SHOP = of_agents(3, 100, "shop")
AGENTS = ("shop", "clinic")
WHOSE = st.sampled_from(("", *AGENTS))


@pytest.mark.parametrize(
    ("listed", "agent_id", "turns", "generation"),
    [
        ((OWN, SHOP), "shop", {}, 3),
        ((OWN, SHOP), "clinic", {}, 0),
        ((OWN, SHOP), "", {}, 0),
        ((OWN, SHOP), "shop", {2: 0}, 0),  # a turn keeps what it began with
        ((OWN, SHOP, replace(ALL, since_us=200)), "shop", {}, 3),  # its file goes before what took over for all
        ((OWN, SHOP, replace(ALL, since_us=200)), "clinic", {}, 1),
        ((SHOP, replace(ALL, since_us=200)), "clinic", {}, 1),
        ((OWN, of_agents(3, 200), of_agents(4, 200, "shop")), "shop", {}, 4),
        ((OWN, of_agents(3, 200), of_agents(4, 200, "shop")), "shop", {2: 3}, 3),
        ((OWN, replace(of_agents(0, 200, "shop"), engine="hibari", model=""), ALL), "shop", {}, 0),
    ],
)
def test_a_turn_asks_what_its_agent_names(
    listed: tuple[Choice, ...], agent_id: str, turns: dict[int, int], generation: int
) -> None:
    assert routed(listed, 150, turns, 2, agent_id) == generation


def test_what_an_agent_names_is_kept_and_goes_once_no_agent_names_it() -> None:
    listed = (OWN, of_agents(1, 100, "shop"), of_agents(2, 300))
    assert choices.current(listed) == OWN
    assert [superseded_us(listed, generation) for generation in (0, 1, 2)] == [None, None, 300]
    assert needed(listed, []) == {0, 1}
    assert needed(listed, [History(1, {4: 2}, "shop")]) == {0, 1, 2}
    assert without(listed, 2) == listed[:2]
    swapped = (OWN, of_agents(0, 100, "shop"), replace(ALL, since_us=200))
    assert superseded_us(swapped, 0) is None, "an agent names what all others have left"
    assert superseded_us((OWN, of_agents(0, 300), replace(ALL, since_us=200)), 0) == 300
    assert superseded_us((OWN, of_agents(0, 100), replace(ALL, since_us=200)), 0) == 200


@st.composite
def _listed(draw: st.DrawFn) -> tuple[Choice, ...]:
    """What a series of swaps leaves, some of them back to a generation that is still there."""
    numbers = draw(st.lists(st.integers(0, 4), max_size=6))
    scopes: list[choices.Scope] = [draw(st.sampled_from(("new", "all"))) for _ in numbers]
    times_us = sorted(draw(st.lists(st.integers(1, 1000), min_size=len(numbers), max_size=len(numbers))))
    swaps = [took(*one) for one in zip(numbers, scopes, times_us, strict=True)]
    standby = draw(st.booleans())
    named = draw(st.dictionaries(st.integers(0, 6), st.sets(st.sampled_from(AGENTS)), max_size=3))
    agents = [of_agents(number, 500, *sorted(whose)) for number, whose in named.items()]
    return (OWN, *swaps, *agents, *((took(9, "standby", 1001),) if standby else ()))


@given(_listed(), st.integers(0, 1000), st.dictionaries(st.integers(0, 5), st.integers(0, 9)), st.integers(0, 6), WHOSE)
def test_whoever_is_asked_is_there_taken_over_and_kept(
    listed: tuple[Choice, ...], began_us: int, turns: dict[int, int], turn: int, agent_id: str
) -> None:
    chosen = routed(listed, began_us, turns, turn, agent_id)
    there = {choice.generation for choice in listed}
    assert chosen in there
    if turns.get(turn) in there:
        assert chosen == turns[turn]
    else:
        assert chosen != 9, "what stands by is nobody's"
    assert routed(listed, began_us, {**turns, turn: chosen}, turn, agent_id) == chosen


@given(
    _listed(),
    st.lists(st.tuples(st.integers(0, 1000), st.dictionaries(st.integers(0, 5), st.integers(0, 6)), WHOSE)),
)
def test_what_is_not_needed_can_go_and_no_turn_notices(
    listed: tuple[Choice, ...], sessions: list[tuple[int, dict[int, int], str]]
) -> None:
    histories = [History(*session) for session in sessions]
    wanted = needed(listed, histories)
    left = listed
    for generation in {choice.generation for choice in listed} - wanted:
        assert superseded_us(listed, generation) is not None
        left = without(left, generation)
    assert choices.current(left).generation == choices.current(listed).generation
    for history in histories:
        latest = max(history.turns, default=0)
        for turns, turn in ((history.turns, latest), ({}, latest + 1)):
            before, after = (routed(one, history.began_us, turns, turn, history.agent_id) for one in (listed, left))
            assert before == after


def test_what_is_current_or_stands_by_is_not_superseded() -> None:
    listed = (OWN, NEW, replace(OWN, scope="standby", since_us=200))
    assert [superseded_us(listed, generation) for generation in (0, 1)] == [None, None]
    assert [superseded_us((OWN, NEW, BACK), generation) for generation in (0, 1)] == [None, 200]
    assert superseded_us((OWN, NEW), 0) == 100


def test_only_the_latest_turns_are_remembered() -> None:
    history = History(1)
    for turn in range(10):
        history.pin(turn, turn % 2)
    assert history.turns == {6: 0, 7: 1, 8: 0, 9: 1}


def test_a_snapshot_keeps_when_the_session_began_and_what_its_turns_asked() -> None:
    live = Live("s", 0, None, began_us=7, agent_id="shop")
    live.history("tts").pin(3, 1)
    kept = read_snapshot(live.snapshot(b"", 9))
    assert (kept.began_us, kept.agent_id, kept.turns) == (7, "shop", {"tts": {3: 1}})
    assert live.history("tts") == History(7, {3: 1}, "shop")


def test_the_file_is_followed(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    watched = Watched(settings, "tts")
    assert watched.choices() == (OWN,)
    for listed in ((OWN, ALL), (OWN, ALL, BACK), (OWN,)):
        choices.write(settings, "tts", Kept(("hibari", ""), listed, 1))
        assert watched.choices() == listed
    assert Watched(settings, "stt").choices() == (Choice(0, "faster-whisper"),)
    choices.path(settings).write_text("{")
    assert watched.choices() == (OWN,)


def test_a_supervisor_starts_from_what_had_taken_over(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert choices.settle(settings) == []
    assert not choices.path(settings).exists()
    choices.write(settings, "tts", Kept(("hibari", ""), (OWN, ALL, took(2, "standby", 300)), 2))
    choices.write(settings, "stt", Kept(("faster-whisper", ""), (Choice(0, "faster-whisper"), ALL), 1))
    other = Settings(data_dir=tmp_path, engines=EngineSettings(stt_model="whisper-base"))
    assert choices.settle(other) == ["stt"]
    assert choices.read(other, "tts").choices == (OWN, ALL)
    assert choices.read(other, "tts").last == 2
    assert choices.read(other, "stt").choices == (Choice(0, "faster-whisper", "whisper-base"),)
    assert list(json.loads(choices.path(settings).read_text())) == ["tts"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (Choice(0, "hibari"), Choice(0, "hibari", "hibari"), True),
        (Choice(0, "hibari"), Choice(0, "hibari", "hibari-emma"), False),
        (Choice(0, "faster-whisper"), Choice(0, "faster-whisper", "whisper-base"), False),  # it reads twice
        (Choice(0, "my.package:voice"), Choice(3, "my.package:voice"), True),
        (Choice(0, "my.package:voice"), Choice(0, "other.package:voice"), False),
    ],
)
def test_a_model_is_the_same_by_its_files(tmp_path: Path, one: Choice, other: Choice, same: bool) -> None:
    settings = Settings(data_dir=tmp_path)
    role = "stt" if one.engine == "faster-whisper" else "tts"
    first, second = (replace(c, content=choices.content_of(settings, role, c)) for c in (one, other))
    assert first.same_model(second) is same
