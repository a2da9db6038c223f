"""vLLM's own server, with the tiny model of tests/engines, in a process group of its own."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from streams.settings import REPOSITORY

ENVIRONMENT = REPOSITORY / ".venv-engines" / "vllm" / "bin"
CONFIG = REPOSITORY / "infra" / "engines" / "vllm.yaml"
MODEL = "tiny"
CONTEXT_TOKENS = 4096
SLOTS = 2
START_S = 600.0  # on an idle machine with two cores it takes one and a half minutes
STOP_S = 60.0
STEP_S, STAND_S = 0.02, 0.2


class VllmServer:
    """A server with two slots, which wants that key; started again, it has the same address."""

    def __init__(self, folder: Path, key: str) -> None:
        """`folder` gets the model and the server's log."""
        self._folder = folder
        self._key = key
        self._process: subprocess.Popen[bytes] | None = None
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Returns once it takes asks; raises RuntimeError with the end of its log where it ends instead."""
        model = self._folder / "model"
        if not model.exists():
            subprocess.run(
                [ENVIRONMENT / "python", REPOSITORY / "tests" / "engines" / "tiny_llm.py", model],
                check=True,
                timeout=START_S,
            )
        with (self._folder / "vllm.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(ENVIRONMENT / "vllm"), "serve", str(model), *self._options()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + START_S
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.kill()
                raise RuntimeError(f"vLLM did not start: {(self._folder / 'vllm.log').read_text()[-4000:]}")
            time.sleep(1.0)

    def ensure(self) -> None:
        """Starts it where it is not running; see `start`."""
        if self._process is None:
            self.start()

    def pause(self) -> None:
        """Stops all its processes where they are (SIGSTOP), with their connections open."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets stopped processes run again; safe to repeat."""
        if self._process is not None:
            self._signal(signal.SIGCONT)

    async def crawl(self, enough: Callable[[], bool]) -> None:
        """Lets it run a tenth of the time until it is enough, then leaves it stopped.

        So what it has made reaches its readers before it has made much more, however fast the machine.
        """
        while not enough():
            self.go_on()
            await asyncio.sleep(STEP_S)
            self.pause()
            await asyncio.sleep(STAND_S)

    def kill(self) -> None:
        """Ends the server and its workers at once (SIGKILL); safe to repeat."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait(STOP_S)
            self._process = None

    def metric(self, name: str) -> float:
        """One of its metrics now, summed over labels; 0 where it is not there."""
        page = httpx.get(f"http://127.0.0.1:{self._port}/metrics", timeout=STOP_S, follow_redirects=True).text
        lines = [line for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def _options(self) -> list[str]:
        """The flags for a GPU, but what belongs to this model; eagerly, since compiling it would take minutes."""
        return [
            *("--config", str(CONFIG), "--host", "127.0.0.1", "--port", str(self._port), "--api-key", self._key),
            *("--served-model-name", MODEL, "--dtype", "float32", "--enforce-eager"),
            *("--max-model-len", str(CONTEXT_TOKENS), "--max-num-seqs", str(SLOTS)),
        ]

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self._port}/health", timeout=STOP_S).status_code == 200
        except httpx.HTTPError:
            return False

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server is not running"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _environment() -> dict[str, str]:
    """Ours, without what is meant for the platform; the model is on disk, so nothing is fetched or reported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRUNKLINE_", "PYTHON"))}
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    # 1 GiB of cache, and one thread that is free to move: others work on this machine, too.
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    return kept | offline | small


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
