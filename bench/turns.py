"""Whose turn is it? Every pause in recorded speech as the stage hears it, and how long it would wait there.

`python -m bench.turns [FOLDER]`: the recordings of `bench.stt`, or all WAV files of a folder, each one whole turn. Both
their own pauses and pauses put in behind their words are judged. One reading tells for pauses of every length whether
the caller would have been answered too early. Each is judged alone, without patience that others taught.
"""

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from bench import report
from bench.machine import this_machine
from bench.recordings import Clip, Samples, clips, frames, load, pcm_of, quietest, read, telephone
from bench.report import Distribution, Fact, Findings, Row
from bench.utterances import noise
from processors.agents import load_agents
from processors.engine import Transcribe, Transcribed
from processors.stage import Ask, Failed, Position, Received
from processors.stt import vad
from processors.stt.core import SttCore
from processors.stt.endpoint import SttRules, pause_needed_ms, rules_of
from processors.stt.engine import create
from processors.stt.state import SAMPLE_RATE_HZ, SPEECH_ABOVE, WINDOW_SAMPLES, Hearing, ms
from processors.stt.whisper import WhisperEngine
from streams.settings import REPOSITORY, Settings

PAUSES_MS = (300, 400, 500, 600, 700)
AGENT = "shop"

_PUT_IN_MS = 700
_LEAD_MS = 400
_QUIET_MS = 1200
_AFTER_CUT_MS = 600
_NOISE = 0.0003  # of a quiet line
_ENDLESS_MS = 9000


@dataclass(frozen=True, slots=True)
class Silence:
    """A pause as the detector hears it: what was said before it, and how long it lasted; None at the end."""

    end: int
    pcm: bytes
    lasted_ms: int | None


@dataclass(frozen=True, slots=True)
class Judged:
    """What the stage makes of a pause; a turn is answered too early where `needed_ms` have passed within it."""

    text: str
    needed_ms: int
    lasted_ms: int | None
    read_ms: float


def silences(detector: vad.SileroDetector, samples: Samples) -> list[Silence]:
    """All pauses that last to the hesitation pause, in the first utterance of what is said over the telephone."""
    core = SttCore(detector, lambda agent_id: SttRules(turn_ms=_ENDLESS_MS, completion_ms=_ENDLESS_MS))
    state, found = core.start("call"), list[Silence]()
    for number, frame in enumerate(frames(pcm_of(telephone(samples)), AGENT)):
        now_us = frame.captured_at
        step = core.apply(state, Received(frame, Position(frame.TOPIC, 0, number)), now_us)
        state = step.state
        found = [Silence(one.end, one.pcm, _lasted_ms(one, state)) for one in found]
        for outcome in step.outcomes:
            speech = state.speech
            if not isinstance(outcome, Ask) or not isinstance(outcome.request, Transcribe) or speech is None:
                continue
            if outcome.request.partial:
                state = core.apply(state, Failed(outcome.ask_id, "refused"), now_us).state
            else:
                found.append(Silence(speech.end, outcome.request.pcm, None))
    return found


def _lasted_ms(one: Silence, state: Hearing) -> int | None:
    speech = state.speech
    if one.lasted_ms is not None or speech is None or speech.end <= one.end:
        return one.lasted_ms
    resumed = (
        window.start for window in speech.windows if window.start >= one.end and window.probability >= SPEECH_ABOVE
    )
    # A reading that was begun as the voice faded, and it did not end there: no window had to be that loud.
    return ms(next(resumed, speech.end - WINDOW_SAMPLES) - one.end)


