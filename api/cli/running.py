"""`up`, `down`, `status`, `restart`, and the single processes."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil

from api import guardian, pages
from api.cli.context import settings_of
from api.cli.engines import follow_agents
from api.cli.output import print_json, print_table
from api.errors import OperatorError
from api.platform import Layout, api_url, embedded, environment, lay_out, with_absolute_paths, worker_parts
from api.supervisor import Process, Step, Supervisor, ask_restart, end_leftovers, hold, read_state, rotate
from api.swaps import Swaps
from processors import choices
from processors.agent_models import adopt
from processors.choices import SWAPPABLE
from processors.pipeline import STAGES
from streams.clock import SystemClock
from streams.settings import REPOSITORY, Settings
from streams.yamlfile import ConfigError

_STOP_WITHIN_S = 45.0
_RESTART_WITHIN_S = 120.0
_COMPONENTS = ("broker", "stt", "intent", "llm", "tts", "clickhouse", "webhooks", "crm", "api", "erp")


class Progress:
    """What `up` says while it comes up, for people or as JSON."""

    def __init__(self, as_json: bool = False, write: Callable[[str], None] | None = None) -> None:
        self._json = as_json
        self._write = write or (lambda line: print(line, flush=True))

    def say(self, line: str) -> None:
        """Something worth knowing while waiting."""
        if self._json:
            print_json({"progress": line})
        else:
            self._write(f"  {line}")

    def ready(self, name: str, seconds: float) -> None:
        """A part is ready, after so many seconds of its own."""
        if self._json:
            print_json({"ready": name, "seconds": round(seconds, 1)})
        else:
            self._write(f"  {label(name):<22} ready {seconds:6.1f} s")

    def up(self, url: str, seconds: float) -> None:
        """All parts are ready."""
        if self._json:
            print_json({"up": url, "seconds": round(seconds, 1)})
        else:
            self._write(f"Trunkline is up at {url} after {seconds:.1f} s. `trunkline down` or Ctrl-C stops it.")


def label(name: str) -> str:
    """A part's name for people: `engine-stt` is the stt model."""
    return f"{name.removeprefix('engine-')} model" if name.startswith("engine-") else name


def up(data_dir: Path | None, port: int | None, as_json: bool) -> None:
    """Runs the platform until it is told to stop; on Linux below a guardian, which this process becomes."""
    if sys.platform.startswith("linux") and not _is_guarded():
        command = [sys.executable, "-m", "api.cli.main", *sys.argv[1:]]
        os.execv(sys.executable, [sys.executable, "-S", "-E", str(Path(guardian.__file__)), *command])
    asyncio.run(_up(data_dir, port, as_json))


def _is_guarded() -> bool:
    return os.environ.get(guardian.VARIABLE) == str(os.getppid())


async def _up(data_dir: Path | None, port: int | None, as_json: bool) -> None:
    began_s = time.monotonic()
    progress = Progress(as_json)
    settings = with_port(settings_of(data_dir), port)
    with hold(settings):
        await tell_leftovers(settings, progress)
        layout = lay_out(settings)
        supervisor = platform_supervisor(layout, progress)
        url = api_url(layout.settings)
        pages.serve(layout.settings)
        await supervisor.run(when_ready=lambda: progress.up(url, time.monotonic() - began_s))


def platform_supervisor(layout: Layout, progress: Progress) -> Supervisor:
    """The supervisor of the whole platform; the caller holds the data directory."""
    facts: dict[str, Any] = {"url": api_url(layout.settings), "environment": environment(layout.settings)}
    if _is_guarded():
        facts["guardian_pid"] = os.getppid()
    _settle(layout.settings, progress)
    parts = embedded(layout, progress.say)
    supervisor = Supervisor(layout.settings, _in_order(parts), facts=facts, report=progress.ready, say=progress.say)
    _serve_swaps(layout.settings, supervisor)
    return supervisor


def _settle(settings: Settings, progress: Progress, roles: tuple[str, ...] = SWAPPABLE) -> None:
    for role in choices.settle(settings):
        progress.say(f"the settings name another {role} engine than at the last swap, and count")
    try:
        adopt(settings, SystemClock().now_us(), roles)
    except ConfigError as error:
        raise OperatorError(str(error)) from error


def _serve_swaps(settings: Settings, supervisor: Supervisor, stage: str | None = None) -> None:
    try:
        swaps = Swaps(settings, supervisor, SystemClock(), stage)
    except ConfigError as error:
        raise OperatorError(str(error)) from error
    supervisor.serve(swaps.request, swaps.tend)


