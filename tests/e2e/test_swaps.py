"""Models change while callers talk: nobody is dropped, no turn is lost, and the log says which one did what."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle, groupby
from pathlib import Path

import pytest

from api.client import CallResult, Patience, Spoken, TurnSummary, load_turns, place_call
from schemas.event import Event
from schemas.events import SpeechChunk, SpeechChunkKind, Transcript, TranscriptKind
from streams.settings import REPOSITORY
from tests.support.calls import check_answered_once, events_of
from tests.support.platform import Platform, running_platform
from tests.support.voices import SECOND, write_catalogue

FIRST = "hibari"
QUICK, LARGE = "whisper-tiny-en", "whisper-base"
FILES = [REPOSITORY / "infra" / "demo" / name for name in ("4_stock.wav", "3_returns.wav")]
# A busy machine is slow, and no call is to end for that.
PATIENCE = Patience(start_s=60, greeting_s=30, final_s=60, reply_s=120, hang_up_s=30)
TURNS_S_MAX = 240.0


class Caller:
    """One who goes on talking until told that it is enough."""

    def __init__(self, url: str) -> None:
        self.answered = 0
        self.enough = False
        self.call = asyncio.create_task(place_call(url, self._turns(), on_turn=self._count, patience=PATIENCE))

    def _turns(self) -> Iterator[Spoken]:
        for spoken in cycle(load_turns(FILES)):
            if self.enough:
                return
            yield spoken

    def _count(self, turn: TurnSummary) -> None:
        self.answered += 1


async def until(condition: Callable[[], bool], callers: list[Caller]) -> None:
    """Waits for the callers, and fails as soon as one of their calls does."""
    async with asyncio.timeout(TURNS_S_MAX):
        while not condition():
            for caller in callers:
                if caller.call.done():
                    caller.call.result()
            await asyncio.sleep(0.1)


async def all_go_on(callers: list[Caller]) -> None:
    """Returns when each has a turn behind it that began after now."""
    before = [caller.answered for caller in callers]
    await until(lambda: all(one.answered >= was + 2 for one, was in zip(callers, before, strict=True)), callers)


def voices(events: list[Event]) -> list[str]:
    """Which model spoke, in the order of turns; each turn has one voice."""
    spoken = {
        (event.turn, event.model)
        for event in events
        if isinstance(event, SpeechChunk) and event.kind is SpeechChunkKind.AUDIO and event.model
    }
    turns = [turn for turn, _ in spoken]
    assert len(turns) == len(set(turns)), "a turn keeps the voice that it began with"
    return [model for model, _ in groupby(model for _, model in sorted(spoken))]


def ears(events: list[Event]) -> list[str]:
    """Which model made each final, in the order of turns."""
    finals = [event for event in events if isinstance(event, Transcript) and event.kind is TranscriptKind.FINAL]
    return [model for model, _ in groupby(final.model for final in sorted(finals, key=lambda final: final.turn))]


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    """The platform's own agents, to be edited."""
    return Path(shutil.copytree(REPOSITORY / "infra" / "agents", tmp_path / "agents"))


@pytest.fixture
def platform(tmp_path: Path, agents: Path) -> Iterator[Platform]:
    # Spares and second replicas are for deaths, of which there are none here.
    with running_platform(
        TRUNKLINE_AGENTS_DIR=str(agents),
        TRUNKLINE_MODELS_FILE=str(write_catalogue(tmp_path)),
        TRUNKLINE_ENGINES__TTS_FALLBACK="",
        TRUNKLINE_ENGINES__REPLICAS="1",
        TRUNKLINE_SPARES="false",
    ) as running:
        yield running


async def test_voices_are_swapped_during_four_calls(platform: Platform) -> None:
    async def swap(model: str, whose: str) -> None:
        await asyncio.to_thread(platform.run, "engines", "swap", "tts", model, "--for", whose, timeout_s=300)

    callers = [Caller(platform.url) for _ in range(4)]
    await until(lambda: all(caller.answered for caller in callers), callers)

    await swap(SECOND, "new")
    shown = {row["engine"]: row["model"] for row in await asyncio.to_thread(platform.rows, "engines")}
    assert (shown["tts.0"], shown["tts@1.0"]) == (FIRST, SECOND)
    late = await place_call(platform.url, load_turns(FILES[:1]), patience=PATIENCE)

    await swap(SECOND, "all")
    await all_go_on(callers)
    await swap(FIRST, "all")
    await all_go_on(callers)

    for caller in callers:
        caller.enough = True
    results: list[CallResult] = await asyncio.gather(*(caller.call for caller in callers))
    for result in (*results, late):
        assert result.reconnects == 0
        events = await events_of(platform, result.session_id)
        check_answered_once(result, events)
        assert voices(events) == ([SECOND] if result is late else [FIRST, SECOND, FIRST])


async def test_ears_are_swapped_during_four_calls(platform: Platform) -> None:
    async def swap(model: str) -> None:
        await asyncio.to_thread(platform.run, "engines", "swap", "stt", model, timeout_s=300)

    callers = [Caller(platform.url) for _ in range(4)]
    await until(lambda: all(caller.answered for caller in callers), callers)
    for model in (QUICK, LARGE, QUICK):
        await swap(model)
        await all_go_on(callers)
    for caller in callers:
        caller.enough = True
    for result in await asyncio.gather(*(caller.call for caller in callers)):
        assert result.reconnects == 0
        events = await events_of(platform, result.session_id)
        check_answered_once(result, events)
        # Before the first swap either of the two may have been believed.
        assert ears(events)[-3:] == [QUICK, LARGE, QUICK]


async def test_an_agent_gets_a_voice_of_its_own_during_a_call(platform: Platform, agents: Path) -> None:
    file = agents / "shop.yaml"
    written = file.read_text(encoding="utf-8")

    async def reload(models: str) -> str:
        file.write_text(f"{models}\n{written}", encoding="utf-8")
        return await asyncio.to_thread(platform.run, "restart", "tts", timeout_s=300)

    caller = Caller(platform.url)
    await until(lambda: caller.answered > 0, [caller])
    assert f"tts: {SECOND} answers shop, at each call's next turn" in await reload(f"models: {{tts: {SECOND}}}")
    await all_go_on([caller])
    assert "answers" not in await reload("")
    await all_go_on([caller])
    caller.enough = True
    result = await caller.call
    events = await events_of(platform, result.session_id)
    check_answered_once(result, events)
    assert voices(events) == [FIRST, SECOND, FIRST]
