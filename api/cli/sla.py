"""`trunkline sla`: a tenant's service level report, signed, and its verification."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from api.cli.analytics import ask
from api.cli.context import settings_of
from api.cli.output import print_table
from api.errors import OperatorError
from processors.sla.objectives import load_tiers
from processors.sla.report import KIND, MonthError, compile_report
from streams import signing
from streams.clock import SystemClock
from streams.settings import Settings
from streams.yamlfile import ConfigError


def report(tenant: str, month: str, out: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Prints the report; with `as_json`, and in the file `out`, it is signed."""
    settings = settings_of(data_dir)
    tenant = tenant or settings.tenant
    now_us = SystemClock().now_us()
    try:
        tiers = load_tiers(settings.sla_dir)
    except ConfigError as error:
        raise OperatorError(str(error)) from error
    if tenant not in tiers:
        known = ", ".join(sorted(tiers)) or "none"
        raise OperatorError(f"tenant {tenant!r} is in no file of {settings.sla_dir}; those that are: {known}")

    def rows(query: str, given: Mapping[str, str]) -> Sequence[Sequence[Any]]:
        found: Sequence[Sequence[Any]] = ask(settings, query, given)["data"]
        return found

    try:
        made = compile_report(tenant, month or _this_month(now_us), tiers[tenant], now_us, rows)
        signed = {"report": made, "signature": signing.sign(settings, made)}
    except (MonthError, signing.SignatureError) as error:
        raise OperatorError(str(error)) from error
    text = json.dumps(signed, ensure_ascii=False, indent=2)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        print(text)
    else:
        _print(made)


def verify(file: Path, key: Path | None, data_dir: Path | None) -> None:
    """Prints whose report it is when the signature holds; raises OperatorError, exit code 1, when not."""
    try:
        signed = json.loads(file.read_text(encoding="utf-8"))
        made = signed["report"]
        if made["kind"] != KIND:
            raise ValueError(f"of kind {made['kind']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OperatorError(f"{file}: a signed report is expected ({error})") from None
    try:
        signing.verify(made, signed.get("signature"), trusted_key(key, settings_of(data_dir)))
    except signing.SignatureError as error:
        raise OperatorError(f"{file}: {error}") from None
    print(f"{file}: signed, unaltered: tenant {made['tenant']}, {made['month']}, computed at {made['computed_at']}")


def key(data_dir: Path | None) -> None:
    """Prints the public key, in PEM."""
    try:
        print(signing.public_pem(settings_of(data_dir)), end="")
    except signing.SignatureError as error:
        raise OperatorError(str(error)) from error


def trusted_key(key: Path | None, settings: Settings) -> Ed25519PublicKey:
    """The public key in the file, else the platform's own. Never makes one: a key that is new has signed nothing."""
    if key is not None:
        return signing.read_public_key(key)
    if settings.signing_key_file is None and not (settings.data_dir / signing.KEY_FILE).exists():
        raise OperatorError(
            f"{settings.data_dir} has no signing key; name the public key that is trusted with --key FILE.pem"
        )
    return signing.public_key(settings)


def _this_month(now_us: int) -> str:
    return datetime.fromtimestamp(now_us / 1e6, UTC).strftime("%Y-%m")


def _print(made: Mapping[str, Any]) -> None:
    state = "complete" if made["complete"] else f"so far, until {made['until']}"
    print(f"Tenant {made['tenant']}, tier {made['tier']}, {made['month']} ({state})\n")
    columns = ["objective", "target %", "attained %", "met", "events", "bad", "budget left", "burn 1h", "6h", "3d"]
    rows = [
        [
            one["name"],
            one["target_percent"],
            one["attained_percent"],
            {True: "yes", False: "NO", None: "no data"}[one["met"]],
            one["events"],
            one["bad"],
            one["budget_left_events"],
            *(one["burn_rate"][name] for name in ("1h", "6h", "3d")),
        ]
        for one in made["objectives"]
    ]
    print_table(columns, rows, right=[name for name in columns if name not in ("objective", "met")])
    if made["voice_to_voice_ms"]:
        print("\nVoice to voice: " + ", ".join(f"{name} {ms} ms" for name, ms in made["voice_to_voice_ms"].items()))
    if made["failures"]:
        print("Failed calls: " + ", ".join(f"{name} {calls}" for name, calls in made["failures"].items()))
