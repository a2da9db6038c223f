from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from streams.yamlfile import ConfigError, load_yaml, problem_at


class Tool(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["tool"]
    url: str = Field(description="an http or https address")
    timeout_ms: int = 1000

    @field_validator("url")
    @classmethod
    def _http(cls, value: str) -> str:
        if not value.startswith("http"):
            raise ValueError(f"expected an http or https address, found {value!r}")
        return value


class Template(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["template"]
    text: str


class Intent(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    answer: Annotated[Tool | Template, Field(discriminator="kind")] | None = None


class Agent(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    intents: list[Intent] = []
    pauses_ms: dict[str, int] = {}


def problems(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_yaml(path, Agent)
    return [line.replace(str(tmp_path) + "/", "") for line in str(raised.value).splitlines()]


def test_a_good_file_is_its_model(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("name: shop\nintents:\n  - name: hours\n    answer: {kind: template, text: hi}\n")
    agent = load_yaml(path, Agent)
    assert agent.intents[0].answer == Template(kind="template", text="hi")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["agent.yaml:1: is empty; expected a mapping"]),
        ("intents: []\n", ["agent.yaml:1: name: is missing; expected a value of type str"]),
        (
            "name: x\nintents:\n  - name: a\n  - nam: b\n",
            [
                "agent.yaml:4: intents[1].name: is missing; expected a value of type str",
                "agent.yaml:4: intents[1].nam: is not known here; did you mean name? expected one of answer, name",
            ],
        ),
        (
            "name: x\npauses_ms:\n  turn: soon\n",
            [
                "agent.yaml:3: pauses_ms.turn: expected a valid integer, unable to parse string as an integer, "
                "found 'soon'"
            ],
        ),
        (
            "name: x\nintents:\n- name: a\n  answer:\n    kind: tool\n    url: ftp://x\n",
            ["agent.yaml:6: intents[0].answer.url: expected an http or https address, found 'ftp://x'"],
        ),
        (
            "name: x\nintents:\n- name: a\n  answer:\n    kind: tool\n",
            ["agent.yaml:4: intents[0].answer.url: is missing; expected an http or https address"],
        ),
        (
            "name: x\nintents:\n- name: a\n  answer:\n    kind: tool\n    url: http://x\n    timout_ms: 3\n",
            [
                "agent.yaml:7: intents[0].answer.timout_ms: is not known here; did you mean timeout_ms? "
                "expected one of kind, text, timeout_ms, url"
            ],
        ),
        ("name: x\nname: y\n", ["agent.yaml:2: name: this key is given twice; expected once"]),
        ("- a\n", ["agent.yaml:1: expected a valid dictionary or instance of Agent"]),
    ],
)
def test_messages_name_file_line_field_and_what_is_expected(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert problems(tmp_path, text) == expected


def test_what_is_not_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    (message,) = problems(tmp_path, "name: x\nintents: [a\n")
    assert message.startswith(("agent.yaml:2: is not valid YAML", "agent.yaml:3: is not valid YAML"))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml:1: cannot be read"):
        load_yaml(tmp_path / "nowhere.yaml", Agent)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_yaml(tmp_path / "latin.yaml", Agent)


def test_checks_across_fields_can_point_at_a_line(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("name: x\nintents:\n  - name: a\n")
    problem = problem_at(path, ("intents", 0, "name"), "expected another name")
    assert str(problem).endswith("agent.yaml:3: intents[0].name: expected another name")
