"""The sink's process: `python -m processors.clickhouse.sink`.

It reads every topic of events, without a consumer group's rebalances, and writes batches. A batch is first planned
(which offsets of which partitions), then written table by table under a token that makes a repeat harmless, then the
offsets move. A crash in between repeats exactly the planned batch, so every record has one row.

It sees every record, so it also keeps the audit record: hash chains over what is stored (`processors/audit`), written
with the batch, and checkpoints that sign how far they are.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any

import structlog
import uvloop
from clickhouse_connect.driver.exceptions import ClickHouseError, DataError
from prometheus_client import Counter, Gauge, start_http_server
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    retry_if_not_exception_type,
    wait_exponential_jitter,
)

from processors.access.keyring import Keyring
from processors.access.refusals import Refusals
from processors.audit import ledger
from processors.audit.accesses import Accesses
from processors.audit.anchor import Anchor
from processors.audit.ledger import Ledger
from processors.clear import WORDS, clear_record
from processors.clickhouse.http import Questions, serve
from processors.clickhouse.rows import TABLE_OF_TOPIC, TABLES, UnfitError, columns, row_of
from processors.clickhouse.store import Store, connect
from processors.dead_letters import DeadLetters
from processors.erasure import erased_event
from processors.health import Health as HealthReports
from processors.privacy import Policies, load_policies
from processors.retention import Retention
from processors.sla.objectives import load_tiers
from processors.sla.watch import BudgetWatch
from processors.stage import Position
from schemas.event import Event
from schemas.events import (
    Access,
    AudioFrame,
    Checkpoint,
    Control,
    ControlKind,
    Customer,
    DeadLetter,
    Delivery,
    Health,
    Refusal,
    SpeechChunk,
    Suggestion,
)
from streams import ready, standby
from streams.client import LogError, Partition
from streams.clock import Clock, SystemClock
from streams.codec import Codec, CodecError
from streams.consumer import BEGINNING, LogReader, Record, read_range
from streams.garbage import collect_seldom
from streams.logs import configure
from streams.priority import READER_NICENESS, step_back
from streams.producer import LogProducer
from streams.registry import codec_for, keyring_for
from streams.settings import Settings
from streams.signing import SignatureError
from streams.topics import CLEAR, TOPICS
from streams.yamlfile import ConfigError

log = structlog.get_logger(__name__)

GROUP = "trunkline.clickhouse"
STORE = "clickhouse"
Tables = Mapping[type[Event], list[tuple[Any, ...]]]
# Topics that no stage reads: the sink sends their undecodable records to the dead letters.
GUARDED = frozenset(
    event.TOPIC
    for event in (SpeechChunk, Customer, Delivery, DeadLetter, Health, Suggestion, Refusal, Access, Checkpoint)
)
SEEN_MAX = 200_000
# A batch of few rows costs nearly as much as one of thousands. Where the machine is so busy that one takes long, the
# sink rests so many times as long, up to so many times its usual wait; not while a whole batch waits.
REST_FACTOR = 30
WAIT_FACTOR_MAX = 10
# An orderly stop waits so long for its last checkpoint; the next start signs what this one did not.
LAST_CHECKPOINT_S = 5.0

rows_written = Counter("trunkline_sink_rows", "Rows written.", ["table"])
batches_written = Counter("trunkline_sink_batches", "Batches written.")
repeats = Counter("trunkline_sink_repeats", "Records whose event was already there.")
unreadable = Counter("trunkline_sink_unreadable", "Records that are no event.", ["reason"])
erased = Counter("trunkline_sink_erased", "Calls whose personal columns were emptied.")
waiting = Gauge("trunkline_sink_waiting", "Records read and not yet written.")


class Sink:
    """Turns records into batches; `run` works until it is cancelled."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        producer: LogProducer,
        codec: Codec,
        clock: Clock,
        policies: Policies,
    ) -> None:
        self._settings = settings
        self._store = store
        self._codec = codec
        self._clock = clock
        self._policies = policies
        self._producer = producer
        self._letters = DeadLetters("clickhouse", producer.publish, clock, settings.dead_letters_per_minute_max)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._unshown: dict[Partition, int] = {}
        self._batch = 0
        self._ledger = Ledger()
        self._anchor = Anchor(settings, producer.publish, codec, clock, self._ledger)
        self._offsets: dict[Partition, int] = {}
        self._replayed: dict[Partition, int] = {}
        # What a batch has entered into the chains is signed once it is written.
        self._writing = asyncio.Lock()

    @property
    def batch(self) -> int:
        """The number of the batch written last."""
        return self._batch

    async def start(self) -> None:
        """Migrates and finishes the batch that a crash interrupted."""
        await patiently(self._store.migrate)
        self._batch, plan = await patiently(self._store.last_plan)
        offsets = await patiently(self._store.offsets)
        if any(last >= offsets.get(partition, 0) for partition, (_, last) in plan.items()):
            log.info("batch_repeated", batch=self._batch)
            ranges = {partition: (first, last + 1) for partition, (first, last) in plan.items()}
            records = [record async for record in read_range(self._settings, ranges, f"{GROUP}.repeat")]
            self._replayed = {partition: first for partition, (first, _) in plan.items()}
            tables, erases = await self._tables(records)
            await self._write(plan, tables, await self._entries(records, plan), erases)

    async def run(self) -> None:
        """Reads from where the tables end, for ever."""
        offsets = await patiently(self._store.offsets)
        rows_max = self._settings.clickhouse.batch_rows_max
        async with LogReader(self._settings, GROUP, GROUP, rows_max, in_bulk=True) as reader:
            starts: dict[Partition, int] = {}
            for topic in TABLE_OF_TOPIC:
                for partition in await reader.partitions(topic):
                    starts[partition] = offsets.get(partition, BEGINNING)
            first = await reader.begin_offsets(starts)
            starts = {partition: max(start, first[partition]) for partition, start in starts.items()}
            await self._begin_signing(starts)
            await reader.add(starts)
            # What was written just before a crash has not been shown, and its partition may never have another record.
            self._unshown = {partition: start for partition, start in starts.items() if start > 0}
            await self._show(reader)
            wait_s = wait_s_min = self._settings.clickhouse.batch_wait_ms / 1000
            while await reader.more():
                await self._rest(reader, wait_s)
                began_s = self._clock.monotonic_s()
                records = reader.take()
                if records:
                    await self._store_batch(records)
                rest_s = REST_FACTOR * (self._clock.monotonic_s() - began_s)
                # More than a batch waits where one is full.
                wait_s = max(wait_s_min, min(rest_s, wait_s_min * WAIT_FACTOR_MAX)) if len(records) < rows_max else 0.0
                await self._show(reader)

    async def _rest(self, reader: LogReader, for_s: float) -> None:
        """Lets records come for so long, or until there is no room for more."""
        until_s, step_s = self._clock.monotonic_s() + for_s, self._settings.clickhouse.batch_wait_ms / 1000
        while not reader.full and (left_s := until_s - self._clock.monotonic_s()) > 0:
            await self._clock.sleep(min(left_s, step_s))

    async def _begin_signing(self, starts: Mapping[Partition, int]) -> None:
        """Chains that have grown since the last checkpoint are in the tables; of what was replayed, in memory, too."""
        self._offsets = dict(starts)
        since = {place: min(start, self._replayed.get(place, start)) for place, start in starts.items()}
        if await self._anchor.start(since, starts):
            self._ledger.grown = dict(await patiently(self._store.heads_since, self._ledger.covered))

    async def sign(self) -> None:
        """Signs how far the chains are, again and again, for ever."""
        while True:
            await self._clock.sleep(self._settings.audit.checkpoint_s)
            await self.sign_now()

    async def sign_now(self) -> None:
        """Signs what is written so far; nothing before `run` has found where the chains are."""
        async with self._writing:
            if self._anchor.started:
                await self._anchor.sign(self._offsets)

    async def _show(self, reader: LogReader) -> None:
        """Commits how far the tables are, for people and their tools who look at the group's lag; the sink itself goes
        by its tables. What the coordinator did not take is shown with the next."""
        if not self._unshown:
            return
        try:
            await reader.commit(self._unshown)
        except LogError as error:
            log.warning("offsets_not_shown", error=str(error))
        else:
            self._unshown = {}

    async def _store_batch(self, records: Sequence[Record]) -> None:
        waiting.set(len(records))
        ranges: dict[Partition, tuple[int, int]] = {}
        for record in records:
            partition = Partition(record.topic, record.partition)
            ranges[partition] = (ranges.get(partition, (record.offset, 0))[0], record.offset)
        tables, erases = await self._tables(records)
        async with self._writing:
            entries = await self._entries(records, ranges)
            self._batch += 1
            await patiently(self._store.plan, self._batch, ranges)
            await self._write(ranges, tables, entries, erases)
        self._unshown |= {partition: last + 1 for partition, (_, last) in ranges.items()}
        waiting.set(0)

    async def _tables(self, records: Sequence[Record]) -> tuple[Tables, list[Control]]:
        """Rows by kind of event, and which calls are to be erased.

        What is no event goes to the dead letters before its batch is written, as does one that fits no table, and
        masked words to the clear topic of tenants who want it.
        """
        tables: dict[type[Event], list[tuple[Any, ...]]] = defaultdict(list)
        erases: list[Control] = []
        told: list[Awaitable[Any]] = []
        for record in records:
            try:
                event, found = row_of(self._codec, self._policies, record)
            except CodecError as error:
                unreadable.labels(error.reason).inc()
                if record.topic in GUARDED or isinstance(error, UnfitError):
                    position = Position(record.topic, record.partition, record.offset)
                    headers = {name: value for name, value in record.headers if value is not None}
                    told.append(
                        asyncio.ensure_future(
                            self._letters.send(position, record.key, record.value, headers, error.reason, error.detail)
                        )
                    )
                continue
            if isinstance(event, AudioFrame) or self._first(event.event_id):
                tables[type(event)].append(found)
            if record.topic in WORDS and self._policies.of(event.tenant_id).clear_topic:
                told.append(self._publish_clear(event, Position(record.topic, record.partition, record.offset)))
            if isinstance(event, Control) and event.kind is ControlKind.ERASE:
                erases.append(event)
        await asyncio.gather(*told)
        return tables, erases

    def _publish_clear(self, event: Event, position: Position) -> Awaitable[Any]:
        record = clear_record(event, position)
        return self._producer.publish_raw(CLEAR, record.key, record.value, record.headers)

    async def _erase(self, erase: Control) -> None:
        """Empties what is personal in the call's rows, and tells the log."""
        rows = await patiently(self._store.erase, [erase.session_id])
        erased.inc()
        log.info("erased", session_id=erase.session_id, rows=sum(rows.values()))
        await self._producer.publish(erased_event(erase, STORE, {"rows": rows}, self._clock.now_us()))

    def _first(self, event_id: str) -> bool:
        """The first event with an id is the truth; a repeat long after is merged away by the table itself."""
        if event_id in self._seen:
            repeats.inc()
            return False
        self._seen[event_id] = None
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)
        return True

    async def _entries(
        self, records: Sequence[Record], ranges: Mapping[Partition, tuple[int, int]]
    ) -> list[tuple[Any, ...]]:
        """The records in their chains, as rows; those of a batch that is written again go on from before it."""
        if keys := self._ledger.unknown(records):
            below = {partition: first for partition, (first, _) in ranges.items()}
            self._ledger.learn(keys, await patiently(self._store.heads, keys, below))
        return [ledger.row_of(entry) for entry in self._ledger.enter(records)]

    async def _write(
        self,
        ranges: Mapping[Partition, tuple[int, int]],
        tables: Tables,
        entries: list[tuple[Any, ...]],
        erases: Sequence[Control],
    ) -> None:
        for event, rows in tables.items():
            await patiently(self._store.write, self._batch, TABLES[event], columns(event), rows)
            rows_written.labels(TABLES[event]).inc(len(rows))
        if entries:
            await patiently(self._store.write, self._batch, ledger.TABLE, ledger.COLUMNS, entries)
        # Before the offsets move, so that a crash repeats it.
        for erase in erases:
            await self._erase(erase)
        await patiently(self._store.written, ranges)
        self._offsets |= {partition: last + 1 for partition, (_, last) in ranges.items()}
        batches_written.inc()


