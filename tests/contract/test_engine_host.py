"""Engine processes as stages see them: real children, killed, stopped and abused."""

import asyncio
import os
import runpy
import signal
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from processors import engine_host
from processors.engine import (
    Capabilities,
    EngineError,
    Generate,
    Generated,
    Message,
    Reply,
    Request,
    Transcribe,
    Transcribed,
)
from processors.engine_client import SocketEngine, responds, socket_path
from processors.engine_frames import FRAME_BYTES_MAX
from streams import ready
from streams.settings import REPOSITORY, Settings
from tests.support.engines import HostProcess, noted, replies, running_host, script, settings_in, start_host


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_in(tmp_path_factory.mktemp("engines"), queue_depth_max=2)


@pytest.fixture(scope="module")
def host(settings: Settings) -> Iterator[HostProcess]:
    with running_host(settings, "llm", scripted=True) as host:
        yield host


@pytest.fixture
async def client(host: HostProcess) -> AsyncIterator[SocketEngine]:
    engine = SocketEngine(host.settings, "llm")
    yield engine
    await engine.close()


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)


async def texts(client: SocketEngine, request: Generate, deadline_s: float = 30.0) -> list[str]:
    return [reply.text for reply in await replies(client, request, deadline_s) if isinstance(reply, Generated)]


async def test_replies_arrive_in_order_and_asks_share_a_connection(client: SocketEngine, journal: Path) -> None:
    assert (await client.capabilities(30)).model == "scripted"
    assert await texts(client, script(journal, "a", pieces=50)) == [f"a{index}" for index in range(50)]
    both = await asyncio.gather(*(texts(client, script(journal, name, pieces=3)) for name in "bc"))
    assert both == [["b0", "b1", "b2"], ["c0", "c1", "c2"]]


async def test_a_reply_comes_before_the_answer_is_complete(client: SocketEngine, journal: Path, tmp_path: Path) -> None:
    async with aclosing(client.ask(script(journal, "a", pieces=2, gate=str(tmp_path / "gate")), 30)) as stream:
        assert await anext(stream) == Generated("a0")
        (tmp_path / "gate").touch()
        assert await anext(stream) == Generated("a1")


