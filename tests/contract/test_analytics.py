"""Stock clients ask the embedded ClickHouse about calls whose answers are known; each tenant sees its own."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import pytest
import sqlalchemy
from clickhouse_connect.driver.exceptions import DatabaseError

from processors.clickhouse.questions import ready_questions
from processors.clickhouse.readers import password_hash
from processors.clickhouse.rows import TABLE_OF_TOPIC
from processors.clickhouse.store import statements
from schemas.event import Event
from schemas.events import EVENTS, Access
from streams.producer import LogProducer
from streams.settings import REPOSITORY
from tests.support import node
from tests.support.kafka import TestBroker
from tests.support.known_calls import KnownCalls
from tests.support.sink import SinkProcess

PASSWORD = "a pass:word"


@pytest.fixture(scope="module")
def known() -> KnownCalls:
    return KnownCalls()


@pytest.fixture(scope="module")
def sink(kafka: TestBroker, known: KnownCalls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkProcess]:
    """With every event of the known calls in it twice, the second time when the sink remembered none of them."""
    hashed = password_hash(PASSWORD)
    users = {name: {"tenant": name, "password_hash": hashed} for name in (known.acme, known.beta)}
    running = SinkProcess(
        tmp_path_factory.mktemp("analytics"), kafka.bootstrap_servers, TRUNKLINE_CLICKHOUSE__USERS=json.dumps(users)
    )
    try:
        running.start()
        wait_until_written(running, asyncio.run(publish(kafka, known.events)))
        running.kill()
        running.start()
        wait_until_written(running, asyncio.run(publish(kafka, known.events)))
        yield running
    finally:
        running.kill()


async def publish(kafka: TestBroker, events: list[Event]) -> Mapping[tuple[str, int], int]:
    """The last offset for each topic and partition."""
    ends: dict[tuple[str, int], int] = {}
    async with LogProducer(kafka.settings(), "test.analytics") as producer:
        for event in events:
            place = await producer.publish(event)
            ends[event.TOPIC, place.partition] = place.offset
    return ends


def wait_until_written(sink: SinkProcess, ends: Mapping[tuple[str, int], int]) -> None:
    behind = " OR ".join(
        f"(kafka_topic = '{topic}' AND kafka_partition = {partition} AND next_offset > {offset})"
        for (topic, partition), offset in ends.items()
    )
    sink.wait_for(f"SELECT uniqExact(kafka_topic, kafka_partition) FROM sink_offsets WHERE {behind}", len(ends))


@pytest.fixture(scope="module")
def acme(sink: SinkProcess, known: KnownCalls) -> Iterator[Any]:
    """clickhouse-connect, as a reader of acme."""
    client = clickhouse_connect.get_client(
        host="127.0.0.1", port=sink.port, username=known.acme, password=PASSWORD, database="trunkline"
    )
    yield client
    client.close()


def answers(known: KnownCalls) -> Mapping[str, list[list[Any]]]:
    """What acme's reader is answered, worked out by hand from the calls; times of freshness differ in each run."""
    acme, day = known.acme, known.day
    return {
        "calls_per_day": [[acme, "shop", day, 3, 2, 75, 2.5]],
        "busiest_hours": [[10, 2, 66.7], [11, 1, 33.3]],
        "calls_at_once": [[day, 2]],
        "how_calls_end": [["hung_up", 1, 33.3, 120], ["running", 1, 33.3, None], ["transferred", 1, 33.3, 30]],
        "without_a_person": [["shop", "order_status", 2, 1, 50]],
        "intents": [["none", 2, 40, 0.35, 1], ["order_status", 2, 40, 0.8, 1], ["products", 1, 20, 0.6, 0]],
        "not_understood": [["shop", "Do you sell unicorns?", 1, 0.4]],
        "latency": [
            [acme, "shop", "stt", 5, 600, 4000, 4000, 4000],
            [acme, "shop", "intent", 5, 10, 20, 20, 20],
            [acme, "shop", "llm", 5, 90, 300, 300, 300],
            [acme, "shop", "tts", 5, 100, 490, 490, 490],
            [acme, "shop", "total", 5, 1000, 4100, 4100, 4100],
        ],
        "slow_minutes": [
            [acme, "shop", known.at(60), 3, 1000, 1400, 1400],
            [acme, "shop", known.at(3600), 1, 4100, 4100, 4100],
        ],
        "slowest_turns": [
            [known.ids["A3"], 1, 4100, "stt", 4000],
            [known.ids["A2"], 1, 1400, "stt", 700],
            [known.ids["A1"], 2, 1000, "stt", 600],
            [known.ids["A2"], 2, 710, "stt", 500],
            [known.ids["A1"], 1, 700, "stt", 500],
        ],
        "tools": [["get_order", 2, 1, 1, 0, 200, 200]],
        "errors": [
            ["intent", "dead_letter", "invalid_field", 1, 1],
            ["llm", "reply", "apology", 1, 1],
            ["stt", "breaker", "3 timeouts", 1, 1],
            ["stt", "unheard", "timeout", 1, 1],
            ["tools", "tool", "timeout", 1, 1],
            ["webhooks", "delivery", "gone", 1, 1],
        ],
        "interruptions": [["shop", 6, 1, 16.7]],
        "recognition": [["en", 5, 0.7, 1, 1]],
        "sentiment": [["shop", day, 3, -0.17, 0]],
        "repeat_callers": [["+431", 2, 1, 1]],
        "talk_time": [["shop", 1, 2, 0.1, 4, 1.2, 1]],
        "costs": [[acme, "shop", 3, 173, 67, 13, 33, 60, 17, 3, 4.1]],
        "deliveries": [["crm", 2, 1, 1, 0, 1, 1000]],
        "freshness": [
            ["voice.audio.out", 18],
            ["voice.intents", 6],
            ["voice.responses", 16],
            ["voice.sessions", 5],
            ["voice.transcripts", 10],
        ],
    }


