"""Speech to text with the real models, on human speech: every engine that `processors.stt.engine` names."""

import re
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from processors.engine import Engine, EngineError, Transcribe, Transcribed
from processors.stage import Answered, Ask, Emit, Position, Received, event_id
from processors.stt import vad
from processors.stt.core import SttCore
from processors.stt.engine import ENGINES, create
from processors.stt.state import WINDOW_BYTES
from schemas.events import AudioFrame, Transcript, TranscriptKind
from streams.settings import EngineSettings, Settings

SPEECH = Path(__file__).parent.parent / "data" / "speech"
RATE = 16000
WORDS = {
    "librivox_0870": "and mister john dashwood had then leisure to consider how much there might be prudently in his "
    "power to do for them",
    "librivox_0880": "he was not an ill disposed young man",
    "librivox_0920": "had he married a more amiable woman he might have been made still more respectable than he was",
}
Samples = NDArray[np.float32]


def recorded(name: str) -> Samples:
    with wave.open(str(SPEECH / f"{name}.wav")) as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / np.float32(32768)


def pcm(samples: Samples) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def telephone(samples: Samples) -> Samples:
    """Through 8 kHz and 8 bits of mu-law."""
    narrow = np.clip(soxr.resample(samples, RATE, 8000), -1, 1)
    coded = np.round(np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log(256) * 127) / 127
    decoded = np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255
    wide: Samples = soxr.resample(decoded.astype(np.float32), 8000, RATE)
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


def words(text: str) -> list[str]:
    return re.sub(r"[^a-z' ]", " ", text.lower().replace("mr", "mister").replace("-", " ")).split()


def errors(reference: str, text: str) -> int:
    """Word errors: the edit distance."""
    wanted, found = words(reference), words(text)
    row = list(range(len(found) + 1))
    for number, word in enumerate(wanted, 1):
        previous, row = row, [number]
        for at, other in enumerate(found, 1):
            row.append(min(previous[at] + 1, row[at - 1] + 1, previous[at - 1] + (word != other)))
    return row[-1]


@pytest.fixture(scope="module", params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> Engine:
    engine = create(Settings(engines=EngineSettings(stt=request.param)))
    engine.warm()
    return engine


@pytest.fixture(scope="module")
def detector() -> vad.SileroDetector:
    return vad.create(Settings())


def transcribe(engine: Engine, samples: Samples, **request: object) -> Transcribed:
    reply = next(iter(engine.answer(Transcribe(pcm(samples), **request))))  # type: ignore[arg-type]
    assert isinstance(reply, Transcribed)
    return reply


@pytest.mark.parametrize("condition", CONDITIONS)
def test_word_error_rate(engine: Engine, condition: str) -> None:
    wrong = sum(
        errors(text, transcribe(engine, CONDITIONS[condition](recorded(name))).text) for name, text in WORDS.items()
    )
    assert wrong / sum(len(text.split()) for text in WORDS.values()) <= 0.08


def test_partials_of_every_length_stay_in_bounds(engine: Engine) -> None:
    samples = recorded("librivox_0920")
    for seconds in (0.3, 0.8, 1.5, 2.4, 3.7, 5.1):
        heard = transcribe(engine, samples[: int(seconds * RATE)], partial=True)
        assert len(heard.text.split()) <= 6 * seconds + 2


def test_long_and_repeated_speech_does_not_loop(engine: Engine) -> None:
    pause = np.zeros(RATE // 2, dtype=np.float32)
    whole = np.concatenate([part for name in WORDS for part in (recorded(name), pause)])
    text = " ".join(WORDS.values())
    assert errors(text, transcribe(engine, whole).text) <= 0.1 * len(text.split())
    twice = np.concatenate([recorded("librivox_0920"), pause, recorded("librivox_0920")])
    assert len(words(transcribe(engine, twice).text)) <= 2 * 18 + 4


@pytest.mark.parametrize("level", [0.0, 0.0005, 0.01, 0.2])
@pytest.mark.parametrize("seconds", [0.5, 3.0, 28.0])
def test_noise_holds_no_words(engine: Engine, level: float, seconds: float) -> None:
    noise = np.random.default_rng(5).normal(0, level, int(seconds * RATE)).astype(np.float32)
    heard = transcribe(engine, noise)
    assert (heard.text, heard.words, heard.confidence) == ("", (), 0.0)


def test_a_tone_holds_no_words(engine: Engine) -> None:
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE)
    assert transcribe(engine, tone.astype(np.float32)).text == ""


def test_words_have_times_and_confidence(engine: Engine) -> None:
    heard = transcribe(engine, recorded("librivox_0920"))
    assert " ".join(word.word for word in heard.words) == heard.text
    assert heard.words[0].start_ms <= 500
    assert 5000 <= heard.words[-1].end_ms <= 6050
    for word in heard.words:
        assert 0 <= word.start_ms <= word.end_ms <= 6100
        assert 0 < word.confidence <= 1
    assert sorted(heard.words, key=lambda word: word.start_ms) == list(heard.words)


def test_the_same_audio_gives_the_same_text(engine: Engine) -> None:
    samples = recorded("librivox_0870")
    first, second = transcribe(engine, samples), transcribe(engine, samples)
    assert (first.text, first.words, first.confidence) == (second.text, second.words, second.confidence)


def test_vocabulary_does_not_leak_into_silence(engine: Engine) -> None:
    vocabulary = ("Trailhead Outfitters", "Dashwood")
    assert transcribe(engine, np.zeros(2 * RATE, dtype=np.float32), vocabulary=vocabulary).text == ""
    heard = transcribe(engine, recorded("librivox_0870"), vocabulary=vocabulary)
    assert errors(WORDS["librivox_0870"], heard.text) <= 2


def test_empty_audio_holds_no_words(engine: Engine) -> None:
    assert transcribe(engine, np.zeros(0, dtype=np.float32)).text == ""
    assert transcribe(engine, np.zeros(160, dtype=np.float32)).text == ""


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Transcribe(b"\0\0\0"), "invalid"),
        (Transcribe(bytes(2 * RATE * 31)), "invalid"),
        (Transcribe(bytes(2 * RATE), language="xx"), "refused"),
    ],
)
def test_what_cannot_be_read_is_refused(engine: Engine, request_: Transcribe, reason: str) -> None:
    with pytest.raises(EngineError) as refused:
        next(iter(engine.answer(request_)))
    assert refused.value.reason == reason


