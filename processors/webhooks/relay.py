"""The relay's process: `python -m processors.webhooks.relay`, one for a platform.

It follows the topic of subscriptions, runs a subscriber for each that is switched on, and keeps their progress in a
compacted topic, so that its successor goes on where it stopped. Without a subscription it reads no calls.
"""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
from collections.abc import Callable

import structlog
import uvloop
from prometheus_client import Gauge, start_http_server

from processors.dead_letters import DeadLetters
from processors.privacy import load_policies
from processors.webhooks import store
from processors.webhooks.feed import NAME, Backlog, Tail
from processors.webhooks.guard import guard_of
from processors.webhooks.subscriber import Subscriber, Tools
from processors.webhooks.subscriptions import Progress, Subscription
from processors.webhooks.vault import VaultError, vault_of
from streams import ready, standby
from streams.clock import Clock, SystemClock
from streams.codec import Codec
from streams.consumer import LogReader
from streams.garbage import collect_seldom
from streams.logs import configure
from streams.priority import READER_NICENESS, step_back
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import Settings
from streams.topics import SUBSCRIPTIONS
from streams.yamlfile import ConfigError

log = structlog.get_logger(__name__)

COMPONENT = "webhooks"
KEEP_S = 0.5

open_messages = Gauge("trunkline_webhooks_open", "Messages that are neither delivered nor dead.")
endpoints = Gauge("trunkline_webhooks_endpoints", "Endpoints, by how they fare.", ["state"])


class Relay:
    """Keeps a subscriber for each subscription; `run` works until it is cancelled."""

    def __init__(
        self, settings: Settings, producer: LogProducer, codec: Codec, clock: Clock, chance: random.Random
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._clock = clock
        self._tail = Tail(settings, codec, clock)
        self._tools = Tools(
            settings,
            codec,
            load_policies(settings.privacy.policies_dir),
            clock,
            chance,
            vault_of(settings),
            guard_of(settings),
            self._tail,
            Backlog(settings, codec),
            DeadLetters(COMPONENT, producer.publish, clock, settings.dead_letters_per_minute_max),
            producer.publish,
            itertools.count().__next__,
        )
        self._progress: dict[str, Progress] = {}
        self._subscribers: dict[str, Subscriber] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._tailing: asyncio.Task[None] | None = None
        self._keeping = asyncio.Lock()

    async def run(self, when_ready: Callable[[], None] = lambda: None) -> None:
        """Raises LogError where what was sent cannot be recorded: a successor then goes on from what was."""
        self._progress = await store.progress(self._settings)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_all(group))
                await self._follow(group, when_ready)
        finally:
            for identity in list(self._subscribers):
                await self._stop(identity)

    async def _follow(self, group: asyncio.TaskGroup, when_ready: Callable[[], None]) -> None:
        """Takes subscriptions as they are, and as they change."""
        async with LogReader(self._settings, NAME) as reader:
            ends = await reader.end_offsets(await reader.partitions(SUBSCRIPTIONS))
            for subscription in (await store.subscriptions(self._settings, ends)).values():
                await self._apply(group, subscription.id, subscription)
            await reader.add(ends)
            when_ready()
            async for record in reader:
                identity = (record.key or b"").decode(errors="replace")
                await self._apply(group, identity, store.subscription_in(record))

    async def _apply(self, group: asyncio.TaskGroup, identity: str, subscription: Subscription | None) -> None:
        await self._stop(identity)
        if subscription is None:
            self._progress.pop(identity, None)
            await store.write(self._producer, identity, None, store.PROGRESS)
            log.info("webhook removed", webhook=identity)
        else:
            subscriber = Subscriber(subscription, self._progress.get(identity), self._tools)
            self._subscribers[identity] = subscriber
            if subscriber.is_on:
                self._tasks[identity] = group.create_task(subscriber.run(), name=identity)
                log.info("webhook at work", webhook=identity)
        self._tail_if_needed(group)

    async def _stop(self, identity: str) -> None:
        """Ends its subscriber, and keeps how far it is."""
        task = self._tasks.pop(identity, None)
        subscriber = self._subscribers.pop(identity, None)
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if subscriber is not None:
            await self._keep(identity, subscriber)

    def _tail_if_needed(self, group: asyncio.TaskGroup) -> None:
        is_needed = any(subscriber.is_on for subscriber in self._subscribers.values())
        if is_needed and self._tailing is None:
            self._tailing = group.create_task(self._tail.run(), name="tail")
        elif not is_needed and self._tailing is not None:
            self._tailing.cancel()
            self._tailing = None

    async def _keep_all(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._clock.sleep(KEEP_S)
            self._tail_if_needed(group)
            for identity, subscriber in list(self._subscribers.items()):
                await self._keep(identity, subscriber)
            self._measure()

    async def _keep(self, identity: str, subscriber: Subscriber) -> None:
        """Keeps its progress, once what it told of is in the log."""
        async with self._keeping:
            if not subscriber.changed:
                return
            told, progress = subscriber.take_told()
            await asyncio.gather(*told)
            await store.write(self._producer, identity, progress, store.PROGRESS)
            self._progress[identity] = progress

    def _measure(self) -> None:
        subscribers = self._subscribers.values()
        open_messages.set(sum(subscriber.open_count for subscriber in subscribers))
        endpoints.labels("disabled").set(sum(not subscriber.is_on for subscriber in subscribers))
        endpoints.labels("failing").set(sum(subscriber.is_on and subscriber.is_failing for subscriber in subscribers))
        endpoints.labels("healthy").set(
            sum(subscriber.is_on and not subscriber.is_failing for subscriber in subscribers)
        )


async def work(settings: Settings) -> None:
    """Runs the relay until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    standby.show_life()
    codec = codec_for(settings)
    producer = LogProducer(settings, NAME, codec)
    await standby.turn()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server, _ = start_http_server(settings.metrics_port, "127.0.0.1")
    relay = Relay(settings, producer, codec, SystemClock(), random.Random())
    running = loop.create_task(
        relay.run(lambda: ready.announce(settings, COMPONENT, metrics_port=server.server_port)), name="relay"
    )
    stopped = loop.create_task(stopping.wait())
    await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
    ready.withdraw(settings, COMPONENT)
    failure = running.exception() if running.done() else None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await producer.close()
    server.shutdown()
    if failure is not None:
        raise failure


def main() -> int:
    """Exits 0 after an orderly stop, 1 after a failure, 78 without a key for signing secrets or with a bad policy."""
    step_back(READER_NICENESS)
    collect_seldom()
    settings = Settings()
    configure(settings, COMPONENT)
    try:
        uvloop.run(work(settings))
    except (VaultError, ConfigError) as error:
        log.critical("relay_not_started", why=str(error))
        return os.EX_CONFIG
    except Exception:
        log.exception("relay_failed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
