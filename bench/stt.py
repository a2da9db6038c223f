"""What hearing costs and how well it hears: real models, no platform around. See `bench.turns` for ends of turns.

`python -m bench.stt`. Human recordings and the demo's synthetic caller, over the telephone (8,000 Hz, mu-law) unless
said otherwise.
"""

import argparse
import time
from collections.abc import Sequence

import ctranslate2
import numpy as np
from rich.console import Console

from bench import report
from bench.machine import this_machine
from bench.recordings import CONDITIONS, Clip, clips, pcm_of, read, telephone
from bench.report import Distribution, Fact, Findings, Row
from bench.words import word_error_rate
from processors import models
from processors.engine import Transcribe
from processors.stt import vad
from processors.stt.engine import create
from processors.stt.reader import WhisperReader, log_mel
from processors.stt.state import SAMPLE_RATE_HZ, WINDOW_BYTES
from processors.stt.whisper import WhisperEngine
from streams.settings import Settings

LENGTHS_S = (1, 3, 6, 12)
BATCHES = (1, 2, 4)


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
    return found


def measure_parts(reader: WhisperReader, every: Sequence[Clip], repeats: int) -> Findings:
    """The steps of one reading, for speech of each length."""
    speech = telephone(np.concatenate([clip.samples for clip in every if clip.voice == "human"]))
    rows = []
    for seconds in LENGTHS_S:
        pcm = pcm_of(speech[: seconds * SAMPLE_RATE_HZ])
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
    pcm = pcm_of(telephone(next(clip.samples for clip in every if clip.voice == "human")))
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
                heard = read(engine, Transcribe(pcm_of(condition(clip.samples))))
                pairs.append((clip.words, heard.text))
                took_ms.append(heard.compute_ms)
            rate = word_error_rate(pairs)
            found.facts.append(Fact(group, f"word error rate, {voice}", rate and round(100 * rate, 2), "%"))
        found.rows.append(Row(group, "time", Distribution.of(took_ms)))
    return found


def measure_detector(detector: vad.SileroDetector, every: Sequence[Clip], repeats: int) -> Findings:
    """Windows of 32 ms, by themselves and five at a time."""
    found = Findings()
    for name, size in (("one window of 32 ms", WINDOW_BYTES), ("five, together", 5 * WINDOW_BYTES)):
        took_ms = []
        for clip in repeats * tuple(every):
            pcm, state = pcm_of(clip.samples), b""
            for at in range(0, len(pcm) - size + 1, size):
                began_s = time.perf_counter()
                _, state = detector(state, pcm[at : at + size])
                took_ms.append(1000 * (time.perf_counter() - began_s))
        found.rows.append(Row("detector", name, Distribution.of(took_ms)))
    return found


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