async def patiently(work: Any, *arguments: Any) -> Any:
    """Does it off the loop; while ClickHouse is away it tries again, and the log waits in Kafka meanwhile.

    Rows that the client cannot write are no better the next time: `row_of` has let something through, which is a bug.
    """

    def away(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        code = getattr(error, "code", None)
        log.warning("clickhouse_away", attempt=state.attempt_number, error=type(error).__name__, code=code)

    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type((ClickHouseError, OSError)) & retry_if_not_exception_type(DataError),
        wait=wait_exponential_jitter(multiplier=0.2, max=5),
        before_sleep=away,
        reraise=True,
    ):
        with attempt:
            return await asyncio.to_thread(work, *arguments)
    raise AssertionError("tries without end")


@contextlib.asynccontextmanager
async def answering(settings: Settings, producer: LogProducer, clock: Clock) -> AsyncIterator[dict[str, int]]:
    """The embedded ClickHouse's HTTP interface; yields what is to be announced of it. A server has its own."""
    if settings.clickhouse.host:
        yield {}
        return
    keyring = Keyring(settings, clock)
    refusals = Refusals(f"clickhouse.{settings.worker}", settings.tenant, clock)
    accesses = Accesses(producer.publish, clock, "clickhouse")
    refusals.open(producer.publish)
    await keyring.open()
    questions = await asyncio.to_thread(Questions, settings, accesses.note, keyring=keyring, refusals=refusals)
    http, serving, port = await serve(settings, questions)
    try:
        yield {"http_port": port}
    finally:
        http.should_exit = True
        await serving
        await keyring.close()
        await refusals.close()


