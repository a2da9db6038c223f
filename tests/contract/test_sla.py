"""Service levels from events that went through Kafka and the sink: known calls, known answers, alerts, reports."""

import asyncio
import functools
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from processors.sla import queries
from processors.sla.objectives import load_tiers
from schemas import json_form
from schemas.event import Event
from schemas.events import (
    AudioFrame,
    Health,
    HealthKind,
    Response,
    ResponseKind,
    Session,
    SessionKind,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)
from streams.producer import LogProducer
from streams.settings import REPOSITORY
from tests.support.kafka import TestBroker
from tests.support.sink import SinkProcess

MINUTE_US = 60_000_000
TENANT = f"tenant-{uuid.uuid4()}"


@functools.cache
def now_us() -> int:
    """The moment in which the first test here began: the calls' times are minutes before it."""
    return time.time_ns() // 1000


class Call:
    """Events of one call, told in minutes before now."""

    def __init__(self, tenant: str = TENANT) -> None:
        self.events: list[Event] = []
        self._tenant = tenant
        self._session_id = str(uuid.uuid4())

    def put(self, event: type[Event], at_us: int, turn: int = 0, **fields: Any) -> "Call":
        example = json_form.examples(event)[0]
        named = {"event_id": str(uuid.uuid4()), "session_id": self._session_id, "tenant_id": self._tenant}
        fields = {**named, "turn": turn, "seq": len(self.events), "occurred_at": at_us, **fields}
        self.events.append(replace(example, **fields))
        return self

    def started(self, minutes: float) -> "Call":
        return self.put(Session, ago(minutes), kind=SessionKind.STARTED, reason="")

    def ended(self, minutes: float, reason: str = "hung_up") -> "Call":
        return self.put(Session, ago(minutes), kind=SessionKind.ENDED, reason=reason)

    def asked(self, minutes: float, turn: int = 1, confidence: float = 0.9) -> "Call":
        at_us = ago(minutes)
        final = {"kind": TranscriptKind.FINAL, "revision": 1, "speech_ended_at": at_us, "confidence": confidence}
        return self.put(Transcript, at_us + 50_000, turn, **final)

    def spoken(self, minutes: float, waited_ms: int, turn: int = 1) -> "Call":
        chunk = {"kind": SpeechChunkKind.AUDIO, "revision": 1, "committed": True}
        return self.put(SpeechChunk, ago(minutes) + 1000 * waited_ms, turn, **chunk)

    def completed(self, minutes: float, outcome: str, turn: int = 1) -> "Call":
        return self.put(
            Response, ago(minutes), turn, kind=ResponseKind.COMPLETED, outcome=outcome, committed=True, revision=1
        )


def ago(minutes: float) -> int:
    return now_us() - round(minutes * MINUTE_US)


def calls() -> list[Call]:
    """Eleven attempts of the tenant's callers, of which eight fail; two calls that do not count."""
    good = Call().started(30).ended(20)
    for turn in range(1, 21):
        good.asked(30 - turn / 4, turn).spoken(30 - turn / 4, 100 * turn, turn)
    good.events.append(replace(good.events[1], seq=99))  # the sink's repeat of what it has seen
    shown = Call().started(30).asked(25).ended(24)
    shown.put(SpeechChunk, ago(24.9), 1, kind=SpeechChunkKind.TEXT, revision=1, committed=True)
    refused = Call().put(Health, ago(10), kind=HealthKind.CALLS_REFUSED, component="api", refused=3, reason="sessions")
    lost = Call().started(170).put(AudioFrame, ago(100))
    return [
        good,
        Call().started(30).ended(19, "failed"),
        Call().started(30).ended(18, "shutdown"),
        lost,
        Call().started(15).put(AudioFrame, ago(0.1)),
        Call().started(30).asked(27, confidence=0.4).spoken(27, 500).completed(26.9, "failed").ended(17),
        Call().started(30).asked(20, confidence=0.2).ended(19.8),
        Call().started(30).asked(20).ended(19.95),
        shown,
        refused,
        Call(f"other-{TENANT}").started(30).ended(19, "failed"),
    ]


