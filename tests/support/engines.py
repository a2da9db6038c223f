"""Engine processes for tests: the real ones, and one whose engine does what each ask tells it to."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from processors.engine import (
    Capabilities,
    Embed,
    Embedded,
    EngineClient,
    EngineError,
    Generate,
    Generated,
    Message,
    Reply,
    Request,
)
from processors.engine_client import SocketEngine
from processors.engine_frames import engine_name
from streams import ready
from streams.settings import REPOSITORY, EngineSettings, Settings

_SCRIPTED = """
import sys
from processors import engine_host, hosted
hosted.FACTORIES[sys.argv[1]] = "tests.support.engines"
engine_host.STUCK_S_MIN = float(sys.argv[2])
sys.exit(engine_host.main([sys.argv[1], "--replica", sys.argv[3]]))
"""


@dataclass
class HostProcess:
    """A running `processors.engine_host`."""

    settings: Settings
    role: str
    start: Callable[[], "subprocess.Popen[bytes]"]
    log: Path
    replica: int = 0

    def __post_init__(self) -> None:
        self.process = self.start()

    def wait_ready(self) -> None:
        """Returns when it announced itself; raises RuntimeError with its log when it ended instead."""
        while self._facts() is None:
            if self.process.poll() is not None:
                raise RuntimeError(f"engine host ended with {self.process.returncode}: {self.log.read_text()}")
            time.sleep(0.02)

    def replace(self) -> None:
        """Kills it where it is still there, and returns when another process serves in its place."""
        self.stop()
        self.process = self.start()
        self.wait_ready()

    def metric(self, sample: str) -> float:
        """What its metrics say now of the sample, such as `name{label="value"}`; 0 where it is not there."""
        facts = self._facts()
        assert facts is not None, "the engine is not ready"
        page = httpx.get(f"http://127.0.0.1:{facts['metrics_port']}/metrics", timeout=300).text
        found = re.search(rf"^{re.escape(sample)} (\S+)$", page, re.MULTILINE)
        return float(found[1]) if found is not None else 0.0

    def libraries(self) -> set[str]:
        """The shared libraries that the process has loaded by now."""
        lines = Path(f"/proc/{self.process.pid}/maps").read_text().splitlines()
        return {path for line in lines if ".so" in (path := line.rpartition(" ")[2])}

    def memory_mib(self) -> int:
        """The memory that the process has asked for by now, but for what it shares with others."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmData:")) // 1024

    def _facts(self) -> Mapping[str, Any] | None:
        facts = ready.read(self.settings, engine_name(self.role, self.replica))
        return facts if facts is not None and facts["pid"] == self.process.pid else None

    def stop(self) -> None:
        """Ends it, whatever state it is in."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


def start_host(
    settings: Settings, role: str, scripted: bool = False, stuck_s: float = 20.0, replica: int = 0
) -> HostProcess:
    """Starts the engine process of the role, without waiting for it."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engines = settings.engines
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "TRUNKLINE_DATA_DIR": str(settings.data_dir),
        "TRUNKLINE_MODELS_FILE": str(settings.models_file),
        "TRUNKLINE_ENGINES__QUEUE_DEPTH_MAX": str(engines.queue_depth_max),
        "TRUNKLINE_ENGINES__THREADS": str(engines.threads),
        f"TRUNKLINE_ENGINES__{role.upper()}": getattr(engines, role),
    }
    number = str(replica)
    what = (
        ["-c", _SCRIPTED, role, str(stuck_s), number]
        if scripted
        else ["-m", "processors.engine_host", role, "--replica", number]
    )
    log = settings.data_dir / f"{engine_name(role, replica)}.log"

    def start() -> "subprocess.Popen[bytes]":
        with log.open("ab") as out:
            return subprocess.Popen([sys.executable, *what], cwd=REPOSITORY, env=environment, stdout=out, stderr=out)

    return HostProcess(settings, role, start, log, replica)


@contextmanager
def running_host(settings: Settings, role: str, scripted: bool = False, stuck_s: float = 20.0) -> Iterator[HostProcess]:
    """A warm engine process, killed at the end."""
    host = start_host(settings, role, scripted, stuck_s)
    try:
        host.wait_ready()
        yield host
    finally:
        host.stop()


