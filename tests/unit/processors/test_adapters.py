"""Adapters: the ready ones load, values stay values, and a mistake is named with file, line, field and expectation."""

import json
from pathlib import Path
from typing import Any

import pytest

from processors.adapters.adapter import check_agents, load_adapter, load_adapters
from processors.adapters.shape import Search, Shape, Text, as_uuid
from processors.agents import load_agents
from processors.llm.caller import Caller
from processors.secrets import secrets_of
from processors.templates import RenderError
from streams.settings import REPOSITORY, Settings
from streams.yamlfile import ConfigError

READY = REPOSITORY / "infra" / "adapters"
GOOD = """name: Shop
base_url: https://shop.example.org/api/
auth:
  kind: basic
  username: shop
  password: "{{ secrets.shop_password }}"
operations:
  find:
    path: "things/{{ name }}"
    arguments: [name]
    found: things[0]
    result: {id: id}
  make:
    effect: write
    method: POST
    path: things
    body: {name: "{{ name }}", key: "{{ key }}"}
    arguments: [name]
    idempotency: {by: lookup, operation: find}
"""
AGENT = """name: A
greeting: Hello.
persona: You answer.
entities:
  - {name: thing, kind: text}
tools:
  - name: make
    effect: write
    operation: shop.make
    arguments: {name: "{{ thing }}"}
intents:
  - name: make
    examples: [make one]
    required: [{entity: thing, question: "Which?"}]
    tool: make
    templates: {ok: Made.}
"""
SECRETS = {"shop_password": "x"}


def problems(text: str, tmp_path: Path) -> list[str]:
    """What loading says, each without the file's folder."""
    (tmp_path / "shop.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_adapters(Settings(data_dir=tmp_path, adapters_dir=tmp_path), SECRETS)
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in error.value.problems]


def test_the_ready_ones_load_and_hold_no_secret() -> None:
    names = {path.stem for path in READY.glob("*.yaml")}
    assert names == {"rest", "salesforce", "sap", "tryton"}
    for name in names:
        adapter = load_adapter(READY / f"{name}.yaml", "https://host/")
        assert adapter.base_url == "https://host"
        writes = [one for one in adapter.operations.values() if one.effect == "write"]
        assert writes
        assert all(one.idempotency is not None for one in writes)


def test_none_is_in_use_without_an_address(tmp_path: Path) -> None:
    assert load_adapters(Settings(data_dir=tmp_path), {}) == {}


def test_an_address_of_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no sab\.yaml"):
        load_adapters(Settings(data_dir=tmp_path, adapter_urls={"sab": "https://x"}), {})


@pytest.mark.parametrize(
    ("given", "found", "line", "field", "expected"),
    [
        ("kind: basic", "kind: basik", 3, "auth", "basik"),
        ("kind: basic", "knd: basic", 3, "auth", "discriminator 'kind'"),
        ("{{ secrets.shop_password }}", "hunter2", 6, "auth.password", "secrets do not belong in this file"),
        ("secrets.shop_password", "secrets.shop_pin", 6, "auth.password", "TRUNKLINE_SECRET_SHOP_PIN"),
        ("https://shop.example.org/api/", "shop.example.org", 2, "base_url", "match pattern"),
        (
            "things/{{ name }}",
            "things/{{ nmae }}",
            9,
            "operations.find.path",
            "unknown variable 'nmae'; expected one of",
        ),
        ("things/{{ name }}", "things/{{ name", 9, "operations.find.path", "expected a Jinja2 template"),
        ("found: things[0]", "found: things[", 11, "operations.find.found", "expected a JMESPath expression"),
        ("    method: POST\n", "    method: POTS\n", 15, "operations.make.method", "found 'POTS'"),
        ("    method: POST\n", "", 13, "operations.make", "expected a GET operation to have no body"),
        ("    effect: write\n", "", 13, "operations.make", "for effect write, and for no other"),
        ("operation: find}", "operation: fnd}", 19, "operations.make.idempotency.operation", "that reads (find)"),
        ("{by: lookup, operation: find}", "{by: luck}", 19, "operations.make.idempotency", "luck"),
        (
            "arguments: [name]\n    found",
            "arguments: [name, at]\n    found",
            19,
            "operations.make.idempotency",
            "found at",
        ),
        ("    path: things\n", "    pth: things\n", 16, "operations.make.pth", "did you mean path?"),
        ("name: Shop\n", "name: Shop\nname: Shop\n", 2, "name", "given twice"),
    ],
)
def test_a_mistake_is_named(given: str, found: str, line: int, field: str, expected: str, tmp_path: Path) -> None:
    assert given in GOOD
    said = problems(GOOD.replace(given, found, 1), tmp_path)
    assert any(one.startswith(f"shop.yaml:{line}: {field}") and expected in one for one in said), said