@pytest.fixture(scope="module")
def sla_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiers")
    text = (REPOSITORY / "infra" / "sla" / "standard.yaml").read_text(encoding="utf-8")
    (folder / "standard.yaml").write_text(text.replace("[demo]", f"[{TENANT}]"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def sink(kafka: TestBroker, sla_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkProcess]:
    """A sink that holds the calls; only once it holds them all does it look at the budgets, every second."""
    events = [event for call in calls() for event in call.events]

    async def publish() -> None:
        async with LogProducer(kafka.settings(), "test.sla") as producer:
            await asyncio.gather(*(producer.publish(event) for event in events))

    asyncio.run(publish())
    running = SinkProcess(tmp_path_factory.mktemp("sink"), kafka.bootstrap_servers, TRUNKLINE_SLA_LOOK_S="1")
    try:
        running.start()
        where = f"WHERE tenant_id LIKE '%{TENANT}' AND occurred_at < toDateTime64('{now_us() / 1e6}', 6, 'UTC')"
        for kind, table in ((Session, "sessions"), (Transcript, "transcripts"), (SpeechChunk, "speech_chunks")):
            expected = len({event.event_id for event in events if isinstance(event, kind)})
            running.wait_for(f"SELECT uniqExact(event_id) FROM {table} {where}", expected)
        running.wait_for(f"SELECT count() FROM health FINAL WHERE tenant_id = '{TENANT}' AND refused > 0", 1)
        running.wait_for(f"SELECT uniqExact(session_id) FROM audio_frames WHERE tenant_id = '{TENANT}'", 2)
        running.wait_for(f"SELECT count() FROM responses FINAL WHERE tenant_id = '{TENANT}'", 1)
        running.kill()
        running.environment["TRUNKLINE_SLA_DIR"] = str(sla_dir)
        running.start()
        yield running
    finally:
        running.kill()


def ask(sink: SinkProcess, query: str, sla_dir: Path) -> list[list[Any]]:
    """The rows, for the two hours before now."""
    tier = load_tiers(sla_dir)[TENANT]
    given = queries.parameters(TENANT, tier, ago(120), now_us())
    answer = sink.ask(
        query,
        default_format="JSONCompact",
        output_format_json_quote_64bit_integers="0",
        **{f"param_{name}": value for name, value in given.items()},
    )
    assert answer.status_code == 200, answer.text
    rows: list[list[Any]] = answer.json()["data"]
    return rows


def test_known_calls_have_known_counts(sink: SinkProcess, sla_dir: Path) -> None:
    totals = {name: (events, bad) for name, events, bad, *_ in ask(sink, queries.TOTALS, sla_dir)}
    assert totals == {
        "session_success": (11, 8),
        "voice_to_voice_p50": (21, 10),
        "voice_to_voice_p95": (21, 0),
        "voice_to_voice_p99": (21, 0),
        "stt_confidence": (24, 2),
    }
    by_minute: dict[str, list[int]] = {}
    for name, minute_s, events, bad in ask(sink, queries.BY_MINUTE, sla_dir):
        assert minute_s % 60 == 0
        found = by_minute.setdefault(name, [0, 0])
        found[0] += events
        found[1] += bad
    assert {name: tuple(found) for name, found in by_minute.items()} == totals


def test_every_failure_has_its_reason(sink: SinkProcess, sla_dir: Path) -> None:
    failures = dict(ask(sink, queries.FAILURES, sla_dir))
    assert failures == {"error": 2, "lost": 1, "apology": 1, "unanswered": 1, "refused": 3}


def test_percentiles_are_the_nearest_ranks(sink: SinkProcess, sla_dir: Path) -> None:
    values = sorted([100 * turn for turn in range(1, 21)] + [500])
    expected = [values[-(-percent * len(values) // 100) - 1] for percent in (50, 95, 99)]
    assert ask(sink, queries.PERCENTILES_MS, sla_dir) == [expected]


def test_a_budget_that_burns_is_told_once_whatever_restarts(sink: SinkProcess) -> None:
    told = f"SELECT count() FROM health FINAL WHERE tenant_id = '{TENANT}' AND kind = 'burn_raised'"
    objective = "AND objective = 'session_success'"
    sink.wait_for(f"{told} {objective}", 1)
    row = sink.ask(
        f"SELECT level, window_s, round(burn_rate), component, reason FROM health "
        f"WHERE tenant_id = '{TENANT}' AND kind = 'burn_raised' {objective} FORMAT JSONCompactEachRow"
    )
    level, window_s, rate, component, reason = json.loads(row.text)
    assert component == "clickhouse"
    assert (level, window_s) in ((2, 21_600), (1, 259_200))  # the latter on a machine that needs long
    assert (rate, reason[:19]) == (round(8 / 11 / 0.005), "8 of 11 were bad in")
    sink.kill()
    sink.start()
    time.sleep(3)
    assert sink.number(f"{told} {objective}") == 1


def run(sink: SinkProcess, sla_dir: Path, data_dir: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command line, which asks the sink's ClickHouse as it would a server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    environment = kept | {
        "TRUNKLINE_DATA_DIR": str(data_dir),
        "TRUNKLINE_SLA_DIR": str(sla_dir),
        "TRUNKLINE_CLICKHOUSE__HOST": "127.0.0.1",
        "TRUNKLINE_CLICKHOUSE__PORT": str(sink.port),
    }
    command = [sys.executable, "-m", "api.cli.main", "sla", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=120)


def test_a_report_is_signed_and_an_altered_one_is_refused(sink: SinkProcess, sla_dir: Path, tmp_path: Path) -> None:
    data_dir, out = tmp_path / "data", tmp_path / "report.json"
    month = time.strftime("%Y-%m", time.gmtime(now_us() / 1e6))
    done = run(sink, sla_dir, data_dir, "report", "--tenant", TENANT, "--month", month, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    signed = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(done.stdout) == signed
    report = signed["report"]
    assert (report["tenant"], report["tier"], report["month"], report["complete"]) == (TENANT, "Standard", month, False)
    by_name = {one["name"]: one for one in report["objectives"]}
    success = by_name["session_success"]
    if success["events"] == 11:  # at the turn of a month, some of the calls are another month's
        assert (success["bad"], success["met"], success["attained_percent"]) == (8, False, 27.2727)
        assert success["budget_events"] == pytest.approx(0.055)
        assert success["burn_rate"]["month"] == pytest.approx(145.4545)
        assert report["failures"]["refused"] == 3
    assert run(sink, sla_dir, data_dir, "verify", str(out)).returncode == 0
    pem = tmp_path / "public.pem"
    pem.write_text(run(sink, sla_dir, data_dir, "key").stdout)
    told = run(sink, sla_dir, tmp_path / "elsewhere", "verify", str(out), "--key", str(pem))
    assert (told.returncode, TENANT in told.stdout) == (0, True)
    unknown = run(sink, sla_dir, tmp_path / "elsewhere", "verify", str(out))
    assert unknown.returncode == 1
    assert "--key" in unknown.stderr
    report["objectives"][0]["bad"] = 0
    out.write_text(json.dumps(signed), encoding="utf-8")
    altered = run(sink, sla_dir, data_dir, "verify", str(out))
    assert (altered.returncode, altered.stdout) == (1, "")
    assert "the content is not what was signed" in altered.stderr


def test_a_report_for_people_shows_every_objective(sink: SinkProcess, sla_dir: Path, tmp_path: Path) -> None:
    done = run(sink, sla_dir, tmp_path, "report", "--tenant", TENANT)
    assert done.returncode == 0, done.stderr
    for name in ("session_success", "voice_to_voice_p50", "voice_to_voice_p95", "voice_to_voice_p99", "stt_confidence"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--tenant", "nobody"), "tenant 'nobody' is in no file of"),
        (("--tenant", TENANT, "--month", "2026-13"), "'2026-13' is no month; expected a form such as 2026-11"),
        (("--tenant", TENANT, "--month", "2999-01"), "2999-01 has not begun"),
    ],
)
def test_what_cannot_be_reported_is_said(
    sink: SinkProcess, sla_dir: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    done = run(sink, sla_dir, tmp_path, "report", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_sink_with_a_mistake_in_its_tiers_says_where_and_does_not_start(kafka: TestBroker, tmp_path: Path) -> None:
    (tmp_path / "tier.yaml").write_text("name: X\ntenants: []\n", encoding="utf-8")
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    sink = SinkProcess(data_dir, kafka.bootstrap_servers, TRUNKLINE_SLA_DIR=str(tmp_path))
    sink.start(wait=False)
    try:
        assert sink.ended() == os.EX_CONFIG
        assert "tier.yaml:1: session_success: is missing" in sink.log.read_text()
    finally:
        sink.kill()
