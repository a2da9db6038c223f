"""A call as a bundle of files that anybody can verify: its records, its chain, what was signed of it, and its audio.

`infra/audit/verify.py` goes with it and needs nothing else of Trunkline.
"""

import base64
import hashlib
import io
import json
import shutil
import wave
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from processors.audit import checkpoints
from processors.audit.chain import Entry, content_of, leaf_of, path_of
from processors.audit.masked import masked
from processors.privacy import Policies
from schemas import files, json_form
from schemas.event import Event
from schemas.events import AudioFrame, Checkpoint, SpeechChunk
from streams import signing
from streams.codec import Codec, CodecError, default_codec
from streams.consumer import Record
from streams.settings import REPOSITORY, Settings

SCRIPT = REPOSITORY / "infra" / "audit" / "verify.py"
KIND = "trunkline.audit.bundle"
_WAV_HEADER_BYTES = 44
_BYTES_A_SAMPLE = 2
# What is lost on the way is silence; a longer gap than that is a mistake in a number.
_GAP_S_MAX = 60

_README = """# A call, exported by Trunkline

    pip install cryptography
    python verify.py TRUSTED_KEY.pem

verifies it; TRUSTED_KEY.pem is the platform's public key, which you should have from elsewhere than from here.
Without it the keys in keys/ are believed.

- events.jsonl: what happened, for people and programs to read; audio is replaced by its length.
- caller.wav, agent.wav: what the caller said, and all that was made for the caller to hear, in the order of the log.
- chain.jsonl: every record of the call as it is stored: key, topic, partition, offset, position in its chain, digest,
  link, content (base64; null where retention has taken the record, or where it holds what this export masks).
- checkpoints.jsonl: signed statements about the chains' heads, with what leads from each head to the signed root.
- audio.jsonl: which bytes of the WAV files are which bytes of which record.
- report.json: what `trunkline audit verify` found when this was exported.
- schemas/: the Avro schemas of the records' values, by the ids that they carry.
"""


_Decoded = tuple[Record, Event | CodecError]


class BundleError(ValueError):
    """The bundle cannot be written there; the text says why, for people."""


@dataclass(slots=True)
class _Track:
    """One side's audio, and which bytes of it are whose."""

    name: str
    pcm: bytearray = field(default_factory=bytearray)
    rate_hz: int = 16_000
    pieces: list[tuple[int, Record, bytes]] = field(default_factory=list)

    def put(self, record: Record, pcm: bytes, at: int) -> None:
        """What was there already stays: a repeat says the same."""
        at = min(at, len(self.pcm) + _GAP_S_MAX * self.rate_hz * _BYTES_A_SAMPLE)
        if at < len(self.pcm):
            return
        self.pcm += bytes(at - len(self.pcm)) + pcm
        self.pieces.append((at, record, pcm))

    def wav(self) -> bytes:
        """The file's bytes."""
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(_BYTES_A_SAMPLE)
            out.setframerate(self.rate_hz)
            out.writeframes(bytes(self.pcm))
        return buffer.getvalue()