def test_a_write_whose_key_goes_nowhere_is_a_mistake(tmp_path: Path) -> None:
    text = GOOD.replace("{by: lookup, operation: find}", "{by: key}").replace(', key: "{{ key }}"', "")
    assert problems(text, tmp_path) == [
        "shop.yaml:19: operations.make.idempotency: expected {{ key }} in the path or the body: nothing tells a repeat "
        "apart"
    ]


@pytest.mark.parametrize(
    ("given", "found", "line", "field", "expected"),
    [
        ("shop.make", "shop.mke", 9, "tools[0].operation", "(shop.find, shop.make), found 'shop.mke'"),
        (
            "arguments: {name: ",
            "arguments: {nam: ",
            10,
            "tools[0].arguments.nam",
            "is no argument of shop.make; expected one of name",
        ),
        ("    effect: write\n", "", 7, "tools[0]", "expected write, the effect of shop.make"),
    ],
)
def test_an_agents_mistake_about_an_operation_is_named(
    given: str, found: str, line: int, field: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "shop.yaml").write_text(GOOD, encoding="utf-8")
    agents = tmp_path / "agents"
    agents.mkdir()
    adapters = load_adapters(Settings(data_dir=tmp_path, adapters_dir=tmp_path), SECRETS)
    (agents / "a.yaml").write_text(AGENT, encoding="utf-8")
    check_agents(agents, load_agents(agents), adapters)
    (agents / "a.yaml").write_text(AGENT.replace(given, found, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        check_agents(agents, load_agents(agents), adapters)
    assert str(error.value).startswith(f"{agents / 'a.yaml'}:{line}: {field}")
    assert expected in str(error.value)


@pytest.mark.parametrize("tool", ["url: http://x\n    operation: shop.make", "description: neither"])
def test_a_tool_is_a_url_or_an_operation(tool: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(AGENT.replace("operation: shop.make", tool), encoding="utf-8")
    with pytest.raises(ConfigError, match="expected either url, or operation"):
        load_agents(tmp_path)


# ---- texts and shapes


def test_what_a_caller_says_does_not_change_the_path() -> None:
    text = Text("Orders('{{ number | odata }}')/{{ part }}", encodes=True)
    assert text.render({"number": "10/42?x=1", "part": "a b"}) == "Orders('10%2F42%3Fx%3D1')/a%20b"
    assert text.render({"number": "O'Hara", "part": "../.."}) == "Orders('O%27%27Hara')/..%2F.."


def test_a_body_keeps_what_values_are() -> None:
    shape = Shape(
        {"a": "{{ n | int }}", "b": ["{{ x or none }}", 1, None], "c": 'said "{{ x }}"', "d": {"e": "{{ x }}"}}
    )
    made = shape.render({"n": "7", "x": '", "admin": true'})
    assert made == {
        "a": 7,
        "b": ['", "admin": true', 1, None],
        "c": 'said "", "admin": true"',
        "d": {"e": '", "admin": true'},
    }
    assert json.loads(json.dumps(made)) == made
    assert shape.render({"n": "7", "x": ""})["b"][0] is None


def test_what_json_does_not_know_is_its_text() -> None:
    made = Shape(["{{ caller }}", "{{ caller.name }}"]).render({"caller": Caller("+1555", {"name": "Ada"})})
    assert json.dumps(made) == '["+1555", "Ada"]'


def test_what_is_missing_is_told_without_values() -> None:
    for text in (Text("{{ secrets.pin }}"), Text("a {{ secrets.pin }}")):
        assert text.secrets == {"pin"}
        with pytest.raises(RenderError) as error:
            text.render({"secrets": {"other": "hush"}})
        assert "hush" not in str(error.value)


def test_keys_as_uuids() -> None:
    assert as_uuid("0123456789abcdef0123456789abcdef") == "01234567-89ab-cdef-0123-456789abcdef"
    assert as_uuid("ticket/7") == as_uuid("ticket/7") != as_uuid("ticket/8")


def test_a_soql_literal_cannot_be_left() -> None:
    assert Text("'{{ name | soql }}'").render({"name": "a\\' OR 'x"}) == "'a\\\\\\' OR \\'x'"


def test_a_search_that_does_not_apply_finds_nothing() -> None:
    assert Search("value[0].id").find({"value": [{"id": 3}]}) == 3
    assert Search("length(value)").find({"value": 3}) is None


def test_secrets_come_from_the_environment_before_files(tmp_path: Path) -> None:
    (tmp_path / "trunkline_secret_a").write_text("from a file\n", encoding="utf-8")
    (tmp_path / "trunkline_secret_b").write_text("b", encoding="utf-8")
    (tmp_path / "trunkline_api__key").write_text("no secret of adapters", encoding="utf-8")
    found: dict[str, Any] = secrets_of({"TRUNKLINE_SECRET_A": "from the environment", "OTHER": "x"}, tmp_path)
    assert found == {"a": "from the environment", "b": "b"}
