"""The sink on a real broker and a real ClickHouse: every record becomes one row, whatever happens in between."""

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import pytest

from processors.clickhouse.rows import TABLE_OF_TOPIC
from processors.clickhouse.sink import GROUP
from processors.clickhouse.store import MIGRATIONS
from schemas import json_form
from schemas.events import EVENTS, DeadLetter, Delivery, SpeechChunk
from streams.client import Partition
from streams.consumer import BEGINNING, END, LogReader, Record, read_range
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import REPOSITORY, Settings
from tests.support.kafka import TestBroker, running_broker
from tests.support.sink import PATIENCE_S, SinkProcess, burst_of, of_session, publish, rows_are_events

# The embedded engine holds one database in a process and does not survive a fork: the store is tried in processes.
_STORE = """
import asyncio, json, sys, time, uuid
from dataclasses import replace
from pathlib import Path
from processors.clickhouse.rows import TABLES, columns, row
from processors.clickhouse.store import Store
from schemas import json_form
from schemas.events import EVENTS, Transcript
from streams.client import Partition
from streams.settings import Settings
store = Store(Settings(data_dir=Path(sys.argv[1])), "test")
client = store._client
def answer(query):
    return client.query(query).result_rows
"""


def in_process(data_dir: Path, script: str) -> Any:
    """Runs the script beside a store below the directory; what it prints last is JSON."""
    done = subprocess.run(
        [sys.executable, "-c", _STORE + script, str(data_dir)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_migrations_are_applied_once(tmp_path: Path) -> None:
    twice = "print(json.dumps([store.migrate(), store.migrate()]))"
    first, second = in_process(tmp_path, twice)
    assert first == sorted(path.name for path in MIGRATIONS.glob("*.sql"))
    assert second == []
    assert in_process(tmp_path, twice) == [[], []]


def test_a_migration_that_broke_off_is_finished(tmp_path: Path) -> None:
    script = """
store.migrate()
client.command("DELETE FROM migrations WHERE name = '0003_turns.sql'", settings={"mutations_sync": 2})
client.command("DROP VIEW calls")
again = store.migrate()
print(json.dumps([again, answer("SELECT count() FROM calls")]))
"""
    assert in_process(tmp_path, script) == [["0003_turns.sql"], [[0]]]


def test_a_batch_written_twice_is_there_once(tmp_path: Path) -> None:
    script = """
store.migrate()
counts = {}
now_us = time.time_ns() // 1000  # what is older than a table keeps would go at once
for _ in range(2):
    for event in EVENTS:
        examples = [replace(example, occurred_at=now_us) for example in json_form.examples(event)]
        rows = [row(example, 0, at) for at, example in enumerate(examples)]
        store.write(1, TABLES[event], columns(event), rows)
for event in EVENTS:
    counts[event.TOPIC] = answer(f"SELECT count() FROM {TABLES[event]}")[0][0]
turns = answer("SELECT toString(session_id), turn, total_ms IS NULL FROM turns ORDER BY ALL")
raw = answer("SELECT count() FROM turn_times")
calls = answer("SELECT count(), uniqExact(session_id) FROM calls")
print(json.dumps([counts, turns, raw, calls]))
"""
    counts, turns, raw, calls = in_process(tmp_path, script)
    assert turns
    assert counts == {event.TOPIC: len(json_form.examples(event)) for event in EVENTS}
    assert calls[0][0] == calls[0][1]
    assert in_process(tmp_path / "once", script.replace("range(2)", "range(1)"))[1:] == [turns, raw, calls]


def test_a_turns_times_are_those_of_the_revision_that_became_final(tmp_path: Path) -> None:
    script = """
import uuid
from schemas.events import *
store.migrate()
began, session = time.time_ns() // 1000, str(uuid.uuid4())
def put(number, kind, *given):
    example = replace(json_form.examples(kind)[0], session_id=session, turn=1)
    events = [
        replace(example, event_id=str(uuid.uuid4()), occurred_at=began + 1000 * at, **fields) for at, fields in given
    ]
    store.write(number, TABLES[kind], columns(kind), [row(one, 0, at) for at, one in enumerate(events, 10 * number)])
void, ahead = dict(revision=1, committed=False), dict(revision=2, committed=False)
put(1, Transcript, (400, dict(kind=TranscriptKind.FINAL, revision=2, speech_ended_at=began)))
put(2, Intent, *((at, dict(kind=IntentKind.DETECTED, **one)) for at, one in
    ((120, void), (320, ahead), (410, dict(revision=2, committed=True)))))
put(3, Response, *((at, dict(kind=ResponseKind.SENTENCE, **one)) for at, one in ((130, void), (330, ahead))))
put(4, SpeechChunk, *((at, dict(kind=SpeechChunkKind.AUDIO, **one)) for at, one in ((180, void), (430, ahead))))
turns = answer("SELECT turn, revision, stt_ms, intent_ms, llm_ms, tts_ms, total_ms FROM turns")
print(json.dumps([turns, answer("SELECT begun, used, void FROM speculation")]))
"""
    assert in_process(tmp_path, script) == [[[1, 2, 400, 10, 0, 20, 430]], [[2, 1, 1]]]


def test_the_plan_and_the_offsets_are_read_back(tmp_path: Path) -> None:
    script = """
store.migrate()
assert store.last_plan() == (0, {})
assert store.offsets() == {}
a, b = Partition("voice.sessions", 3), Partition("voice.control", 0)
store.plan(1, {a: (0, 4)})
store.written({a: (0, 4)})
store.plan(2, {a: (5, 9), b: (7, 7)})
assert store.last_plan() == (2, {a: (5, 9), b: (7, 7)}), store.last_plan()
assert store.offsets() == {a: 5}
store.written({a: (5, 9), b: (7, 7)})
assert store.offsets() == {a: 10, b: 8}
other = Store.__new__(Store)
other._group, other._client = "another", client
assert (other.last_plan(), other.offsets()) == ((0, {}), {})
print("true")
"""
    assert in_process(tmp_path, script) is True


# The sink's process.


@pytest.fixture(scope="module")
def sink(kafka: TestBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkProcess]:
    running = SinkProcess(tmp_path_factory.mktemp("sink"), kafka.bootstrap_servers)
    try:
        running.start()
        yield running
    finally:
        running.kill()


@pytest.fixture
def settings(kafka: TestBroker) -> Settings:
    return kafka.settings()


async def on_topic(settings: Settings, topic: str) -> list[Record]:
    """All records of the topic."""
    async with LogReader(settings, "test.clickhouse") as reader:
        ranges = dict.fromkeys(await reader.partitions(topic), (BEGINNING, END))
    return [record async for record in read_range(settings, ranges)]


async def test_every_topic_reaches_its_table(sink: SinkProcess, settings: Settings) -> None:
    session_id = str(uuid.uuid4())
    examples = [example for event in EVENTS for example in json_form.examples(event)]
    events = [of_session(example, session_id, seq) for seq, example in enumerate(examples)]
    await publish(settings, [*events, *events[:5]])
    for event in EVENTS:
        expected = sum(isinstance(one, event) for one in events)
        table = TABLE_OF_TOPIC[event.TOPIC]
        sink.wait_for(f"SELECT count() FROM {table} FINAL WHERE session_id = '{session_id}'", expected)
        ids = sink.ask(f"SELECT event_id FROM {table} FINAL WHERE session_id = '{session_id}' ORDER BY seq").text
        assert ids.split() == [one.event_id for one in events if isinstance(one, event)]


async def test_kills_while_writing_neither_lose_nor_repeat_a_row(
    kafka: TestBroker, settings: Settings, tmp_path: Path
) -> None:
    """Small batches, so that a kill meets every step: planning, writing a table, moving the offsets."""
    sink = SinkProcess(tmp_path, kafka.bootstrap_servers, TRUNKLINE_CLICKHOUSE__BATCH_ROWS_MAX="50")
    chosen = random.Random(3)
    numbers = itertools.count()
    sessions = [str(uuid.uuid4()) for _ in range(20)]
    examples = [json_form.examples(event)[0] for event in EVENTS]
    try:
        sink.start()
        for _ in range(5):
            burst = [
                of_session(example, session_id, next(numbers)) for session_id in sessions for example in examples * 3
            ]
            publishing = asyncio.create_task(publish(settings, burst))
            await asyncio.sleep(chosen.uniform(0.05, 0.6))
            sink.kill()
            await publishing
            await asyncio.to_thread(sink.start)
        listed = ", ".join(f"'{session_id}'" for session_id in sessions)
        for event in EVENTS:
            table = TABLE_OF_TOPIC[event.TOPIC]
            where = f"FROM {table} WHERE session_id IN ({listed})"
            sink.wait_for(f"SELECT uniqExact(event_id) {where}", 5 * 3 * len(sessions))
            assert sink.number(f"SELECT count() {where}") == 5 * 3 * len(sessions)
            assert sink.number(f"SELECT uniqExact(kafka_partition, kafka_offset) {where}") == 5 * 3 * len(sessions)
        assert sink.stop() == 0
    finally:
        sink.kill()


STEPS = [(step, when) for step in ("plan", "write", "written") for when in ("before", "after")]


@pytest.mark.parametrize(("step", "when"), STEPS)
async def test_a_sink_that_dies_at_a_step_repeats_the_batch_and_no_row(
    kafka: TestBroker, settings: Settings, tmp_path: Path, step: str, when: str
) -> None:
    sink = SinkProcess(tmp_path, kafka.bootstrap_servers)
    session_id = str(uuid.uuid4())
    await publish(settings, burst_of(session_id, 10))
    try:
        sink.start(False, "tests.support.failing_sink", step, when, "die", "1")
        assert await asyncio.to_thread(sink.ended) == 9
        await publish(settings, burst_of(session_id, 5))
        await asyncio.to_thread(sink.start)
        rows_are_events(sink, session_id, 15)
    finally:
        sink.kill()


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    """A broker with no other sink in the group."""
    with running_broker(tmp_path_factory.mktemp("broker"), provisioned=True) as broker:
        yield broker


async def test_what_a_dead_sink_had_written_is_shown_by_the_next(own: TestBroker, tmp_path: Path) -> None:
    """No record comes after it: the group's lag must not stand for ever."""
    sink = SinkProcess(tmp_path, own.bootstrap_servers)
    await publish(own.settings(), burst_of(str(uuid.uuid4()), 10))
    try:
        sink.start(False, "tests.support.failing_sink", "written", "after", "die", "1")
        assert await asyncio.to_thread(sink.ended) == 9
        assert await behind(own.settings())
        await asyncio.to_thread(sink.start)
        deadline_s = time.monotonic() + PATIENCE_S
        while left := await behind(own.settings()):
            assert time.monotonic() < deadline_s, left
    finally:
        sink.kill()


async def behind(settings: Settings) -> list[Partition]:
    """Where the group's lag is not 0."""
    async with LogReader(settings, "test.lag", GROUP) as reader:
        partitions = [one for topic in TABLE_OF_TOPIC for one in await reader.partitions(topic)]
        ends, shown = await reader.end_offsets(partitions), await reader.committed(partitions)
    return [partition for partition in partitions if ends[partition] and shown[partition] != ends[partition]]


async def test_a_store_whose_line_breaks_gets_every_row_once(
    kafka: TestBroker, settings: Settings, tmp_path: Path
) -> None:
    """Before the rows are there and after: the sink cannot know which it was."""
    for number, (step, when) in enumerate(STEPS):
        folder = tmp_path / str(number)
        folder.mkdir()
        sink = SinkProcess(folder, kafka.bootstrap_servers)
        session_id = str(uuid.uuid4())
        await publish(settings, burst_of(session_id, 10))
        try:
            sink.start(True, "tests.support.failing_sink", step, when, "raise", "3")
            await publish(settings, burst_of(session_id, 5))
            rows_are_events(sink, session_id, 15)
            # The rows may be there before the sink is told so.
            deadline_s = time.monotonic() + PATIENCE_S
            while (tries := sink.log.read_text().count("clickhouse_away")) < 3 and time.monotonic() < deadline_s:
                await asyncio.to_thread(time.sleep, 0.05)
            assert tries >= 3
            assert sink.stop() == 0
        finally:
            sink.kill()


async def test_a_server_that_is_away_is_waited_for(kafka: TestBroker, tmp_path: Path) -> None:
    sink = SinkProcess(
        tmp_path,
        kafka.bootstrap_servers,
        TRUNKLINE_CLICKHOUSE__HOST="127.0.0.1",
        TRUNKLINE_CLICKHOUSE__PORT="1",
        PYTHONUNBUFFERED="1",
    )
    try:
        sink.start(wait=False)
        async with asyncio.timeout(60):
            while sink.log.read_text().count("clickhouse_away") < 3:
                assert sink.running
                await asyncio.sleep(0.1)
    finally:
        sink.kill()


async def test_garbage_where_no_stage_reads_is_one_dead_letter(
    kafka: TestBroker, settings: Settings, tmp_path: Path
) -> None:
    chunk, delivery = json_form.examples(SpeechChunk)[0], json_form.examples(Delivery)[0]
    codec = codec_for(settings)
    session_id = str(uuid.uuid4())
    good = of_session(chunk, session_id, 0)
    no_uuid = replace(good, event_id="nobody")
    bad = [
        (SpeechChunk.TOPIC, session_id.encode(), b"garbage", "not_framed"),
        (SpeechChunk.TOPIC, session_id.encode(), codec.encode(good)[:-7], "truncated"),
        (SpeechChunk.TOPIC, b"another", codec.encode(good), "wrong_key"),
        (SpeechChunk.TOPIC, session_id.encode(), codec.encode(no_uuid), "invalid_field"),
        (Delivery.TOPIC, session_id.encode(), b"\0\0\x0f\xff\xff\1", "unknown_schema"),
        (Delivery.TOPIC, session_id.encode(), codec.encode(good), "wrong_schema_for_topic"),
        (Delivery.TOPIC, None, b"", "empty"),
    ]
    async with LogProducer(settings, "test.clickhouse") as producer:
        places = [await producer.publish_raw(topic, key, value) for topic, key, value, _ in bad]
        await producer.publish(of_session(delivery, session_id, 1))
        await producer.publish(good)
    sink = SinkProcess(tmp_path, kafka.bootstrap_servers)
    try:
        sink.start()
        sink.wait_for(f"SELECT count() FROM speech_chunks WHERE session_id = '{session_id}'", 1)
        sink.wait_for(f"SELECT count() FROM deliveries WHERE session_id = '{session_id}'", 1)
        for (topic, key, value, reason), place in zip(bad, places, strict=True):
            letters = await letters_of(settings, topic, place.partition, place.offset)
            # More than one sink may read the topic in this test run; the id tells that it is the same letter.
            assert len({letter.event_id for letter in letters}) == 1
            letter = letters[0]
            assert (letter.record_key, letter.record_value) == (key, value)
            assert (letter.stage, letter.reason) == ("clickhouse", reason)
            assert letter.detail
            where = f"source_topic = '{topic}' AND source_partition = {place.partition}"
            where += f" AND source_offset = {place.offset}"
            sink.wait_for(f"SELECT count() FROM dead_letters FINAL WHERE {where}", 1)
    finally:
        sink.kill()


async def letters_of(settings: Settings, topic: str, partition: int, offset: int) -> list[DeadLetter]:
    codec = codec_for(settings)
    found = []
    for record in await on_topic(settings, DeadLetter.TOPIC):
        letter = codec.decode(record.topic, record.value)
        assert isinstance(letter, DeadLetter)
        if (letter.source_topic, letter.source_partition, letter.source_offset) == (topic, partition, offset):
            found.append(letter)
    return found


# The HTTP interface.


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO sessions (kind) VALUES ('x')",
        "DROP TABLE sessions",
        "ALTER TABLE sessions DELETE WHERE 1",
        "TRUNCATE TABLE sessions",
        "CREATE TABLE t (a Int8) ENGINE = Memory",
        "SYSTEM SHUTDOWN",
        "SET readonly = 0",
        "SELECT 1; DROP TABLE sessions",
        "SELECT 1 INTO OUTFILE '/tmp/trunkline-test-outfile'",
        "SELECT 1 into/**/outfile '/tmp/trunkline-test-outfile'",
        "SELECT 1 UNION ALL SELECT 2 INTO OUTFILE '/tmp/trunkline-test-outfile' FORMAT TSV",
        "EXPLAIN SELECT 1 INTO OUTFILE '/tmp/trunkline-test-outfile'",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM `file`('/etc/passwd', 'LineAsString')",
        "SELECT * FROM FILE('/etc/passwd', LineAsString)",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
        "SELECT * FROM s3('http://127.0.0.1:1/a', 'LineAsString')",
        "SELECT * FROM merge('trunkline', '.*')",
        "SELECT * FROM remote('127.0.0.1', system.one)",
        "SELECT * FROM executable('id', 'TSV', 'a String')",
        "SELECT * FROM mergeTreeIndex('trunkline', 'sessions')",
        "SELECT * FROM (SELECT * FROM file('/etc/passwd', 'LineAsString'))",
        "SELECT (SELECT any(line) FROM file('/etc/passwd', 'LineAsString'))",
        "WITH a AS (SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')) SELECT * FROM a",
        "SELECT 1 WHERE 1 IN (SELECT 1 FROM file('/etc/passwd', 'LineAsString'))",
        "SELECT * FROM sessions AS s JOIN file('/etc/passwd', 'LineAsString') AS f ON 1 = 1",
        "SELECT 1 UNION ALL SELECT length(line) FROM file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM view(SELECT * FROM file('/etc/passwd', 'LineAsString'))",
        "DESCRIBE TABLE file('/etc/passwd', 'LineAsString')",
        "DESCRIBE TABLE url('http://127.0.0.1:1/', 'LineAsString')",
        "EXPLAIN SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "EXISTS TABLE sessions INTO OUTFILE '/tmp/trunkline-test-outfile'",
        "SHOW TABLES INTO OUTFILE '/tmp/trunkline-test-outfile'",
        "SELECT file('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT sleep(3) SETTINGS readonly = 0",
    ],
)
def test_what_would_change_or_leave_the_tables_is_refused(sink: SinkProcess, query: str) -> None:
    for answer in (
        sink.ask(query),
        httpx.get(f"http://127.0.0.1:{sink.port}/", params={"query": query}, timeout=30),
    ):
        assert answer.status_code in (400, 403), answer.text
        assert "Code: " in answer.text
        assert "root:" not in answer.text
    assert not Path("/tmp/trunkline-test-outfile").exists()
    assert sink.ask("EXISTS TABLE sessions").text == "1\n"


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count() FROM sessions",
        "WITH 2 AS two SELECT two",
        "SELECT sum(number) FROM numbers(10)",
        "SELECT 'INTO OUTFILE file(1)' AS words",
        "SELECT kind, count() FROM responses GROUP BY kind ORDER BY kind",
        "SELECT * FROM turns LIMIT 1",
        "SELECT * FROM calls LIMIT 1",
        "SHOW TABLES",
        "SHOW CREATE TABLE sessions",
        "DESCRIBE TABLE sessions",
        "EXISTS TABLE sessions",
        "EXPLAIN SELECT count() FROM sessions",
        "SELECT 1;",
        "SELECT 1 FORMAT JSON;",
        "/* why */ SELECT 1 -- so",
        "(SELECT 1) UNION ALL (SELECT 2)",
    ],
)
def test_questions_are_answered(sink: SinkProcess, query: str) -> None:
    answer = sink.ask(query)
    assert answer.status_code == 200, answer.text


