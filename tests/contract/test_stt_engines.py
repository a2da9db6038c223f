"""Speech to text with the real models, on human speech: every engine that `processors.stt.engine` names."""

from collections.abc import AsyncIterator, Callable, Iterator
from itertools import cycle

import numpy as np
import pytest
import soxr

from processors.engine import Transcribe
from processors.engine_client import SocketEngine
from processors.stage import Answered, Ask, Emit, Position, Received, event_id
from processors.stt import vad
from processors.stt.core import SttCore
from processors.stt.engine import ENGINES
from processors.stt.state import WINDOW_BYTES
from schemas.events import AudioFrame, Transcript, TranscriptKind
from streams.settings import Settings
from tests.support.engines import HostProcess, asking, replies, running_host, settings_in
from tests.support.stt_suite import (
    ASK_S,
    RATE_HZ,
    WORDS,
    Samples,
    SttSuite,
    errors,
    pcm,
    recorded,
    silence,
    transcribe,
    words,
)


def telephone(samples: Samples) -> Samples:
    """Through 8 kHz and 8 bits of mu-law."""
    narrow = np.clip(soxr.resample(samples, RATE_HZ, 8000), -1, 1)
    coded = np.round(np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log(256) * 127) / 127
    decoded = np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255
    wide: Samples = soxr.resample(decoded.astype(np.float32), 8000, RATE_HZ)
    return wide


def noisy(samples: Samples) -> Samples:
    """With white noise 20 dB below the speech."""
    noise = np.random.default_rng(3).normal(0, 1, len(samples)).astype(np.float32)
    spoken = samples[np.abs(samples) > 0.01]
    return samples + noise * np.float32(np.sqrt(np.mean(spoken**2) / 100))


CONDITIONS: dict[str, Callable[[Samples], Samples]] = {
    "clean": lambda samples: samples,
    "telephone": telephone,
    "noisy": noisy,
    "quiet": lambda samples: samples * np.float32(0.1),
    "overdriven": lambda samples: np.clip(samples * 4, -1, 1),
}


@pytest.fixture(scope="module", params=sorted(ENGINES))
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(settings_in(tmp_path_factory.mktemp("stt"), stt=request.param), "stt") as host:
        yield host


@pytest.fixture
async def client(host: HostProcess) -> AsyncIterator[SocketEngine]:
    async with asking(host, "stt") as client:
        yield client


@pytest.fixture(scope="module")
def detector() -> vad.SileroDetector:
    return vad.create(Settings())


class TestSuite(SttSuite):
    """What each of them must do."""


@pytest.mark.parametrize("condition", CONDITIONS)
async def test_word_error_rate(client: SocketEngine, condition: str) -> None:
    readings = [(text, await transcribe(client, CONDITIONS[condition](recorded(name)))) for name, text in WORDS.items()]
    wrong = sum(errors(text, reading.text) for text, reading in readings)
    assert wrong / sum(len(text.split()) for text in WORDS.values()) <= 0.08


async def test_long_and_repeated_speech_does_not_loop(client: SocketEngine) -> None:
    pause = silence(0.5)
    whole = np.concatenate([part for name in WORDS for part in (recorded(name), pause)])
    text = " ".join(WORDS.values())
    assert errors(text, (await transcribe(client, whole)).text) <= 0.1 * len(text.split())
    twice = np.concatenate([recorded("librivox_0920"), pause, recorded("librivox_0920")])
    assert len(words((await transcribe(client, twice)).text)) <= 2 * 18 + 4


async def test_vocabulary_does_not_leak_into_silence(client: SocketEngine) -> None:
    vocabulary = ("Trailhead Outfitters", "Dashwood")
    assert (await transcribe(client, silence(2), vocabulary=vocabulary)).text == ""
    heard = await transcribe(client, recorded("librivox_0870"), vocabulary=vocabulary)
    assert errors(WORDS["librivox_0870"], heard.text) <= 2


# ---- the detector


def probabilities(detector: vad.SileroDetector, audio: bytes) -> list[float]:
    state, found = b"", list[float]()
    for at in range(0, len(audio) - WINDOW_BYTES + 1, WINDOW_BYTES):
        one, state = detector(state, audio[at : at + WINDOW_BYTES])
        found += one
    return found


@pytest.mark.parametrize("name", WORDS)
def test_the_detector_hears_speech(detector: vad.SileroDetector, name: str) -> None:
    found = probabilities(detector, pcm(recorded(name)))
    assert sum(probability >= 0.5 for probability in found) >= 0.6 * len(found)
    assert found == probabilities(detector, pcm(recorded(name)))


