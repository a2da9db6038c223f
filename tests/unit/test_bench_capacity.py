"""What bench says of capacity and memory, and the engines that cost nothing."""

import asyncio
import base64
import json
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from api.audio import pcm_to_mulaw
from bench import __main__ as command
from bench import capacity, instant_engines, report, soak
from bench.__main__ import Part
from bench.capacity import ENVIRONMENT, Step, platform_cores
from bench.crowd import OneOfMany, Tally
from bench.processes import Sample, cores_used, growth_per_hour
from bench.utterances import FRAME_MS, Utterance
from processors.engine import (
    Embed,
    Embedded,
    Engine,
    EngineError,
    Generate,
    Message,
    Reply,
    Request,
    Speak,
    Spoken,
    Transcribe,
    Transcribed,
)
from processors.replies import Checker
from streams.settings import Settings

SETTINGS = Settings()


def at(at_s: float, cpu_s: float = 0.0, memory_mib: float = 100.0) -> Sample:
    return Sample(at_s, {"stt": cpu_s}, {"stt": memory_mib})


def step(answer_ms: list[float], unanswered: int = 0, failed: int = 0, early: int = 0, sessions: int = 10) -> Step:
    turns = len(answer_ms) + unanswered + early
    seen = {"answer_ms": answer_ms, "unanswered": unanswered, "failed": failed, "early": early, "turns": turns}
    return Step(sessions, seen | {"late_ms": []}, at(0), at(10))


def test_shares_of_a_core_are_of_the_time_between_samples() -> None:
    assert cores_used(at(10, 5.0), at(20, 7.0)) == {"stt": 0.2}


def test_memory_that_settles_after_a_start_is_no_growth_and_a_leak_is() -> None:
    settled = [at(second, memory_mib=100 + min(second, 50)) for second in range(0, 200, 10)]
    leaking = [at(second, memory_mib=100 + second / 36) for second in range(0, 200, 10)]
    assert growth_per_hour(settled)["stt"] == pytest.approx(0)
    assert growth_per_hour(leaking)["stt"] == pytest.approx(100)
    assert growth_per_hour(settled[:1]) == {}


def test_a_step_holds_when_every_turn_is_answered_in_time() -> None:
    assert step([350.0, 390.0]).held
    assert step([350.0, 390.0]).own_ms == [50.0, 90.0]
    assert not step([350.0, 450.0]).held
    assert not step([350.0], unanswered=1).held
    assert not step([350.0], failed=1).held
    assert not step([]).held


def test_a_step_does_not_hold_where_more_than_a_twentieth_is_answered_too_early() -> None:
    assert step([350.0] * 19, early=1).held
    assert not step([350.0] * 18, early=1).held


def test_steps_that_are_asked_for_are_measured_each_and_others_until_one_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[int] = []

    def run_step(directory: Path, sessions: int, seconds: float) -> Step:
        measured.append(sessions)
        return step([350.0 if sessions < 30 else 450.0], sessions=sessions)

    monkeypatch.setattr(capacity, "run_step", run_step)
    monkeypatch.setattr(capacity, "wait_for_calm", lambda directory: None)
    monkeypatch.setattr(capacity, "sample", lambda directory: at(0))
    for given, expected in (((120, 20), [120, 20]), ((), [10, 20, 30])):
        measured.clear()
        found = capacity.measure_capacity(tmp_path, False, given)
        assert measured == expected
        assert found.facts[-1].value == 20


