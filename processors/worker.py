"""A stage's process: `python -m processors.worker STAGE`."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import structlog
import uvloop
from numpy.typing import NDArray
from prometheus_client import start_http_server
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from processors.agent_models import check_models
from processors.agents import Agent, load_agents
from processors.choices import SWAPPABLE
from processors.engine import Embed, Embedded, EngineClient, EngineError
from processors.generations import Generations
from processors.health import Health
from processors.hosted import hosted_roles
from processors.ladder import Ladder
from processors.llm.patience import Patience
from processors.load import HEEDING, Board, Level, Meter, limits_of
from processors.load_watch import RARE_PARTIALS_FACTOR, LoadAwareEngine, LoadWatch, capacity
from processors.pipeline import STAGES, Stage
from processors.rungs import OnChange, generations, ladder, reporter
from processors.secrets import secrets_of
from processors.shell import Shell
from processors.stage import Core
from streams import ready, standby
from streams.clock import Clock, SystemClock
from streams.garbage import collect_seldom
from streams.logs import configure
from streams.priority import STAGE_NICENESS, step_back
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import Settings
from streams.topics import state_topic
from streams.yamlfile import ConfigError

log = structlog.get_logger(__name__)

EMBED_S = 60.0
EmbedTexts = Callable[[tuple[str, ...]], NDArray[np.float32]]


def build_core(
    settings: Settings,
    stage: Stage,
    agents: Mapping[str, Agent],
    embed: EmbedTexts,
    level: Callable[[], Level] = lambda: Level.ORDINARY,
    spares_time: Callable[[], bool] = lambda: True,
    patience: Patience | None = None,
) -> Core[Any]:
    """The stage's core; stages are imported only where they run, since some load large libraries.

    `level` is the load level, `spares_time` whether there is time for what may be in vain: what they change is never
    part of a core's promises, so a repeated step may find another. `patience`: see `Conversation`.
    """
    match stage.name:
        case "stt":
            from processors.stt import vad
            from processors.stt.core import SttCore
            from processors.stt.endpoint import rules_of
            from processors.stt.pace import PartialPace

            def partials_apart() -> int:
                return RARE_PARTIALS_FACTOR if level() >= Level.RARE_PARTIALS else 1

            return SttCore(vad.create(settings), rules_of(agents), partials_apart, PartialPace())
        case "intent":
            from processors.intent.core import create_core as intent_core

            return intent_core(agents, embed, spares_time)
        case "llm":
            from processors.adapters.adapter import check_agents, load_adapters
            from processors.llm.stage import create_core as llm_core

            check_agents(settings.agents_dir, agents, load_adapters(settings, secrets_of()))
            short, busy = (lambda: level() >= Level.SHORT_ANSWERS), (lambda: not spares_time())
            return llm_core(settings, agents, embed, short=short, busy=busy, patience=patience)
        case "tts":
            from processors.tts.core import create_core as tts_core

            return tts_core(agents)
        case _:
            raise ValueError(f"{stage.name}: no such stage")


def build_engines(settings: Settings, stage: Stage, clock: Clock, on_change: OnChange) -> dict[str, EngineClient]:
    """A client for each role that the stage asks; `on_change` is told of their breakers."""
    engines: dict[str, EngineClient] = {}
    for role in stage.roles:
        if role == "tools":
            from processors.adapters.adapter import load_adapters
            from processors.adapters.client import Adapters
            from processors.llm.tools import HttpTools

            secrets = secrets_of()
            adapters = Adapters(load_adapters(settings, secrets), secrets, clock, on_change)
            engines[role] = HttpTools(clock, on_change, adapters=adapters)
        elif role in SWAPPABLE and role in hosted_roles(settings):
            engines[role] = generations(settings, role, clock, on_change)
        else:
            engines[role] = ladder(settings, role, clock, on_change)
    return engines


def embedder(engines: Mapping[str, EngineClient], loop: asyncio.AbstractEventLoop) -> EmbedTexts:
    """A blocking function, for threads other than the loop's, that embeds texts: float32 (n, d), unit rows."""

    async def once(texts: tuple[str, ...]) -> NDArray[np.float32]:
        async for reply in engines["embeddings"].ask(Embed(texts), EMBED_S):
            if isinstance(reply, Embedded):
                return np.frombuffer(reply.vectors, np.float32).reshape(-1, reply.dimensions)
        raise EngineError("invalid", "the embedding engine gave no answer")

    async def ask(texts: tuple[str, ...]) -> NDArray[np.float32]:
        """A stage that starts waits for its engine longer than a caller would."""
        attempts = AsyncRetrying(
            stop=stop_after_delay(EMBED_S),
            wait=wait_fixed(0.1),
            retry=retry_if_exception_type(EngineError),
            reraise=True,
        )
        return await attempts(once, texts)

    def embed(texts: tuple[str, ...]) -> NDArray[np.float32]:
        return asyncio.run_coroutine_threadsafe(ask(texts), loop).result()

    return embed


