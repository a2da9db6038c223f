"""What hearing costs, how well it hears, and how well it tells a pause from an end: real models, no platform around.

`python -m bench.stt`. Human recordings and the demo's synthetic caller, over the telephone (8,000 Hz, mu-law) unless
said otherwise. Turns are judged by the real core on a simulated line, on which a reading takes the time it took here.
"""

import argparse
import heapq
import itertools
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ctranslate2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from api.audio import Doubler, Halver, mulaw_to_pcm, pcm_to_mulaw
from api.demo import SCRIPT, Script
from bench import report
from bench.machine import this_machine
from bench.report import Distribution, Fact, Findings, Row
from bench.voice import human_speech
from bench.words import word_error_rate
from processors import models
from processors.agents import load_agents
from processors.engine import Transcribe, Transcribed
from processors.stage import Answered, Ask, Cancel, Emit, Position, Received, event_id
from processors.stt import vad
from processors.stt.core import SttCore
from processors.stt.endpoint import rules_of
from processors.stt.engine import create
from processors.stt.state import SAMPLE_RATE_HZ, WINDOW_BYTES
from processors.stt.whisper import WhisperEngine, WhisperReader, log_mel
from schemas.events import AudioFrame, Transcript, TranscriptKind
from streams.settings import REPOSITORY, Settings
from streams.yamlfile import load_yaml

LENGTHS_S = (1, 3, 6, 12)
BATCHES = (1, 2, 4)
PAUSES_MS = (350, 500, 700)
FRAME_SAMPLES = 640  # 40 ms
AGENT = "shop"

_LEAD_MS = 400
_QUIET_MS = 1200
_NOISE = 0.0003  # of a quiet line
_SNR_DB = 20

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording of one whole turn; `voice` is human or synthetic."""

    samples: Samples
    words: str
    voice: str


def clips() -> list[Clip]:
    """All recordings with known words."""
    script = load_yaml(SCRIPT, Script)
    human = [Clip(_samples(path), words, "human") for path, words in human_speech()]
    turns = [turn for turn in script.turns if turn.voice != "human"]
    return human + [Clip(_samples(SCRIPT.parent / turn.file), turn.says, "synthetic") for turn in turns]


def telephone(samples: Samples) -> Samples:
    """What is left of it after 8,000 Hz and mu-law, by the gateway's own filters."""
    return _of_pcm(Doubler().process(mulaw_to_pcm(pcm_to_mulaw(Halver().process(_pcm(samples))))))


def noisy(samples: Samples) -> Samples:
    """The telephone in a room with white noise, 20 dB below the speech."""
    loud = samples[np.abs(samples) > 0.01]
    level = np.sqrt(np.mean(loud**2) / 10 ** (_SNR_DB / 10))
    return telephone(samples + _noise(len(samples), float(level)))


CONDITIONS: dict[str, Callable[[Samples], Samples]] = {
    "clean": lambda samples: samples,
    "telephone": telephone,
    "telephone and noise": noisy,
}


def measure_stt(settings: Settings, quick: bool = False) -> Findings:
    """Everything below; `quick` measures each thing a few times only."""
    every, found = clips(), Findings()
    engine = create(settings)
    engine.warm()
    assert isinstance(engine, WhisperEngine)
    for model in models.readers(settings):
        reader = WhisperReader(models.resolve(settings, model.name), settings.engines.device, settings.engines.threads)
        found.add(measure_parts(reader, every, 3 if quick else 20))
        found.add(measure_batches(reader, every, 2 if quick else 10))
    found.add(measure_words(engine, every))
    found.add(measure_detector(vad.create(settings), every, 1 if quick else 5))
    found.add(measure_turns(settings, engine, every[:4] if quick else every))
    return found


def measure_parts(reader: WhisperReader, every: Sequence[Clip], repeats: int) -> Findings:
    """The steps of one reading, for speech of each length."""
    speech = telephone(np.concatenate([clip.samples for clip in every if clip.voice == "human"]))
    rows = []
    for seconds in LENGTHS_S:
        pcm = _pcm(speech[: seconds * SAMPLE_RATE_HZ])
        times: dict[str, list[float]] = {"features": [], "encode": [], "decode": [], "align": [], "reading": []}
        for _ in range(repeats):
            began_s = time.perf_counter()
            log_mel(reader.extractor, pcm)
            featured_s = time.perf_counter()
            encoded = reader.encode(pcm)
            encoded_s = time.perf_counter()
            reading = reader.read(encoded, seconds, Transcribe(pcm), "en")
            decoded_s = time.perf_counter()
            reader.align(encoded, reading, seconds)
            ended_s = time.perf_counter()
            times["features"].append(featured_s - began_s)
            times["encode"].append(encoded_s - featured_s - (featured_s - began_s))
            times["decode"].append(decoded_s - encoded_s)
            times["align"].append(ended_s - decoded_s)
            times["reading"].append(ended_s - featured_s)
        group = f"{reader.name}, {seconds} s"
        rows += [Row(group, name, Distribution.of(1000 * value for value in values)) for name, values in times.items()]
    return Findings(rows=rows)


