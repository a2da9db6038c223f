"""A call through which every stage, every engine and the gateway are killed once, in mid-sentence.

The short form of `make faults`: its checks, without its clock. What is lost, doubled or misheard fails.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from bench.faults import evidence
from bench.faults.calls import Played, Trigger, play
from bench.faults.faults import CALM, FAULTS, scene
from bench.faults.plan import Moment, Phase
from bench.faults.platform import Platform, running_platform
from bench.faults.proxy import Wire
from bench.faults.reference import refer
from bench.faults.speech import Conversation, load_speech

# A problem that becomes a ticket, a question for the knowledge documents, small talk.
NAMES = ("ticket", "knowledge")
KILLS = {
    "stt": Moment(0, Phase.CALLER, 0.5),
    "tts": Moment(0, Phase.AGENT, 0.4),
    "engine-stt": Moment(1, Phase.CALLER, 0.6),
    "llm": Moment(1, Phase.THINKING, 0.5),
    "engine-tts": Moment(1, Phase.AGENT, 0.2),
    "gateway": Moment(2, Phase.CALLER, 0.4),
    "intent": Moment(2, Phase.THINKING, 0.2),
    "engine-llm": Moment(2, Phase.AGENT, 0.5),
    "engine-embeddings": Moment(3, Phase.CALLER, 0.5),
}

# What is tried here must not depend on what else the machine is doing, as a second opinion does, and whether a sentence
# is known to be whole in time.
UNHURRIED = {"TRUNKLINE_ENGINES__STT_MODEL": "whisper-base", "TRUNKLINE_ENGINES__COMPLETENESS": ""}


@pytest.fixture
async def platform() -> AsyncIterator[Platform]:
    async with running_platform({**dict(CALM), **UNHURRIED}) as running:
        yield running


async def test_a_call_survives_the_death_of_everything_that_it_needs(platform: Platform) -> None:
    speech = load_speech()
    parts = [one for name in NAMES for one in speech.conversations if one.name == name]
    turns, words = (sum((getattr(part, name) for part in parts), ()) for name in ("turns", "words"))
    conversation = Conversation("both", turns, words)

    undisturbed = await play(platform.url, conversation, speech.agent, "undisturbed")
    assert undisturbed.result is not None, undisturbed.error
    reference = refer([undisturbed.result], [await evidence.tickets_of(platform, "undisturbed")], words)
    assert reference.tickets == 1

    nothing = Wire("127.0.0.1", platform.port)
    on = scene(platform, nothing, "short", {})
    kills: list[asyncio.Future[None]] = []

    def killer(name: str) -> Callable[[], None]:
        return lambda: kills.append(asyncio.ensure_future(FAULTS[f"kill.{name}"].strike(on)))

    strikes = [(Trigger.of(moment, conversation, reference), killer(name)) for name, moment in KILLS.items()]
    played: Played = await play(platform.url, conversation, speech.agent, "disturbed", strikes)
    assert played.result is not None, played.error
    await asyncio.gather(*kills)
    assert len(played.struck_ms) == len(on.notes) == len(KILLS)

    assert await platform.settled() == []
    for result, caller in ((undisturbed.result, "undisturbed"), (played.result, "disturbed")):
        _, findings = await evidence.examine(platform, result, caller, reference)
        assert findings == []
    assert await evidence.examine_offsets(platform.settings) == []
    assert await evidence.DeadLetterBox().places(platform.settings) == []
