"""What agents' files name of models: found beside what all others are answered by, or refused by file and field."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from processors import choices
from processors.agent_models import adopt, check_models, laid_beside
from processors.agents import load_agents
from processors.choices import Choice, Kept
from streams.settings import EngineSettings, Settings
from streams.yamlfile import ConfigError
from tests.support.agents import write_agent
from tests.support.voices import SECOND, write_catalogue

OWN = Choice(0, "hibari", content="a")
SECOND_VOICE, THIRD_VOICE = Choice(0, "hibari", "second", "b"), Choice(0, "hibari", "third", "c")
KEPT = Kept(("hibari", ""), (OWN,))


def summary(kept: Kept) -> list[tuple[int, str, str, int, tuple[str, ...]]]:
    return [(one.generation, one.model, one.scope, one.since_us, one.agents) for one in kept.choices]


def test_agents_share_what_they_name_and_one_that_names_the_common_model_keeps_it() -> None:
    named = {"shop": SECOND_VOICE, "clinic": SECOND_VOICE, "bank": OWN}
    after, fresh = laid_beside(KEPT, named, 50)
    assert [(one.generation, one.model) for one in fresh] == [(1, "second")]
    assert summary(after) == [
        (0, "", "all", 0, ()),
        (0, "", "agents", 50, ("bank",)),
        (1, "second", "agents", 50, ("clinic", "shop")),
    ]
    assert after.last == 1
    assert laid_beside(after, named, 60) == (after, ())
    assert laid_beside(KEPT, {}, 50) == (KEPT, ())


def test_what_no_agent_names_any_more_is_left_and_can_be_taken_back() -> None:
    first, _ = laid_beside(KEPT, {"shop": SECOND_VOICE}, 50)
    second, fresh = laid_beside(first, {"shop": THIRD_VOICE}, 60)
    assert [one.generation for one in fresh] == [2]
    assert summary(second)[1:] == [(1, "second", "agents", 60, ()), (2, "third", "agents", 60, ("shop",))]
    back, fresh = laid_beside(second, {"shop": SECOND_VOICE}, 70)
    assert fresh == ()
    assert summary(back)[1:] == [(1, "second", "agents", 70, ("shop",)), (2, "third", "agents", 70, ())]
    assert back.last == 2


def test_a_model_that_was_swapped_in_is_not_started_twice() -> None:
    swapped = replace(KEPT, choices=(OWN, replace(SECOND_VOICE, generation=1, since_us=10)), last=1)
    after, fresh = laid_beside(swapped, {"shop": SECOND_VOICE}, 50)
    assert fresh == ()
    assert after.current.generation == 1
    assert summary(after)[-1] == (1, "second", "agents", 50, ("shop",))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    agents = tmp_path / "agents"
    write_agent(agents, "plain")
    return Settings(data_dir=tmp_path, agents_dir=agents, models_file=write_catalogue(tmp_path))


def refusal(settings: Settings) -> str:
    with pytest.raises(ConfigError) as raised:
        check_models(settings, load_agents(settings.agents_dir))
    return str(raised.value)


def test_a_model_that_there_is_not_is_refused_by_file_and_field(settings: Settings) -> None:
    write_agent(settings.agents_dir, "shop", stt="whisper-base", tts="nobody")
    text = refusal(settings)
    assert "shop.yaml" in text
    assert "models.tts" in text
    assert "no tts model or engine is called 'nobody'" in text
    assert SECOND in text, "what there is"
    assert "models.stt" not in text
    write_agent(settings.agents_dir, "shop", tts="whisper-base")
    assert "no tts model or engine is called 'whisper-base'" in refusal(settings)


def test_a_role_whose_engine_is_not_ours_to_start_is_refused(settings: Settings) -> None:
    write_agent(settings.agents_dir, "shop", llm="llama-cpp")
    check_models(settings, load_agents(settings.agents_dir))
    engines = EngineSettings(llm="openai", llm_base_url="http://gpu.test/v1")
    assert "models.llm" in refusal(settings.model_copy(update={"engines": engines}))


def test_a_role_that_no_agent_can_choose_is_refused_where_it_stands(settings: Settings) -> None:
    write_agent(settings.agents_dir, "shop", embeddings="minilm")
    with pytest.raises(ConfigError, match=r"models\.embeddings"):
        load_agents(settings.agents_dir)


def test_a_supervisor_begins_with_what_the_files_name(settings: Settings) -> None:
    adopt(settings, 50)
    assert not choices.path(settings).exists()
    write_agent(settings.agents_dir, "shop", tts=SECOND)
    adopt(settings, 60)
    kept = choices.read(settings, "tts")
    assert summary(kept)[1:] == [(1, SECOND, "agents", 60, ("shop",))]
    assert kept.current.generation == 0
    before = choices.path(settings).read_bytes()
    adopt(settings, 70)
    assert choices.path(settings).read_bytes() == before
    write_agent(settings.agents_dir, "shop")
    adopt(settings, 80)
    assert [choice.generation for choice in choices.read(settings, "tts").choices] == [0]
