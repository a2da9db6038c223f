"""Engines swapped under a real supervisor with real voices: beside each other, back, and when the new ones fail."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from api import swaps
from api.cli import engines
from api.errors import OperatorError
from api.platform import engine_parts
from api.supervisor import Supervisor, read_state
from api.swaps import Swaps
from processors import choices
from processors.agent_models import adopt
from processors.choices import History
from processors.engine import EngineClient, Speak, Spoken
from processors.generations import Generations
from processors.rungs import generations
from streams import ready
from streams.clock import SystemClock
from streams.settings import EngineSettings, Settings
from streams.yamlfile import ConfigError
from tests.support.agents import write_agent
from tests.support.engines import replies
from tests.support.voices import ALTERED, SECOND, write_catalogue
from tests.unit.api.test_supervisor import running

FIRST = "hibari"
OLD, NEW, AGAIN = "engine-tts.0", "engine-tts@1.0", "engine-tts@2.0"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(swaps, "UNUSED_S", 0.5)
    write_agent(tmp_path / "agents", "shop")
    write_agent(tmp_path / "agents", "clinic")
    return Settings(
        data_dir=tmp_path,
        agents_dir=tmp_path / "agents",
        models_file=write_catalogue(tmp_path),
        engines=EngineSettings(tts_fallback="", replicas=1),
    )


def processes(settings: Settings) -> dict[str, dict[str, Any]]:
    """What `status` shows of the engines' processes."""
    state = read_state(settings) or {"components": []}
    return {engine["name"]: engine for row in state["components"] for engine in row.get("engines", ())}


async def until_processes(settings: Settings, *names: str) -> None:
    """Waits until these stand, and no others."""
    async with asyncio.timeout(120):
        while [name for name, one in processes(settings).items() if one["state"] == "ready"] != [*names]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


class Stage:
    """What a tts stage asks, with sessions of the test's own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.sessions: list[History] = []
        self.client: Generations = generations(settings, "tts", self.clock, lambda breaker, reason: None)
        self.client.start(lambda: self.sessions)

    def session(self, agent_id: str = "") -> History:
        """One that begins now."""
        self.sessions.append(History(self.clock.now_us(), agent_id=agent_id))
        return self.sessions[-1]

    async def spoken(self, session: History, turn: int) -> str:
        """The model that speaks."""
        return await model_of(self.client.for_turn(session, turn))


async def model_of(client: EngineClient) -> str:
    said = await replies(client, Speak("Your order is on its way."))
    (model,) = {one.model for one in said if isinstance(one, Spoken)}
    return model


@asynccontextmanager
async def platform(settings: Settings) -> AsyncIterator[Stage]:
    """The engines below a supervisor, all of them ready, and a stage that asks them."""
    assert choices.settle(settings) == []
    adopt(settings, SystemClock().now_us())
    supervisor = Supervisor(settings, engine_parts(settings, "tts"), backoff_s=0.05)
    served = Swaps(settings, supervisor, SystemClock())
    supervisor.serve(served.request, served.tend)
    names = sorted(part.name for part in engine_parts(settings, "tts"))
    async with running(supervisor):
        await until_processes(settings, *names)
        stage = Stage(settings)
        try:
            await stage.client.reach()
            yield stage
        finally:
            await stage.client.close()


async def swap(settings: Settings, model: str, scope: str = "all") -> None:
    """The command, which returns when the new engines have taken over."""
    await asyncio.to_thread(engines.swap, "tts", model, scope, settings.data_dir, False)


async def reloaded(settings: Settings) -> None:
    """What a restart of the stage does once the stage has read the agents' files."""
    await asyncio.to_thread(engines.follow_agents, "tts", settings)


