"""What the readers of the log cost those who talk: the same calls with all readers on and with none, in turn.

On are the ClickHouse sink, the webhook relay with a subscriber of every event, and the CRM's clerk. Two platforms stand
side by side, one with readers and one without, and calls alternate between them: what the machine does meanwhile, the
platform that is not called included, meets both alike. The order changes from round to round. Besides the two
distributions, the difference is shown turn by turn, of the same words in the same round.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from bench import voice
from bench.caller import Call
from bench.logged import Logged
from bench.processes import wait_for_calm
from bench.report import Distribution, Fact, Findings, Row
from bench.running import Trunkline, platform_directory, running_state

ROUNDS = ((voice.Scene("1 at once", 1), 6), (voice.Scene("4 at once", 4), 2))
QUICK_ROUNDS = ((ROUNDS[0][0], 2),)


class _Ok(BaseHTTPRequestHandler):
    """Takes whatever it is sent."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def _other_system() -> Iterator[str]:
    """The subscriber of webhooks and the customer system, on this machine; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Ok)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def measure_readers(quick: bool) -> Findings:
    """Raises OperatorError where a platform does not start."""
    calls: dict[tuple[str, bool], list[Call]] = {}
    logged: dict[str, Logged] = {}
    with ExitStack() as stack:
        address = stack.enter_context(_other_system())
        directories = {on: stack.enter_context(_platform(on, address)) for on in (True, False)}
        for scene, rounds in QUICK_ROUNDS if quick else ROUNDS:
            for number in range(rounds):
                for on in (True, False) if number % 2 else (False, True):
                    for directory in directories.values():
                        wait_for_calm(directory)
                    system = Trunkline(directories[on])
                    made = voice.play(system, scene, quick)
                    calls.setdefault((scene.group, on), []).extend(made)
                    logged |= system.logged([call.caller for call in made])
    return _findings(calls, logged)


@contextmanager
def _platform(on: bool, address: str) -> Iterator[Path]:
    environment = {
        **voice.ENVIRONMENT,
        "TRUNKLINE_READERS": str(on).lower(),
        "TRUNKLINE_ADAPTER_URLS": json.dumps({"rest": address}),
        "TRUNKLINE_SECRET_REST_TOKEN": "none",
        "TRUNKLINE_WEBHOOKS__PRIVATE_NETWORKS": '["127.0.0.0/8"]',
    }
    with platform_directory(environment) as directory:
        if on:
            subscription = {"url": f"{address}/events", "events": ["*"]}
            httpx.post(f"{running_state(directory)['url']}/v1/webhooks", json=subscription).raise_for_status()
        yield directory


def _differences_ms(with_: Sequence[Call], without: Sequence[Call]) -> Iterator[float]:
    """Of turns that were answered in both, each after the end of its speech."""
    for ours, alone in zip(with_, without, strict=True):
        for one, other in zip(voice.turns_of(ours, True), voice.turns_of(alone, True), strict=False):
            times_s = [
                turn.answered_s - turn.said.ends_s
                for turn in (one, other)
                if turn.answered_s is not None and not turn.early
            ]
            if len(times_s) == 2 and one.said.utterance.words == other.said.utterance.words:
                yield 1000 * (times_s[0] - times_s[1])


def _findings(calls: dict[tuple[str, bool], list[Call]], logged: dict[str, Logged]) -> Findings:
    found = Findings()
    audible: dict[tuple[str, bool], Distribution] = {}
    for (group, on), made in calls.items():
        part = voice.findings_of(f"{group}, {'all readers' if on else 'no reader'}", made, logged)
        audible[group, on] = next(row.distribution for row in part.rows if row.name == voice.AUDIBLE_ANSWER)
        found.add(part)
    for group in dict.fromkeys(group for group, _ in calls):
        differences = Distribution.of(_differences_ms(calls[group, True], calls[group, False]))
        found.rows.append(Row(group, "the same turn: all readers less no reader", differences))
        with_, without = audible[group, True], audible[group, False]
        for name in ("p50", "p95"):
            ours, alone = getattr(with_, name), getattr(without, name)
            ratio = round(ours / alone, 3) if ours and alone else None
            found.facts.append(Fact(group, f"{name} with all readers by {name} with none", ratio))
    return found
