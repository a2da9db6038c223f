"""The CRM's process: `python -m processors.crm.clerk`, one for a platform that has an adapter with an address.

It folds every call from its events, carries out the workflows of ends of turns and of calls, and says how each call
went and how the customer fares. What a call needs is read again after a crash: offsets are committed only up to the
first record of a call that may still lead to something. What was done by then is known from what was written about it,
and what was done and not yet written about is done again under the same idempotency key.
"""

import asyncio
import itertools
import os
import random
import signal
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
import uvloop
from prometheus_client import Counter, Gauge, start_http_server

from processors.adapters.adapter import load_adapters
from processors.adapters.client import Adapters
from processors.agents import load_agents
from processors.crm.assist import Assist
from processors.crm.call import Call, End
from processors.crm.errands import Errand, Errands, Office
from processors.crm.outputs import written_since
from processors.crm.standings import Standing, Standings
from processors.crm.workflows import Workflow, load_workflows
from processors.dead_letters import DeadLetters
from processors.health import Health
from processors.privacy import load_policies
from processors.rungs import ladder, reporter
from processors.secrets import secrets_of
from processors.stage import event_id
from processors.templates import RenderError
from processors.webhooks.feed import Backlog, Entry, Positions, Tail
from processors.worker import embedder
from schemas.event import Event
from schemas.events import Customer, CustomerKind, Session, SessionKind
from streams import ready, standby
from streams.client import LogError
from streams.clock import Clock, SystemClock
from streams.codec import Codec
from streams.consumer import LogReader
from streams.garbage import collect_seldom
from streams.keyfile import kept_key
from streams.keys import Position
from streams.logs import configure
from streams.priority import READER_NICENESS, step_back
from streams.producer import LogProducer
from streams.registry import codec_for, keyring_for
from streams.settings import Settings
from streams.yamlfile import ConfigError

log = structlog.get_logger(__name__)

COMPONENT = "crm"
KEY_FILE = "crm.key"
GROUP = "trunkline.crm"
TOPICS = ("voice.sessions", "voice.intents", "voice.responses")
CALLS_MAX = 10_000
DONE_MAX = 100_000
KEEP_S = 0.5
# A tool that changes something is not abandoned when its caller hangs up, so a turn may end after its call.
LINGER_S = 75.0
_RETRY_S = 1.0

calls_known = Gauge("trunkline_crm_calls", "Calls that may still lead to something.")
customers_known = Gauge("trunkline_crm_customers", "Customers whose health is remembered.")
errands_open = Gauge("trunkline_crm_open", "Workflows that are neither done nor dead.")
let_go = Counter("trunkline_crm_let_go", "Calls that were forgotten before they had ended.", ["reason"])


@dataclass(slots=True)
class File:
    """A call and what hangs on it: the first offset of each partition that it needs, and its errands under way."""

    call: Call
    firsts: Positions = field(default_factory=dict)
    heard_s: float = 0.0
    ended: Entry | None = None
    ended_s: float = 0.0
    is_closed: bool = False
    errands: int = 0