def plain(rows: Any) -> list[list[Any]]:
    """Rows as JSON would have them, so that clients of different languages compare."""
    return [[cell(value) for value in row] for row in rows]


def cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, date):
        return value.isoformat()
    return value if value is None or isinstance(value, int | float) else str(value)


def comparable(name: str, rows: list[list[Any]]) -> list[list[Any]]:
    return [row[:2] for row in rows] if name == "freshness" else rows


def test_there_are_twenty_questions_with_known_answers(known: KnownCalls) -> None:
    assert len(ready_questions()) == 20
    assert list(answers(known)) == list(ready_questions())
    assert all(question.title.endswith("?") for question in ready_questions().values())


@pytest.mark.parametrize("name", ready_questions())
def test_clickhouse_connect_is_answered(acme: Any, known: KnownCalls, name: str) -> None:
    found = plain(acme.query(ready_questions()[name].query).result_rows)
    assert comparable(name, found) == answers(known)[name]


def test_another_tenant_is_answered_with_its_own(sink: SinkProcess, known: KnownCalls) -> None:
    client = clickhouse_connect.get_client(host="127.0.0.1", port=sink.port, username=known.beta, password=PASSWORD)

    def ask(name: str) -> list[list[Any]]:
        return plain(client.query(ready_questions()[name].query).result_rows)

    assert ask("calls_per_day") == [[known.beta, "bank", known.day, 1, 1, 60, 1]]
    assert [row[2:5] for row in ask("latency")] == [
        ["stt", 1, 300],
        ["intent", 1, 10],
        ["llm", 1, 50],
        ["tts", 1, 40],
        ["total", 1, 400],
    ]
    assert ask("costs") == [[known.beta, "bank", 1, 78, 40, 8, 0, 30, 0, 0, 2.4]]
    assert ask("errors") == []
    client.close()


def test_the_operator_sees_both(sink: SinkProcess, known: KnownCalls) -> None:
    answer = sink.ask(ready_questions()["calls_per_day"].query, default_format="JSONCompact")
    rows = [row for row in answer.json()["data"] if row[0] in (known.acme, known.beta)]
    assert [row[0] for row in rows] == [known.acme, known.beta]


@pytest.mark.parametrize("tenant", ["acme", "beta"])
def test_counts_equal_the_topics(sink: SinkProcess, known: KnownCalls, tenant: str) -> None:
    name = getattr(known, tenant)
    # The reader's own questions are accesses.
    for event in (event for event in EVENTS if event is not Access):
        found = httpx.post(
            f"http://127.0.0.1:{sink.port}/",
            content=f"SELECT count() FROM {TABLE_OF_TOPIC[event.TOPIC]} FINAL",
            auth=(name, PASSWORD),
            timeout=60,
        )
        assert int(found.text) == len(known.of(event, name)), event.TOPIC


