"""`trunkline audit`: verifies the record of calls, exports a call, and hands out what to keep elsewhere."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from api.cli.analytics import ask
from api.cli.context import log_errors, note_access, running_settings
from api.cli.output import print_json, print_table
from api.errors import OperatorError
from processors.audit import checkpoints
from processors.audit.anchor import last_checkpoint
from processors.audit.bundle import BundleError
from processors.audit.checkpoints import Statement
from processors.audit.comparison import Finding
from processors.audit.export import as_json as report_json
from processors.audit.export import export_call
from processors.audit.verify import Report, Verifier
from processors.privacy import load_policies
from schemas.events import AccessKind
from streams import signing
from streams.clock import SystemClock
from streams.registry import codec_for
from streams.settings import Settings
from streams.yamlfile import ConfigError

ANCHOR = "trunkline.audit.anchor"


async def verify(session: str, keys: Sequence[Path], anchor: Path | None, data_dir: Path | None, as_json: bool) -> int:
    """Prints what is wrong; the exit code: 0 where all is well, 1 where not."""
    settings = running_settings(data_dir)
    trusted = _trusted(settings, keys)
    kept = None if anchor is None else _kept(anchor, trusted)
    with log_errors(settings):
        await note_access(settings, AccessKind.VERIFIED, session, "audit verify")
        report = await _verified(settings, trusted, session, kept)
    if session and not report.records and not report.findings:
        raise OperatorError(f"the audit record knows no session {session}; `trunkline sessions` lists them")
    if as_json:
        print_json(report_json(session, report))
    else:
        _print(report)
    return 1 if report.findings else 0


async def export(
    session: str, out: Path | None, keys: Sequence[Path], masked: bool, data_dir: Path | None, as_json: bool
) -> None:
    """Writes the bundle, with what its verification finds now; `masked`: without what the call's tenant masks."""
    settings = running_settings(data_dir)
    # The manifest is signed with this platform's key, whoever signed checkpoints before.
    own = _own_key(settings)
    trusted = [own, *(key for key in _trusted(settings, keys) if key != own)]
    folder = out or Path(f"audit-{session}")
    with log_errors(settings):
        await note_access(settings, AccessKind.EXPORTED, session, "audit export")
        try:
            report, records = await export_call(
                folder,
                settings,
                codec_for(settings),
                _asker(settings),
                trusted,
                session,
                SystemClock(),
                load_policies(settings.privacy.policies_dir) if masked else None,
            )
        except (BundleError, ConfigError, signing.SignatureError, OSError) as error:
            raise OperatorError(str(error)) from error
    if as_json:
        print_json({"folder": str(folder), **report_json(session, report)})
        return
    print(f"{folder}: {records} records. `python {folder / 'verify.py'} KEY.pem` verifies it.")
    _print(report)


def anchor(out: Path | None, data_dir: Path | None) -> None:
    """Prints the newest checkpoint, or writes it to a file: kept elsewhere, it shows that nothing was cut off."""
    text = asyncio.run(_newest(data_dir))
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")


async def _newest(data_dir: Path | None) -> str:
    settings = running_settings(data_dir)
    with log_errors(settings):
        found = await last_checkpoint(settings, codec_for(settings), _own_key(settings))
    if found is None:
        raise OperatorError("there is no checkpoint yet; the ClickHouse sink writes the first when it starts")
    signature = {"algorithm": signing.ALGORITHM, "public_key": found.public_key, "value": found.signature}
    return json.dumps({"kind": ANCHOR, "statement": found.statement, "signature": signature}, indent=2)


def key(data_dir: Path | None) -> None:
    """Prints the public key that checkpoints can be verified with, in PEM."""
    from api.cli.sla import key as signing_key

    signing_key(data_dir)


async def _verified(
    settings: Settings, trusted: Sequence[Ed25519PublicKey], session: str, kept: Statement | None
) -> Report:
    verifier = Verifier(settings, codec_for(settings), _asker(settings), trusted, SystemClock())
    return await verifier.verify(session or None, kept)


def _asker(settings: Settings) -> Any:
    def rows(query: str, given: Mapping[str, str]) -> Sequence[Sequence[Any]]:
        found: Sequence[Sequence[Any]] = ask(settings, query, given)["data"]
        return found

    return rows


def _trusted(settings: Settings, keys: Sequence[Path]) -> list[Ed25519PublicKey]:
    try:
        return [signing.read_public_key(path) for path in keys] or [_own_key(settings)]
    except signing.SignatureError as error:
        raise OperatorError(str(error)) from error


def _own_key(settings: Settings) -> Ed25519PublicKey:
    """Never makes a key: one that is new has signed nothing."""
    if settings.signing_key_file is None and not (settings.data_dir / signing.KEY_FILE).exists():
        raise OperatorError(
            f"{settings.data_dir} has no signing key; name the public key that is trusted with --key FILE.pem"
        )
    return signing.public_key(settings)


def _kept(path: Path, trusted: Sequence[Ed25519PublicKey]) -> Statement:
    """The statement in a file that `anchor` wrote."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        statement, signature = json.loads(made["statement"]), made["signature"]
        signers = [one for one in trusted if checkpoints.key_text(one) == signature["public_key"]]
        signing.verify(statement, signature, signers[0] if signers else trusted[0])
        return checkpoints.read_statement(statement)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OperatorError(f"{path}: a checkpoint of `trunkline audit anchor` is expected ({error})") from None


def _print(report: Report) -> None:
    if report.findings:
        rows = [_row(one) for one in report.findings]
        print_table(("store", "what", "topic", "partition", "offset", "session", "differs"), rows)
        print()
    until = datetime.fromtimestamp(report.signed_until_us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
    print(
        f"{'NOT as it was' if report.findings else 'As it was'}: {report.records} records, {report.rows} rows, "
        f"{report.checkpoints} checkpoints, the last of {until} UTC."
    )
    for count, what in (
        (report.unsigned, "records have been signed by no checkpoint yet"),
        (report.expired, "records are in the audit record alone: retention has taken them from Kafka"),
        (report.pending, "records are not in the audit record yet"),
    ):
        if count:
            print(f"{count} {what}.")


def _row(one: Finding) -> tuple[Any, ...]:
    where = f"{one.store} {one.table}".strip()
    detail = one.detail if one.signed else f"{one.detail} (not signed yet)"
    return (where, one.kind, one.topic, one.partition, one.offset, one.key, detail)
