"""llama.cpp's own OpenAI-compatible server in a process of its own: `python -m tests.support.llama_server KEY PORT`."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import xllamacpp

from processors import models
from streams.settings import REPOSITORY, Settings


class LlamaServer:
    """A server with two slots and the smallest model, which wants that key; started again, it has the same address."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Returns once the model is loaded."""
        port = urlsplit(self.url).port or 0
        command = [sys.executable, "-m", "tests.support.llama_server", self._key, str(port)]
        self._process = process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, f"the server ended with {process.wait()}"
        self.url = f"{address}/v1"

    def kill(self) -> None:
        """Ends it at once, whatever it is doing; safe to repeat."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


@contextmanager
def running_llama_server(key: str) -> Iterator[str]:
    """The base URL of a server, killed at the end."""
    server = LlamaServer(key)
    try:
        server.start()
        yield server.url
    finally:
        server.kill()


def main() -> None:
    """Says where it listens, once the model is loaded, and serves until it is killed."""
    params = xllamacpp.CommonParams()
    params.model.path = str(models.resolve(Settings(), "smollm2").path)
    params.n_ctx, params.n_parallel, params.n_batch, params.verbosity = 4096, 2, 128, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.api_keys = [sys.argv[1]]
    params.port = int(sys.argv[2])
    params.endpoint_metrics = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