def measure_batches(reader: WhisperReader, every: Sequence[Clip], repeats: int) -> Findings:
    """What one reading costs when several are encoded and decoded in one call: less, or only later?"""
    pcm = _pcm(telephone(next(clip.samples for clip in every if clip.voice == "human")))
    tokenizer, rows = reader.tokenizer("en"), []
    prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
    for size in BATCHES:
        mel = np.repeat(log_mel(reader.extractor, pcm), size, axis=0)
        took_ms = []
        for _ in range(repeats):
            began_s = time.perf_counter()
            encoded = reader.model.encode(ctranslate2.StorageView.from_array(mel))
            reader.model.generate(encoded, [prompt] * size, beam_size=1)
            took_ms.append(1000 * (time.perf_counter() - began_s) / size)
        rows.append(Row(f"{reader.name}, batches", f"each of {size}", Distribution.of(took_ms)))
    return Findings(rows=rows)


def measure_words(engine: WhisperEngine, every: Sequence[Clip]) -> Findings:
    """Word errors and times of the best reading, in each condition."""
    found = Findings()
    for name, condition in CONDITIONS.items():
        group, took_ms = f"best reading, {name}", []
        for voice in ("human", "synthetic"):
            pairs = []
            for clip in (clip for clip in every if clip.voice == voice):
                heard = _read(engine, Transcribe(_pcm(condition(clip.samples))))
                pairs.append((clip.words, heard.text))
                took_ms.append(heard.compute_ms)
            rate = word_error_rate(pairs)
            found.facts.append(Fact(group, f"word error rate, {voice}", rate and round(100 * rate, 2), "%"))
        found.rows.append(Row(group, "time", Distribution.of(took_ms)))
    return found


def measure_detector(detector: vad.SileroDetector, every: Sequence[Clip], repeats: int) -> Findings:
    """One window of 32 ms."""
    took_ms = []
    for clip in repeats * tuple(every):
        pcm, state = _pcm(clip.samples), b""
        for at in range(0, len(pcm) - WINDOW_BYTES + 1, WINDOW_BYTES):
            began_s = time.perf_counter()
            _, state = detector(state, pcm[at : at + WINDOW_BYTES])
            took_ms.append(1000 * (time.perf_counter() - began_s))
    return Findings(rows=[Row("detector", "one window of 32 ms", Distribution.of(took_ms))])


# ---- whose turn is it?


def measure_turns(settings: Settings, engine: WhisperEngine, every: Sequence[Clip]) -> Findings:
    """Whole turns, and turns with a pause in mid-sentence: finals that came too early, and how late the others came."""
    core = SttCore(vad.create(settings), rules_of(load_agents(REPOSITORY / "infra" / "agents")))
    found = Findings()
    after_ms: dict[str, list[float]] = {"human": [], "synthetic": []}
    for clip in every:
        finals = hear(core, engine, clip.samples)
        if finals:
            after_ms[clip.voice].append(finals[-1].after_ms)
    for voice, values in after_ms.items():
        found.rows.append(Row("whole turns", f"end of speech to final, {voice}", Distribution.of(values)))
    for pause_ms in PAUSES_MS:
        trials = early = 0
        for clip in every:
            for broken in fragmented(engine, clip, pause_ms):
                trials += 1
                early += len(hear(core, engine, broken)) > 1
        found.facts.append(Fact(f"a pause of {pause_ms} ms in mid-sentence", "turns", trials))
        found.facts.append(Fact(f"a pause of {pause_ms} ms in mid-sentence", "answered too early", early))
    return found


