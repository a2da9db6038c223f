"""Gathers a call from Kafka, ClickHouse and what was signed, and writes it as a bundle."""

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from processors.audit.anchor import read_checkpoints
from processors.audit.bundle import BundleError, write_bundle
from processors.audit.chain import key_text
from processors.audit.signed import series_of
from processors.audit.tables import Ask, Tables
from processors.audit.verify import Report, Verifier
from processors.privacy import Policies
from schemas.events import Checkpoint
from streams.clock import Clock
from streams.codec import Codec
from streams.consumer import LogReader, Record, session_records
from streams.settings import Settings


async def export_call(
    folder: Path,
    settings: Settings,
    codec: Codec,
    ask: Ask,
    trusted: Sequence[Ed25519PublicKey],
    session: str,
    clock: Clock,
    policies: Policies | None = None,
) -> tuple[Report, int]:
    """Writes the bundle, with `policies` as their tenants mask calls.

    Returns what verification finds now, and how many records the call has.

    Raises BundleError, LogError, and SignatureError where there is no key to sign with.
    """
    report = await Verifier(settings, codec, ask, trusted, clock).verify(session)
    tables = Tables(ask, session)
    places = await asyncio.to_thread(tables.places)
    if not places:
        raise BundleError(f"the audit record knows no session {session}")
    entries = [
        entry
        for place, (first, last) in sorted(places.items())
        for entry in await asyncio.to_thread(tables.entries, place, first, last + 1)
    ]
    found = await session_records(settings, session, sorted({"voice.sessions", *(place.topic for place in places)}))
    records = [record for record in found if key_text(record.key) == session]
    signed = await _signed(settings, codec, trusted, records)
    text = as_json(session, report)
    write_bundle(folder, settings, codec, entries, records, signed, trusted, text, clock.now_us(), policies)
    return report, len(entries)


async def _signed(
    settings: Settings, codec: Codec, trusted: Sequence[Ed25519PublicKey], records: Sequence[Record]
) -> list[Checkpoint]:
    """Every checkpoint since the call's first record that is left."""
    since_ms = min((record.timestamp_ms for record in records), default=None)
    found = []
    async with LogReader(settings, "trunkline.audit", note_ends=True) as reader:
        for key in trusted:
            series = await series_of(settings, reader, key, since_ms, None)
            found += await read_checkpoints(reader, codec, series.name, series.place, series.first, series.end)
    return [one for _, one in found]


def as_json(session: str, report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    return {"session": session or None, "ok": not report.findings, **dataclasses.asdict(report)}
