"""What the embedded platform consists of: its processes, what each needs, its ports and its environment."""

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from api.errors import OperatorError
from api.supervisor import Process, Step
from processors import choices
from processors.adapters.adapter import load_adapters
from processors.choices import Choice, environment_for
from processors.engine_client import engine_name, replicas
from processors.hosted import hosted_roles
from processors.pipeline import PIPELINE, STAGES, Stage
from processors.secrets import secrets_of
from streams import ready
from streams.settings import Settings
from streams.yamlfile import ConfigError

Say = Callable[[str], None]

_ENGINE_OF = {"stt": "stt", "embeddings": "intent", "llm": "llm", "tts": "tts"}
_REMEMBERED = ("kafka", "erp", "clickhouse", "api")
# With a broker of its own each stage has one worker, and records of few partitions are fewer requests; not one alone,
# so that a caller who holds back the others of a partition does not hold back all.
SPREAD = 2


@dataclass(frozen=True, slots=True)
class Layout:
    """Settings with every address filled in, and which of the services behind them are ours to start."""

    settings: Settings
    own_broker: bool
    own_erp: bool


def embedded(layout: Layout, say: Say) -> list[Process | Step]:
    """The parts of `trunkline up`; `say` gets progress lines of slow preparations."""
    settings = layout.settings
    parts: list[Process | Step] = []
    if layout.own_broker:
        parts.append(_broker(settings, say))
    parts.append(_topics(settings, {"broker"} if layout.own_broker else set()))
    for role in hosted_roles(settings):
        parts += engine_parts(settings, role)
    parts += [_stage(settings, stage) for stage in PIPELINE]
    if layout.own_erp:
        parts.append(_erp(settings))
    parts.append(_gateway(settings, settings.api.spread or (SPREAD if layout.own_broker else None)))
    return [*parts, *_readers(settings)] if settings.readers else parts


def _readers(settings: Settings) -> list[Process | Step]:
    """What reads the events of calls for others."""
    sink = _with_spare(settings, _python(settings, "clickhouse", "processors.clickhouse.sink", needs={"topics"}))
    others = [_python(settings, "webhooks", "processors.webhooks.relay", needs={"topics"})]
    if _has_adapters(settings):
        others.append(_python(settings, "crm", "processors.crm.clerk", needs={"topics"}))
    # No call waits for these: they start when everything else is there.
    return [sink, *(replace(one, last=True) for one in others)]


def worker_parts(settings: Settings, stage: str) -> list[Process | Step]:
    """The parts of one stage's container: its engines and its worker, on a cluster that is there already."""
    settings, row = with_absolute_paths(settings), STAGES[stage]
    roles = [role for role in hosted_roles(settings) if role in row.roles]
    engines = [engine for role in roles for engine in engine_parts(settings, role, stage)]
    return [_topics(settings, set()), *engines, _stage(settings, row)]


def engine_parts(settings: Settings, role: str, stage: str | None = None) -> list[Process]:
    """The engines of a role, of each generation that somebody may ask.

    Nothing waits for more than one of those that sessions begin with: the current generation's, and agents' own.
    """
    kept = choices.read(settings, role)
    chosen = {choice.generation: choice for choice in kept.choices}
    first = {kept.current.generation, *(choice.generation for choice in kept.choices if choice.agents)}
    return [
        process if choice.generation in first else replace(process, last=True)
        for choice in chosen.values()
        for process in generation_parts(settings, role, choice, stage)
    ]


def generation_parts(settings: Settings, role: str, choice: Choice, stage: str | None = None) -> list[Process]:
    """The replicas of one generation of a role's engines; `stage` is the component that they are of."""
    return [_engine(settings, role, number, choice, stage) for number in range(replicas(settings, role))]


def lay_out(settings: Settings) -> Layout:
    """Fills in every address; a free port once chosen is kept for the data directory, which the caller must hold.

    Raises OperatorError when the API's port is in use.
    """
    _require_free(settings.api.host, settings.api.port)
    ports = _ports(settings.data_dir / "ports.json")
    changes = {
        "api": settings.api.model_copy(update={"port": settings.api.port or ports["api"]}),
        "erp_url": settings.erp_url or f"http://127.0.0.1:{ports['erp']}",
        "kafka": settings.kafka.model_copy(
            update={"bootstrap_servers": settings.kafka.bootstrap_servers or f"127.0.0.1:{ports['kafka']}"}
        ),
        "clickhouse": settings.clickhouse.model_copy(
            update={"http_port": settings.clickhouse.http_port or ports["clickhouse"]}
        ),
    }
    filled = with_absolute_paths(settings.model_copy(update=changes))
    return Layout(filled, own_broker=not settings.kafka.bootstrap_servers, own_erp=not settings.erp_url)


