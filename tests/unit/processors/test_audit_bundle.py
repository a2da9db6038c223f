"""A bundle verifies by its own script, from its own files, and no other way than as it was written."""

import base64
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from processors.audit import checkpoints
from processors.audit.bundle import SCRIPT, BundleError, write_bundle
from processors.audit.chain import Chain, Head
from processors.audit.ledger import Ledger
from schemas import json_form
from schemas.events import AudioFrame, Session, SpeechChunk, Transcript
from streams import signing
from streams.codec import default_codec, headers
from streams.consumer import Record
from streams.settings import Settings

SESSION = "0b5e7c1a-3d51-4b7e-9d1c-5f0a4a8c2e11"
WORDS = 'wo ist meine Bestellung, größer als "alles"?'
FRAMES = [random.Random(number).randbytes(640) for number in range(5)]
CHUNKS = [random.Random(100 + number).randbytes(640) for number in range(3)]


def call() -> list[Record]:
    """A call's records: a frame was lost, another came twice, and something was no event."""
    session, frame = json_form.examples(Session)[0], json_form.examples(AudioFrame)[0]
    chunk, words = json_form.examples(SpeechChunk)[0], json_form.examples(Transcript)[-1]
    events = [
        replace(session, session_id=SESSION),
        *(replace(frame, session_id=SESSION, pcm=FRAMES[at], sample_index=1000 + 320 * at) for at in (0, 1, 1, 3, 4)),
        *(replace(chunk, session_id=SESSION, pcm=pcm) for pcm in CHUNKS),
        replace(words, session_id=SESSION, text=WORDS),
    ]
    codec = default_codec()
    records = [
        Record(event.TOPIC, 3, 7 * offset, SESSION.encode(), codec.encode(event), tuple(headers(event)), 1000 + offset)
        for offset, event in enumerate(events)
    ]
    return [*records, Record(Transcript.TOPIC, 3, 999, SESSION.encode(), None, (("empty", None),), 2000)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("platform"))


def write(folder: Path, settings: Settings, gone: int = 0) -> None:
    """With checkpoints after the fifth record and at the end, in the company of other calls; `gone` records expired."""
    records, ledger = call(), Ledger()
    ledger.learn(ledger.unknown(records), [])
    entries, made, last = [], [], None
    for some in (records[:5], records[5:]):
        entries += ledger.enter(some)
        others = {Chain(f"other {at}", "voice.control", at): Head(1, at, bytes([at]) * 32) for at in range(5)}
        made.append(checkpoints.signed(settings, last, {**ledger.grown, **others}, 1, {}, {}))
        last, ledger.grown = checkpoints.statement_of(made[-1]), {}
    trusted = [signing.public_key(settings)]
    entries.sort(key=lambda entry: (entry.chain, entry.offset))
    write_bundle(folder, settings, default_codec(), entries, records[gone:], made, trusted, {"ok": True}, 1)


@pytest.fixture
def bundle(settings: Settings, tmp_path: Path) -> Path:
    write(tmp_path / "bundle", settings)
    return tmp_path / "bundle"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As its receiver would: the bundle's script alone."""
    command = [sys.executable, "-I", str(folder / "verify.py"), *arguments]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=120)


def test_the_script_is_short_and_verifies(bundle: Path, settings: Settings, tmp_path: Path) -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 50
    key = tmp_path / "key.pem"
    key.write_text(signing.public_pem(settings))
    done = run(bundle, str(key))
    assert (done.returncode, done.stderr) == (0, "")
    assert "11 records, 11 of them signed" in done.stdout
    key.write_text(signing.public_pem(Settings(data_dir=tmp_path / "another")))
    assert run(bundle, str(key)).returncode != 0


def test_people_can_read_and_hear_it(bundle: Path) -> None:
    events = [json.loads(line) for line in (bundle / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [one["event"]["text"] for one in events if one.get("type", "").startswith("trunkline.transcript")] == [WORDS]
    assert events[-1]["unreadable"] == "empty"
    assert all("pcm" not in one.get("event", {}) for one in events)
    heard = b"".join([FRAMES[0], FRAMES[1], bytes(640), FRAMES[3], FRAMES[4]])
    assert (bundle / "caller.wav").read_bytes()[44:] == heard
    assert (bundle / "agent.wav").read_bytes()[44:] == b"".join(CHUNKS)


def test_what_retention_has_taken_is_in_the_chain_all_the_same(settings: Settings, tmp_path: Path) -> None:
    write(tmp_path / "late", settings, gone=4)
    done = run(tmp_path / "late")
    assert (done.returncode, done.stderr) == (0, "")
    assert "11 records" in done.stdout


def test_a_folder_that_is_not_empty_is_left_alone(bundle: Path, settings: Settings) -> None:
    with pytest.raises(BundleError, match="not empty"):
        write(bundle, settings)


def test_whatever_byte_is_altered_it_does_not_verify(bundle: Path) -> None:
    for path in sorted(path for path in bundle.iterdir() if path.is_file() and path.name != "verify.py"):
        before = path.read_bytes()
        middle = len(before) // 2
        path.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
        assert run(bundle).returncode != 0, path
        path.write_bytes(before)
    assert run(bundle).returncode == 0


Lie = Callable[[list[str]], list[str]]


def lines_as(change: Callable[[list[object]], None], at: int = 0) -> Lie:
    def lie(lines: list[str]) -> list[str]:
        values = json.loads(lines[at])
        change(values)
        return [*lines[:at], json.dumps(values), *lines[at + 1 :]]

    return lie


def another_record(values: list[object]) -> None:
    content = base64.b64decode(str(values[7])).replace(b"shop", b"ship")
    values[5], values[7] = hashlib.sha256(content).hexdigest(), base64.b64encode(content).decode()


LIES: list[tuple[str, Lie]] = [
    ("chain.jsonl", lambda lines: lines[1:]),
    ("chain.jsonl", lambda lines: lines[:-1]),
    ("chain.jsonl", lambda lines: [lines[1], lines[0], *lines[2:]]),
    ("chain.jsonl", lambda lines: [*lines, lines[-1]]),
    ("chain.jsonl", lines_as(another_record)),
    ("chain.jsonl", lines_as(lambda values: values.__setitem__(3, 1))),
    ("chain.jsonl", lines_as(lambda values: values.__setitem__(0, "another call"))),
    ("audio.jsonl", lines_as(lambda values: values.__setitem__(1, 46))),
    ("checkpoints.jsonl", lambda lines: [one.replace('\\"number\\":', '\\"number\\":1') for one in lines]),
]


@pytest.mark.parametrize("at", range(len(LIES)))
def test_whoever_signs_manifests_cannot_change_what_checkpoints_signed(
    bundle: Path, settings: Settings, at: int
) -> None:
    name, lie = LIES[at]
    before = (bundle / name).read_text(encoding="utf-8")
    after = "\n".join(lie(before.splitlines())) + "\n"
    assert after != before
    (bundle / name).write_text(after, encoding="utf-8")
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["files"] = {one: hashlib.sha256((bundle / one).read_bytes()).hexdigest() for one in manifest["files"]}
    (bundle / "manifest.json").write_bytes(signing.canonical(manifest))
    (bundle / "manifest.sig").write_text(json.dumps(signing.sign(settings, manifest)))
    assert run(bundle).returncode != 0