@pytest.mark.parametrize("name", WORDS)
def test_windows_together_are_heard_as_one_after_the_other(detector: vad.SileroDetector, name: str) -> None:
    audio = pcm(recorded(name)) + bytes(40 * WINDOW_BYTES) + pcm(recorded(name))
    lengths = (number * WINDOW_BYTES for number in cycle((5, 1, 2, 35, 8)))
    found, memory, at = list[float](), b"", 0
    while at + WINDOW_BYTES <= len(audio):
        piece = audio[at : at + next(lengths)]
        piece = piece[: len(piece) // WINDOW_BYTES * WINDOW_BYTES]
        some, memory = detector(memory, piece)
        found, at = found + some, at + len(piece)
    assert found == pytest.approx(probabilities(detector, audio), abs=1e-4)
    assert 0.0 in found


@pytest.mark.parametrize("level", [0.0, 0.001, 0.05])
def test_the_detector_hears_no_speech_in_noise(detector: vad.SileroDetector, level: float) -> None:
    noise = np.random.default_rng(5).normal(0, level, 5 * RATE_HZ).astype(np.float32)
    assert max(probabilities(detector, pcm(noise))) < 0.5


def test_the_detectors_memory_is_its_state_alone(detector: vad.SileroDetector) -> None:
    audio = pcm(recorded("librivox_0880"))
    windows = [audio[at : at + WINDOW_BYTES] for at in range(0, WINDOW_BYTES * 40, WINDOW_BYTES)]
    state = b""
    for window in windows[:20]:
        _, state = detector(state, window)
    expected = detector(state, windows[20])
    probabilities(detector, bytes(10 * WINDOW_BYTES))
    assert detector(state, windows[20]) == expected


@pytest.mark.parametrize("gain", [1.0, 0.25])
@pytest.mark.parametrize("name", WORDS)
def test_a_long_silence_delays_no_onset(detector: vad.SileroDetector, name: str, gain: float) -> None:
    """As soon as after a short one, during which the network is asked for every window."""

    def onset(silence_windows: int) -> int:
        found = probabilities(detector, bytes(WINDOW_BYTES * silence_windows) + pcm(recorded(name) * np.float32(gain)))
        return next(at for at, probability in enumerate(found) if probability >= 0.5) - silence_windows

    assert onset(8 * vad.QUIET_WINDOWS) <= onset(vad.QUIET_WINDOWS)


def test_a_long_silence_leaves_the_detectors_memory_alone(detector: vad.SileroDetector) -> None:
    hiss = np.random.default_rng(3).normal(0, 0.0005, WINDOW_BYTES // 2).astype(np.float32)
    state = b""
    for _ in range(vad.QUIET_WINDOWS):
        _, state = detector(state, pcm(hiss))
    assert detector(state, pcm(hiss)) == ([0.0], state)
    assert detector(state, pcm(50 * hiss))[1] != state


@pytest.mark.parametrize("offset", [-0.01, 0.0, 0.01])
def test_a_lines_direct_current_hides_no_voice_and_is_none(detector: vad.SileroDetector, offset: float) -> None:
    hiss = np.random.default_rng(3).normal(offset, 0.0005, WINDOW_BYTES // 2).astype(np.float32)
    state = b""
    for _ in range(vad.QUIET_WINDOWS):
        _, state = detector(state, pcm(hiss))
    assert detector(state, pcm(hiss)) == ([0.0], state)
    murmur = (offset + 0.006 * np.sin(np.arange(WINDOW_BYTES // 2) / 10)).astype(np.float32)
    assert detector(state, pcm(murmur))[1] != state


# ---- the whole ear


def frames(audio: bytes) -> Iterator[AudioFrame]:
    for number, at in enumerate(range(0, len(audio), 1280)):
        yield AudioFrame(
            event_id=event_id("call", str(number)),
            session_id="call",
            tenant_id="demo",
            agent_id="shop",
            turn=0,
            seq=number,
            occurred_at=0,
            pcm=audio[at : at + 1280],
            sample_index=at // 2,
            captured_at=at // 2 * 1000 // 16,
        )


async def test_a_call_is_heard_turn_by_turn(client: SocketEngine, detector: vad.SileroDetector) -> None:
    """The core with the real detector and engine: one final for each recording, in order, with its words."""
    pause = np.random.default_rng(2).normal(0, 0.0003, 6 * RATE_HZ // 5).astype(np.float32)
    audio = pcm(np.concatenate([pause, *(part for name in WORDS for part in (recorded(name), pause))]))
    core = SttCore(detector)
    state, emitted = core.start("call"), []
    for offset, frame in enumerate(frames(audio)):
        happenings: list[Received | Answered] = [Received(frame, Position(frame.TOPIC, 0, offset))]
        while happenings:
            step = core.apply(state, happenings.pop(0), frame.captured_at)
            state = step.state
            emitted += [outcome.event for outcome in step.outcomes if isinstance(outcome, Emit)]
            for ask in (outcome for outcome in step.outcomes if isinstance(outcome, Ask)):
                assert isinstance(ask.request, Transcribe)
                readings = await replies(client, ask.request, ASK_S)
                happenings += [Answered(ask.ask_id, one, last=one is readings[-1]) for one in readings]
    finals = [event for event in emitted if isinstance(event, Transcript) and event.kind is TranscriptKind.FINAL]
    assert [final.turn for final in finals] == [1, 2, 3]
    wrong = sum(errors(text, final.text) for text, final in zip(WORDS.values(), finals, strict=True))
    assert wrong / sum(len(text.split()) for text in WORDS.values()) <= 0.08
    for final in finals:
        assert final.audio_start_ms - 400 <= final.words[0].start_ms
        assert final.words[-1].end_ms <= final.audio_end_ms + 500
