"""A broker, or the whole platform, for the time of a measurement, below a temporary directory."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api.errors import OperatorError
from api.supervisor import read_state
from streams import broker
from streams.settings import REPOSITORY, KafkaSettings, Settings

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
        state = read_state(Settings(data_dir=directory))
        if state is None:
            raise OperatorError("the platform stopped right after it had started")
        yield str(state["url"])


@contextmanager
def platform_directory() -> Iterator[Path]:
    """As `running_platform`; yields the data directory."""
    with tempfile.TemporaryDirectory(prefix="trunkline-bench-") as directory:
        command = [sys.executable, "-m", "api.cli.main"]
        place = ["--data-dir", directory]
        environment = {
            name: value for name, value in os.environ.items() if name != "TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS"
        }
        began = subprocess.run(
            [*command, "up", "--detach", "--port", "0", *place],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
        )
        if began.returncode != 0:
            raise OperatorError(f"the platform did not start: {(began.stderr or began.stdout).strip()}")
        try:
            yield Path(directory)
        finally:
            subprocess.run([*command, "down", *place], cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
