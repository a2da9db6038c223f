"""The command line as its user has it: a process, its exit code and what it prints."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as replace_struct

from api.supervisor import hold
from processors import choices
from processors.stage import caused
from schemas.event import Event
from schemas.events import (
    AudioFrame,
    Entity,
    Intent,
    IntentKind,
    Response,
    ResponseKind,
    Session,
    SessionKind,
    Transcript,
    TranscriptKind,
)
from streams.producer import LogProducer
from streams.settings import REPOSITORY, EngineSettings, Settings
from tests.support.kafka import TestBroker

COMMANDS = (
    *("up", "down", "status", "restart", "engines", "demo", "call", "models"),
    *("sessions", "show", "tail", "topics", "sql"),
)
TOLD_AT_US = (int(time.time()) - 60) * 1_000_000  # what is older than its topic keeps may be gone at any moment


def run(*arguments: str, data_dir: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    command = [sys.executable, "-m", "api.cli.main", *arguments]
    given = {**kept, "TRUNKLINE_DATA_DIR": str(data_dir), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=given, cwd=REPOSITORY, timeout=60)


def json_lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_help_names_every_command_and_loads_nothing_heavy(tmp_path: Path) -> None:
    done = run("--help", data_dir=tmp_path)
    assert done.returncode == 0
    assert all(f" {command} " in done.stdout for command in (*COMMANDS, "worker", "api", "sink", "broker"))
    heavy = "import api.cli.main, sys; print([m for m in ('numpy', 'confluent_kafka', 'pydantic') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, cwd=REPOSITORY)
    assert loaded.stdout.strip() == "[]"


def test_status_of_nothing_is_said_and_has_its_exit_code(tmp_path: Path) -> None:
    done = run("status", "--json", data_dir=tmp_path)
    where = dict.fromkeys(("url", "bootstrap_servers", "clickhouse_url"))
    nothing: dict[str, Any] = {"running": False, **where, "components": []}
    assert (done.returncode, json.loads(done.stdout)) == (3, nothing)
    assert "trunkline up" in run("status", data_dir=tmp_path).stdout


def test_down_with_nothing_running_is_no_failure(tmp_path: Path) -> None:
    done = run("down", data_dir=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"no platform is running on {tmp_path}\n")


@pytest.mark.parametrize("command", [("topics",), ("sessions",), ("show", "x"), ("tail",), ("sql", "SELECT 1")])
def test_what_needs_a_platform_says_how_to_start_one(command: Sequence[str], tmp_path: Path) -> None:
    done = run(*command, data_dir=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("trunkline: no ")
    assert "trunkline up" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_second_up_on_a_data_directory_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    with hold(Settings(data_dir=tmp_path)):
        done = run("up", "--port", "0", data_dir=tmp_path)
    assert done.returncode == 1
    assert f"pid {os.getpid()}" in done.stderr
    assert "trunkline down" in done.stderr


@pytest.mark.parametrize("detach", [(), ("--detach",)])
def test_a_port_in_use_is_named_with_what_to_do(detach: Sequence[str], tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run("up", "--port", str(port), *detach, data_dir=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"trunkline: port {port} on 127.0.0.1 is in use by ")
    assert "--port" in done.stderr
    assert f"pid {os.getpid()}" in done.stderr


def test_a_setting_that_is_wrong_is_named(tmp_path: Path) -> None:
    done = run("topics", data_dir=tmp_path, TRUNKLINE_KAFKA__PARTITIONS="many")
    assert done.returncode == 1
    assert "TRUNKLINE_KAFKA__PARTITIONS" in done.stderr


def test_a_call_with_a_file_that_is_no_audio_names_it(tmp_path: Path) -> None:
    path = tmp_path / "notes.wav"
    path.write_text("buy milk")
    done = run("call", str(path), "--url", "http://127.0.0.1:1", data_dir=tmp_path)
    assert done.returncode == 1
    assert "notes.wav: is no WAV file" in done.stderr
    assert "expected RIFF/WAVE" in done.stderr


def test_a_call_to_nobody_says_what_to_try(tmp_path: Path) -> None:
    speech = REPOSITORY / "tests" / "data" / "speech" / "librivox_0880.wav"
    done = run("call", str(speech), "--url", "http://127.0.0.1:1", data_dir=tmp_path)
    assert done.returncode == 1
    assert "nothing answers at ws://127.0.0.1:1/v1/calls" in done.stderr


def test_models_are_listed_with_licence_and_hash(tmp_path: Path) -> None:
    rows = json_lines(run("models", "--json", data_dir=tmp_path))
    assert {row["role"] for row in rows if row["used"]} >= {"stt", "embeddings", "llm", "tts"}
    for row in rows:
        assert row["licence"]
        assert len(row["sha256"]) == 64
        assert row["state"] == "present" or not row["used"]


def test_models_that_took_over_are_used_too(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, engines=EngineSettings(stt_model="whisper-tiny-en"))

    def used() -> set[str]:
        done = run("models", "--json", data_dir=tmp_path, TRUNKLINE_ENGINES__STT_MODEL="whisper-tiny-en")
        return {row["name"] for row in json_lines(done) if row["used"]}

    before = used()
    assert "whisper-base" not in before
    kept = choices.read(settings, "stt")
    swapped = replace_struct(choices.find(settings, "stt", "whisper-base"), generation=1)
    choices.write(settings, "stt", replace_struct(kept, choices=(*kept.choices, swapped), last=1))
    assert used() == before | {"whisper-base"}


def test_a_stage_that_is_none_is_refused(tmp_path: Path) -> None:
    done = run("worker", "soup", data_dir=tmp_path)
    assert done.returncode == 2
    assert "stt, intent, llm, tts" in done.stderr


@pytest.fixture(scope="module")
def spoken_session(kafka: TestBroker) -> str:
    """A short call that lies on the broker."""
    session_id = str(uuid.uuid4())
    events = call_events(session_id)

    async def publish() -> None:
        producer = LogProducer(kafka.settings(), "test-cli")
        futures = [producer.publish(event) for event in events]
        await producer.flush()
        for future in futures:
            await future
        await producer.close()

    asyncio.run(publish())
    return session_id


def call_events(session_id: str) -> list[Event]:
    envelope: dict[str, Any] = {"session_id": session_id, "tenant_id": "demo", "agent_id": "shop", "seq": 0}
    started = Session(
        event_id=str(uuid.uuid4()),
        turn=0,
        occurred_at=TOLD_AT_US,
        kind=SessionKind.STARTED,
        channel="websocket",
        **envelope,
    )
    frame = caused(
        started,
        AudioFrame,
        "frame",
        TOLD_AT_US + 100_000,
        pcm=b"\1\0" * 640,
        sample_index=0,
        captured_at=TOLD_AT_US,
        turn=1,
    )
    frames = [replace(frame, event_id=f"{frame.event_id[:-1]}{at}", sample_index=640 * at) for at in range(3)]
    final = caused(
        frames[0],
        Transcript,
        "final",
        TOLD_AT_US + 900_000,
        kind=TranscriptKind.FINAL,
        utterance=1,
        text="where is order 1234",
    )
    intent = caused(
        final,
        Intent,
        "detected",
        TOLD_AT_US + 950_000,
        kind=IntentKind.DETECTED,
        intent="order_status",
        confidence=0.93,
        entities=(Entity("order_number", "1234", "one two three four"),),
        text=final.text,
    )
    called = caused(
        intent,
        Response,
        "tool",
        TOLD_AT_US + 960_000,
        kind=ResponseKind.TOOL_CALLED,
        tool="get_order",
        arguments='{"order_number": "1234"}',
    )
    ended = caused(
        started, Session, "ended", TOLD_AT_US + 2_000_000, kind=SessionKind.ENDED, reason="caller", duration_ms=2000
    )
    return [started, *frames, final, intent, called, ended]


def on(kafka: TestBroker) -> dict[str, str]:
    keys = os.environ["TRUNKLINE_PRIVACY__KEYS_DIR"]
    return {"TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers, "TRUNKLINE_PRIVACY__KEYS_DIR": keys}


def test_sessions_lists_the_call(kafka: TestBroker, spoken_session: str) -> None:
    rows = json_lines(run("sessions", "--json", "--limit", "1000", data_dir=kafka.data_dir, **on(kafka)))
    (row,) = [row for row in rows if row["session_id"] == spoken_session]
    assert (row["agent"], row["channel"], row["state"], row["duration_ms"]) == ("shop", "websocket", "ended", 2000)


def test_show_prints_the_timeline_with_places_in_the_log(kafka: TestBroker, spoken_session: str) -> None:
    done = run("show", spoken_session, data_dir=kafka.data_dir, **on(kafka))
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "0.12 s of audio" in done.stdout
    assert '"where is order 1234"' in done.stdout
    assert "order_number=1234" in done.stdout
    assert 'get_order({"order_number": "1234"})' in done.stdout
    rows = json_lines(run("show", spoken_session, "--json", data_dir=kafka.data_dir, **on(kafka)))
    assert sorted(row["type"] for row in rows) == sorted(event.ce_type for event in call_events(spoken_session))
    assert all({"topic", "partition", "offset", "time"} <= row.keys() for row in rows)
    assert len({row["partition"] for row in rows}) == 1
    assert next(row for row in rows if row["topic"] == "voice.audio.in")["pcm"] == {"size_bytes": 1280}


def test_show_of_an_unknown_session_says_so(kafka: TestBroker) -> None:
    done = run("show", "nobody", data_dir=kafka.data_dir, **on(kafka))
    assert (done.returncode, done.stdout) == (1, "")
    assert "trunkline sessions" in done.stderr


def test_topics_shows_partitions_retention_and_size(kafka: TestBroker, spoken_session: str) -> None:
    rows = {row["topic"]: row for row in json_lines(run("topics", "--json", data_dir=kafka.data_dir, **on(kafka)))}
    audio, state = rows["voice.audio.in"], rows["voice.state.stt"]
    assert (audio["partitions"], audio["retention_ms"]) == (8, 32 * 86_400_000)
    assert audio["records"] >= 3
    assert audio["size_bytes"] > 3 * 1280
    assert state["retention_ms"] is None
    assert "latest per key" in run("topics", data_dir=kafka.data_dir, **on(kafka)).stdout


def test_tail_decodes_what_is_there_and_what_comes(kafka: TestBroker, spoken_session: str) -> None:
    command = ["tail", "--from-start", "--json", "--topic", "intents", "--topic", "voice.sessions"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    with subprocess.Popen(
        [sys.executable, "-m", "api.cli.main", *command, "--session", spoken_session],
        stdout=subprocess.PIPE,
        text=True,
        env={**kept, **on(kafka), "TRUNKLINE_DATA_DIR": str(kafka.data_dir)},
        cwd=REPOSITORY,
    ) as tail:
        assert tail.stdout is not None
        try:
            seen = [json.loads(tail.stdout.readline()) for _ in range(3)]
            tail.send_signal(signal.SIGINT)
            assert tail.wait(timeout=20) == 130
        finally:
            tail.kill()  # where it does not stop, as where SIGINT is ignored by all, the test fails and does not hang
    kinds = sorted(row["type"] for row in seen)
    assert kinds == ["trunkline.intent.detected", "trunkline.session.ended", "trunkline.session.started"]


def test_tail_of_a_topic_that_is_none_lists_those_there_are(kafka: TestBroker) -> None:
    done = run("tail", "--topic", "soup", data_dir=kafka.data_dir, **on(kafka))
    assert done.returncode == 2
    assert "voice.transcripts" in done.stderr