async def work(settings: Settings, stage: Stage) -> None:
    """Runs the stage until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    standby.show_life()
    clock = SystemClock()
    agents = load_agents(settings.agents_dir)
    check_models(settings, agents)
    codec = codec_for(settings)
    producer = LogProducer(settings, f"{stage.group}.{settings.worker}", codec)
    health = Health(producer.publish, stage.name, settings.worker, settings.tenant, clock)
    plain = build_engines(settings, stage, clock, reporter(health))
    meter = Meter({role: capacity(settings, role) for role in plain if role != "tools"}, clock.monotonic_s())
    watch = LoadWatch(
        stage.name,
        meter,
        health,
        clock,
        depth=lambda: shell.open + shell.measure_queues(),
        calls=lambda: shell.calls,
        limits=limits_of(settings),
        board=Board() if stage.name in HEEDING else None,
    )
    engines: dict[str, EngineClient] = {
        role: LoadAwareEngine(client, role, meter, lambda: watch.level, clock) for role, client in plain.items()
    }
    embed = embedder(engines, loop)
    patience = Patience()
    core = await asyncio.to_thread(
        build_core, settings, stage, agents, embed, lambda: watch.level, lambda: watch.spares_time, patience
    )
    shell = Shell(settings, stage, core, engines, producer, codec, clock, meter)
    # A producer's first record waits for connections and an id; that shall not be the first caller's.
    await producer.publish_raw(state_topic(stage.name), b"warm-up", None)
    await shell.prepare()
    if "tools" in stage.roles:
        from processors.llm import tools

        await tools.warm()
    await standby.turn()
    for role, client in plain.items():
        if isinstance(client, Generations):
            client.start(partial(shell.histories, role))
        elif isinstance(client, Ladder):
            client.start()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shell.stop)
    server, _ = start_http_server(settings.metrics_port, "127.0.0.1")
    announcing = loop.create_task(_announce(settings, stage, shell, server.server_port))
    watching = loop.create_task(watch.run(settings, codec))
    watching.add_done_callback(partial(_stop_if_failed, shell))
    rehearsing = loop.create_task(
        _rehearse(stage, agents, patience, plain, clock, lambda: watch.spares_time, shell.stop)
    )
    try:
        await shell.run()
    finally:
        announcing.cancel()
        watching.cancel()
        rehearsing.cancel()
        ready.withdraw(settings, stage.name)
        await producer.close()
        for engine in engines.values():
            await engine.close()
        server.shutdown()


async def _rehearse(
    stage: Stage,
    agents: Mapping[str, Agent],
    patience: Patience,
    engines: Mapping[str, EngineClient],
    clock: Clock,
    spares_time: Callable[[], bool],
    bug: Callable[[BaseException], None],
) -> None:
    """Finds out which agents' callers wait for the language model; those that it may have a tool for always do."""
    if stage.name == "llm":
        from processors.llm.offers import offers_of
        from processors.llm.rehearsal import Rehearsal

        asked = [agent for agent in agents.values() if not offers_of(agent)]
        try:
            await Rehearsal(asked, patience, engines["llm"], clock, spares_time).run()
        except Exception as error:
            bug(error)


def _stop_if_failed(shell: Shell, done: asyncio.Task[None]) -> None:
    """A worker whose load nobody watches would give up as much as it did last, for the rest of its life."""
    if not done.cancelled() and (bug := done.exception()) is not None:
        shell.stop(bug)


async def _announce(settings: Settings, stage: Stage, shell: Shell, metrics_port: int) -> None:
    await shell.ready()
    ready.announce(settings, stage.name, metrics_port=metrics_port)
    log.info("ready", stage=stage.name)


def main() -> int:
    """Exits 0 after an orderly stop, 1 after a failure, 2 for an unknown stage, 78 where an agent's file is wrong."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in STAGES:
        print(f"usage: python -m processors.worker {{{','.join(STAGES)}}}", file=sys.stderr)
        return 2
    settings = Settings()
    configure(settings, name)
    step_back(STAGE_NICENESS)
    collect_seldom()
    try:
        uvloop.run(work(settings, STAGES[name]))
    except ConfigError as error:
        log.critical("worker_not_started", stage=name, why=str(error))
        return os.EX_CONFIG
    except Exception:
        log.exception("worker_failed", stage=name)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