def test_the_command_takes_sizes_for_capacity_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(command, "PARTS", {Part.CAPACITY: ("", lambda options, _: asked.append(options.sessions))})
    monkeypatch.setattr(report, "write", lambda *_: tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(command, "forget", list)
    app = typer.Typer()
    app.command()(command.bench)
    assert CliRunner().invoke(app, ["--only", "capacity", "--sessions", "120", "--sessions", "30"]).exit_code == 0
    assert CliRunner().invoke(app, ["--only", "voice", "--sessions", "120"]).exit_code == 2
    assert asked == [(120, 30)]


async def test_a_soak_says_how_many_turns_were_answered_too_early(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def crowd(url: str, seconds: float) -> dict[str, Any]:
        await asyncio.sleep(0.2)
        return {"answer_ms": [400.0], "turns": 3, "unanswered": 1, "early": 1, "failed": 0}

    monkeypatch.setattr(soak, "_crowd", crowd)
    monkeypatch.setattr(soak, "running_state", lambda directory: {"url": "http://x"})
    monkeypatch.setattr(soak, "sample", lambda directory: at(0))
    _, seen_ms, counts = await soak._soak(tmp_path, soak._SETTLE_S + 1.1)
    assert seen_ms == [400.0]
    assert counts == {"turns": 3, "unanswered": 1, "early": 1, "failed": 0}


def test_the_platform_is_told_its_instant_engines_and_has_one_core() -> None:
    for role in ("stt", "embeddings", "llm", "tts"):
        module, _, factory = ENVIRONMENT[f"TRUNKLINE_ENGINES__{role.upper()}"].partition(":")
        assert module == instant_engines.__name__
        assert getattr(instant_engines, factory)(SETTINGS).capabilities.role == role
    assert len(platform_cores()[0]) == 1


def test_instant_engines_answer_every_request_of_theirs_and_refuse_tools() -> None:
    (heard,) = instant_engines.stt(SETTINGS).answer(Transcribe(bytes(32 * 2000)))
    assert isinstance(heard, Transcribed)
    assert heard.text == instant_engines.TEXT
    assert heard.words[-1].end_ms <= 2000
    (embedded,) = instant_engines.embeddings(SETTINGS).answer(Embed(("a", "A", "b")))
    assert isinstance(embedded, Embedded)
    vectors = np.frombuffer(embedded.vectors, "<f4").reshape(3, -1)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert vectors[0] @ vectors[1] == pytest.approx(1, abs=1e-5)
    assert abs(vectors[0] @ vectors[2]) < 0.3
    pieces = list(instant_engines.tts(SETTINGS).answer(Speak("Hello.")))
    assert sum(len(piece.pcm) for piece in pieces if isinstance(piece, Spoken)) == instant_engines.SPOKEN_MS * 32
    with pytest.raises(EngineError, match="expected"):
        list(instant_engines.tts(SETTINGS).answer(None))  # type: ignore[arg-type]


class Socket:
    """Keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def send(self, message: str) -> None:
        self.sent.append(message)


class Answering:
    """A socket on which the agent speaks once."""

    def __aiter__(self) -> AsyncIterator[str]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[str]:
        payload = base64.b64encode(pcm_to_mulaw(np.full(160, 8000, "<i2").tobytes())).decode()
        yield json.dumps({"event": "media", "media": {"payload": payload}})


async def test_a_turn_that_is_answered_too_early_is_a_turn() -> None:
    pcm = (8000 * np.sin(np.arange(8 * 100))).astype(np.int16)
    tally = Tally()
    one = OneOfMany(tally, Utterance("a.wav", "", "synthetic", pcm, 8000), 0.0)
    socket = Socket()
    await one._frame(socket, 0, 0, True)  # type: ignore[arg-type]
    await one._listen(Answering())  # type: ignore[arg-type]
    for place in range(1, 100 // FRAME_MS):
        await one._frame(socket, place, place, True)  # type: ignore[arg-type]
    one.hung_up(time.monotonic() + 60)
    assert (tally.turns, tally.early, tally.unanswered, tally.answer_ms) == (1, 1, 0, [])


async def test_a_turn_that_nobody_answers_is_counted_when_the_next_begins() -> None:
    pcm = (8000 * np.sin(np.arange(8 * 100))).astype(np.int16)
    tally = Tally()
    one = OneOfMany(tally, Utterance("a.wav", "", "synthetic", pcm, 8000), 0.0)
    socket = Socket()
    frames = 100 // FRAME_MS
    for number, place in enumerate((*range(frames + 2), *range(frames))):
        await one._frame(socket, number, place, True)  # type: ignore[arg-type]
    assert (tally.turns, tally.unanswered) == (2, 1)
    one.hung_up(time.monotonic() + 1)
    assert (tally.turns, tally.unanswered) == (1, 1)
    one.hung_up(time.monotonic() + 60)
    assert (tally.turns, tally.unanswered) == (1, 2)
    assert len(socket.sent) == 2 * frames + 2
    assert len(set(socket.sent[frames : frames + 2])) == 2


@pytest.mark.parametrize("audio_ms", [100, 300, 3000])
async def test_what_instant_engines_answer_is_believed(audio_ms: int) -> None:
    async def replies(engine: Engine, request: Request) -> AsyncGenerator[Reply, None]:
        for reply in engine.answer(request):
            yield reply

    requests: dict[Callable[[Settings], Engine], Request] = {
        instant_engines.stt: Transcribe(bytes(32 * audio_ms)),
        instant_engines.embeddings: Embed((instant_engines.TEXT, "b")),
        instant_engines.llm: Generate((Message("user", "Hello."),)),
        instant_engines.tts: Speak("Hello! What can I do for you?"),
    }
    for factory, request in requests.items():
        checked = Checker().checked(request, replies(factory(SETTINGS), request))
        assert [reply async for reply in checked]