def _in_order(parts: Sequence[Process | Step]) -> list[Process | Step]:
    """As `status` lists them, each stage before its engine."""
    order = {name: at for at, name in enumerate(_COMPONENTS)}
    return sorted(parts, key=lambda part: (order.get(part.component, 0) if isinstance(part, Process) else 0, part.name))


async def tell_leftovers(settings: Settings, progress: Progress) -> None:
    """Ends what a killed `up` left, and says so."""
    if ended := await end_leftovers(settings):
        progress.say(f"ended what an `up` that was killed had left: {', '.join(ended)}")


def with_port(settings: Settings, port: int | None) -> Settings:
    """The settings with the API's port from the command line, where one was given."""
    if port is None:
        return settings
    return settings.model_copy(update={"api": settings.api.model_copy(update={"port": port})})


def up_detached(data_dir: Path | None, port: int | None, as_json: bool) -> None:
    """Starts `up` on its own and returns once all is ready; raises OperatorError when it fails."""
    settings = settings_of(data_dir)
    settings.log_dir.mkdir(parents=True, exist_ok=True)
    log = settings.log_dir / "up.log"
    if (state := read_state(settings)) is not None:
        raise OperatorError(
            f"a platform is already running on {settings.data_dir} (pid {state['pid']}); "
            "stop it with `trunkline down`, or use another --data-dir"
        )
    rotate(log)
    command = [sys.executable, "-m", "api.cli.main", "up", "--data-dir", str(settings.data_dir.absolute())]
    command += [*(["--port", str(port)] if port is not None else []), *(["--json"] if as_json else [])]
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=REPOSITORY
        )
    _follow(settings, child, log)


def _follow(settings: Settings, child: subprocess.Popen[bytes], log: Path) -> None:
    """Shows what the `up` that was started says, until it is ready or has failed."""
    failure = f"`up` ended unexpectedly; its log is {log}"
    with log.open(errors="replace") as lines:
        while True:
            code = child.poll()
            state = read_state(settings) or {}
            is_up = child.pid in (state.get("guardian_pid"), state.get("pid")) and state.get("ready")
            for line in lines.read().splitlines():
                if line.startswith("trunkline: "):
                    failure = line.removeprefix("trunkline: ")
                else:
                    print(line, flush=True)
            if code is not None:
                raise OperatorError(failure)
            if is_up:
                return
            time.sleep(0.1)


def down(data_dir: Path | None) -> None:
    """Stops the platform that runs on the data directory."""
    settings = settings_of(data_dir)
    state = read_state(settings)
    if state is None:
        print(f"no platform is running on {settings.data_dir}")
        ended = asyncio.run(end_leftovers(settings)) if _is_free(settings) else []
        if ended:
            print(f"ended what an `up` that was killed had left: {', '.join(ended)}")
        return
    first = psutil.Process(state.get("guardian_pid") or state["pid"])
    first.send_signal(signal.SIGTERM)
    with contextlib.suppress(psutil.NoSuchProcess):
        try:
            first.wait(_STOP_WITHIN_S)
        except psutil.TimeoutExpired:
            first.kill()
            print(f"the platform did not stop within {_STOP_WITHIN_S:.0f} s and was killed", file=sys.stderr)
            return
    print("stopped")


def _is_free(settings: Settings) -> bool:
    """Whether nobody holds the data directory."""
    try:
        with hold(settings):
            return True
    except OperatorError:
        return False


def status(data_dir: Path | None, as_json: bool) -> int:
    """Prints the components; returns 0 when the platform is running, 3 when not."""
    settings = settings_of(data_dir)
    state = read_state(settings)
    rows: list[dict[str, Any]] = state["components"] if state else []
    addresses = state.get("environment", {}) if state else {}
    servers = addresses.get("TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS")
    port = addresses.get("TRUNKLINE_CLICKHOUSE__HTTP_PORT")
    clickhouse = f"http://127.0.0.1:{port}" if port and not settings.clickhouse.host else None
    if as_json:
        where = {"url": state.get("url") if state else None, "bootstrap_servers": servers, "clickhouse_url": clickhouse}
        print_json({"running": state is not None, **where, "components": rows})
    elif state is None:
        print(f"no platform is running on {settings.data_dir}; start it with `trunkline up`")
    else:
        print(f"{state['url']}, Kafka at {servers}, data in {settings.data_dir}, logs in {settings.log_dir}")
        if clickhouse:
            print(f"ClickHouse at {clickhouse}")
        entries = [entry for row in rows for entry in _entries(row)]
        lines = [
            (name, entry["state"], entry["pid"], entry["restarts"], entry["since"], _spare(entry))
            for name, entry in entries
        ]
        print_table(("component", "state", "pid", "restarts", "since", "spare"), lines, right=("pid", "restarts"))
        for problem in [entry["problem"] for _, entry in entries if "problem" in entry]:
            print(problem)
    return 0 if state else 3


