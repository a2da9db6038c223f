"""Settings as a command needs them: of the machine, or of the platform that runs on the data directory."""

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from api.errors import OperatorError
from api.supervisor import read_state
from processors.audit.accesses import Accesses
from schemas.events import AccessKind
from streams.client import LogError
from streams.clock import SystemClock
from streams.producer import LogProducer
from streams.settings import Settings


def settings_of(data_dir: Path | None) -> Settings:
    """The settings, with the data directory from the command line where it was given."""
    try:
        return Settings() if data_dir is None else Settings(data_dir=data_dir)
    except ValidationError as error:
        first = error.errors()[0]
        name = "TRUNKLINE_" + "__".join(str(part) for part in first["loc"]).upper()
        raise OperatorError(f"{name}: {first['msg']}") from error


def key_of(settings: Settings) -> str:
    """The key that a command shows where it was given none; empty when there is none."""
    return settings.api.key.get_secret_value() if settings.api.key is not None else ""


def running_settings(data_dir: Path | None) -> Settings:
    """The settings with the addresses of the platform that runs on the data directory, where one does.

    What the environment says itself goes first, so that a cluster elsewhere can be looked at. Raises OperatorError
    when no platform runs there and the environment names no cluster.
    """
    settings = settings_of(data_dir)
    state = read_state(settings)
    if state is not None:
        for name, value in state.get("environment", {}).items():
            os.environ.setdefault(name, value)
        return settings_of(data_dir)
    if not settings.kafka.bootstrap_servers:
        raise OperatorError(
            f"no platform is running on {settings.data_dir}; start it with `trunkline up`, "
            "name its --data-dir, or set TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS"
        )
    return settings


async def note_access(settings: Settings, kind: AccessKind, session: str = "", what: str = "") -> None:
    """Writes down that this machine's user looks at calls, before anything is shown. Raises LogError."""
    async with LogProducer(settings, "trunkline.cli") as producer:
        accesses = Accesses(producer.publish, SystemClock(), "cli")
        await accesses.note(kind, actor(), session_id=session, tenant=settings.tenant, what=what)


def actor() -> str:
    """This machine's user, as the audit trail names who did something."""
    try:
        return f"local:{getpass.getuser()}"
    except (OSError, KeyError):  # a container's user may have no name
        return f"local:{os.getuid()}"


@contextmanager
def log_errors(settings: Settings) -> Iterator[None]:
    """Turns what Kafka's client says into a sentence for the operator."""
    try:
        yield
    except LogError as error:
        raise OperatorError(
            f"the log at {settings.kafka.bootstrap_servers} cannot be read: {error}; see `trunkline status`"
        ) from error