def write_bundle(
    folder: Path,
    settings: Settings,
    codec: Codec,
    entries: Sequence[Entry],
    records: Sequence[Record],
    signed: Iterable[Checkpoint],
    trusted: Iterable[Ed25519PublicKey],
    report: Mapping[str, Any],
    at_us: int,
    policies: Policies | None = None,
) -> None:
    """Writes the call into a folder of its own, which must be new or empty; with `policies` as their tenants mask it.

    Raises BundleError, and signing.SignatureError where there is no key to sign the manifest with.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} is not empty; name a new folder")
    for name in ("keys", "schemas"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    key = entries[0].chain.key
    events: list[_Decoded] = [(record, _decoded(codec, record)) for record in records]
    stored = records
    if policies is not None:
        stored, events = _shown(events, policies)
    _write_lines(folder / "chain.jsonl", _chain_lines(entries, stored))
    _write_lines(folder / "checkpoints.jsonl", _checkpoint_lines(signed, key))
    _write_lines(folder / "events.jsonl", (_event_line(record, event) for record, event in events))
    _write_audio(folder, events)
    _write_json(folder / "report.json", report)
    for number, one in enumerate(trusted):
        pem = one.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / "keys" / f"{number}.pem").write_bytes(pem)
    for published in files.published():
        shutil.copyfile(published.path, folder / "schemas" / f"{published.id}.avsc")
    shutil.copyfile(SCRIPT, folder / "verify.py")
    (folder / "README.md").write_text(_README, encoding="utf-8")
    manifest = {"kind": KIND, "session": key, "at_us": at_us, "files": _digests(folder)}
    (folder / "manifest.json").write_bytes(signing.canonical(manifest))
    _write_json(folder / "manifest.sig", signing.sign(settings, manifest))


def _shown(events: Sequence[_Decoded], policies: Policies) -> tuple[list[Record], list[_Decoded]]:
    """The records that may be given as they are stored (nothing is masked in them, or all is sealed); events masked."""
    shown = iter(masked([event for _, event in events if not isinstance(event, CodecError)], policies))
    found = [(record, event if isinstance(event, CodecError) else next(shown)) for record, event in events]
    without_keys = default_codec()
    kept = [
        record
        for (record, event), (_, other) in zip(events, found, strict=True)
        if not isinstance(event, CodecError) and (event == other or _is_sealed(without_keys, record))
    ]
    return kept, found


def _is_sealed(without_keys: Codec, record: Record) -> bool:
    """Whether that codec reads nothing personal in it."""
    event = _decoded(without_keys, record)
    return not isinstance(event, CodecError) and not any(getattr(event, name) for name in event.PII)


def _chain_lines(entries: Sequence[Entry], records: Sequence[Record]) -> Iterator[list[Any]]:
    contents = {(record.topic, record.partition, record.offset): content_of(record) for record in records}
    for entry in entries:
        content = contents.get((entry.chain.topic, entry.chain.partition, entry.offset))
        text = None if content is None else base64.b64encode(content).decode()
        yield [*entry.chain, entry.offset, entry.position, entry.digest.hex(), entry.link.hex(), text]


def _checkpoint_lines(signed: Iterable[Checkpoint], key: str) -> Iterator[dict[str, Any]]:
    for one in signed:
        heads = checkpoints.heads_of(one)
        leaves = [leaf_of(chain, head) for chain, head in heads]
        own = [
            [*chain, head.position, head.offset, head.link.hex(), _hex_pairs(path_of(leaves, at))]
            for at, (chain, head) in enumerate(heads)
            if chain.key == key
        ]
        if own:
            signature = {"algorithm": signing.ALGORITHM, "public_key": one.public_key, "value": one.signature}
            yield {"statement": one.statement, "signature": signature, "heads": own}


def _hex_pairs(path: Iterable[tuple[bytes | None, bytes | None]]) -> list[list[str | None]]:
    return [[None if one is None else one.hex() for one in pair] for pair in path]


def _event_line(record: Record, event: Event | CodecError) -> dict[str, Any]:
    place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    place |= {"timestamp_ms": record.timestamp_ms}
    if isinstance(event, CodecError):
        return {**place, "unreadable": event.reason}
    values = json_form.to_json(event)
    if "pcm" in values:
        values["pcm_bytes"] = len(values.pop("pcm")) // 2
    return {**place, "type": event.ce_type, "event": values}


def _write_audio(folder: Path, events: Iterable[_Decoded]) -> None:
    caller, agent = _Track("caller.wav"), _Track("agent.wav")
    first: int | None = None
    for record, event in events:
        if isinstance(event, AudioFrame) and event.pcm:
            first = event.sample_index if first is None else first
            caller.rate_hz = event.sample_rate_hz
            caller.put(record, event.pcm, _BYTES_A_SAMPLE * (event.sample_index - first))
        elif isinstance(event, SpeechChunk) and event.pcm:
            agent.rate_hz = event.sample_rate_hz
            agent.put(record, event.pcm, len(agent.pcm))
    for track in (caller, agent):
        (folder / track.name).write_bytes(track.wav())
    _write_lines(folder / "audio.jsonl", [line for track in (caller, agent) for line in _pieces(track)])


def _pieces(track: _Track) -> Iterator[list[Any]]:
    """Where the audio lies in the record's content; left out where it is not stored as it sounds (sealed)."""
    for at, record, pcm in track.pieces:
        start = content_of(record).find(pcm)
        if start >= 0:
            yield [track.name, _WAV_HEADER_BYTES + at, record.topic, record.offset, start, start + len(pcm)]


def _decoded(codec: Codec, record: Record) -> Event | CodecError:
    try:
        return codec.decode_keyed(record.topic, record.key, record.value)
    except CodecError as error:
        return error


def _digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _write_lines(path: Path, values: Iterable[Any]) -> None:
    with path.open("w", encoding="utf-8") as out:
        for value in values:
            out.write(json.dumps(value, ensure_ascii=False) + "\n")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