def test_formats_are_those_asked_for(sink: SinkProcess) -> None:
    assert sink.ask("SELECT 1 AS a, 'x' AS b").text == "1\tx\n"
    assert sink.ask("SELECT 1 AS a FORMAT JSONEachRow").json() == {"a": 1}
    assert sink.ask("SELECT 1 AS a", default_format="JSONEachRow").json() == {"a": 1}
    answer = sink.ask("SELECT 1 AS a FORMAT CSVWithNames")
    assert (answer.text, answer.headers["X-ClickHouse-Format"]) == ('"a"\n1\n', "CSVWithNames")
    split = httpx.post(f"http://127.0.0.1:{sink.port}/", params={"query": "SELECT"}, content=b"41 + 1", timeout=30)
    assert split.text == "42\n"


def test_a_mistake_is_explained(sink: SinkProcess) -> None:
    answer = sink.ask("SELECT nothing FROM sessions")
    assert answer.status_code == 400
    assert "nothing" in answer.text
    assert sink.ask("SELECT 1").text == "1\n"
    assert sink.ask("SELECT " + "1, " * 200_000 + "1").status_code == 400


def test_a_stock_client_connects_and_asks(sink: SinkProcess) -> None:
    client = clickhouse_connect.get_client(host="127.0.0.1", port=sink.port)
    try:
        assert str(client.server_version).count(".") >= 2
        rows = client.query("SELECT number, toString(number) AS word FROM numbers(3)").result_rows
        assert rows == [(0, "0"), (1, "1"), (2, "2")]
        bound = client.query("SELECT {n:Int32} + 1, {s:String}", parameters={"n": 41, "s": "it's"}).result_rows
        assert bound == [(42, "it's")]
        assert client.query("SELECT count() FROM sessions").result_rows[0][0] >= 0
        assert client.command("SELECT 1") == 1
        with pytest.raises(clickhouse_connect.driver.exceptions.DatabaseError, match="read"):
            client.command("DROP TABLE sessions")
    finally:
        client.close()
