"""What an agent's vocabulary does for words that the models do not know: names of products, brands and acronyms.

`python -m bench.vocabulary`: each name in two sentences, spoken by the embedded voice over the telephone, and read
without a vocabulary and with all names as one. Speech without names is read in both ways, too: it must not suffer.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console

from bench import report
from bench.machine import this_machine
from bench.recordings import Samples, clips, of_pcm, pcm_of, read, telephone
from bench.report import Distribution, Fact, Findings, Row
from bench.words import word_error_rate
from processors.engine import Engine, Speak, Spoken, Transcribe
from processors.stt.engine import create as create_stt
from processors.stt.whisper import WhisperEngine
from processors.tts.engine import create as create_tts
from streams.settings import Settings

NAMES = (
    *("Alpenglow", "Aquaseal", "Bivvy Max", "Brightwell", "Fernweh", "GTX", "Hydropeak", "Karabo", "Kestrel Pro"),
    *("Lumitek", "Monterra", "Nordkap", "Osprino", "PFC", "Quillon", "Ridgeline", "RMA", "Skandix", "Summitek"),
    *("Terranova", "Trangia", "Velora", "Wexford", "Zephyrlite"),
)
SENTENCES = (
    "Do you have the {} in stock?",
    "I would like to return the {} that I bought.",
    "How much is the {} at the moment?",
    "My {} is broken, can you help me?",
)
_SENTENCES_EACH = 2


@dataclass(frozen=True, slots=True)
class Heard:
    """A sentence with what was read without and with the vocabulary."""

    name: str
    words: str
    without: str
    with_: str

    def right(self, text: str) -> bool:
        """Whether the name is in the text, however it is spaced and capitalised."""
        return _letters(self.name) in _letters(text)


def measure_vocabulary(settings: Settings) -> Findings:
    """Raises models.ModelError where a model cannot be had."""
    stt, tts = create_stt(settings), create_tts(settings)
    assert isinstance(stt, WhisperEngine)
    stt.warm()
    took_ms: dict[str, list[float]] = {"without": [], "with": []}

    def heard(samples: Samples, name: str, words: str) -> Heard:
        pcm = pcm_of(telephone(samples))
        texts = []
        for how, vocabulary in (("without", ()), ("with", NAMES)):
            reading = read(stt, Transcribe(pcm, vocabulary=vocabulary))
            took_ms[how].append(reading.compute_ms)
            texts.append(reading.text)
        return Heard(name, words, *texts)

    named = [heard(_spoken(tts, words), name, words) for name, words in _sentences()]
    others = [heard(clip.samples, "", clip.words) for clip in clips()]
    found = Findings(_times(took_ms))
    found.facts = [*_of_names(named), *_of_others(others)]
    return found


def _sentences() -> Iterator[tuple[str, str]]:
    for number, name in enumerate(NAMES):
        for turn in range(_SENTENCES_EACH):
            yield name, SENTENCES[(number + 2 * turn) % len(SENTENCES)].format(name)


def _spoken(tts: Engine, text: str) -> Samples:
    pcm = b"".join(piece.pcm for piece in tts.answer(Speak(text)) if isinstance(piece, Spoken))
    return of_pcm(pcm)


def _letters(text: str) -> str:
    return "".join(re.findall(r"[a-z0-9]+", text.lower()))


def _times(took_ms: dict[str, list[float]]) -> list[Row]:
    return [Row(f"{how} vocabulary", "time of a reading", Distribution.of(took)) for how, took in took_ms.items()]


def _of_names(named: Sequence[Heard]) -> list[Fact]:
    before = [one.right(one.without) for one in named]
    after = [one.right(one.with_) for one in named]
    mended = sum(now and not then for then, now in zip(before, after, strict=True))
    broken = sum(then and not now for then, now in zip(before, after, strict=True))
    wrong = before.count(False)
    return [
        Fact("names", "spoken", len(named)),
        Fact("names", "wrong without", wrong),
        Fact("names", "of these right with", mended),
        Fact("names", "right without, wrong with", broken),
        Fact("names", "share of the wrong that became right", round(100 * mended / wrong, 1) if wrong else None, "%"),
    ]


def _of_others(others: Sequence[Heard]) -> list[Fact]:
    rates = {
        "without": word_error_rate([(one.words, one.without) for one in others]),
        "with": word_error_rate([(one.words, one.with_) for one in others]),
    }
    return [
        Fact("speech without names", f"word error rate {how}", None if rate is None else round(100 * rate, 2), "%")
        for how, rate in rates.items()
    ]


def main() -> None:
    """Prints the table and writes the JSON."""
    argparse.ArgumentParser(prog="python -m bench.vocabulary", description="Measures vocabularies.").parse_args()
    machine = this_machine()
    found = measure_vocabulary(Settings())
    report.show(found, str(machine))
    Console(stderr=True).print(f"Written to {report.write(found, machine.as_dict())}")


if __name__ == "__main__":
    main()