# What is described.


def test_the_page_is_what_the_database_says_of_itself() -> None:
    command = [sys.executable, "-m", "processors.clickhouse.dictionary", "--check"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_servers_readers_may_read_what_has_a_row_policy_or_is_a_view_of_it(sink: SinkProcess) -> None:
    text = (REPOSITORY / "infra/clickhouse/server/readers.sql").read_text()
    found = sink.ask(
        "SELECT t.name, t.engine = 'View' FROM system.tables AS t "
        "JOIN system.columns AS c ON c.database = t.database AND c.table = t.name "
        "WHERE t.database = 'trunkline' AND c.name = 'tenant_id' AND t.engine != 'MaterializedView'"
    ).text
    tables = dict(line.split("\t") for line in found.splitlines())
    assert set(re.findall(r"GRANT SELECT, SHOW ON trunkline\.(\w+) TO bi", text)) == set(tables)
    policies = set(re.findall(r"POLICY IF NOT EXISTS of_tenant ON trunkline\.(\w+)", text))
    assert policies == {name for name, is_view in tables.items() if is_view == "0"}
    for statement in statements(text):
        parsed = sink.ask("SELECT formatQuery({s:String})", param_s=statement.replace("\n", "\\n"))
        assert parsed.status_code == 200, parsed.text


# Stock clients.


def test_sqlalchemy_reflects_and_asks(sink: SinkProcess, known: KnownCalls) -> None:
    """As Superset does."""
    url = sqlalchemy.URL.create("clickhousedb", known.acme, PASSWORD, "127.0.0.1", sink.port, "trunkline")
    engine = sqlalchemy.create_engine(url)
    inspector = sqlalchemy.inspect(engine)
    assert inspector.default_schema_name == "trunkline"
    assert inspector.get_schema_names() == ["trunkline"]
    tables = inspector.get_table_names()
    assert {"sessions", "transcripts", "costs", "latency_by_minute"} <= set(tables)
    assert not {"migrations", "sink_offsets", "mv_turn_audio"} & set(tables)
    assert {"costs", "errors"} <= set(inspector.get_view_names(schema="trunkline"))
    assert inspector.has_table("costs", schema="trunkline")
    assert inspector.get_table_comment("costs", schema="trunkline")["text"]
    columns = {column["name"]: column for column in inspector.get_columns("costs", schema="trunkline")}
    assert all(column["comment"] for column in columns.values())
    costs = sqlalchemy.Table("costs", sqlalchemy.MetaData(), schema="trunkline", autoload_with=engine)
    asked = sqlalchemy.select(costs.c.agent_id, sqlalchemy.func.sum(costs.c.tokens_in)).group_by(costs.c.agent_id)
    with engine.connect() as connection:
        assert [tuple(row) for row in connection.execute(asked)] == [("shop", 50)]
        for name, question in ready_questions().items():
            found = plain(connection.exec_driver_sql(question.query).fetchall())
            assert comparable(name, found) == answers(known)[name]
    engine.dispose()


def test_the_node_client_connects_and_is_answered(sink: SinkProcess, known: KnownCalls, tmp_path: Path) -> None:
    asked = {
        "url": f"http://127.0.0.1:{sink.port}",
        "username": known.acme,
        "password": PASSWORD,
        "database": "trunkline",
        "queries": {name: question.query for name, question in ready_questions().items()},
    }
    given = tmp_path / "asked.json"
    given.write_text(json.dumps(asked))
    found = json.loads(node.output(node.PROGRAMS / "clickhouse.mjs", tmp_path, str(given)))
    for name, expected in answers(known).items():
        assert comparable(name, found[name]) == expected
    assert found["bound"] == [{"n": 42, "s": "it's"}]
    assert found["ping"] is True
    assert found["refused"] == "READONLY"


# Names and passwords.


@pytest.mark.parametrize("way", ["basic", "headers", "parameters"])
def test_a_password_comes_in_each_of_three_ways(sink: SinkProcess, known: KnownCalls, way: str) -> None:
    def ask(name: str, password: str) -> httpx.Response:
        ways: dict[str, dict[str, Any]] = {
            "basic": {"auth": (name, password)},
            "headers": {"headers": {"X-ClickHouse-User": name, "X-ClickHouse-Key": password}},
            "parameters": {"params": {"user": name, "password": password}},
        }
        given = ways[way]
        return httpx.post(f"http://127.0.0.1:{sink.port}/", content=b"SELECT 1", timeout=60, **given)

    assert ask(known.acme, PASSWORD).text == "1\n"
    for name, password in [(known.acme, "wrong"), (known.acme, ""), ("nobody", PASSWORD), ("default", ""), ("", "")]:
        answer = ask(name, password)
        assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) == (403, "516")
        assert "AUTHENTICATION_FAILED" in answer.text
    assert ask(known.acme, PASSWORD).text == "1\n"