class Clerk:
    """`run` works until it is cancelled."""

    def __init__(
        self,
        settings: Settings,
        adapters: Adapters,
        workflows: Sequence[Workflow],
        producer: LogProducer,
        codec: Codec,
        clock: Clock,
        chance: random.Random,
        assist: Assist | None = None,
    ) -> None:
        self._assist = assist
        self._key = key_of(settings)
        self._settings = settings
        self._workflows = workflows
        self._producer = producer
        self._codec = codec
        self._clock = clock
        self._number = itertools.count().__next__
        self._tail = Tail(settings, codec, clock, TOPICS, GROUP)
        self._backlog = Backlog(settings, codec, GROUP)
        self._standings = Standings(settings, producer)
        self._letters = DeadLetters(COMPONENT, producer.publish, clock, settings.dead_letters_per_minute_max)
        crm = settings.crm
        self._policies = load_policies(settings.privacy.policies_dir)
        self._keyring = keyring_for(settings)
        office = Office(
            adapters,
            clock,
            chance,
            self._letters,
            producer.publish,
            self._number,
            self._is_erased,
            crm.retry_s,
            crm.open_max,
        )
        self._errands = {adapter: Errands(adapter, office, self._over) for adapter in adapters.known}
        self._files: OrderedDict[str, File] = OrderedDict()
        self._positions: Positions = {}
        self._committed: Positions = {}
        self._done: OrderedDict[str, None] = OrderedDict()
        self._scored: Mapping[str, Customer] = {}
        self._told: list[Awaitable[Any]] = []
        self._moved = asyncio.Event()

    async def run(self, when_ready: Callable[[], None] = lambda: None) -> None:
        """Raises LogError where what was done cannot be recorded: a successor then goes on from what was."""
        async with LogReader(self._settings, GROUP, GROUP) as offsets, asyncio.TaskGroup() as group:
            while not await self._begun(offsets):
                await self._clock.sleep(_RETRY_S)
            group.create_task(self._tail.run(), name="tail")
            for errands in self._errands.values():
                group.create_task(errands.run())
            group.create_task(self._keep_all(offsets), name="keeping")
            when_ready()
            await self._pull()

    async def _begun(self, offsets: LogReader) -> bool:
        """Whether it may begin; the log may be away for a while, and so may its group's coordinator."""
        try:
            await self._begin(offsets)
        except LogError as error:
            log.warning("the log is not ready, trying again", error=str(error))
            return False
        return True

    async def _begin(self, offsets: LogReader) -> None:
        """Where the last one stopped; the first one begins with what comes."""
        partitions = [partition for topic in TOPICS for partition in await offsets.partitions(topic)]
        ends = await offsets.end_offsets(partitions)
        found = await offsets.committed(partitions)
        self._positions = {one: ends[one] if found[one] is None else found[one] or 0 for one in partitions}
        # Before the first record: a successor must not begin behind what was read meanwhile.
        await self._commit(offsets, self._positions)
        await self._standings.load()
        over, self._scored = await written_since(self._settings, self._codec, self._positions, f"{GROUP}.written")
        self._done = OrderedDict.fromkeys(over)
        for event in self._scored.values():
            await self._standings.catch_up(event)
        log.info("crm at work", workflows=len(self._workflows), customers=len(self._standings))

    # ---- reading

    async def _pull(self) -> None:
        tail, seen = self._tail, 0
        while True:
            try:
                if not tail.starts:
                    await tail.grown()
                elif tail.covers(self._positions):
                    seen = max(seen, tail.first)
                    entries = await tail.after(seen)
                    seen += len(entries)
                    self._consider(entries)
                else:
                    chunk = await self._backlog.read(self._positions, tail.ends)
                    self._consider(chunk.entries)
                    self._positions |= chunk.after
            except LogError as error:
                log.warning("reading the log failed, trying again", error=str(error))
                await self._clock.sleep(_RETRY_S)
            while self._open >= self._settings.crm.open_max:
                self._moved.clear()
                await self._moved.wait()

    @property
    def _open(self) -> int:
        return sum(errands.open_count for errands in self._errands.values())

    def _consider(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.record.offset >= self._positions.get(entry.partition, 0):
                self._take(entry)
                self._positions[entry.partition] = entry.record.offset + 1

    def _is_erased(self, session_id: str) -> bool:
        """Looked at before each attempt: a call may have been erased since the first."""
        file = self._keyring.file(session_id)
        return file is not None and bool(file.erased_at)

    def _take(self, entry: Entry) -> None:
        event = self._policies.redacted(entry.event)
        file = self._files.get(event.session_id)
        if file is None:
            file = self._files[event.session_id] = File(Call(event.session_id, self._key))
            self._make_room()
        self._files.move_to_end(event.session_id)
        file.heard_s = self._clock.monotonic_s()
        file.firsts.setdefault(entry.partition, entry.record.offset)
        end = file.call.take(event)
        if self._assist is not None:
            self._assist.take(file.call, event)
        if end is not None:
            self._plan(file, end, entry, "turn")
        if isinstance(event, Session) and event.kind is SessionKind.ENDED and file.ended is None:
            file.ended, file.ended_s = entry, file.heard_s

    def _make_room(self) -> None:
        """What was silent for longest goes first, unless something of it is under way."""
        if len(self._files) <= CALLS_MAX:
            return
        oldest = next((name for name, file in self._files.items() if not file.errands), None)
        if oldest is not None:
            del self._files[oldest]
            let_go.labels("too_many").inc()

    # ---- what ends lead to

    def _plan(self, file: File, end: End, entry: Entry, ended: str) -> None:
        for workflow in self._workflows:
            if workflow.when.ended != ended or not workflow.when.holds(end.facts):
                continue
            identity = workflow.errand_id(end.event.event_id)
            if identity in self._done:
                continue
            self._remember(identity)
            try:
                key = str(workflow.key.render(end.facts)) if workflow.key is not None else identity
                arguments = {name: text.render(end.facts) for name, text in workflow.arguments.items()}
            except RenderError as error:
                log.warning("workflow cannot be filled in", workflow=workflow.name, why=str(error))
                self._told.append(self._unfillable(workflow, entry, end.event, str(error)))
                continue
            file.errands += 1
            adapter = workflow.operation.partition(".")[0]
            self._errands[adapter].add(Errand(identity, workflow, key, arguments, end.event, entry))

    def _over(self, errand: Errand, told: list[Awaitable[Any]]) -> None:
        """An errand is done or dead."""
        self._told += told
        self._files[errand.event.session_id].errands -= 1
        self._moved.set()

    def _remember(self, identity: str) -> None:
        self._done[identity] = None
        if len(self._done) > DONE_MAX:
            self._done.popitem(last=False)

    def _unfillable(self, workflow: Workflow, entry: Entry, event: Event, why: str) -> Awaitable[Any]:
        record = entry.record
        position = Position(*entry.partition, record.offset)
        headers = {name: value for name, value in record.headers if value is not None}
        detail = f"workflow {workflow.name}: {why}"
        return self._letters.send(
            position, record.key, record.value, headers, "undelivered", detail, event, f"workflow {workflow.name}"
        )

    async def _close(self, file: File) -> None:
        """The call has ended, and what belongs to it has arrived: says how it went."""
        assert file.ended is not None, "it has ended"
        file.is_closed = True
        ended = file.ended.event
        identity = event_id(ended.event_id, "customer")
        event = self._scored.get(identity)
        if event is None:
            event = self._score(file.call, ended, identity)
            await self._producer.publish(event)
            await self._standings.catch_up(event)
        self._plan(file, file.call.call_end(event, event.score), file.ended, "call")

    def _score(self, call: Call, ended: Event, identity: str) -> Customer:
        before, score = self._standings.of(call.customer), call.score()
        after = self._standings.after(call.customer, score) if call.customer else Standing(score=score, calls=1)
        return Customer(
            event_id=identity,
            session_id=ended.session_id,
            tenant_id=ended.tenant_id,
            agent_id=ended.agent_id,
            turn=max(call.turns, default=0),
            seq=self._number(),
            occurred_at=self._clock.now_us(),
            causation_id=ended.event_id,
            kind=CustomerKind.SCORED,
            customer=call.customer,
            caller=call.started.caller if call.started is not None else None,
            score=after.score,
            score_before=before.score if before is not None else -1,
            calls=after.calls,
            call_score=score,
            disposition=call.disposition,
            sentiment=call.sentiment,
            summary=call.summary(),
            intents=call.intents,
            turns=len(call.asked),
            duration_ms=call.ended.duration_ms if call.ended is not None else 0,
            reason=call.ended.reason if call.ended is not None else "",
        )

    # ---- keeping

    async def _keep_all(self, offsets: LogReader) -> None:
        while True:
            await self._clock.sleep(KEEP_S)
            await self._look_through()
            told, self._told = self._told, []
            bounds = self._bounds()
            await asyncio.gather(*told)
            try:
                await self._commit(offsets, bounds)
            except LogError as error:
                log.warning("offsets not committed, trying again", error=str(error))
            calls_known.set(len(self._files))
            customers_known.set(len(self._standings))
            errands_open.set(self._open)

    async def _look_through(self) -> None:
        """Closes calls that have ended, and forgets those that lead to nothing any more."""
        now_s = self._clock.monotonic_s()
        api = self._settings.api
        silent_s = api.session_idle_s + api.resume_grace_s + LINGER_S
        for name, file in list(self._files.items()):
            if file.ended is None:
                if now_s - file.heard_s > silent_s and not file.errands:
                    del self._files[name]
                    let_go.labels("silent").inc()
            elif not file.is_closed:
                if now_s - file.ended_s >= self._settings.crm.settle_s:
                    await self._close(file)
            elif now_s - file.ended_s >= LINGER_S and not file.errands:
                del self._files[name]

    def _bounds(self) -> Positions:
        """Up to where a successor needs nothing."""
        bounds = dict(self._positions)
        for file in self._files.values():
            for partition, first in file.firsts.items():
                bounds[partition] = min(bounds[partition], first)
        return bounds

    async def _commit(self, offsets: LogReader, bounds: Positions) -> None:
        changed = {
            partition: offset for partition, offset in bounds.items() if self._committed.get(partition) != offset
        }
        if changed:
            await offsets.commit(changed)
            self._committed |= changed


def key_of(settings: Settings) -> bytes:
    """The key of customers' pseudonyms: of the settings, else that of the data directory, made there the first time.

    Raises OSError or ValueError where none can be kept.
    """
    given = settings.crm.key
    if given is not None and given.get_secret_value():
        return given.get_secret_value().encode()
    return kept_key(settings.data_dir / KEY_FILE)


async def work(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    standby.show_life()
    clock = SystemClock()
    secrets = secrets_of()
    known, agents = load_adapters(settings, secrets), load_agents(settings.agents_dir)
    workflows = load_workflows(settings.workflows_file, known)
    codec = codec_for(settings)
    producer = LogProducer(settings, GROUP, codec)
    await standby.turn()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server, _ = start_http_server(settings.metrics_port, "127.0.0.1")
    health = Health(producer.publish, COMPONENT, settings.worker, settings.tenant, clock)
    adapters = Adapters(known, secrets, clock, reporter(health))
    embeddings = ladder(settings, "embeddings", clock)
    assist = Assist(agents, embeddings, producer.publish, clock)
    learning = loop.create_task(assist.learn(embedder({"embeddings": embeddings}, loop)))
    clerk = Clerk(settings, adapters, workflows, producer, codec, clock, random.Random(), assist)
    running = loop.create_task(
        clerk.run(lambda: ready.announce(settings, COMPONENT, metrics_port=server.server_port)), name="clerk"
    )
    stopped = loop.create_task(stopping.wait())
    await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
    ready.withdraw(settings, COMPONENT)
    failure = running.exception() if running.done() else None
    running.cancel()
    learning.cancel()
    await asyncio.gather(running, learning, return_exceptions=True)
    await producer.close()
    await adapters.close()
    await embeddings.close()
    server.shutdown()
    if failure is not None:
        raise failure


def main() -> int:
    """Exits 0 after an orderly stop, 1 after a failure, 78 where an adapter, a workflow or a policy is wrong."""
    step_back(READER_NICENESS)
    collect_seldom()
    settings = Settings()
    configure(settings, COMPONENT)
    try:
        uvloop.run(work(settings))
    except ConfigError as error:
        log.critical("crm_not_started", why=str(error))
        return os.EX_CONFIG
    except Exception:
        log.exception("crm_failed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