async def work(settings: Settings) -> None:
    """Runs the sink, and the embedded ClickHouse's HTTP interface, until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    standby.show_life()
    codec = codec_for(settings)
    producer = LogProducer(settings, GROUP, codec)
    tiers, policies = load_tiers(settings.sla_dir), load_policies(settings.privacy.policies_dir)
    await standby.turn()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    store = await patiently(Store, settings, GROUP)
    clock = SystemClock()
    sink = Sink(settings, store, producer, codec, clock, policies)
    await sink.start()
    reports = HealthReports(producer.publish, "clickhouse", settings.worker, settings.tenant, clock)
    watch = BudgetWatch(tiers, lambda: connect(settings), reports, clock, lambda: sink.batch, settings.sla_look_s)
    server, _ = start_http_server(settings.metrics_port, "127.0.0.1")
    running = loop.create_task(sink.run(), name="sink")
    signing = loop.create_task(sink.sign(), name="checkpoints")
    kept_days = max(topic.retention_days(settings) for topic in TOPICS.values() if topic.event and topic.event.PII)
    retention = Retention(keyring_for(settings), policies, producer.publish, clock, kept_days, settings.privacy.look_s)
    watching = [
        loop.create_task(watch.run(), name="budgets"),
        loop.create_task(retention.run(), name="retention"),
    ]
    async with answering(settings, producer, clock) as facts:
        ready.announce(settings, "clickhouse", metrics_port=server.server_port, **facts)
        stopped = loop.create_task(stopping.wait())
        await asyncio.wait({running, signing, stopped}, return_when=asyncio.FIRST_COMPLETED)
        ready.withdraw(settings, "clickhouse")
        failure = next((task.exception() for task in (running, signing) if task.done()), None)
        for task in (running, signing, *watching):
            task.cancel()
        await asyncio.gather(running, signing, *watching, return_exceptions=True)
        if failure is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(sink.sign_now(), LAST_CHECKPOINT_S)
    await producer.close()
    await asyncio.to_thread(store.close)
    watch.close()
    server.shutdown()
    if failure is not None:
        raise failure


def main() -> int:
    """Exits 0 after an orderly stop, 1 after a failure, 78 where objectives, policies or the signing key are wrong."""
    step_back(READER_NICENESS)
    collect_seldom()
    settings = Settings()
    configure(settings, "clickhouse")
    try:
        uvloop.run(work(settings))
    except (ConfigError, SignatureError) as error:
        log.critical("sink_not_started", why=str(error))
        return os.EX_CONFIG
    except Exception:
        log.exception("sink_failed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