def test_a_client_without_a_password_is_refused(sink: SinkProcess, known: KnownCalls) -> None:
    assert httpx.post(f"http://127.0.0.1:{sink.port}/", content=b"SELECT 1", timeout=60).status_code == 403
    with pytest.raises(DatabaseError, match="AUTHENTICATION_FAILED"):
        clickhouse_connect.get_client(host="127.0.0.1", port=sink.port, username=known.acme, password="wrong")
    assert httpx.get(f"http://127.0.0.1:{sink.port}/ping", timeout=60).text == "Ok.\n"


def test_a_database_that_is_not_there_is_named(sink: SinkProcess) -> None:
    answer = sink.ask("SELECT 1", database="elsewhere")
    assert (answer.status_code, answer.headers["X-ClickHouse-Exception-Code"]) == (404, "81")


# What a tenant's reader may not see. Each is asked as acme's reader; BETA stands for the other tenant's name.

REFUSED = [
    "SELECT count() FROM transcripts PREWHERE throwIf(tenant_id = 'BETA') = 0",
    "SELECT (SELECT count() FROM transcripts PREWHERE throwIf(tenant_id = 'BETA') = 0)",
    "DESCRIBE (SELECT (SELECT count() FROM transcripts PREWHERE throwIf(tenant_id = 'BETA') = 0))",
    "SELECT count() FROM merge('trunkline', 'sessions')",
    "SELECT count() FROM mergeTreeIndex('trunkline', 'sessions')",
    "SELECT count() FROM mergeTreeProjection('trunkline', 'sessions', 'p')",
    "SELECT count() FROM remote('127.0.0.1', trunkline.sessions)",
    "SELECT count() FROM cluster('default', trunkline.sessions)",
    "SELECT count() FROM loop('trunkline', 'sessions')",
    "SELECT count() FROM dictionary('trunkline.sessions')",
    "SELECT * FROM viewExplain('EXPLAIN ESTIMATE', '', (SELECT * FROM sessions))",
    "SELECT * FROM (EXPLAIN ESTIMATE SELECT * FROM sessions)",
    "EXPLAIN ESTIMATE SELECT * FROM sessions",
    "EXPLAIN PLAN indexes = 1 SELECT * FROM sessions",
    "SELECT * FROM python('x')",
    "SELECT * FROM eval('SELECT 1')",
    "SELECT * FROM executable('id', 'TSV', 'a String')",
    "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
    "SELECT file('/etc/passwd')",
    "SELECT hasColumnInTable('127.0.0.1', 'trunkline', 'sessions', 'kind')",
    "SELECT dictGet('trunkline.sessions', 'kind', 1)",
    "SELECT joinGet('trunkline.sessions', 'kind', 1)",
    "SELECT aiGenerate('x', 'y')",
    "SELECT * FROM sessions INTO OUTFILE '/tmp/trunkline-test-outfile'",
    "SELECT count() FROM sessions SETTINGS additional_table_filters = {}",
    "SELECT * FROM (SELECT * FROM sessions SETTINGS additional_table_filters = {})",
    "SET additional_table_filters = {}",
    "SELECT 1; SELECT count() FROM sessions",
    "USE system",
    "SYSTEM FLUSH LOGS",
    "KILL QUERY WHERE 1",
    "INSERT INTO sessions (kind) VALUES ('x')",
    "CREATE VIEW trunkline.leak AS SELECT * FROM sessions",
    "CREATE TEMPORARY TABLE leak AS SELECT * FROM sessions",
    "SELECT * FROM migrations",
    "SELECT * FROM trunkline.sink_batches",
    "SELECT 1 IN trunkline.migrations",
    "SELECT * FROM mv_turn_audio",
    "SELECT * FROM {t:Identifier}",
    "SELECT query FROM system.processes",
    "SELECT (SELECT any(query) FROM system.processes)",
    "WITH p AS (SELECT * FROM system.processes) SELECT count() FROM p",
    "SELECT 'x' IN (SELECT query FROM system.processes)",
    "SELECT 1 IN system.processes",
    "SELECT * FROM `system`.`query_log`",
    "SELECT * FROM system.parts",
    "SELECT * FROM system.users",
    "SELECT * FROM system.server_settings",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM INFORMATION_SCHEMA.TABLES",
    "SELECT total_rows FROM system.tables",
    "SELECT * FROM system.tables",
    "SELECT COLUMNS('total') FROM system.tables",
    "SELECT x.total_bytes FROM system.tables AS x",
    "SELECT t.* FROM system.tables AS t JOIN sessions AS s ON s.kind = t.name",
    "SELECT data_compressed_bytes FROM system.columns",
    "SELECT count() FROM system.tables WHERE total_rows > 1",
    "SELECT count(*) FROM system.tables",
    "SELECT {c:Identifier} FROM system.tables",
    "SELECT a FROM (SELECT 1 AS a, (SELECT throwIf(total_rows > 5) FROM system.tables WHERE name = 'sessions') AS b)",
    "SELECT (SELECT throwIf(x.total_rows > 5) FROM system.tables AS `x, table_name: trunkline.turns` AS x)",
    "SELECT a FROM (SELECT 1 AS a, (SELECT throwIf(count() > 0) FROM system.processes) AS b)",
    "SELECT 1 LIMIT (SELECT max(total_rows) FROM system.tables)",
    "SELECT * FROM numbers((SELECT max(total_rows) FROM system.tables))",
    "SELECT quantile((SELECT max(total_rows) / 1000 FROM system.tables))(number) FROM numbers(9)",
    "SELECT max(_part_offset) FROM sessions",
    "SELECT a FROM (SELECT 1 AS a, (SELECT throwIf(max(_part_offset) > 5) FROM sessions) AS b)",
    "SELECT _part FROM sessions",
    "SHOW PROCESSLIST",
    "SHOW TABLES WHERE total_rows > 5",
    "SHOW TABLE STATUS",
    "SHOW GRANTS",
    "SHOW USERS",
    "SHOW CREATE TABLE migrations",
    "DESCRIBE TABLE file('/etc/passwd', 'LineAsString')",
    "CHECK TABLE sessions",
    "BACKUP TABLE sessions TO File('/tmp/trunkline-test-outfile')",
]