class Judge:
    """The engine and the rules that decide."""

    def __init__(self, settings: Settings) -> None:
        self.engine = create(settings)
        self.engine.warm()
        self.detector = vad.create(settings)
        self._rules = rules_of(load_agents(REPOSITORY / "infra" / "agents"))(AGENT)

    def words(self, samples: Samples) -> Transcribed:
        """A whole recording, read in one go."""
        assert isinstance(self.engine, WhisperEngine)
        return read(self.engine, Transcribe(pcm_of(samples)))

    def judged(self, one: Silence) -> Judged:
        """Reads what was said before the pause, and decides by it."""
        assert isinstance(self.engine, WhisperEngine)
        reply = read(self.engine, Transcribe(one.pcm, vocabulary=self._rules.vocabulary))
        sure = reply.words[-1].confidence if reply.words else 1.0
        needed_ms = pause_needed_ms(reply.text, self._rules, sure, reply.complete)
        return Judged(reply.text, needed_ms, one.lasted_ms, reply.compute_ms)

    def whole(self, clip: Clip) -> Iterator[Judged]:
        """The recording's own pauses, and its end as the last."""
        lead, quiet = (noise(ms * SAMPLE_RATE_HZ // 1000, _NOISE) for ms in (_LEAD_MS, _QUIET_MS))
        yield from map(self.judged, silences(self.detector, np.concatenate([lead, clip.samples, quiet])))

    def broken(self, clip: Clip, cuts_max: int) -> Iterator[Judged]:
        """Pauses put in behind some of its words, each alone; without `_PUT_IN_MS`, so that any length can be added."""
        words = self.words(clip.samples).words[1:-1]
        some = random.Random(clip.words).sample(words, min(cuts_max, len(words)))
        lead, pause = (noise(ms * SAMPLE_RATE_HZ // 1000, _NOISE) for ms in (_LEAD_MS, _PUT_IN_MS))
        for word in some:
            cut = quietest(clip.samples, word.end_ms)
            rest = clip.samples[cut : cut + _AFTER_CUT_MS * SAMPLE_RATE_HZ // 1000]
            pieces = [lead, clip.samples[:cut], pause, rest, noise(len(lead), _NOISE)]
            found = silences(self.detector, np.concatenate(pieces))
            long = (one for one in found if (one.lasted_ms or 0) > _PUT_IN_MS * 3 // 4)
            one = next(long, None)
            if one is not None and one.lasted_ms is not None:
                yield self.judged(Silence(one.end, one.pcm, one.lasted_ms - _PUT_IN_MS))


def measure_turns(judge: Judge, every: Sequence[Clip], cuts_max: int) -> Findings:
    """How long whole turns are waited for, and which share of pauses of each length ends a turn that goes on."""
    found = Findings()
    needed, put_in, own = defaultdict[str, list[float]](list), defaultdict[str, list[Judged]](list), list[Judged]()
    for clip in every:
        whole = list(judge.whole(clip))
        if not whole:
            continue  # nothing in it is speech to the detector
        needed[clip.voice].append(whole[-1].needed_ms)
        own += whole[:-1]
        put_in[clip.voice] += judge.broken(clip, cuts_max)
    for voice, values in needed.items():
        found.rows.append(Row("whole turns", f"pause that ends them, {voice}", Distribution.of(values)))
    group = "pauses of the recordings themselves"
    found.facts.append(Fact(group, "judged", len(own)))
    found.facts.append(Fact(group, "taken for the end", sum(one.needed_ms <= (one.lasted_ms or 0) for one in own)))
    for voice, all_of_them in put_in.items():
        found.facts.append(Fact(f"pauses put in, {voice}", "judged", len(all_of_them)))
        for pause_ms in PAUSES_MS:
            early = sum(one.needed_ms <= pause_ms + (one.lasted_ms or 0) for one in all_of_them)
            share = round(100 * early / max(1, len(all_of_them)), 1)
            found.facts.append(Fact(f"pauses put in, {voice}", f"taken for the end at {pause_ms} ms", share, "%"))
    return found


def main() -> None:
    """Prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.turns", description="Tells pauses from ends of turns.")
    parser.add_argument("folder", nargs="?", type=Path, help="WAV files of people, one turn each")
    parser.add_argument("--cuts", type=int, default=4, help="pauses put into each recording")
    given = parser.parse_args()
    every = clips() if given.folder is None else [load(path) for path in sorted(given.folder.glob("*.wav"))]
    machine = this_machine()
    found = measure_turns(Judge(Settings()), every, given.cuts)
    report.show(found, str(machine))
    Console(stderr=True).print(f"Written to {report.write(found, machine.as_dict())}")


if __name__ == "__main__":
    main()
