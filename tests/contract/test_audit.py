"""The audit record on a real Kafka and a real ClickHouse: what is done to either copy of a call is named."""

import asyncio
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from processors.audit import checkpoints
from processors.audit.accesses import Accesses
from processors.audit.anchor import last_checkpoint, place_of, read_checkpoints
from processors.audit.comparison import BOTH, CLICKHOUSE, KAFKA, Finding
from processors.audit.export import export_call
from processors.audit.tables import Ask
from processors.audit.verify import Report, Verifier
from processors.erasure import erase_event
from schemas import json_form
from schemas.event import Event
from schemas.events import (
    EVENTS,
    Access,
    AccessKind,
    AudioFrame,
    Checkpoint,
    Control,
    Health,
    Session,
    SpeechChunk,
    Transcript,
)
from streams import signing
from streams.client import LogError, Partition
from streams.clock import SystemClock
from streams.consumer import BEGINNING, END, LogReader, session_records
from streams.keys import partition_of
from streams.producer import LogProducer
from streams.provision import ensure_topics
from streams.registry import codec_for, keyring_for
from streams.settings import REPOSITORY, Settings
from tests.support.gateway import running_gateway
from tests.support.kafka import TestBroker, running_broker
from tests.support.sink import SinkProcess, of_session, publish
from tests.support.tamper import alter_in_segment

KINDS = [event for event in EVENTS if event is not Checkpoint]
CHAINED = [event.TOPIC for event in KINDS]
EACH = 4
# To verify everything asks two questions for each partition.
FEW = {"partitions": 2}


@contextmanager
def brokers(folder: Path) -> Iterator[TestBroker]:
    """One with the platform's topics, few partitions each."""
    with running_broker(folder) as own:
        ensure_topics(own.settings(kafka=FEW))
        yield own


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    """Of this module alone: its files are written over."""
    with brokers(tmp_path_factory.mktemp("kafka")) as own:
        yield own


@pytest.fixture
def empty_broker(tmp_path: Path) -> Iterator[TestBroker]:
    """For a sink of the test's own, which reads all that is there."""
    with brokers(tmp_path / "kafka") as own:
        yield own