def test_capabilities_name_what_it_can_do(engine: Engine) -> None:
    capabilities = engine.capabilities
    assert capabilities.role == "stt"
    assert capabilities.licence
    for language in capabilities.languages[:3]:
        transcribe(engine, np.zeros(RATE, dtype=np.float32), language=language)


# ---- the detector


def probabilities(detector: vad.SileroDetector, audio: bytes) -> list[float]:
    state, found = b"", []
    for at in range(0, len(audio) - WINDOW_BYTES + 1, WINDOW_BYTES):
        probability, state = detector(state, audio[at : at + WINDOW_BYTES])
        found.append(probability)
    return found


@pytest.mark.parametrize("name", WORDS)
def test_the_detector_hears_speech(detector: vad.SileroDetector, name: str) -> None:
    found = probabilities(detector, pcm(recorded(name)))
    assert sum(probability >= 0.5 for probability in found) >= 0.6 * len(found)
    assert found == probabilities(detector, pcm(recorded(name)))


@pytest.mark.parametrize("level", [0.0, 0.001, 0.05])
def test_the_detector_hears_no_speech_in_noise(detector: vad.SileroDetector, level: float) -> None:
    noise = np.random.default_rng(5).normal(0, level, 5 * RATE).astype(np.float32)
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
    assert detector(state, pcm(hiss)) == (0.0, state)
    assert detector(state, pcm(50 * hiss))[1] != state


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


def test_a_call_is_heard_turn_by_turn(engine: Engine, detector: vad.SileroDetector) -> None:
    """The core with the real detector and engine: one final for each recording, in order, with its words."""
    pause = np.random.default_rng(2).normal(0, 0.0003, 6 * RATE // 5).astype(np.float32)
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
                happenings.append(Answered(ask.ask_id, next(iter(engine.answer(ask.request))), last=True))
    finals = [event for event in emitted if isinstance(event, Transcript) and event.kind is TranscriptKind.FINAL]
    assert [final.turn for final in finals] == [1, 2, 3]
    wrong = sum(errors(text, final.text) for text, final in zip(WORDS.values(), finals, strict=True))
    assert wrong / sum(len(text.split()) for text in WORDS.values()) <= 0.08
    for final in finals:
        assert final.audio_start_ms - 400 <= final.words[0].start_ms
        assert final.words[-1].end_ms <= final.audio_end_ms + 500