async def test_an_agent_that_names_a_voice_has_it_from_its_calls_next_turn(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    async with platform(settings) as stage:
        shop, clinic = stage.session("shop"), stage.session("clinic")
        assert await stage.spoken(shop, 1) == FIRST
        await reloaded(settings)  # nobody names any
        assert "answers" not in capsys.readouterr().out
        assert not choices.path(settings).exists()
        write_agent(settings.agents_dir, "shop", tts=SECOND)
        await reloaded(settings)
        said = f"tts: {SECOND} answers shop, at each call's next turn (generation 1)\n"
        assert said in capsys.readouterr().out
        await until_processes(settings, OLD, NEW)
        assert await stage.spoken(shop, 1) == FIRST
        assert await stage.spoken(shop, 2) == SECOND
        assert await stage.spoken(clinic, 1) == FIRST
        await reloaded(settings)
        assert "answers" not in capsys.readouterr().out, "nothing has changed"
        await swap(settings, FIRST)  # for all, who have it already
        assert await stage.spoken(stage.session("shop"), 0) == SECOND
    # A supervisor that starts anew warms what the files name.
    async with platform(settings) as stage:
        await until_processes(settings, OLD, NEW)
        shop = stage.session("shop")
        assert await stage.spoken(shop, 0) == SECOND
        write_agent(settings.agents_dir, "shop")
        await reloaded(settings)
        assert await stage.spoken(shop, 0) == SECOND
        assert await stage.spoken(shop, 1) == FIRST
        await until_processes(settings, OLD)


async def test_an_agents_voice_that_cannot_be_used_leaves_it_the_one_that_it_had(settings: Settings) -> None:
    async with platform(settings) as stage:
        shop = stage.session("shop")
        for model, said, exit_code in (
            ("nobody", r"shop\.yaml:.*models\.tts.*no tts model or engine is called 'nobody'", 1),
            (ALTERED, "is not the one named in", 1),
        ):
            write_agent(settings.agents_dir, "shop", tts=model)
            with pytest.raises(OperatorError, match=f"the agents keep the models that they had: (?s:.*){said}") as why:
                await reloaded(settings)
            assert why.value.exit_code == exit_code
            await until_processes(settings, OLD)
        assert choices.read(settings, "tts").generations == (0,)
        assert await stage.spoken(shop, 1) == FIRST
    write_agent(settings.agents_dir, "shop", tts="nobody")
    with pytest.raises(ConfigError, match=r"models\.tts.*nobody"):
        adopt(settings, 1)


async def test_a_voice_takes_over_between_turns_and_goes_back(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    async with platform(settings) as stage:
        session = stage.session()
        assert await stage.spoken(session, 1) == FIRST
        await swap(settings, SECOND)
        assert f"tts: {SECOND} answers all calls, at their next turn (generation 1, " in capsys.readouterr().out
        await until_processes(settings, OLD, NEW)
        assert await stage.spoken(session, 1) == FIRST
        assert await stage.spoken(session, 2) == SECOND
        assert await stage.spoken(stage.session(), 0) == SECOND
        await until_processes(settings, NEW)
        assert ready.read(settings, OLD) is None
        await swap(settings, FIRST)
        assert await stage.spoken(session, 2) == SECOND
        assert await stage.spoken(session, 3) == FIRST
        stage.sessions.clear()
        await until_processes(settings, AGAIN)
    # A supervisor that starts anew starts what had taken over last.
    async with platform(settings) as stage:
        await until_processes(settings, AGAIN)
        assert await stage.spoken(stage.session(), 0) == FIRST


async def test_for_new_calls_alone_both_voices_stay_and_going_back_is_at_once(settings: Settings) -> None:
    async with platform(settings) as stage:
        old = stage.session()
        await swap(settings, SECOND, "new")
        new = stage.session()
        assert await stage.spoken(old, 5) == FIRST
        assert await stage.spoken(new, 0) == SECOND
        pids = {name: one["pid"] for name, one in processes(settings).items()}
        assert sorted(pids) == [OLD, NEW]
        await swap(settings, FIRST)
        assert await stage.spoken(new, 0) == SECOND
        assert await stage.spoken(new, 1) == FIRST
        await until_processes(settings, OLD)
        assert processes(settings)[OLD]["pid"] == pids[OLD]
        await swap(settings, FIRST)  # it is there already


async def test_a_voice_that_cannot_be_used_changes_nothing(settings: Settings) -> None:
    async with platform(settings) as stage:
        session = stage.session()
        before = processes(settings)[OLD]["pid"]
        for model, said, exit_code in (
            (ALTERED, "is not the one named in", 1),
            ("nobody", "no tts model or engine is called 'nobody'", 2),
            ("a:b", "a:b", 1),
        ):
            with pytest.raises(OperatorError, match=f"nothing was changed: .*{said}") as refused:
                await swap(settings, model)
            assert refused.value.exit_code == exit_code
            assert {name: one["pid"] for name, one in processes(settings).items()} == {OLD: before}
        assert choices.read(settings, "tts").generations == (0,)
        assert await stage.spoken(session, 1) == FIRST


async def test_a_voice_that_is_killed_while_it_is_warmed_changes_nothing(settings: Settings) -> None:
    async with platform(settings) as stage:
        session = stage.session()
        swapping = asyncio.create_task(swap(settings, SECOND))
        async with asyncio.timeout(120):
            while (pid := processes(settings).get(NEW, {}).get("pid")) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(OperatorError, match=r"nothing was changed: engine-tts@1\.0 .*SIGKILL"):
            await swapping
        await until_processes(settings, OLD)
        assert choices.read(settings, "tts").generations == (0,)
        assert await stage.spoken(session, 1) == FIRST
        await swap(settings, SECOND)
        assert await stage.spoken(session, 2) == SECOND


async def test_the_old_voice_goes_when_its_time_is_over(settings: Settings) -> None:
    brief = settings.model_copy(update={"engines": settings.engines.model_copy(update={"drain_s": 1.0})})
    async with platform(brief) as stage:
        session = stage.session()
        assert await stage.spoken(session, 1) == FIRST
        await swap(settings, SECOND)
        await until_processes(settings, NEW)
        assert await stage.spoken(session, 1) == SECOND