def with_absolute_paths(settings: Settings) -> Settings:
    """The settings for processes that run in another directory than this one."""
    names = ("data_dir", "agents_dir", "models_file", "sla_dir", "adapters_dir", "workflows_file")
    paths = {name: getattr(settings, name) for name in names}
    inner = {"keys_dir": settings.keys_dir.absolute(), "policies_dir": settings.privacy.policies_dir.absolute()}
    update: dict[str, object] = {name: path and path.absolute() for name, path in paths.items()}
    changed = settings.model_copy(update=update | {"privacy": settings.privacy.model_copy(update=inner)})
    for cached in ("run_dir", "log_dir", "keys_dir"):  # a copy takes these along, made for the path as it was given
        changed.__dict__.pop(cached, None)
    return changed


def environment(settings: Settings) -> dict[str, str]:
    """What the processes of the platform, and commands that reach it, must find in their environment.

    Holds addresses and paths only; secrets reach the processes by inheritance.
    """
    return {
        "TRUNKLINE_DATA_DIR": str(settings.data_dir),
        "TRUNKLINE_AGENTS_DIR": str(settings.agents_dir),
        "TRUNKLINE_MODELS_FILE": str(settings.models_file),
        "TRUNKLINE_SLA_DIR": str(settings.sla_dir),
        "TRUNKLINE_ADAPTERS_DIR": str(settings.adapters_dir),
        "TRUNKLINE_ADAPTER_URLS": json.dumps(settings.adapter_urls),
        **({"TRUNKLINE_WORKFLOWS_FILE": str(settings.workflows_file)} if settings.workflows_file else {}),
        "TRUNKLINE_PRIVACY__KEYS_DIR": str(settings.keys_dir),
        "TRUNKLINE_PRIVACY__POLICIES_DIR": str(settings.privacy.policies_dir),
        "TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "TRUNKLINE_CLICKHOUSE__HTTP_PORT": str(settings.clickhouse.http_port),
        "TRUNKLINE_API__HOST": settings.api.host,
        "TRUNKLINE_API__PORT": str(settings.api.port),
        "TRUNKLINE_ERP_URL": settings.erp_url,
    }


def api_url(settings: Settings) -> str:
    """The API's base, as clients on this machine reach it."""
    host = "127.0.0.1" if settings.api.host in ("0.0.0.0", "::", "") else settings.api.host
    return f"http://{host}:{settings.api.port}"


def _has_adapters(settings: Settings) -> bool:
    """Whether there is another system to tell of calls; raises OperatorError where an adapter is wrong."""
    try:
        return bool(load_adapters(settings, secrets_of()))
    except ConfigError as error:
        raise OperatorError(str(error)) from error


def _broker(settings: Settings, say: Say) -> Process:
    from streams import broker, jars, java

    port = int(settings.kafka.bootstrap_servers.rpartition(":")[2])

    def command() -> Sequence[str]:
        try:
            return broker.prepare(settings, port, say).arguments
        except (broker.BrokerError, java.JavaNotFoundError, jars.JarError) as error:
            raise OperatorError(f"the broker cannot be started: {error}") from error

    async def is_ready(pid: int) -> bool:
        try:
            await broker.wait_ready(settings.kafka.bootstrap_servers, timeout_s=0.2)
        except broker.BrokerError:
            return False
        return True

    async def answers() -> bool:
        try:
            await broker.wait_ready(settings.kafka.bootstrap_servers, timeout_s=2.0)
        except broker.BrokerError:
            return False
        return True

    return Process(
        name="broker", component="broker", command=command, is_ready=is_ready, answers=answers, stop_within_s=10.0
    )


def _topics(settings: Settings, needs: set[str]) -> Step:
    async def provision() -> None:
        from streams.provision import ProvisionError, ensure_topics

        try:
            await asyncio.to_thread(ensure_topics, settings)
        except ProvisionError as error:
            raise OperatorError(f"the topics cannot be provisioned: {error}") from error

    return Step("topics", provision, frozenset(needs))


