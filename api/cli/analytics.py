"""`sql` asks ClickHouse, the embedded one or the server of the settings; read only. `bi-user` makes who may ask."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from api.cli.context import settings_of
from api.cli.output import print_json, print_table
from api.errors import OperatorError
from api.supervisor import read_state
from processors.clickhouse.questions import ready_questions
from processors.clickhouse.readers import create_user, known_operator_key, password_hash
from streams import ready
from streams.settings import Settings

_TIMEOUT_S = 60.0


def sql(query: str, data_dir: Path | None, as_json: bool) -> None:
    """Prints the rows of the answer."""
    settings = settings_of(data_dir)
    answer = ask(settings, query)
    if as_json:
        for row in answer["data"]:
            print_json(dict(zip(_names(answer), row, strict=True)))
        return
    print_table(_names(answer), answer["data"], right=[name for name, kind in _columns(answer) if _is_number(kind)])


def question(name: str, data_dir: Path | None, as_json: bool) -> None:
    """Asks a ready question."""
    found = ready_questions().get(name)
    if found is None:
        raise OperatorError(f"no ready question is named {name}; `trunkline sql --questions` lists them")
    sql(found.query, data_dir, as_json)


def questions(as_json: bool) -> None:
    """Lists the ready questions."""
    known = ready_questions().values()
    if as_json:
        for one in known:
            print_json({"name": one.name, "question": one.title, "query": one.query})
        return
    print_table(["name", "question"], [[one.name, one.title] for one in known])


def bi_user(name: str, tenant: str, as_json: bool) -> None:
    """Makes a password, and prints it with what lets the user in; nothing is kept."""
    password = secrets.token_urlsafe(18)
    user = {name: {"tenant": tenant, "password_hash": password_hash(password)}}
    try:
        statement = create_user(name, tenant, password)
    except ValueError as error:
        raise OperatorError(str(error)) from error
    if as_json:
        print_json({"name": name, "tenant": tenant, "password": password, "setting": user, "server": statement})
        return
    print(f"Password, shown only now: {password}")
    print(f"The embedded ClickHouse:  TRUNKLINE_CLICKHOUSE__USERS='{json.dumps(user)}'")
    print(f"A ClickHouse server:      {statement}")


def ask(settings: Settings, query: str, given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The answer in ClickHouse's JSONCompact form: `meta` names the columns, `data` holds the rows.

    `given` are values of the query's `{name:Type}`. Raises OperatorError with what ClickHouse says.
    """
    url, parameters, headers = _address(settings)
    parameters |= {"default_format": "JSONCompact", "output_format_json_quote_64bit_integers": "0"}
    parameters |= {f"param_{name}": value for name, value in (given or {}).items()}
    try:
        response = httpx.post(
            url, params=parameters, headers=headers, content=query.encode(), timeout=_TIMEOUT_S, trust_env=False
        )
    except httpx.HTTPError as error:
        raise OperatorError(f"ClickHouse at {url} does not answer ({error}); see `trunkline status`") from error
    if response.status_code != 200:
        raise OperatorError(f"ClickHouse refused the query: {response.text.strip()[:2000]}")
    try:
        answer: dict[str, Any] = json.loads(response.text)
    except ValueError:
        raise OperatorError("the query has another FORMAT; leave it out, and use --json for JSON lines") from None
    return answer


def _address(settings: Settings) -> tuple[str, dict[str, str], dict[str, str]]:
    clickhouse = settings.clickhouse
    parameters = {"database": clickhouse.database}
    if clickhouse.host:
        scheme = "https" if clickhouse.secure else "http"
        headers = {"X-ClickHouse-User": clickhouse.username, "X-ClickHouse-Key": clickhouse.password.get_secret_value()}
        return f"{scheme}://{clickhouse.host}:{clickhouse.port}/", parameters | {"readonly": "1"}, headers
    sink = ready.read(settings, "clickhouse")
    if read_state(settings) is None or sink is None or "http_port" not in sink:
        raise OperatorError(f"no ClickHouse is running on {settings.data_dir}; start the platform with `trunkline up`")
    headers = {"X-ClickHouse-User": clickhouse.username, "X-ClickHouse-Key": known_operator_key(settings)}
    return f"http://127.0.0.1:{sink['http_port']}/", parameters, headers


def _columns(answer: dict[str, Any]) -> list[tuple[str, str]]:
    return [(column["name"], column["type"]) for column in answer["meta"]]


def _names(answer: dict[str, Any]) -> list[str]:
    return [name for name, _ in _columns(answer)]


def _is_number(kind: str) -> bool:
    return kind.removeprefix("Nullable(").startswith(("UInt", "Int", "Float", "Decimal"))
