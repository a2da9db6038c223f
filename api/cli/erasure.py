"""`trunkline erase`: calls are forgotten for good, and a signed certificate says so."""

import asyncio
import json
from pathlib import Path

from api.cli.context import log_errors, running_settings, settings_of
from api.cli.output import print_json
from api.cli.sla import trusted_key
from api.erasure import Erased, Eraser, ErasureError
from api.errors import OperatorError
from processors.erasure import KIND
from streams import signing
from streams.settings import Settings
from streams.topics import CLEAR


def erase(session: str, caller: str, reason: str, force: bool, data_dir: Path | None, as_json: bool) -> None:
    """Erases the session, or all of the caller's; prints each certificate, or where it lies."""
    if bool(session) == bool(caller):
        raise OperatorError("either SESSION or --caller ID is expected", exit_code=2)
    settings = running_settings(data_dir)
    with log_errors(settings):
        asyncio.run(_erase(settings, session, caller, reason, force, as_json))


async def _erase(settings: Settings, session: str, caller: str, reason: str, force: bool, as_json: bool) -> None:
    eraser = Eraser(settings)
    sessions = [session] if session else await eraser.sessions_of(caller)
    if not sessions:
        raise OperatorError("no session of that caller is in the log, or all of them are erased")
    for session_id in sessions:
        try:
            erased = await eraser.erase(session_id, reason, force)
        except (ErasureError, signing.SignatureError) as error:
            raise OperatorError(str(error)) from error
        except OSError as error:
            raise OperatorError(f"the key of session {session_id} cannot be destroyed: {error}") from error
        if as_json:
            print_json(erased.signed)
        else:
            _print(erased)


def _print(erased: Erased) -> None:
    made = erased.signed["certificate"]
    kafka = made["stores"]["kafka"].values()
    records, readable = (sum(counts[name] for counts in kafka) for name in ("records", "readable"))
    rows = sum(made["stores"]["clickhouse"]["rows"].values())
    print(f"session {made['session_id']} is erased")
    print(f"  its key was destroyed at {made['key_destroyed_at']}; {records} records in Kafka are without words")
    if readable:
        print(f"  but {readable} of them, written before fields were sealed: these are readable until retention ends")
    print(f"  {rows} rows in ClickHouse are without words")
    for name in ("webhooks", "tools"):
        if told := made["elsewhere"][name]:
            print(f"  other systems knew of it by {name}: {', '.join(told)}")
    if clear := made["elsewhere"][CLEAR]["records"]:
        print(f"  {clear} records of it are in {CLEAR}, masked and not sealed, until its retention ends")
    print(f"  certificate: {erased.path}")


def verify(file: Path, key: Path | None, data_dir: Path | None) -> None:
    """Prints whose certificate it is when the signature holds; raises OperatorError, exit code 1, when not."""
    try:
        signed = json.loads(file.read_text(encoding="utf-8"))
        made = signed["certificate"]
        if made["kind"] != KIND:
            raise ValueError(f"of kind {made['kind']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OperatorError(f"{file}: a signed certificate is expected ({error})") from None
    try:
        signing.verify(made, signed.get("signature"), trusted_key(key, settings_of(data_dir)))
    except signing.SignatureError as error:
        raise OperatorError(f"{file}: {error}") from None
    print(f"{file}: signed, unaltered: session {made['session_id']}, key destroyed at {made['key_destroyed_at']}")
