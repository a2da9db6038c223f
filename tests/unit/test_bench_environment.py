"""What a measured platform is told by the environment, what faults need, and with what others are measured."""

import os
import subprocess
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from api.errors import OperatorError
from bench import recovery, running
from bench.environment import environment, forget
from bench.faults.faults import chosen
from bench.faults.platform import Platform
from bench.peers import pipecat_peer
from processors import models
from processors.runner import Limits
from processors.session import Snapshot
from schemas.events import AudioFrame
from streams.settings import Settings

EXPORTED = {
    "TRUNKLINE_CLICKHOUSE__HOST": "analytics.example",
    "TRUNKLINE_ADAPTER_URLS": '{"sap": "https://sap.example"}',
    "TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS": "kafka.example:9092",
    "TRUNKLINE_PRIVACY__KEYS_DIR": "/srv/keys",
    "TRUNKLINE_SECRET_SAP_USER": "somebody",
    "trunkline_erp_url": "https://erp.example",
    "TRUNKLINE_MODELS_FILE_OLD": "/srv/models.yaml",
}
KEPT = {"TRUNKLINE_MODELS_FILE": "/srv/models.yaml", "TRUNKLINE_ENGINES__DEVICE": "cuda", "JAVA_HOME": "/srv/java"}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's environment, with a platform at work in it."""
    for name in list(os.environ):
        if name.startswith("TRUNKLINE_"):
            monkeypatch.delenv(name)
    for name, value in (EXPORTED | KEPT).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("exported")
def test_a_measurement_heeds_what_it_is_given_and_where_models_are() -> None:
    given = environment({"TRUNKLINE_ADAPTER_URLS": "{}"})
    assert given.items() >= {**KEPT, "TRUNKLINE_ADAPTER_URLS": "{}"}.items()
    assert given.keys() & EXPORTED.keys() == {"TRUNKLINE_ADAPTER_URLS"}
    assert sorted(forget()) == sorted(EXPORTED)
    assert os.environ.keys() & EXPORTED.keys() == set()
    assert forget() == []


@pytest.mark.usefixtures("exported")
def test_a_platform_under_measurement_or_trial_is_told_no_real_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[dict[str, str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        told.append(options["env"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    with running.platform_directory({"TRUNKLINE_LOAD__REFUSE": "false"}):
        pass
    trial = Platform(tmp_path, {"TRUNKLINE_LOAD__REFUSE": "false"})
    for one in (*told, trial._environment):
        assert {name for name in one if name.upper().startswith("TRUNKLINE_")} == {
            "TRUNKLINE_MODELS_FILE",
            "TRUNKLINE_ENGINES__DEVICE",
            "TRUNKLINE_LOAD__REFUSE",
        }
    assert len(told) == 2
    assert trial._place.keys_dir == tmp_path / "keys"


def test_a_fault_that_needs_a_cluster_is_not_passed_over() -> None:
    for names in ("kafka.leader", "kafka", "kill.stt,kafka.leader"):
        with pytest.raises(OperatorError, match=r"kafka\.leader: .*--cluster"):
            chosen(names)
    assert [fault.name for fault in chosen("kafka.leader", cluster=True)] == ["kafka.leader"]


def test_another_framework_tuned_reads_with_the_model_that_trunkline_reads_with_first() -> None:
    assert pipecat_peer.WHISPER["tuned"] == models.readers(Settings())[0].name
    assert set(pipecat_peer.WHISPER) == set(pipecat_peer.PROFILES)


class Written:
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def publish_raw(self, topic: str, key: bytes, value: bytes, partition: int) -> Awaitable[None]:
        self.snapshots.append(msgspec.msgpack.decode(value, type=Snapshot))
        return _nothing()


class Silent:
    """A core that keeps nothing."""

    def start(self, session_id: str) -> "Silent":
        return self

    def apply(self, *_: object) -> "Silent":
        return self

    @property
    def state(self) -> "Silent":
        return self

    def save(self, state: object) -> bytes:
        return b"state"


async def _nothing() -> None: ...


async def test_ten_minutes_leave_as_many_snapshots_as_a_stage_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    written, interval_s = Written(), Limits().snapshot_interval_s
    await recovery._ten_minutes(Settings(), written, Silent(), ["a"], 0.0)  # type: ignore[arg-type]
    assert len(written.snapshots) == 600 / interval_s
    first, second = (one.applied[AudioFrame.TOPIC] for one in written.snapshots[:2])
    assert second - first == recovery.FRAMES_PER_S * interval_s
