"""A broker, or the whole platform, for the time of a measurement, below a temporary directory."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from api.errors import OperatorError
from api.supervisor import read_state
from bench.environment import environment, own_keys
from bench.logged import Logged, read_sessions
from streams import broker
from streams.settings import REPOSITORY, KafkaSettings, Settings

_UP_S = 240.0
_LAUNCHER = REPOSITORY / "api" / "launch.py"


@contextmanager
def running_broker() -> Iterator[Settings]:
    """The embedded broker alone; yields settings that reach it."""
    with tempfile.TemporaryDirectory(prefix="trunkline-bench-") as directory:
        command = broker.prepare(Settings(data_dir=Path(directory)))
        # Started through the launcher, so that it ends with this process however that ends.
        bound = [sys.executable, "-S", "-E", str(_LAUNCHER), str(os.getpid()), *command.arguments]
        process = subprocess.Popen(bound, env=dict(command.environment))
        try:
            asyncio.run(broker.wait_ready(command.bootstrap_servers, 90, lambda: process.poll() is None))
            kafka = KafkaSettings(bootstrap_servers=command.bootstrap_servers)
            yield Settings(data_dir=Path(directory), kafka=kafka)
        finally:
            process.terminate()
            process.wait()


@contextmanager
def running_platform() -> Iterator[str]:
    """The whole platform, as `trunkline up` starts it; yields the API's base. Raises OperatorError."""
    with platform_directory() as directory:
        yield str(running_state(directory)["url"])


@contextmanager
def platform_directory(extra: Mapping[str, str] | None = None, cores: Sequence[int] = ()) -> Iterator[Path]:
    """As `running_platform`; yields the data directory. `extra` is added to what `bench.environment` leaves.

    With `cores` every process of the platform runs on these alone.
    """
    with tempfile.TemporaryDirectory(prefix="trunkline-bench-") as directory:
        command = [sys.executable, "-m", "api.cli.main"]
        place = ["--data-dir", directory]
        variables = environment(extra)
        try:
            began = subprocess.run(
                [*command, "up", "--detach", "--port", "0", *place],
                preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
                timeout=_UP_S,
                cwd=REPOSITORY,
                env=variables,
                capture_output=True,
                text=True,
            )
            if began.returncode != 0:
                raise OperatorError(f"the platform did not start: {(began.stderr or began.stdout).strip()}")
            yield Path(directory)
        finally:
            # Also where the start was broken off: what is detached goes on without us.
            subprocess.run([*command, "down", *place], cwd=REPOSITORY, env=variables, stdout=subprocess.DEVNULL)


class Trunkline:
    """This platform, started for the measurement; see `bench.voice.System`."""

    name = "Trunkline"
    tells_clear = True

    def __init__(self, directory: Path, agent: str = "shop") -> None:
        state = running_state(directory)
        self.agent = agent
        self.url = str(state["url"]).replace("http", "ws", 1)
        kafka = KafkaSettings(bootstrap_servers=state["environment"]["TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS"])
        self.settings = Settings(data_dir=directory, kafka=kafka, privacy=own_keys(directory))

    def logged(self, callers: Sequence[str]) -> Mapping[str, Logged]:
        """See `System`."""
        return read_sessions(self.settings, callers)


def running_state(directory: Path) -> Mapping[str, Any]:
    """What the supervisor on that directory says of itself; raises OperatorError where none runs."""
    state = read_state(Settings(data_dir=directory))
    if state is None:
        raise OperatorError("the platform stopped right after it had started")
    return state