@pytest.mark.parametrize("query", REFUSED)
def test_what_would_show_other_tenants_is_refused(sink: SinkProcess, known: KnownCalls, query: str) -> None:
    text = query.replace("BETA", known.beta)
    parameters = {"param_t": "system.processes", "param_c": "total_rows"}
    url = f"http://127.0.0.1:{sink.port}/"
    answer = httpx.post(url, content=text, params=parameters, auth=(known.acme, PASSWORD), timeout=60)
    assert answer.status_code in (400, 403), answer.text
    assert "THROW_IF" not in answer.text
    assert known.ids["B1"] not in answer.text
    assert not Path("/tmp/trunkline-test-outfile").exists()


# Each has a single number or word as its answer, and it is of acme's own rows alone.
SEEN: list[tuple[str, str]] = [
    ("SELECT uniqExact(tenant_id) FROM {table}", "1"),
    ("SELECT uniqExact(tenant_id) FROM {table} AS `trunkline.turns`", "1"),
    ("SELECT uniqExact(tenant_id) FROM view(SELECT * FROM {table})", "1"),
    ("SELECT countIf(tenant_id != 'ACME') FROM {table}", "0"),
    ("SELECT count() FROM {table} WHERE tenant_id = 'BETA'", "0"),
    ("SELECT count() FROM {table} WHERE tenant_id = 'ACME' OR 1 = 1 AND tenant_id = 'BETA' AND 0", "OWN"),
    ("SELECT countIf(throwIf(tenant_id = 'BETA') = 0) = count() FROM {table}", "1"),
    ("SELECT count() > 0 FROM {table} WHERE throwIf(tenant_id = 'BETA') = 0", "1"),
    ("SELECT count() > 0 FROM {table} WHERE throwIf(agent_id = 'bank') = 0", "1"),
    ("SELECT count() FROM numbers(3) AS n CROSS JOIN {table} AS t WHERE t.tenant_id = 'BETA'", "0"),
    (
        "SELECT count() FROM sessions AS a RIGHT JOIN {table} AS b USING (tenant_id) WHERE b.tenant_id != 'ACME'",
        "0",
    ),
    ("SELECT 'BETA' IN (SELECT tenant_id FROM {table})", "0"),
    ("SELECT (SELECT count() FROM {table} WHERE tenant_id = 'BETA')", "0"),
    (
        "SELECT countIf(tenant_id = 'BETA') FROM (SELECT * FROM {table} UNION ALL SELECT * FROM trunkline.{table})",
        "0",
    ),
    ("WITH x AS (SELECT tenant_id FROM {table}) SELECT uniqExact(tenant_id) FROM x", "1"),
    ("SELECT max(tenant_id) = min(tenant_id) FROM {table}", "1"),
    ("SELECT length(groupUniqArray(tenant_id)) FROM {table} LIMIT 1", "1"),
    ("SELECT count() = countIf(tenant_id = 'ACME') FROM {table}", "1"),
    ("SELECT EXISTS (SELECT 1 FROM {table} WHERE tenant_id = 'BETA')", "0"),
]
TABLES = ["sessions", "transcripts", "turn_costs", "call_summaries"]
VIEWS = "turn_times turn_costs call_audio turns calls costs errors call_summaries latencies audio dialogue".split()


