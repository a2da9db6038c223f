"""`webhooks`: the REST interface's webhooks, from a terminal."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from api.cli.calling import running_url
from api.cli.context import key_of, settings_of
from api.cli.output import print_json, print_table, when
from api.errors import OperatorError

_TIMEOUT_S = 60.0


class Webhooks:
    """The webhooks of a running platform; raises OperatorError with what the API says."""

    def __init__(self, data_dir: Path | None, url: str, key: str, as_json: bool) -> None:
        settings = settings_of(data_dir)
        self._base = (url or running_url(settings)).rstrip("/")
        key = key or key_of(settings)
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._as_json = as_json

    def list(self) -> None:
        """Prints all of them."""
        found = self._ask("GET", "")["webhooks"]
        if self._as_json:
            for one in found:
                print_json(one)
            return
        columns = ("webhook", "state", "open", "delivered", "dead", "last delivered (UTC)", "events", "url")
        print_table(columns, [_line(one) for one in found], right=("open", "delivered", "dead"))

    def add(self, address: str, events: Sequence[str], agents: Sequence[str], since: str, description: str) -> None:
        """Makes one, and prints its id and secret."""
        body: dict[str, Any] = {"url": address, "events": events, "agents": agents, "description": description}
        self._tell_secret(self._ask("POST", "", {**body, **_since(since)}))

    def show(self, identity: str) -> None:
        """Prints one."""
        print_json(self._ask("GET", f"/{identity}"))

    def replay(self, identity: str, since: str, place: str) -> None:
        """Asks for everything from there on."""
        if bool(since) == bool(place):
            raise OperatorError("either --since or --from is expected", exit_code=2)
        self._ask("POST", f"/{identity}/replay", _since(since) if since else _place(place))
        print("it begins again from there")

    def rotate(self, identity: str, overlap_s: int) -> None:
        """Makes a new secret, and prints it."""
        self._tell_secret(self._ask("POST", f"/{identity}/secret", {"overlap_s": overlap_s}))

    def test(self, identity: str) -> int:
        """Sends a test; 1 when it was not taken."""
        answer = self._ask("POST", f"/{identity}/test")
        if self._as_json:
            print_json(answer)
        else:
            what = f"taken, HTTP {answer['status']}" if answer["delivered"] else f"not taken: {answer['reason']}"
            print(f"{what}, {answer['duration_ms']:.0f} ms")
        return 0 if answer["delivered"] else 1

    def switch(self, identity: str, enabled: bool) -> None:
        """Switches it on or off."""
        print(self._ask("PATCH", f"/{identity}", {"enabled": enabled})["health"]["state"])

    def remove(self, identity: str) -> None:
        """Removes it."""
        self._ask("DELETE", f"/{identity}")
        print("removed")

    def _tell_secret(self, answer: dict[str, Any]) -> None:
        if self._as_json:
            print_json(answer)
        else:
            print(f"webhook  {answer['id']}\nsecret   {answer['secret']}   (not shown again)")

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        try:
            answer = httpx.request(
                method,
                f"{self._base}/v1/webhooks{path}",
                json=body,
                headers=self._headers,
                timeout=_TIMEOUT_S,
                trust_env=False,
            )
            told: dict[str, Any] = answer.json() if answer.content else {}
        except (httpx.HTTPError, ValueError) as error:
            raise OperatorError(f"the API at {self._base} does not answer ({error}); see `trunkline status`") from error
        if answer.is_error:
            raise OperatorError(f"{told.get('message', answer.status_code)} {told.get('hint', '')}".strip())
        return told


def _line(one: dict[str, Any]) -> tuple[Any, ...]:
    health = one["health"]
    last_us = health["delivered_at"]
    counts = [health[name] for name in ("open", "delivered", "dead")]
    return one["id"], health["state"], *counts, when(last_us) if last_us else "", ",".join(one["events"]), one["url"]


def _since(text: str) -> dict[str, int]:
    """`since_us` of the time; nothing where none is given."""
    if text in ("", "start"):
        return {"since_us": 0} if text else {}
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise OperatorError(
            f"--since {text}: a time such as 2026-11-28T09:00:00+00:00, or start, is expected", exit_code=2
        ) from None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return {"since_us": int(at.timestamp() * 1_000_000)}


def _place(text: str) -> dict[str, Any]:
    topic, _, numbers = text.partition(":")
    partition, _, offset = numbers.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise OperatorError(f"--from {text}: TOPIC:PARTITION:OFFSET is expected", exit_code=2)
    return {"topic": topic, "partition": int(partition), "offset": int(offset)}
