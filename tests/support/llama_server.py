"""llama.cpp's own OpenAI-compatible server in a process of its own: `python -m tests.support.llama_server KEY`."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import xllamacpp

from processors import models
from streams.settings import REPOSITORY, Settings


@contextmanager
def running_llama_server(key: str) -> Iterator[str]:
    """The base URL of a server with two slots and the smallest model, which wants that key."""
    command = [sys.executable, "-m", "tests.support.llama_server", key]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, f"the server ended with {process.wait()}"
            yield f"{address}/v1"
        finally:
            process.kill()


def main() -> None:
    """Says where it listens, once the model is loaded, and serves until it is killed."""
    params = xllamacpp.CommonParams()
    params.model.path = str(models.resolve(Settings(), "smollm2").path)
    params.n_ctx, params.n_parallel, params.n_batch, params.verbosity = 4096, 2, 128, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.api_keys = [sys.argv[1]]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
