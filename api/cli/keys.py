"""`keys`: API keys, written to the log by who runs the platform; over REST an admin's key does the same."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from api.cli.context import log_errors, running_settings
from api.cli.output import print_json, print_table, when
from api.errors import OperatorError
from api.keys import NewKey, make, shown
from processors.access.keys import revoked, stored_keys, write
from processors.access.roles import Role
from streams.clock import SystemClock
from streams.producer import LogProducer

BY = "cli"
_WRITE_S = 30.0


async def create(
    name: str,
    role: Role,
    tenant: str,
    days: int | None,
    requests_per_s: float | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Makes one, and prints it."""
    settings = running_settings(data_dir)
    try:
        wanted = NewKey(name=name, role=role, tenant=tenant or None, days=days, requests_per_s=requests_per_s)
    except ValidationError as error:
        first = error.errors()[0]
        raise OperatorError(f"{first['loc'][0]}: {first['msg']}", exit_code=2) from None
    key, text = make(wanted, settings.tenant, SystemClock().now_us(), BY)
    with log_errors(settings):
        async with LogProducer(settings, "trunkline.cli", timeout_s=_WRITE_S) as producer:
            await write(producer, key)
    if as_json:
        print_json({**shown(key, key.created_at), "key": text})
    else:
        print(f"id   {key.id}\nkey  {text}   (not shown again)")


async def show(data_dir: Path | None, as_json: bool) -> None:
    """Prints all of them, the oldest first."""
    settings = running_settings(data_dir)
    with log_errors(settings):
        found = await stored_keys(settings)
    now_us = SystemClock().now_us()
    listed = [shown(key, now_us) for key in sorted(found.values(), key=lambda key: (key.created_at, key.id))]
    if as_json:
        for one in listed:
            print_json(one)
        return
    columns = ("id", "name", "role", "tenant", "state", "made (UTC)", "by", "ends (UTC)")
    print_table(columns, [_line(one) for one in listed])


async def revoke(identity: str, data_dir: Path | None) -> None:
    """It opens nothing from now on."""
    settings = running_settings(data_dir)
    with log_errors(settings):
        key = (await stored_keys(settings)).get(identity)
        if key is None:
            raise OperatorError(f"no key has the id {identity}; `trunkline keys list` shows them", exit_code=2)
        async with LogProducer(settings, "trunkline.cli", timeout_s=_WRITE_S) as producer:
            await write(producer, revoked(key, SystemClock().now_us(), BY))
    print("revoked")


def _line(one: dict[str, Any]) -> tuple[Any, ...]:
    times = [when(us) if (us := one[name]) is not None else "" for name in ("created_at", "expires_at")]
    return one["id"], one["name"], one["role"], one["tenant"], one["state"], times[0], one["created_by"], times[1]