def settings_in(folder: Path, **engines: Any) -> Settings:
    """Settings of a platform that lives in that folder."""
    return Settings(data_dir=folder, engines=EngineSettings(**engines))


@asynccontextmanager
async def asking(host: "HostProcess", role: str) -> AsyncIterator[SocketEngine]:
    """A client of the host's engine. A busy machine may keep a process at work from answering pings in time."""
    client = SocketEngine(host.settings, role, silence_s=60.0)
    try:
        yield client
    finally:
        await client.close()


async def replies(client: EngineClient, request: Request, deadline_s: float = 30.0) -> list[Reply]:
    """All replies to an ask."""
    async with aclosing(client.ask(request, deadline_s)) as stream:
        return [reply async for reply in stream]


# The scripted engine.


def script(journal: Path, name: str, **steps: Any) -> Generate:
    """An ask that the scripted engine performs: see `_Scripted`; it notes what happens in `journal`."""
    content = json.dumps({"journal": str(journal), "name": name, **steps})
    return Generate((Message("user", content),))


def noted(journal: Path) -> list[str]:
    """What the scripted engine noted so far."""
    return journal.read_text().split() if journal.exists() else []


class _Scripted:
    """Steps: `pieces` replies, each of `size`; `gate`, a file to wait for after each; `raises`, `refuses`; `hang`.

    `lacks` memory so many times before the first piece, `lacks_later` after the last one.
    """

    def __init__(self, concurrency: int = 1) -> None:
        self.capabilities = Capabilities("llm", "scripted", streaming=True, concurrency=concurrency)

    def warm(self) -> None:
        pass

    def answer(self, request: Request) -> Iterator[Reply]:
        assert isinstance(request, Generate)
        steps = json.loads(request.messages[0].content)
        note = _Journal(Path(steps["journal"]), steps["name"])
        note("begun")
        try:
            if noted(Path(steps["journal"])).count(f"{steps['name']}:begun") <= steps.get("lacks", 0):
                while "gate" in steps and not Path(steps["gate"]).exists():
                    time.sleep(0.005)
                raise RuntimeError("CUDA failed with error out of memory")
            for index in range(steps.get("pieces", 1)):
                yield Generated("x" * steps["size"] if "size" in steps else f"{steps['name']}{index}")
                while "gate" in steps and not Path(steps["gate"]).exists():
                    time.sleep(0.005)
            if "lacks_later" in steps:
                bytearray(1 << 62)
            if "raises" in steps:
                raise ValueError(steps["raises"])
            if "refuses" in steps:
                raise EngineError("invalid", steps["refuses"])
            while "hang" in steps:
                time.sleep(1)
            note("done")
        finally:
            note("closed")


class _Journal:
    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name

    def __call__(self, what: str) -> None:
        with self._path.open("a") as out:
            out.write(f"{self._name}:{what}\n")


def create(settings: Settings) -> _Scripted:
    """The factory that the host calls."""
    return _Scripted()


def several(settings: Settings) -> _Scripted:
    """The same, at work on four asks at a time."""
    return _Scripted(concurrency=4)


class _Narrow:
    """Embeds no more than three texts at a time, each as a unit vector by its length."""

    capabilities = Capabilities("embeddings", "narrow")

    def warm(self) -> None:
        pass

    def answer(self, request: Request) -> Iterator[Reply]:
        assert isinstance(request, Embed)
        if len(request.texts) > 3 or "huge" in request.texts:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
        rows = np.eye(16, dtype="<f4")[[len(text) for text in request.texts]]
        yield Embedded(rows.tobytes(), 16, "narrow", 1.0)


def narrow(settings: Settings) -> _Narrow:
    """Its factory."""
    return _Narrow()


class _TooLarge(_Narrow):
    def warm(self) -> None:
        bytearray(1 << 62)


def too_large(settings: Settings) -> _TooLarge:
    """The factory of a model for which there is no memory."""
    return _TooLarge()


class _SlowToWarm(_Narrow):
    """Puts a file `warming` into the data directory, and is warm once `warm` lies there, too."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    def warm(self) -> None:
        (self._data_dir / "warming").touch()
        while not (self._data_dir / "warm").exists():
            time.sleep(0.005)


def slow_to_warm(settings: Settings) -> _SlowToWarm:
    """Its factory."""
    return _SlowToWarm(settings.data_dir)
