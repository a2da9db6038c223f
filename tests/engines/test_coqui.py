"""Coqui's own package through the real engine process, on models of random weights."""

import asyncio
import hashlib
import io
import os
import subprocess
import sys
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("TTS", reason="needs the environment of `make test-engines-coqui`")

import torch

from processors.engine import EngineError, Speak, Spoken
from processors.engine_client import SocketEngine
from processors.memory import give_back, is_out_of_memory
from processors.tts.coqui import CoquiVoices
from processors.tts.coqui_models import CPML, LATENTS_MAX, XttsModel
from processors.tts.engine import create
from processors.tts.voices import VoiceStore
from streams.settings import REPOSITORY, Settings
from tests.engines.tiny_coqui import SPEAKER, XTTS_LANGUAGES, make_vits, make_xtts
from tests.support.engines import HostProcess, asking, running_host, settings_in
from tests.support.tts_suite import ASK_S, HZ, TtsHostSuite, pcm, speech

KINDS = ("xtts", "vits")
CONSENT = b"I, Ana Tester, agree that my voice is used for the tests of this project."


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory for each kind of model."""
    folder = tmp_path_factory.mktemp("models")
    return {"xtts": make_xtts(folder / "xtts"), "vits": make_vits(folder / "vits", ("anna", "bert"))}


@pytest.fixture(scope="module", params=KINDS)
def host(
    request: pytest.FixtureRequest, directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HostProcess]:
    with hosted(tmp_path_factory.mktemp("tts"), directories[request.param]) as host:
        yield host


@pytest.fixture
async def client(host: HostProcess) -> AsyncIterator[SocketEngine]:
    async with asking(host, "tts") as client:
        yield client


@pytest.fixture(scope="module")
def xtts(directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[CoquiVoices, Settings]:
    """The engine in this process, with a data directory of its own."""
    settings = settings_in(tmp_path_factory.mktemp("data"), tts="coqui", tts_dir=directories["xtts"])
    return CoquiVoices(settings, directories["xtts"], "tiny"), settings


class hosted:  # noqa: N801
    """The real engine process on that model; agents other than none would have their greetings spoken at the start."""

    def __init__(self, data_dir: Path, directory: Path) -> None:
        agents = data_dir / "agents"
        agents.mkdir(parents=True)
        (agents / "plain.yaml").write_text(
            "name: Plain\ngreeting: Hi.\npersona: You are plain.\n"
            "intents: [{name: hello, examples: [Hello], templates: {ok: Hello.}}]\n"
        )
        given = {"TRUNKLINE_ENGINES__TTS_DIR": str(directory), "TRUNKLINE_AGENTS_DIR": str(agents)}
        self._patch = pytest.MonkeyPatch()
        for name, value in given.items():
            self._patch.setenv(name, value)
        self._running = running_host(settings_in(data_dir, tts="coqui"), "tts")

    def __enter__(self) -> HostProcess:
        return self._running.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._patch.undo()
        self._running.__exit__(*error)


def sample(seconds: float = 3.5, rate_hz: int = 22_050) -> bytes:
    """A WAV file that hums."""
    times = np.arange(int(seconds * rate_hz)) / rate_hz
    hum = 0.3 * np.sin(2 * np.pi * 140 * times) * (1 + 0.5 * np.sin(2 * np.pi * 3 * times))
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((hum * 20_000).astype("<i2").tobytes())
    return out.getvalue()


def add_voice(settings: Settings, name: str, seconds: float = 3.5) -> None:
    VoiceStore(settings).prepare(name, sample(seconds), CONSENT, 1, "test").keep()


def said(engine: CoquiVoices, request: Speak) -> bytes:
    return b"".join(reply.pcm for reply in engine.answer(request) if isinstance(reply, Spoken))


class TestSuite(TtsHostSuite):
    """What every voice must do."""


async def test_it_says_what_its_model_can_do_and_may_be_used_for(client: SocketEngine, host: HostProcess) -> None:
    found = await client.capabilities(ASK_S)
    assert (found.device, found.concurrency) == ("cpu", 1)
    if found.model == "xtts":
        assert (found.clones, found.licence, found.languages) == (True, CPML, XTTS_LANGUAGES)
        assert "no commercial use without a licence" in host.log.read_text()
    else:
        assert (found.clones, found.languages) == (False, ("en",))


async def test_xtts_goes_on_while_its_first_piece_is_heard(client: SocketEngine) -> None:
    if (await client.capabilities(ASK_S)).model != "xtts":
        pytest.skip("VITS makes a sentence at once")
    pieces = await speech(client, Speak("Your order is on its way."))
    assert len([piece for piece in pieces if piece.compute_ms > 0]) > 2  # at its end, too, where its silence is cut


async def test_the_process_speaks_with_a_voice_that_was_added_meanwhile_until_it_is_removed(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    with hosted(tmp_path, directories["xtts"]) as host:
        async with asking(host, "tts") as client:
            plain = pcm(await speech(client, Speak("Hi.", "brand")))
            assert plain == pcm(await speech(client, Speak("Hi.")))  # an unknown name is the first voice
            add_voice(host.settings, "brand")
            own = pcm(await speech(client, Speak("Hi.", "brand")))
            assert own
            assert own != plain
            assert host.log.read_text().count("voice learnt") == 1
            assert pcm(await speech(client, Speak("Hi.", "brand"))) == own
            assert await asyncio.to_thread(say, host.settings, "brand", "Hi.", tmp_path / "hi.wav") == own
            assert host.log.read_text().count("voice learnt") == 1
            VoiceStore(host.settings).remove("brand")
            assert pcm(await speech(client, Speak("Hi.", "brand"))) == plain


def say(settings: Settings, name: str, text: str, out: Path) -> bytes:
    """What `trunkline voices say` writes."""
    command = [sys.executable, "-m", "api.cli.main", "voices", "say", name, text, "--out", str(out)]
    environment = {**os.environ, "TRUNKLINE_DATA_DIR": str(settings.data_dir)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "")
    with wave.open(str(out)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (HZ, 1, 2)
        written: bytes = file.readframes(file.getnframes())
    return written


def test_a_voice_is_learnt_once_and_only_so_many_are_kept(
    xtts: tuple[CoquiVoices, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, settings = xtts
    model: Any = engine._model
    assert isinstance(model, XttsModel)
    learnt: list[int] = []
    learn = model._model.get_gpt_cond_latents

    def counted(*given: Any, **named: Any) -> Any:
        learnt.append(1)
        return learn(*given, **named)

    monkeypatch.setattr(model._model, "get_gpt_cond_latents", counted)
    add_voice(settings, "first")
    assert said(engine, Speak("Hi.", "first")) == said(engine, Speak("Hi.", "first"))
    assert len(learnt) == 1
    for number in range(LATENTS_MAX):
        add_voice(settings, f"voice-{number}", 3.0 + number / 100)
        model._voice(f"voice-{number}")
    assert len(model._latents) == LATENTS_MAX
    assert not any(name == "first" for name, _ in model._latents)
    model._voice("first")
    assert len(learnt) == LATENTS_MAX + 2
    VoiceStore(settings).remove("first")
    model._voice("voice-1")
    assert not any(name == "first" for name, _ in model._latents)


def test_languages_and_speakers_are_those_of_the_model(xtts: tuple[CoquiVoices, Settings]) -> None:
    engine, _ = xtts
    english = said(engine, Speak("Hi.", SPEAKER))
    assert said(engine, Speak("Hi.")) == english
    german = said(engine, Speak("Hi.", language="de-AT"))
    assert german
    assert german == said(engine, Speak("Hi.", language="DE"))


def test_where_the_device_has_no_memory_left_that_is_known_and_the_next_ask_is_answered(
    xtts: tuple[CoquiVoices, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = xtts
    model: Any = engine._model

    def full(*given: Any, **named: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(model._model.hifigan_decoder, "forward", full)
        with pytest.raises(torch.cuda.OutOfMemoryError) as raised:
            said(engine, Speak("Hi."))
    assert is_out_of_memory(raised.value)
    give_back()
    assert said(engine, Speak("Hi."))


def test_old_files_are_read_and_not_written_anew(tmp_path: Path) -> None:
    directory = make_xtts(tmp_path / "old", speakers=False, legacy=True)
    before = hashlib.sha256((directory / "model.pth").read_bytes()).hexdigest()
    settings = settings_in(tmp_path / "data", tts="coqui", tts_dir=directory)
    engine = CoquiVoices(settings, directory, "old")
    engine.warm()  # without any voice there is nothing to speak with
    with pytest.raises(EngineError, match="voice: expected one of `trunkline voices add`; found ''"):
        said(engine, Speak("Hi."))
    assert hashlib.sha256((directory / "model.pth").read_bytes()).hexdigest() == before
    add_voice(settings, "brand")
    assert said(engine, Speak("Hi."))


def test_a_directory_that_holds_no_model_is_refused_by_name(tmp_path: Path, directories: dict[str, Path]) -> None:
    def refusal(directory: Path, **engines: Any) -> str:
        with pytest.raises(EngineError) as raised:
            create(settings_in(tmp_path, tts="coqui", tts_dir=directory, **engines))
        assert raised.value.reason == "invalid"
        return raised.value.detail

    other = tmp_path / "other"
    other.mkdir()
    assert "config.json: expected a Coqui model's settings" in refusal(other)
    (other / "config.json").write_text('{"model": "tacotron2"}')
    assert "expected model xtts or vits, found 'tacotron2'" in refusal(other)
    (other / "config.json").write_text((directories["vits"] / "config.json").read_text())
    assert "expected one of model.pth" in refusal(other)
    assert "expected cpu or cuda, found 'tpu'" in refusal(directories["vits"], device="tpu")
    if not torch.cuda.is_available():
        assert "there is no such device here" in refusal(directories["vits"], device="cuda")