def _spare(entry: dict[str, Any]) -> str:
    spare = entry.get("spare")
    if spare is None:
        return ""
    return "prepared" if spare["prepared"] else "none yet"


def _entries(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """A component's line, and its engines' below it, numbered where there are several."""
    engines = row.get("engines", [])
    below = [
        (f"{row['name']}.engine{_number(engine['name']) if len(engines) > 1 else ''}", engine) for engine in engines
    ]
    return [(name, entry) for name, entry in ((row["name"], row), *below) if "state" in entry]


def _number(engine: str) -> str:
    """What tells a role's engines apart: `engine-tts.1` is 1, `engine-tts@2.1` is @2.1."""
    _, at, generation = engine.partition("@")
    return at + generation if at else engine.rpartition(".")[2]


def restart(component: str, data_dir: Path | None) -> None:
    """Replaces the component's processes, one after another, and returns once all of them are ready."""
    settings = settings_of(data_dir)
    before = _processes(settings)
    # The last replica first: the one that answers by preference is replaced when the others are fresh.
    names = sorted((key for key in before if before[key]["component"] == component), reverse=True)
    if not names:
        known = ", ".join(dict.fromkeys(str(entry["component"]) for entry in before.values()))
        raise OperatorError(f"no component is called {component}; there are {known}", exit_code=2)
    began_s = time.monotonic()
    ask_restart(settings, names)
    for name in names:
        after = _until_replaced(settings, name, before[name])
        seconds, began_s = time.monotonic() - began_s, time.monotonic()
        print(f"{name}: pid {before[name]['pid']} -> {after['pid']}, ready after {seconds:.1f} s", flush=True)
    # A stage that was restarted has read the agents' files anew.
    for role in SWAPPABLE:
        if component in STAGES and role in STAGES[component].roles:
            follow_agents(role, settings)


def _processes(settings: Settings) -> dict[str, dict[str, Any]]:
    """What `status` shows of each process, by the process's name."""
    state = read_state(settings)
    if state is None:
        raise OperatorError(f"no platform is running on {settings.data_dir}; start it with `trunkline up`")
    found: dict[str, dict[str, Any]] = {}
    for row in state["components"]:
        for name, entry in _entries(row):
            found[entry["name"]] = {**entry, "component": name if name == row["name"] else f"{row['name']}.engine"}
    return found


def _until_replaced(settings: Settings, name: str, before: dict[str, Any]) -> dict[str, Any]:
    """The process that took its place, once ready; raises OperatorError when that does not happen."""
    deadline_s = time.monotonic() + _RESTART_WITHIN_S
    while time.monotonic() < deadline_s:
        entry = _processes(settings)[name]
        if entry["state"] == "ready" and entry["pid"] != before["pid"]:
            return entry
        if "problem" in entry and entry.get("problem") != before.get("problem"):
            raise OperatorError(str(entry["problem"]))
        time.sleep(0.02)
    raise OperatorError(f"{name} was not replaced within {_RESTART_WITHIN_S:.0f} s; see `trunkline status`")


async def worker(stage: str, data_dir: Path | None) -> None:
    """Runs one stage with its engines on the cluster of the settings, until told to stop."""
    if stage not in STAGES:
        raise OperatorError(f"no stage is called {stage}; expected one of {', '.join(STAGES)}", exit_code=2)
    _name_worker()
    settings = settings_of(data_dir)
    if not settings.kafka.bootstrap_servers:
        raise OperatorError("a worker needs a cluster: set TRUNKLINE_KAFKA__BOOTSTRAP_SERVERS=host:port")
    progress = Progress()
    name = f"worker-{stage}"
    with hold(settings, name):
        await end_leftovers(settings, name)
        _settle(settings, progress, STAGES[stage].roles)
        parts = worker_parts(settings, stage)
        supervisor = Supervisor(settings, parts, name=name, report=progress.ready, say=progress.say, echo_logs=True)
        _serve_swaps(with_absolute_paths(settings), supervisor, stage)
        pages.serve(settings)
        await supervisor.run(when_ready=lambda: progress.say(f"{stage} is at work"))


def _name_worker() -> None:
    """Workers of one stage must differ in name, and keep it: a container's host name does both."""
    os.environ.setdefault("TRUNKLINE_WORKER", socket.gethostname())


def become(data_dir: Path | None, module: str, *arguments: str) -> NoReturn:
    """Turns this process into the module."""
    if data_dir is not None:
        os.environ["TRUNKLINE_DATA_DIR"] = str(data_dir.absolute())
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
