"""Coqui's own package through the real engine process, on models of random weights."""

import asyncio
import hashlib
import io
import os
import signal
import subprocess
import sys
import wave
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("TTS", reason="needs the environment of `make test-engines-coqui`")

import torch

from processors.engine import Capabilities, Embed, EngineError, Reply, Speak, Spoken
from processors.engine_client import SocketEngine
from processors.memory import give_back, is_out_of_memory
from processors.tts.coqui import CoquiVoices
from processors.tts.coqui_models import CPML, LATENTS_MAX, XttsModel
from processors.tts.engine import create
from processors.tts.voices import VoiceStore
from streams.settings import REPOSITORY, Settings
from tests.engines.tiny_coqui import SPEAKER, XTTS_LANGUAGES, make_vits, make_xtts
from tests.support.engines import HostProcess, replies, running_host, settings_in

HZ = 16_000
KINDS = ("xtts", "vits")
ASK_S = 300.0  # a busy machine fails no test
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
    # A model of these at work on a busy machine may keep its process from answering pings.
    client = SocketEngine(host.settings, "tts", silence_s=60.0)
    yield client
    await client.close()


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


async def speech(client: SocketEngine, request: Speak) -> list[Spoken]:
    return [reply for reply in await replies(client, request, ASK_S) if isinstance(reply, Spoken)]


async def to_the_end(stream: AsyncIterator[Reply]) -> None:
    async for _ in stream:
        pass


def pcm(spoken: list[Spoken]) -> bytes:
    return b"".join(piece.pcm for piece in spoken)


def said(engine: CoquiVoices, request: Speak) -> bytes:
    return b"".join(reply.pcm for reply in engine.answer(request) if isinstance(reply, Spoken))


async def test_it_says_what_it_is(client: SocketEngine, host: HostProcess) -> None:
    found: Capabilities = await client.capabilities(ASK_S)
    assert (found.role, found.streaming, found.sample_rate_hz, found.concurrency) == ("tts", True, HZ, 1)
    assert found.device == "cpu"
    if found.model == "xtts":
        assert (found.clones, found.licence, found.languages) == (True, CPML, XTTS_LANGUAGES)
        assert "no commercial use without a licence" in host.log.read_text()
    else:
        assert (found.clones, found.languages) == (False, ("en",))


async def test_speech_comes_in_order_in_pieces_of_whole_samples(client: SocketEngine) -> None:
    request = Speak("Your order is on its way.")
    pieces = await speech(client, request)
    assert pieces
    assert all(piece.pcm and len(piece.pcm) % 2 == 0 and len(piece.pcm) <= HZ * 2 // 5 for piece in pieces)
    assert pieces[0].compute_ms > 0
    if (await client.capabilities(ASK_S)).clones:  # XTTS goes on while its first piece is heard
        assert len([piece for piece in pieces if piece.compute_ms > 0]) > 1
    samples = np.frombuffer(pcm(pieces), "<i2").astype(np.int32)
    assert np.flatnonzero(np.abs(samples) > 0.008 * 32_768)[0] < 0.05 * HZ
    # Another time it is the same, sample by sample: what was cut short can go on anywhere.
    assert pcm(await speech(client, request)) == pcm(pieces)


async def test_slower_speech_is_longer(client: SocketEngine) -> None:
    slow, fast = [len(pcm(await speech(client, Speak("We are open.", speed=speed)))) for speed in (0.6, 1.8)]
    assert slow > 1.5 * fast


@pytest.mark.parametrize("text", ["", "   ", "...", "\n\t", "🙂"])
async def test_without_words_there_is_no_sound(client: SocketEngine, text: str) -> None:
    assert await speech(client, Speak(text)) == []


@pytest.mark.parametrize("text", ["日本語", "a" * 600, "\u202e\x00x", "1" * 60])
async def test_odd_text_never_breaks_the_voice(client: SocketEngine, text: str) -> None:
    async with aclosing(client.ask(Speak(text), ASK_S)) as stream:
        async for _ in stream:
            break
    assert await speech(client, Speak("Hi."))


async def test_what_it_cannot_say_is_refused_by_name(client: SocketEngine) -> None:
    for request, expected in (
        (Speak("x" * 5001), "text: expected at most 5000 characters, found 5001"),
        (Speak("Hi", language="xx"), "language: expected one of en"),
        (Speak("Hi", language=""), "language: expected one of en"),
        (Speak("Hi", speed=9), "speed: expected 0.5 to 2.0, found 9"),
        (Speak("Hi", speed=float("nan")), "speed: expected"),
        (Embed(("Hi",)), "expected Speak, found Embed"),
    ):
        with pytest.raises(EngineError) as raised:
            await replies(client, request, ASK_S)
        assert raised.value.reason == "invalid"
        assert expected in raised.value.detail


async def test_a_sentence_is_dropped_in_the_middle(client: SocketEngine) -> None:
    wanted = pcm(await speech(client, Speak("Hi.")))
    long = Speak("Your order is on its way. " * 40)
    for _ in range(2):
        async with aclosing(client.ask(long, ASK_S)) as stream:
            assert isinstance(await anext(stream), Spoken)
    assert pcm(await speech(client, Speak("Hi."))) == wanted


async def test_several_sessions_at_once_do_not_mix(client: SocketEngine, host: HostProcess) -> None:
    sentences = ["Hello there.", "We are open.", "On its way."]
    alone = [pcm(await speech(client, Speak(sentence))) for sentence in sentences]
    clients = [SocketEngine(host.settings, "tts", silence_s=60.0) for _ in sentences]
    together = await asyncio.gather(
        *(speech(one, Speak(sentence)) for one, sentence in zip(clients, sentences, strict=True))
    )
    for one in clients:
        await one.close()
    assert [pcm(pieces) for pieces in together] == alone


async def test_no_words_are_logged(client: SocketEngine, host: HostProcess) -> None:
    for text in ("Qwyxt 漢字.", "qwyxt " * 100):
        async with aclosing(client.ask(Speak(text), ASK_S)) as stream:
            async for _ in stream:
                break
    written = host.log.read_text().lower()
    assert "qwyxt" not in written
    assert "漢" not in written


async def test_the_process_speaks_with_a_voice_that_was_added_meanwhile_until_it_is_killed(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    with hosted(tmp_path, directories["xtts"]) as host:
        client = SocketEngine(host.settings, "tts", silence_s=60.0)
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
        await see_it_killed(host, client)
        await client.close()


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


async def see_it_killed(host: HostProcess, client: SocketEngine) -> None:
    """In mid-stream; here, since another process would take its time to be there."""
    async with aclosing(client.ask(Speak("Your order is on its way. " * 40), ASK_S)) as stream:
        assert isinstance(await anext(stream), Spoken)
        os.kill(host.process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="crashed"):
            await to_the_end(stream)


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