class Audited:
    """A sink that signs every half second, and what verifies its record."""

    def __init__(self, broker: TestBroker, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.broker = broker
        self.folder = folder
        self.settings = broker.settings(data_dir=folder, kafka=FEW)
        few = {"TRUNKLINE_KAFKA__PARTITIONS": str(self.settings.kafka.partitions)}
        self.sink = SinkProcess(folder, broker.bootstrap_servers, TRUNKLINE_AUDIT__CHECKPOINT_S="0.5", **few)

    @property
    def ask(self) -> Ask:
        def rows(query: str, given: Mapping[str, str]) -> Sequence[Sequence[Any]]:
            named = {f"param_{name}": value for name, value in given.items()}
            form = {"default_format": "JSONCompact", "output_format_json_quote_64bit_integers": "0"}
            answer = self.sink.ask(query, **form, **named)
            assert answer.status_code == 200, answer.text
            found: Sequence[Sequence[Any]] = answer.json()["data"]
            return found

        return rows

    async def verified(self, session: str | None, anchor: checkpoints.Statement | None = None) -> Report:
        trusted = [signing.public_key(self.settings)]
        return await Verifier(self.settings, codec_for(self.settings), self.ask, trusted, SystemClock()).verify(
            session, anchor
        )

    async def call(self) -> str:
        """A call with some events of each kind, whose records are signed."""
        session_id = str(uuid.uuid4())
        await publish(self.settings, events_of(session_id))
        await self.signed(session_id, EACH * len(KINDS))
        return session_id

    async def signed(self, session_id: str, count: int) -> None:
        """Waits until so many records of the call are under heads that this sink signed, and ClickHouse has those."""
        series = checkpoints.series_of(signing.public_key(self.settings))
        signed = (
            f"SELECT sum(last) FROM (SELECT max(head.position) AS last FROM checkpoints ARRAY JOIN heads AS head "
            f"WHERE session_id = '{series}' AND head.record_key = '{session_id}' GROUP BY head.topic)"
        )
        await asyncio.to_thread(self.sink.wait_for, signed, count)

    def tamper(self, statements: Sequence[str]) -> None:
        """Runs SQL in ClickHouse with the sink stopped."""
        assert self.sink.stop() == 0
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.tamper", str(self.folder)],
            cwd=REPOSITORY,
            input="\n".join(map(json.dumps, statements)),
            text=True,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        self.sink.start()


def events_of(session_id: str) -> list[Event]:
    """A call's events: some of each kind, audio that can be heard apart, words that are its own."""
    events: list[Event] = []
    for number, event in itertools.product(range(EACH), KINDS):
        one = of_session(json_form.examples(event)[0], session_id, number)
        if isinstance(one, AudioFrame):
            pcm = random.Random(f"{session_id}/{number}").randbytes(640)
            one = replace(one, pcm=pcm, sample_index=320 * (number + number // 2))
        if isinstance(one, SpeechChunk):
            one = replace(one, pcm=random.Random(f"agent {session_id}/{number}").randbytes(640))
        if isinstance(one, Transcript):
            one = replace(one, text=f"word {number} of {session_id}")
        events.append(one)
    return events


@pytest.fixture(scope="module")
def audited(broker: TestBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    made = Audited(broker, tmp_path_factory.mktemp("sink"))
    try:
        made.sink.start()
        yield made
    finally:
        made.sink.kill()


async def places(settings: Settings, session_id: str, event: type[Event]) -> list[int]:
    """The offsets of the call's records in a topic."""
    return [record.offset for record in await session_records(settings, session_id, [event.TOPIC])]


def brief(findings: Sequence[Finding]) -> list[tuple[str, str, str, int]]:
    return [(one.store, one.kind, one.topic, one.offset) for one in findings]


async def test_what_nobody_touched_is_as_it_was(audited: Audited) -> None:
    session_id = await audited.call()
    report = await audited.verified(session_id)
    assert report.findings == []
    assert (report.records, report.unsigned, report.expired) == (EACH * len(KINDS), 0, 0)
    assert report.rows >= EACH * len(KINDS)
    assert report.signed_until_us > 0
    everything = await audited.verified(None)
    assert everything.findings == []
    assert everything.records >= report.records


async def test_a_session_that_nobody_knows_has_no_records(audited: Audited) -> None:
    report = await audited.verified(str(uuid.uuid4()))
    assert (report.records, report.findings) == (0, [])


@pytest.mark.parametrize("what", ["value", "key", "header"])
async def test_an_altered_byte_in_kafkas_file_is_named(audited: Audited, what: str) -> None:
    session_id = await audited.call()
    number = partition_of(session_id, audited.settings.kafka.partitions)
    place = Partition(Transcript.TOPIC, number)
    records = await session_records(audited.settings, session_id, [Transcript.TOPIC])
    record = records[2]
    assert record.value is not None
    sealed = record.value[-16:]
    # The key stands before the value, the event's id in the value and in a header behind it.
    event_id = codec_for(audited.settings).decode(record.topic, record.value).event_id.encode()
    before, after = {
        "value": (sealed, sealed[::-1]),
        "key": (_between(session_id.encode(), record.value), _between(session_id.encode()[::-1], record.value)),
        "header": (b"ce_id" + b"\x48" + event_id, b"ce_id" + b"\x48" + event_id[::-1]),
    }[what]
    folder = audited.broker.data_dir
    alter_in_segment(folder, place, before, after)
    try:
        for scope in (session_id, None):
            report = await audited.verified(scope)
            own = [one for one in report.findings if one.key == session_id]
            kind = "removed" if what == "key" else "altered"
            assert brief(own) == [(KAFKA, kind, Transcript.TOPIC, record.offset)]
            assert (own[0].partition, own[0].signed) == (number, True)
            # Under its other key the record is one too many.
            assert len(report.findings) == (2 if what == "key" and scope is None else 1)
    finally:
        alter_in_segment(folder, place, after, before)
    assert (await audited.verified(session_id)).findings == []


def _between(key: bytes, value: bytes | None) -> bytes:
    """The key and the value's beginning as they lie one behind the other, with the value's length between them."""
    assert value is not None
    length, rest = b"", len(value) << 1
    while rest >= 0x80:
        length, rest = length + bytes([rest & 0x7F | 0x80]), rest >> 7
    return key + length + bytes([rest]) + value[:12]


async def test_a_record_that_was_written_by_nobodys_stage_is_in_the_record_all_the_same(audited: Audited) -> None:
    """Whoever may write to Kafka may add to a call; but not so that nobody sees when."""
    session_id = await audited.call()
    words = of_session(json_form.examples(Transcript)[0], session_id, 99)
    await publish(audited.settings, [words])
    await audited.signed(session_id, EACH * len(KINDS) + 1)
    report = await audited.verified(session_id)
    assert (report.findings, report.records) == ([], EACH * len(KINDS) + 1)


# What is done, to which table, through which event; where it is found, when not at the third record.
FORGED_AT = 777_777
TAMPERED: list[tuple[str, str, str, type[Event], int | None]] = [
    ("ALTER TABLE transcripts UPDATE text = 'nothing' WHERE {row}", "altered", "transcripts", Transcript, None),
    ("ALTER TABLE controls DELETE WHERE {row}", "removed", "controls", Control, None),
    (
        f"INSERT INTO sessions SELECT * REPLACE (generateUUIDv4() AS event_id, {FORGED_AT} AS kafka_offset) "
        "FROM (SELECT * FROM sessions WHERE {row})",
        "added",
        "sessions",
        Session,
        FORGED_AT,
    ),
    (
        "ALTER TABLE audit_records UPDATE digest = unhex(repeat('ab', 32)) WHERE {entry}",
        "altered",
        "audit_records",
        Health,
        None,
    ),
    (
        "ALTER TABLE audit_records UPDATE link = unhex(repeat('ab', 32)) WHERE {entry}",
        "altered",
        "audit_records",
        Control,
        None,
    ),
    ("ALTER TABLE audit_records DELETE WHERE {entry}", "removed", "audit_records", SpeechChunk, None),
    ("ALTER TABLE audit_records DELETE WHERE {tail}", "removed", "audit_records", Transcript, None),
    ("ALTER TABLE audit_records DELETE WHERE {chain}", "removed", "audit_records", AudioFrame, 0),
]


async def test_what_is_done_to_clickhouse_is_named(audited: Audited) -> None:
    statements, expected = [], {}
    sessions = await asyncio.gather(*(audited.call() for _ in TAMPERED))
    for session_id, (statement, kind, table, event, at) in zip(sessions, TAMPERED, strict=True):
        offsets = await places(audited.settings, session_id, event)
        where = {
            "row": f"session_id = '{session_id}' AND kafka_offset = {offsets[2]}",
            "chain": f"record_key = '{session_id}' AND kafka_topic = '{event.TOPIC}'",
        }
        where |= {"entry": f"{where['chain']} AND kafka_offset = {offsets[2]}"}
        where |= {"tail": f"{where['chain']} AND kafka_offset >= {offsets[2]}"}
        statements.append(statement.format(**where))
        offset = {None: offsets[2], 0: offsets[0]}.get(at, at)
        number = partition_of(session_id, audited.settings.kafka.partitions)
        expected[session_id] = (CLICKHOUSE, kind, table, event.TOPIC, number, offset)
    audited.tamper(statements)
    named: dict[str, list[Any]] = {session_id: [] for session_id in expected}
    for one in (await audited.verified(None)).findings:
        named[one.key].append((one.store, one.kind, one.table, one.topic, one.partition, one.offset))
    assert named == {session_id: [wanted] for session_id, wanted in expected.items()}
    session_id = sessions[0]
    assert {one.key for one in (await audited.verified(session_id)).findings} == {session_id}


async def test_kills_while_writing_leave_one_unbroken_chain(empty_broker: TestBroker, tmp_path: Path) -> None:
    audited = Audited(empty_broker, tmp_path / "killed")
    audited.sink.environment["TRUNKLINE_CLICKHOUSE__BATCH_ROWS_MAX"] = "50"
    chosen = random.Random(5)
    sessions = [str(uuid.uuid4()) for _ in range(4)]
    try:
        audited.sink.start()
        for _ in range(4):
            publishing = asyncio.create_task(
                publish(audited.settings, [event for session_id in sessions for event in events_of(session_id)])
            )
            await asyncio.sleep(chosen.uniform(0.05, 0.6))
            audited.sink.kill()
            await publishing
            await asyncio.to_thread(audited.sink.start)
        for session_id in sessions:
            await audited.signed(session_id, 4 * EACH * len(KINDS))
            report = await audited.verified(session_id)
            assert (report.findings, report.records) == ([], 4 * EACH * len(KINDS))
        assert audited.sink.stop() == 0
    finally:
        audited.sink.kill()


@pytest.mark.parametrize("step", ["plan", "write", "written"])
async def test_a_sink_that_dies_at_a_step_breaks_no_chain(empty_broker: TestBroker, tmp_path: Path, step: str) -> None:
    audited = Audited(empty_broker, tmp_path / step)
    session_id = str(uuid.uuid4())
    await publish(audited.settings, events_of(session_id))
    try:
        audited.sink.start(False, "tests.support.failing_sink", step, "before", "die", "1")
        assert await asyncio.to_thread(audited.sink.ended) == 9
        await publish(audited.settings, events_of(session_id))
        await asyncio.to_thread(audited.sink.start)
        await audited.signed(session_id, 2 * EACH * len(KINDS))
        report = await audited.verified(session_id)
        assert (report.findings, report.records) == ([], 2 * EACH * len(KINDS))
    finally:
        audited.sink.kill()


async def test_a_clickhouse_that_is_filled_again_has_the_same_chains(audited: Audited, tmp_path: Path) -> None:
    """What was signed before is what the new one comes to."""
    session_id = await audited.call()
    again = Audited(audited.broker, tmp_path / "again")
    shutil.copy(audited.folder / signing.KEY_FILE, again.folder)
    assert audited.sink.stop() == 0
    try:
        again.sink.start()
        query = f"SELECT count() FROM audit_records WHERE record_key = '{session_id}'"
        await asyncio.to_thread(again.sink.wait_for, query, EACH * len(KINDS))
        await again.signed(session_id, EACH * len(KINDS))
        report = await again.verified(session_id)
        assert (report.findings, report.records, report.unsigned) == ([], EACH * len(KINDS), 0)
        later = str(uuid.uuid4())
        await publish(again.settings, events_of(later))
        await again.signed(later, EACH * len(KINDS))
        assert (await again.verified(later)).findings == []
    finally:
        again.sink.kill()
        audited.sink.start()


async def test_what_retention_has_taken_is_told_apart_from_what_was_removed(audited: Audited) -> None:
    session_id = await audited.call()
    (offset, *_) = await places(audited.settings, session_id, Health)
    place = TopicPartition(Health.TOPIC, partition_of(session_id, audited.settings.kafka.partitions), offset + 1)
    admin = AdminClient({"bootstrap.servers": audited.broker.bootstrap_servers})
    for future in admin.delete_records([place]).values():
        future.result()
    report = await audited.verified(session_id)
    assert brief(report.findings) == [(KAFKA, "removed", Health.TOPIC, offset)]
    kept = audited.settings.kafka.model_copy(update={"retention_days": {Health.TOPIC: 0}})
    audited.settings = audited.settings.model_copy(update={"kafka": kept})
    try:
        report = await audited.verified(session_id)
        assert (report.findings, report.expired) == ([], 1)
    finally:
        audited.settings = audited.broker.settings(data_dir=audited.folder, kafka=FEW)


# Checkpoints.


async def test_a_history_that_was_cut_off_is_known_by_a_checkpoint_kept_elsewhere(audited: Audited) -> None:
    session_id = await audited.call()
    newest = await last_checkpoint(audited.settings, codec_for(audited.settings), signing.public_key(audited.settings))
    assert newest is not None
    kept = checkpoints.statement_of(newest)
    assert (await audited.verified(session_id, kept)).findings == []
    later = checkpoints.signed(audited.settings, kept, {}, 1, {}, {})
    report = await audited.verified(session_id, checkpoints.statement_of(later))
    assert brief(report.findings) == [(BOTH, "removed", Checkpoint.TOPIC, kept.number + 1)]


async def logged(audited: Audited) -> list[tuple[int, Checkpoint]]:
    """All that the platform's key has signed, by offset."""
    series = checkpoints.series_of(signing.public_key(audited.settings))
    place = place_of(audited.settings, series)
    async with LogReader(audited.settings, "test.audit", note_ends=True) as reader:
        return await read_checkpoints(reader, codec_for(audited.settings), series, place, BEGINNING, END)


async def test_checkpoints_are_numbered_without_gaps_and_repeat_nothing(audited: Audited) -> None:
    found = [checkpoints.statement_of(one) for _, one in await logged(audited)]
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    assert [one.previous for one in found[1:]] == [one.digest for one in found[:-1]]


async def test_what_is_done_to_checkpoints_is_named(empty_broker: TestBroker, tmp_path: Path) -> None:
    audited = Audited(empty_broker, tmp_path / "checkpoints")
    try:
        audited.sink.start()
        await audited.call()
        series = checkpoints.series_of(signing.public_key(audited.settings))
        place = place_of(audited.settings, series)
        offset, first = (await logged(audited))[0]
        # ClickHouse's copy still says what was signed.
        before = first.signature.encode()
        alter_in_segment(empty_broker.data_dir, place, before, before[::-1])
        report = await audited.verified(None)
        assert brief(report.findings) == [(KAFKA, "altered", Checkpoint.TOPIC, offset)]
        alter_in_segment(empty_broker.data_dir, place, before[::-1], before)
        assert (await audited.verified(None)).findings == []
        audited.tamper([f"ALTER TABLE checkpoints DELETE WHERE session_id = '{series}' AND seq = 1"])
        report = await audited.verified(None)
        assert brief(report.findings) == [(CLICKHOUSE, "removed", Checkpoint.TOPIC, offset)]
    finally:
        audited.sink.kill()


async def test_what_others_write_among_the_checkpoints_misleads_nobody(
    empty_broker: TestBroker, tmp_path: Path
) -> None:
    audited = Audited(empty_broker, tmp_path / "forged")
    try:
        audited.sink.start()
        await audited.call()
        (_, newest) = (await logged(audited))[-1]
        statement = checkpoints.statement_of(newest)
        forger = audited.settings.model_copy(update={"data_dir": tmp_path / "forger"})
        forged = checkpoints.signed(forger, replace(statement, number=98), {}, 1, {}, {})
        await publish(audited.settings, [replace(forged, session_id=newest.session_id)])
        assert audited.sink.stop() == 0
        audited.sink.start()
        session_id = await audited.call()
        assert [one for one in (await audited.verified(session_id)).findings if one.key == session_id] == []
        every = await audited.verified(None)
        assert [(one.store, one.kind, one.topic) for one in every.findings if one.key == newest.session_id] == [
            (KAFKA, "altered", Checkpoint.TOPIC)
        ]
        numbers = [one.seq for _, one in await logged(audited)]
        assert sorted(numbers) == [*range(1, len(numbers)), 99]
    finally:
        audited.sink.kill()


# Bundles.


async def exported(audited: Audited, folder: Path) -> str:
    session_id = await audited.call()
    trusted = [signing.public_key(audited.settings)]
    report, records = await export_call(
        folder, audited.settings, codec_for(audited.settings), audited.ask, trusted, session_id, SystemClock()
    )
    assert (report.findings, records) == ([], EACH * len(KINDS))
    return session_id


def checked(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the bundle's script as its receiver would: from the bundle alone, outside the repository."""
    command = [sys.executable, "-I", str(folder / "verify.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


async def test_a_bundle_is_verified_without_the_platform(audited: Audited, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    session_id = await exported(audited, folder)
    assert len((folder / "verify.py").read_text().splitlines()) <= 50
    key = tmp_path / "key.pem"
    key.write_text(signing.public_pem(audited.settings))
    done = checked(folder, str(key))
    assert done.returncode == 0, done.stderr
    count = EACH * len(KINDS)
    assert f"{count} records, {count} of them signed" in done.stdout
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert f"word 3 of {session_id}" in {one["event"].get("text") for one in events}
    caller = (folder / "caller.wav").read_bytes()
    first = random.Random(f"{session_id}/0").randbytes(640)
    assert caller[44 : 44 + 640] == first
    # Between the second frame and the third one was lost.
    assert caller[44 + 1280 : 44 + 1920] == bytes(640)
    other = Settings(data_dir=tmp_path / "another")
    key.write_text(signing.public_pem(other))
    assert checked(folder, str(key)).returncode != 0


# Who read what.


async def accesses(settings: Settings, **wanted: str) -> list[Access]:
    """The accesses with these fields that the log holds."""
    codec = codec_for(settings)
    found = []
    session_id = wanted.pop("session_id")
    for record in await session_records(settings, session_id, [Access.TOPIC]):
        event = codec.decode(record.topic, record.value)
        assert isinstance(event, Access)
        if all(getattr(event, name) == value for name, value in wanted.items()):
            found.append(event)
    return found


async def test_reading_over_rest_is_written_down_and_what_is_refused_is_not(audited: Audited) -> None:
    session_id = await audited.call()
    settings = audited.broker.settings(api={"port": 0}, kafka=FEW)
    async with running_gateway(settings) as gateway, httpx.AsyncClient(base_url=gateway.http, timeout=60) as http:
        answer = await http.get(f"/v1/sessions/{session_id}/events")
        assert answer.status_code == 200
        found = await accesses(settings, session_id=session_id, actor="local")
        assert [(one.kind, one.actor, one.what) for one in found] == [
            (AccessKind.READ, "local", f"/v1/sessions/{session_id}/events")
        ]
        unknown = str(uuid.uuid4())
        assert (await http.get(f"/v1/sessions/{unknown}")).status_code == 404
        assert (await http.get("/v1/sessions")).status_code == 200
    assert await accesses(settings, session_id=unknown) == []


async def test_questions_in_sql_are_written_down_without_what_they_look_for(audited: Audited) -> None:
    session_id = await audited.call()
    asked = f"SELECT count() FROM transcripts WHERE session_id = '{session_id}' AND text = 'where is {session_id}'"
    assert audited.sink.ask(asked).status_code == 200
    assert audited.sink.ask("SELECT 1").status_code == 200
    where = f"kind = 'queried' AND query LIKE '%{session_id}%' AND query LIKE '%AND (text = \\'?\\')%'"
    deadline_s = time.monotonic() + 60
    while not (found := audited.ask(f"SELECT actor, via FROM accesses WHERE {where}", {})):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.1)
    assert list(map(tuple, found))[:1] == [("default", "clickhouse")]
    assert audited.ask("SELECT count() FROM accesses WHERE query = 'SELECT 1'", {})[0][0] == 0


def test_the_sink_does_not_start_with_a_key_that_is_none(broker: TestBroker, tmp_path: Path) -> None:
    key = tmp_path / "no.pem"
    key.write_text("nothing")
    sink = SinkProcess(tmp_path, broker.bootstrap_servers, TRUNKLINE_SIGNING_KEY_FILE=str(key))
    sink.start(wait=False)
    try:
        assert sink.ended() == os.EX_CONFIG
        assert "no.pem" in sink.log.read_text()
    finally:
        sink.kill()


async def test_what_cannot_be_written_down_is_not_shown() -> None:
    settings = Settings(kafka={"bootstrap_servers": "127.0.0.1:1"})
    async with LogProducer(settings, "test.audit", timeout_s=1) as producer:
        with pytest.raises(LogError):
            await Accesses(producer.publish, SystemClock(), "rest").note(AccessKind.READ, "local")


# What is erased.


async def test_an_erased_call_is_as_it_was_signed(audited: Audited) -> None:
    """What is stored has not changed; what nobody can read any more is not compared."""
    session_id = await audited.call()
    keyring_for(audited.settings).destroy(session_id, audited.settings.tenant)
    erase = erase_event(session_id, audited.settings.tenant, "shop", "asked for", SystemClock().now_us())
    await publish(audited.settings, [erase])
    await audited.signed(session_id, EACH * len(KINDS) + 2)
    query = f"SELECT count() FROM transcripts WHERE session_id = '{session_id}' AND text != ''"
    await asyncio.to_thread(audited.sink.wait_for, query, 0)
    report = await audited.verified(session_id)
    assert (report.findings, report.records) == ([], EACH * len(KINDS) + 2)
    assert [one for one in (await audited.verified(None)).findings if one.key == session_id] == []