# Checkpoints are the platform's.
@pytest.mark.parametrize("table", sorted({*TABLE_OF_TOPIC.values(), *VIEWS} - {"checkpoints"}))
def test_of_every_table_its_own_rows_are_seen(sink: SinkProcess, known: KnownCalls, table: str) -> None:
    text = f"SELECT groupUniqArray(tenant_id)[1], uniqExact(tenant_id) FROM {table} FORMAT TSV"
    answer = httpx.post(f"http://127.0.0.1:{sink.port}/", content=text, auth=(known.acme, PASSWORD), timeout=60)
    assert (answer.status_code, answer.text) == (200, f"{known.acme}\t1\n")


@pytest.mark.parametrize("query", [query for query, _ in SEEN])
def test_only_its_own_rows_are_seen(sink: SinkProcess, known: KnownCalls, query: str) -> None:
    expected = dict(SEEN)[query]
    for table in TABLES:
        text = query.format(table=table).replace("BETA", known.beta).replace("ACME", known.acme)
        answer = httpx.post(f"http://127.0.0.1:{sink.port}/", content=text, auth=(known.acme, PASSWORD), timeout=60)
        assert answer.status_code == 200, (table, answer.text)
        own = sink.ask(f"SELECT count() FROM {table} WHERE tenant_id = '{known.acme}'").text
        assert answer.text == (own if expected == "OWN" else f"{expected}\n"), table


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SHOW DATABASES", "trunkline\n"),
        ("SELECT name FROM system.databases", "trunkline\n"),
        ("SELECT count() FROM system.tables WHERE name LIKE 'mv_%' OR name IN ('migrations', 'sink_offsets')", "0\n"),
        ("SELECT uniqExact(database) FROM system.columns", "1\n"),
        ("SHOW TABLES FROM system", ""),
        ("SHOW TABLES LIKE 'sess%'", "sessions\n"),
        ("EXISTS TABLE sessions", "1\n"),
        ("SELECT currentDatabase()", "trunkline\n"),
        ("SELECT getSetting('readonly') > 0", "1\n"),
        ("SELECT uniqExact(tenant_id) FROM sessions AS `system.tables`", "1\n"),
        ("SELECT 'PREWHERE total_rows system.processes' AS words", "PREWHERE total_rows system.processes\n"),
    ],
)
def test_what_a_tenant_finds_of_the_engine(sink: SinkProcess, known: KnownCalls, query: str, expected: str) -> None:
    answer = httpx.post(f"http://127.0.0.1:{sink.port}/", content=query, auth=(known.acme, PASSWORD), timeout=60)
    assert (answer.status_code, answer.text) == (200, expected)
