"""Starts Pipecat, in its own environment, for the time of a measurement."""

import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from api.errors import OperatorError
from bench.logged import Logged
from processors import models
from streams.settings import REPOSITORY, Settings

PYTHON = REPOSITORY / ".venv-peers" / "bin" / "python"
PROFILES = ("default", "tuned")
# `default` reads with the model that Trunkline reads with where it is unsure, `tuned` with the one it reads with first.
WHISPER = {"default": "whisper-base", "tuned": "whisper-tiny-en"}
VOICE = "hibari"
_SERVER = Path(__file__).parent / "pipecat" / "server.py"
_START_S = 90.0


class Pipecat:
    """See `bench.voice.System`; it writes nothing down."""

    agent = "shop"
    tells_clear = False  # not of all versions of its serializer

    def __init__(self, profile: str, port: int) -> None:
        self.name = f"Pipecat {profile}"
        self.url = f"ws://127.0.0.1:{port}"

    def logged(self, callers: Sequence[str]) -> Mapping[str, Logged]:
        """See `System`."""
        return {}


def installed() -> bool:
    """Whether `make bench-peers` has been run."""
    return PYTHON.is_file()


@contextmanager
def running_pipecat(profile: str) -> Iterator[Pipecat]:
    """Pipecat with that profile, warm. Raises OperatorError where it does not start."""
    settings = Settings()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    files = ["--whisper", str(models.resolve(settings, WHISPER[profile]).directory)]
    files += ["--voice", str(models.resolve(settings, VOICE).path)]
    command = [str(PYTHON), str(_SERVER), "--port", str(port), "--profile", profile, *files]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_ready(process, port)
        yield Pipecat(profile, port)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise OperatorError(f"Pipecat ended with {process.returncode} before it was ready; run make bench-peers")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=1.0).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise OperatorError(f"Pipecat was not ready within {_START_S:g} s")