def fragmented(engine: WhisperEngine, clip: Clip, pause_ms: int) -> Iterator[Samples]:
    """The clip with a pause at every third word's end, one at a time, and with one at each end of its last words."""
    words = _read(engine, Transcribe(_pcm(clip.samples))).words
    ends = [_quietest(clip.samples, word.end_ms) for word in words[1:-1]]
    pause = _noise(pause_ms * SAMPLE_RATE_HZ // 1000, _NOISE)
    for cut in ends[::3]:
        yield np.concatenate([clip.samples[:cut], pause, clip.samples[cut:]])
    if len(ends) >= 3:
        pieces = np.split(clip.samples, ends[-3:])
        yield np.concatenate([part for piece in pieces for part in (piece, pause)])


@dataclass(frozen=True, slots=True)
class Final:
    """One final; `after_ms` is how long after the end of its speech, as the detector heard it, it went out."""

    text: str
    after_ms: float


def hear(core: SttCore, engine: WhisperEngine, samples: Samples) -> list[Final]:
    """The finals of one call in which that is said over the telephone."""
    lead, quiet = (_noise(ms * SAMPLE_RATE_HZ // 1000, _NOISE) for ms in (_LEAD_MS, _QUIET_MS))
    pcm = _pcm(telephone(np.concatenate([lead, samples, quiet])))
    state, finals = core.start("call"), []
    due: list[tuple[int, str, Transcribed]] = []
    for number, frame in enumerate(_frames(pcm)):
        now = frame.sample_index + FRAME_SAMPLES
        happenings: list[Received | Answered] = []
        while due and due[0][0] <= now:
            _, ask_id, reply = heapq.heappop(due)
            happenings.append(Answered(ask_id, reply, last=True))
        happenings.append(Received(frame, Position(frame.TOPIC, 0, number)))
        for happening in happenings:
            step = core.apply(state, happening, now * 1_000_000 // SAMPLE_RATE_HZ)
            state = step.state
            for outcome in step.outcomes:
                match outcome:
                    case Ask():
                        reply = _read(engine, outcome.request)
                        heapq.heappush(due, (now + int(reply.compute_ms * 16), outcome.ask_id, reply))
                    case Cancel():
                        due = [one for one in due if one[1] != outcome.ask_id]
                        heapq.heapify(due)
                    case Emit(Transcript(kind=TranscriptKind.FINAL) as final):
                        finals.append(Final(final.text, now / 16 - final.audio_end_ms))
    return finals


def _frames(pcm: bytes) -> Iterator[AudioFrame]:
    for number in itertools.count():
        piece = pcm[2 * FRAME_SAMPLES * number : 2 * FRAME_SAMPLES * (number + 1)]
        if len(piece) < 2 * FRAME_SAMPLES:
            return
        yield AudioFrame(
            event_id=event_id("call", str(number)),
            session_id="call",
            tenant_id="bench",
            agent_id=AGENT,
            turn=0,
            seq=number,
            occurred_at=0,
            pcm=piece,
            sample_index=FRAME_SAMPLES * number,
            captured_at=FRAME_SAMPLES * number * 1_000_000 // SAMPLE_RATE_HZ,
        )


def _read(engine: WhisperEngine, request: object) -> Transcribed:
    assert isinstance(request, Transcribe)
    reply = next(engine.answer(request))
    assert isinstance(reply, Transcribed)
    return reply


def _quietest(samples: Samples, at_ms: int) -> int:
    """The quietest place around there, so that the cut itself makes no sound."""
    step = SAMPLE_RATE_HZ // 100
    at = at_ms * SAMPLE_RATE_HZ // 1000
    places = range(max(step, at - 8 * step), min(len(samples) - step, at + 8 * step), step // 2)
    return min(places, key=lambda place: float(np.sum(samples[place - step : place + step] ** 2)), default=at)


def _noise(samples: int, level: float) -> Samples:
    return np.random.default_rng(7).normal(0, level, samples).astype(np.float32)


def _samples(path: Path) -> Samples:
    with wave.open(str(path)) as file:
        return _of_pcm(file.readframes(file.getnframes()))


def _of_pcm(pcm: bytes) -> Samples:
    return np.frombuffer(pcm, dtype="<i2").astype(np.float32) / np.float32(32768)


def _pcm(samples: Samples) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.stt", description="Measures speech to text by itself.")
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement")
    machine = this_machine()
    found = measure_stt(Settings(), parser.parse_args().quick)
    report.show(found, str(machine))
    Console(stderr=True).print(f"Written to {report.write(found, machine.as_dict())}")


if __name__ == "__main__":
    main()
