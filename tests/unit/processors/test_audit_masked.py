"""An export for people who may not see what is masked: neither words nor their sound, and all the rest."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from processors.audit import checkpoints
from processors.audit.bundle import write_bundle
from processors.audit.ledger import Ledger
from processors.audit.masked import masked
from processors.privacy import Policies
from schemas import json_form
from schemas.event import Event
from schemas.events import AudioFrame, Response, SpeechChunk, Transcript, TranscriptKind, Word
from streams import signing
from streams.codec import default_codec, headers
from streams.consumer import Record
from streams.settings import Settings

CARD = "4111 1111 1111 1111"
SESSION = "0b5e7c1a-3d51-4b7e-9d1c-5f0a4a8c2e11"
FRAME = b"\x10\x20" * 8000  # half a second


def call(card: str = CARD) -> list[Event]:
    """Three seconds of the caller, who says the number from 1,000 to 1,800 ms, and two sentences of the agent."""
    frame, words = json_form.examples(AudioFrame)[0], json_form.examples(Transcript)[-1]
    said, chunk = json_form.examples(Response)[0], json_form.examples(SpeechChunk)[0]
    spoken = ["my", "card", "is", *card.split()]
    times = (0, 300, 700, *(1000 + 200 * number for number in range(4)))
    found = tuple(Word(word, at, at + 200, 1.0) for word, at in zip(spoken, times, strict=True))
    sentences: list[Event] = []
    for number, text in enumerate((f"I have {card}.", "Thank you.")):
        sentences.append(replace(said, session_id=SESSION, turn=1, sentence=number, text=text))
        chunks = (text, "")  # only a sentence's first piece bears its words
        sentences += [
            replace(chunk, session_id=SESSION, turn=1, sentence=number, pcm=FRAME, text=one) for one in chunks
        ]
    return [
        *(replace(frame, session_id=SESSION, pcm=FRAME, sample_index=8000 * at) for at in range(6)),
        replace(words, session_id=SESSION, kind=TranscriptKind.FINAL, text=" ".join(spoken), words=found),
        *sentences,
    ]


def sound(events: list[Event], kind: Any) -> list[bytes]:
    return [event.pcm for event in events if isinstance(event, kind)]


def test_masked_words_are_silent_and_nothing_else_is() -> None:
    shown = masked(call(), Policies({}))
    heard = b"".join(sound(shown, AudioFrame))
    assert heard == FRAME * 2 + bytes(2 * 16 * 800) + (FRAME * 4)[2 * 16 * 800 :]
    assert sound(shown, SpeechChunk) == [bytes(len(FRAME))] * 2 + [FRAME] * 2
    assert not any(CARD in getattr(event, "text", "") for event in shown)


def test_a_call_without_anything_to_mask_is_as_it_was() -> None:
    assert masked(call("a nice blue one"), Policies({})) == call("a nice blue one")


def test_a_masked_bundle_verifies_and_holds_the_number_nowhere(tmp_path: Path) -> None:
    settings, codec, folder = Settings(data_dir=tmp_path), default_codec(), tmp_path / "bundle"
    records = [
        Record(event.TOPIC, 3, offset, SESSION.encode(), codec.encode(event), tuple(headers(event)), 1000 + offset)
        for offset, event in enumerate(call())
    ]
    ledger = Ledger()
    ledger.learn(ledger.unknown(records), [])
    entries = sorted(ledger.enter(records), key=lambda entry: (entry.chain, entry.offset))
    signed = [checkpoints.signed(settings, None, ledger.grown, 1, {}, {})]
    trusted = [signing.public_key(settings)]
    write_bundle(folder, settings, codec, entries, records, signed, trusted, {"ok": True}, 1, Policies({}))
    command = [sys.executable, "-I", str(folder / "verify.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(records)} records" in done.stdout
    assert [path for path in folder.rglob("*") if path.is_file() and CARD.encode() in path.read_bytes()] == []
    lines = [json.loads(line) for line in (folder / "chain.jsonl").read_text().splitlines()]
    # Two frames, the transcript, a sentence and both its pieces.
    assert sum(line[7] is None for line in lines) == 6