async def test_a_full_queue_refuses_and_the_rest_is_served(client: SocketEngine, journal: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = asyncio.create_task(texts(client, script(journal, "a", gate=str(gate))))
    await until(lambda: "a:begun" in noted(journal))
    waiting = [asyncio.create_task(texts(client, script(journal, name))) for name in "bc"]
    await asyncio.sleep(0)
    with pytest.raises(EngineError, match="refused: 2 asks are waiting already"):
        await texts(client, script(journal, "d"))
    gate.touch()
    assert await asyncio.gather(first, *waiting) == [["a0"], ["b0"], ["c0"]]
    assert "d:begun" not in noted(journal)


async def test_the_earliest_deadline_goes_first(client: SocketEngine, journal: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = asyncio.create_task(texts(client, script(journal, "a", gate=str(gate))))
    await until(lambda: "a:begun" in noted(journal))
    late = asyncio.create_task(texts(client, script(journal, "late"), 60))
    await asyncio.sleep(0)
    soon = asyncio.create_task(texts(client, script(journal, "soon"), 30))
    await asyncio.sleep(0)
    # One that finds no room came after both.
    with pytest.raises(EngineError, match="refused"):
        await texts(client, script(journal, "full"), 30)
    gate.touch()
    await asyncio.gather(first, late, soon)
    assert [line for line in noted(journal) if line.endswith("begun")] == ["a:begun", "soon:begun", "late:begun"]


class GatedReader:
    """An engine in this process that reads one ask at a time, each once the gate is open, and notes what was asked."""

    capabilities = Capabilities("stt", "gated")

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked: list[tuple[bytes, bool]] = []

    def warm(self) -> None:
        """Nothing to load."""

    def answer(self, request: Request) -> Iterator[Reply]:
        assert isinstance(request, Transcribe)
        self.asked.append((request.pcm[:2], request.quick))
        assert self.gate.wait(30)
        yield Transcribed("", (), 0.0, "en", "gated", 1.0)


@pytest.mark.parametrize(
    ("waited_s", "asks", "hastened"),
    [
        (60.0, [(b"a", False), (b"b", False), (b"c", False)], [b"b"]),
        (60.0, [(b"a", False), (b"b", False), (b"p", True)], []),
        (0.0, [(b"a", False), (b"p", True)], [b"a"]),
    ],
    ids=["another waits", "a partial waits", "waited itself"],
)
async def test_readings_are_hastened_while_others_wait(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    waited_s: float,
    asks: list[tuple[bytes, bool]],
    hastened: list[bytes],
) -> None:
    monkeypatch.setattr(engine_host, "HURRY_S", waited_s)
    settings, reader = settings_in(tmp_path), GatedReader()
    host = engine_host.Host("stt", reader, 8)
    await host.start(socket_path(settings, "stt", 0))
    client = SocketEngine(settings, "stt")
    tasks = []
    for number, (name, partial) in enumerate(asks):
        request = Transcribe(2 * name, partial=partial)
        tasks.append(asyncio.create_task(replies(client, request, 30.0 + number)))
        await until(lambda: bool(reader.asked))
        await asyncio.sleep(0.05)
    reader.gate.set()
    await asyncio.gather(*tasks)
    await client.close()
    await host.stop()
    assert [name[:1] for name, quick in reader.asked if quick] == hastened
    assert len(reader.asked) == len(asks)


async def test_the_deadline_holds_for_who_waits_and_for_who_is_served(
    client: SocketEngine, journal: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    served = asyncio.create_task(texts(client, script(journal, "a", pieces=2, gate=str(gate)), 2))
    await until(lambda: "a:begun" in noted(journal))
    with pytest.raises(EngineError) as waited:
        await texts(client, script(journal, "b"), 0.05)
    assert waited.value.reason == "timeout"
    with pytest.raises(EngineError) as raised:
        await served
    assert raised.value.reason == "timeout"
    gate.touch()
    assert await texts(client, script(journal, "c")) == ["c0"]
    assert "a:closed" in noted(journal)
    assert "a:done" not in noted(journal)
    assert "b:begun" not in noted(journal)


async def test_closing_the_stream_stops_the_engine(client: SocketEngine, journal: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with aclosing(client.ask(script(journal, "a", pieces=1000, gate=str(gate)), 30)) as stream:
        await anext(stream)
    queued = asyncio.create_task(texts(client, script(journal, "b")))
    await asyncio.sleep(0.05)
    queued.cancel()
    gate.touch()
    assert await texts(client, script(journal, "c")) == ["c0"]
    assert "a:closed" in noted(journal)
    assert "a:done" not in noted(journal)
    assert "b:begun" not in noted(journal)


async def test_a_client_that_goes_takes_only_its_own_asks_along(
    host: HostProcess, client: SocketEngine, journal: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    other = SocketEngine(host.settings, "llm")
    stream = other.ask(script(journal, "theirs", pieces=1000, gate=str(gate)), 30)
    await anext(stream)
    queued = asyncio.create_task(texts(other, script(journal, "queued")))
    await asyncio.sleep(0.05)
    ours = asyncio.create_task(texts(client, script(journal, "ours")))
    await asyncio.sleep(0.05)
    await other.close()
    with pytest.raises(EngineError, match="crashed: the client was closed"):
        await anext(stream)
    with pytest.raises(EngineError, match="crashed"):
        await queued
    gate.touch()
    assert await ours == ["ours0"]
    assert "theirs:done" not in noted(journal)
    assert "queued:begun" not in noted(journal)


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 64, struct.pack(">I", FRAME_BYTES_MAX + 1), struct.pack(">I", 5) + b"hello", b"GET / HTTP/1.1\r\n\r\n"],
)
async def test_garbage_closes_only_the_connection_it_came_on(
    host: HostProcess, client: SocketEngine, journal: Path, garbage: bytes
) -> None:
    reader, writer = await asyncio.open_unix_connection(str(socket_path(host.settings, "llm")))
    writer.write(garbage)
    await reader.read()  # the greeting, then the end
    assert reader.at_eof()
    writer.close()
    assert await texts(client, script(journal, "a")) == ["a0"]
    assert host.process.poll() is None


async def test_what_the_engine_raises_is_told_by_type_alone(
    host: HostProcess, client: SocketEngine, journal: Path
) -> None:
    with pytest.raises(EngineError) as raised:
        await texts(client, script(journal, "a", raises="my-secret-words"))
    assert (raised.value.reason, raised.value.detail) == ("crashed", "ValueError")
    assert "my-secret-words" not in host.log.read_text()
    with pytest.raises(EngineError, match="invalid: too short"):
        await texts(client, script(journal, "b", refuses="too short"))


async def test_what_does_not_fit_a_frame_is_refused_by_name(client: SocketEngine, journal: Path) -> None:
    with pytest.raises(EngineError, match="invalid: expected at most"):
        await texts(client, Generate((Message("user", "x" * (FRAME_BYTES_MAX + 1)),)))
    with pytest.raises(EngineError, match="invalid: cannot be encoded"):
        await texts(client, Generate((Message("user", "\ud800"),)))
    with pytest.raises(EngineError, match="invalid: the reply is too large"):
        await texts(client, script(journal, "a", size=FRAME_BYTES_MAX + 1))
    assert await texts(client, script(journal, "b")) == ["b0"]


async def test_a_killed_engine_fails_its_asks_at_once_and_its_successor_serves_the_next(
    tmp_path: Path, journal: Path
) -> None:
    settings = settings_in(tmp_path)
    with running_host(settings, "llm", scripted=True) as first:
        client = SocketEngine(settings, "llm")
        stream = client.ask(script(journal, "a", pieces=2, gate=str(tmp_path / "never")), 300)
        queued = asyncio.create_task(texts(client, script(journal, "b"), 300))
        await anext(stream)
        first.process.kill()
        with pytest.raises(EngineError, match="crashed: the llm engine's process is gone"):
            await anext(stream)
        with pytest.raises(EngineError, match="crashed"):
            await queued
    waiting = asyncio.create_task(texts(client, script(journal, "c"), 300))
    with running_host(settings, "llm", scripted=True):
        assert await waiting == ["c0"]
    await client.close()


async def test_an_engine_that_falls_silent_is_given_up_and_taken_back(tmp_path: Path, journal: Path) -> None:
    settings = settings_in(tmp_path)
    with running_host(settings, "llm", scripted=True) as host:
        client = SocketEngine(settings, "llm", silence_s=0.6)
        assert await texts(client, script(journal, "a")) == ["a0"]
        host.process.send_signal(signal.SIGSTOP)
        with pytest.raises(EngineError, match="crashed: the llm engine has been silent"):
            await texts(client, script(journal, "b"), 300)
        assert not responds(settings, "llm", timeout_s=0.2)
        host.process.send_signal(signal.SIGCONT)
        assert await texts(client, script(journal, "c"), 300) == ["c0"]
        assert responds(settings, "llm")
        await client.close()


async def test_a_busy_engine_is_not_taken_for_a_silent_one(tmp_path: Path, journal: Path) -> None:
    settings = settings_in(tmp_path)
    with running_host(settings, "llm", scripted=True):
        client = SocketEngine(settings, "llm", silence_s=0.9)
        task = asyncio.create_task(texts(client, script(journal, "a", gate=str(tmp_path / "gate"))))
        await asyncio.sleep(1.5)
        (tmp_path / "gate").touch()
        assert await task == ["a0"]
        await client.close()


async def test_without_an_engine_asks_wait_up_to_their_deadline(tmp_path: Path, journal: Path) -> None:
    client = SocketEngine(settings_in(tmp_path), "llm")
    with pytest.raises(EngineError, match=r"timeout: no llm engine for 0\.1 s"):
        await texts(client, script(journal, "a"), 0.1)
    await client.close()
    with pytest.raises(EngineError, match="crashed: the client was closed"):
        await texts(client, script(journal, "a"), 0.1)


async def test_an_orderly_stop_lets_work_end_and_cleans_up(tmp_path: Path, journal: Path) -> None:
    settings = settings_in(tmp_path)
    with running_host(settings, "llm", scripted=True) as host:
        client = SocketEngine(settings, "llm")
        working = asyncio.create_task(texts(client, script(journal, "a", pieces=2, gate=str(tmp_path / "gate"))))
        await until(lambda: "a:begun" in noted(journal))
        queued = asyncio.create_task(texts(client, script(journal, "b")))
        await asyncio.sleep(0.05)
        host.process.terminate()
        with pytest.raises(EngineError, match="crashed: the engine is being stopped"):
            await queued
        (tmp_path / "gate").touch()
        assert await working == ["a0", "a1"]
        assert await asyncio.to_thread(host.process.wait) == 0
        assert not socket_path(settings, "llm").exists()
        assert ready.read(settings, "engine-llm.0") is None
        assert "Traceback" not in host.log.read_text()
        await client.close()


async def test_a_hung_engine_makes_way_for_a_new_process(tmp_path: Path, journal: Path) -> None:
    settings = settings_in(tmp_path)
    with running_host(settings, "llm", scripted=True, stuck_s=0.2) as host:
        client = SocketEngine(settings, "llm")
        with pytest.raises(EngineError):
            await texts(client, script(journal, "a", hang=True), 0.2)
        assert await asyncio.to_thread(host.process.wait) == os.EX_SOFTWARE
        await client.close()


async def test_a_hung_engine_is_told_by_an_ask_that_was_withdrawn(tmp_path: Path, journal: Path) -> None:
    """Another replica answered long before the deadline; the process need not be waited for until then."""
    settings = settings_in(tmp_path)
    with running_host(settings, "llm", scripted=True, stuck_s=0.2) as host:
        client = SocketEngine(settings, "llm")
        async with aclosing(client.ask(script(journal, "a", hang=True), 3600)) as stream:
            await anext(stream)
        assert await asyncio.to_thread(host.process.wait) == os.EX_SOFTWARE
        await client.close()


async def test_an_engine_that_was_stopped_is_not_taken_for_a_hung_one(tmp_path: Path, journal: Path) -> None:
    settings = settings_in(tmp_path)
    with running_host(settings, "llm", scripted=True, stuck_s=0.2) as host:
        client = SocketEngine(settings, "llm")
        gate = tmp_path / "gate"
        working = asyncio.create_task(texts(client, script(journal, "a", gate=str(gate)), 0.5))
        await until(lambda: "a:begun" in noted(journal))
        host.process.send_signal(signal.SIGSTOP)
        with pytest.raises(EngineError):
            await working
        await asyncio.sleep(1.5)
        gate.touch()
        host.process.send_signal(signal.SIGCONT)
        assert await texts(client, script(journal, "b")) == ["b0"]
        assert host.process.poll() is None
        await client.close()


def test_nothing_is_served_or_announced_before_the_engine_is_warm(tmp_path: Path) -> None:
    problem = runpy.run_path(str(REPOSITORY / "infra/docker/healthcheck.py"))["problem"]
    settings = settings_in(tmp_path, embeddings="tests.support.engines:slow_to_warm")
    name = "engine-embeddings.0"
    host = start_host(settings, "embeddings")
    try:
        while not (tmp_path / "warming").exists():
            assert host.process.poll() is None, host.log.read_text()
            time.sleep(0.01)
        assert not responds(settings, "embeddings")
        assert not socket_path(settings, "embeddings").exists()
        assert problem(name, settings.run_dir) == f"{name} has not announced itself yet"
        (tmp_path / "warm").touch()
        host.wait_ready()
        assert responds(settings, "embeddings")
        assert problem(name, settings.run_dir) == ""
    finally:
        host.stop()
    assert problem(name, settings.run_dir) == f"{name} is gone"


def test_a_second_process_leaves_the_first_alone(host: HostProcess) -> None:
    second = start_host(host.settings, "llm", scripted=True)
    assert second.process.wait() == 1
    assert "another process serves the llm engine" in second.log.read_text()
    assert responds(host.settings, "llm")


def test_an_altered_model_is_refused_by_name(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "data")
    wrong = settings.models_file.read_text().replace("5f70741d", "00000000")
    (tmp_path / "models.yaml").write_text(wrong)
    settings.models_file = tmp_path / "models.yaml"
    host = start_host(settings, "tts")
    assert host.process.wait() == os.EX_CONFIG
    assert "model hibari: file hibari.onnx" in host.log.read_text()
    assert "expected sha256 00000000" in host.log.read_text()


async def test_a_data_directory_of_any_length_will_do(tmp_path: Path, journal: Path) -> None:
    settings = settings_in(tmp_path / ("long" * 30))
    path = socket_path(settings, "llm")
    assert len(os.fsencode(path)) < 104
    with running_host(settings, "llm", scripted=True):
        assert path.parent.stat().st_mode & 0o777 == 0o700
        client = SocketEngine(settings, "llm")
        assert await texts(client, script(journal, "a")) == ["a0"]
        await client.close()
    path.unlink()


async def test_a_server_that_is_no_engine_host_is_not_believed(tmp_path: Path, journal: Path) -> None:
    settings = settings_in(tmp_path)
    path = socket_path(settings, "llm")
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        one.listen()
        client = SocketEngine(settings, "llm", silence_s=0.2)
        answer = asyncio.create_task(asyncio.to_thread(lambda: one.accept()[0].sendall(b"\x00\x00\x00\x03abc")))
        with pytest.raises(EngineError, match="timeout: no llm engine"):
            await texts(client, script(journal, "a"), 0.5)
        await answer
        await client.close()