def _gateway(settings: Settings, spread: int | None) -> Process:
    gateway = _with_spare(settings, _python(settings, "api", "api.server", needs={"topics"}))
    # Stopped first, so that calls end while the stages can still hear of it. SIGTERM would leave them to be resumed.
    return replace(
        gateway,
        environment={**gateway.environment, **({"TRUNKLINE_API__SPREAD": str(spread)} if spread else {})},
        overlaps=True,
        listens=(settings.api.host, settings.api.port),
        stops_first=True,
        stop_signal=signal.SIGINT,
    )


def _engine(settings: Settings, role: str, replica: int, choice: Choice, stage: str | None = None) -> Process:
    """The settings' own engine finds its choice in the environment that all processes have."""
    generation = choice.generation
    engine = _python(
        settings,
        engine_name(role, replica, generation),
        "processors.engine_host",
        role,
        "--replica",
        str(replica),
        *(("--generation", str(generation)) if generation else ()),
        component=stage or _ENGINE_OF[role],
        stop_within_s=3.0,
    )
    chosen = environment_for(role, choice) if generation else {}
    return replace(engine, last=replica > 0, environment={**engine.environment, **chosen})


def _stage(settings: Settings, stage: Stage) -> Process:
    hosted = hosted_roles(settings)
    current = {role: choices.read(settings, role).current.generation for role in stage.roles if role in hosted}
    engines = {engine_name(role, generation=generation) for role, generation in current.items()}
    worker = _python(settings, stage.name, "processors.worker", stage.name, needs={"topics", *engines})
    return _with_spare(settings, worker)


def _with_spare(settings: Settings, process: Process) -> Process:
    if not settings.spares:
        return process
    interpreter, option, *module = process.command()
    return replace(process, spare=(interpreter, option, "streams.standby", *module))


def _erp(settings: Settings) -> Process:
    port = settings.erp_url.rpartition(":")[2]
    data = settings.data_dir / "erp.json"

    async def is_ready(pid: int) -> bool:
        return await _answers_ok("127.0.0.1", int(port), "/healthz")

    command = (sys.executable, "-m", "infra.erp", "--port", port, "--data", str(data))
    return Process(
        name="erp",
        component="erp",
        command=lambda: command,
        is_ready=is_ready,
        environment=_child_environment(settings),
    )


def _python(
    settings: Settings,
    name: str,
    module: str,
    *arguments: str,
    component: str = "",
    needs: set[str] | None = None,
    stop_within_s: float = 8.0,
) -> Process:
    command = (sys.executable, "-m", module, *arguments)
    return Process(
        name=name,
        component=component or name,
        command=lambda: command,
        is_ready=_announced(settings, name),
        needs=frozenset(needs or ()),
        environment=_child_environment(settings),
        stop_within_s=stop_within_s,
    )


def _child_environment(settings: Settings) -> Mapping[str, str]:
    # Every process of the machine chooses its own metrics port and says which in its ready file.
    return {**environment(settings), "TRUNKLINE_METRICS_PORT": "0", "PYTHONUNBUFFERED": "1"}


def _announced(settings: Settings, name: str) -> Callable[[int], Awaitable[bool]]:
    async def is_ready(pid: int) -> bool:
        facts = ready.read(settings, name)
        return facts is not None and facts.get("pid") == pid

    return is_ready


async def _answers_ok(host: str, port: int, path: str) -> bool:
    """Whether an HTTP server there answers the path with 200, within a second."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    return False


def _remembered(path: Path) -> dict[str, int]:
    try:
        ports = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {name: ports[name] for name in _REMEMBERED if isinstance(ports.get(name), int)}


def _ports(path: Path) -> dict[str, int]:
    """The data directory's ports, each still free or chosen anew."""
    ports = _remembered(path)
    for name in _REMEMBERED:
        if name not in ports or not _is_free("127.0.0.1", ports[name]):
            ports[name] = _free_port()
    ready.write_json(path, ports)
    return ports


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
    return True


def _require_free(host: str, port: int) -> None:
    if port == 0 or _is_free(host, port):
        return
    raise OperatorError(
        f"port {port} on {host} is in use{_user_of(port)}; stop what uses it, or choose another with --port "
        "(0 takes any free one)"
    )


def _user_of(port: int) -> str:
    """` by NAME (pid N)` where the system tells."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and connection.pid and address and address.port == port:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
