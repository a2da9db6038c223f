"""Agent files: what is accepted, and what the messages say about what is not."""

from pathlib import Path

import pytest

from processors.agents import load_agent, load_agents, split_passages
from processors.templates import Expression, RenderError, Template, listing, money, spell, spoken_date
from streams.settings import REPOSITORY
from streams.yamlfile import ConfigError

GOOD = """\
name: Small shop
greeting: Hello from {{ agent }}.
persona: You are helpful.
entities:
  - {name: order_number, kind: order_number}
  - {name: size, kind: choice, values: [small, large]}
tools:
  - name: get_order
    url: "{{ erp_url }}/orders/{{ order_number }}"
intents:
  - name: order_status
    examples: [where is my order]
    required:
      - entity: order_number
        question: Which number?
    optional: [size]
    tool: get_order
    templates:
      ok: It is {{ result.status }}.
  - name: bye
    examples: [bye]
    end_call: true
"""


def write(directory: Path, text: str, name: str = "small") -> Path:
    path = directory / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_demo_agent_is_complete() -> None:
    agent = load_agents(REPOSITORY / "infra" / "agents")["shop"]
    assert agent.id == "shop"
    assert {document.name for document in agent.documents} == {
        f"shop/{name}" for name in ("care", "opening_hours", "returns", "shipping", "warranty")
    }
    assert all(len(intent.examples) >= 8 for intent in agent.intents)
    assert (agent.pauses.hesitation_ms, agent.pauses.turn_ms, agent.pauses.completion_ms) == (100, 300, 900)


def test_defaults(tmp_path: Path) -> None:
    agent = load_agent(write(tmp_path, GOOD))
    assert agent.languages == ("en",)
    assert agent.greeting[0].render({"agent": agent.name}) == "Hello from Small shop."
    assert agent.entities[1].values == {"small": (), "large": ()}
    assert agent.tool("get_order").method == "GET"
    assert agent.texts.clarification
    with pytest.raises(KeyError):
        agent.tool("other")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: order_number}", "kind: phone}", "small.yaml:5: entities[0].kind: expected 'order_number', 'digits'"),
        ("name: Small shop\n", "", "small.yaml:1: name: is missing"),
        ("persona:", "personna:", "small.yaml:3: personna: is not known here; did you mean persona?"),
        (
            "tool: get_order",
            "tool: get_ordr",
            "small.yaml:17: intents[0].tool: expected a tool of this agent (get_order)",
        ),
        ("entity: order_number", "entity: number", "small.yaml:14: intents[0].required[0].entity: expected an entity"),
        ("optional: [size]", "optional: [colour]", "small.yaml:16: intents[0].optional[0]: expected an entity of this"),
        ("result.status", "reslt.status", "small.yaml:19: intents[0].templates.ok: uses the unknown variable 'reslt'"),
        ("{{ result.status }}", "{% if %}", "small.yaml:19: intents[0].templates.ok"),
        ("{{ erp_url }}", "{{ url }}", "small.yaml:9: tools[0].url: uses the unknown variable 'url'"),
        ("name: bye", "name: order_status", "small.yaml:20: intents[1].name: expected a name of its own"),
        ("end_call: true", "escalate: true", "small.yaml:22: intents[1].escalate: expected escalation.target"),
        ("    end_call: true\n", "", "intents[1]: expected a text for the outcome ok"),
        ("end_call: true", "documents: [faq]", "small.yaml:22: intents[1].documents[0]: expected a knowledge document"),
        ("values: [small, large]", "pattern: '['", "expected a regular expression"),
        (", values: [small, large]", "", "small.yaml:6: entities[1]: expected values for kind choice"),
        ("persona:", "knowledge: [none/*.md]\npersona:", "small.yaml:3: knowledge[0]: expected a Markdown file"),
        ("persona:", "pauses: {turn_ms: 901}\npersona:", "small.yaml:3: pauses: expected hesitation_ms <= turn_ms"),
        ("agent }}.", "order }}.", "small.yaml:2: greeting: uses the unknown variable 'order'"),
        ("name: bye", "name: none", "small.yaml:20: intents[1].name: expected another name"),
        *(
            (
                "    url:",
                f"    method: {method}\n    url:",
                f"small.yaml:8: tools[0]: expected effect (read or write) beside method {method}",
            )
            for method in ("POST", "PUT", "PATCH", "DELETE")
        ),
    ],
)
def test_mistakes_are_named_with_file_line_field_and_expectation(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as error:
        load_agents(write(tmp_path, GOOD.replace(old, new, 1)).parent)
    assert message in str(error.value)


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("tool: get_order", "tool: a").replace("optional: [size]", "optional: [b]"), "one")
    write(tmp_path, GOOD.replace("persona:", "nonsense:"), "two")
    with pytest.raises(ConfigError) as error:
        load_agents(tmp_path)
    text = str(error.value)
    assert text.count("one.yaml:") == 2
    assert text.count("two.yaml:") >= 2


def test_a_directory_without_agents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no agent"):
        load_agents(tmp_path)


def test_knowledge_is_split_at_blank_lines_under_its_headings(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "faq.md").write_text(
        "---\nx: 1\n---\n# Questions\n\nOne.\n\n## More\nTwo\n- three\n<!-- no -->"
    )
    agent = load_agent(write(tmp_path, GOOD + "knowledge: [small/*.md]\n"))
    document = agent.documents[0]
    assert (document.name, document.title) == ("small/faq", "Questions")
    assert [(p.heading, p.text) for p in document.passages] == [("Questions", "One."), ("More", "Two three")]
    assert list(split_passages("")) == []


@pytest.mark.parametrize("effect", ["read", "write"])
def test_a_tool_that_may_change_something_says_whether_it_does(tmp_path: Path, effect: str) -> None:
    text = GOOD.replace("    url:", f"    method: POST\n    effect: {effect}\n    url:", 1)
    assert load_agent(write(tmp_path, text)).tool("get_order").effect == effect


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ("1. One.\n2. Two.", "One. Two."),
        ("Ways:\n1) One.\n1) Two.", "Ways: One. Two."),
        ("1. One\nand more.\n2. Two.", "One and more. Two."),
        ("- One.\n* Two.", "One. Two."),
        ("Steps:\n1. One\nslowly.\n2. Two.", "Steps: One slowly. Two."),
        ("How many are there?\n12. All of wool.", "How many are there? 12. All of wool."),
        ("2024. It was a good year.", "2024. It was a good year."),
        ("1. It is the only one.", "1. It is the only one."),
        ("2019. Founded.\n2020. Closed.", "2019. Founded. 2020. Closed."),
    ],
)
def test_numbers_of_lists_are_left_out_and_no_others(block: str, text: str) -> None:
    assert [passage.text for passage in split_passages(block)] == [text]


def test_what_filters_raise_is_a_render_error() -> None:
    with pytest.raises(RenderError, match="AttributeError"):
        Template("{{ result | dictsort }}").render({"result": [1]})
    assert not Expression("result | dictsort").holds({"result": [1]})


def test_templates_are_sandboxed_and_strict() -> None:
    assert Template("{{ a }}  and\n {{ b | spell }}").render({"a": 1, "b": "10-4"}) == "1 and 1 0 4"
    for source in ("{{ missing }}", "{{ a.b.c }}", "{{ ''.__class__.__mro__ }}", "{{ a | money }}", "{{ 1 / 0 }}"):
        with pytest.raises(RenderError):
            Template(source).render({"a": "x"})
    with pytest.raises(ValueError, match="expected a Jinja2 template"):
        Template("{{ a")
    with pytest.raises(ValueError, match="expected a Jinja2 expression"):
        Expression("a ==")
    assert Expression("result.n == 0").holds({"result": {"n": 0}})
    assert not Expression("result.n > 0").holds({"result": {}})


def test_what_is_said_of_values() -> None:
    assert spell("A-1042") == "A 1 0 4 2"
    assert spoken_date("2026-11-27T10:00:00Z") == "Friday, November 27"
    assert spoken_date("soon") == "soon"
    assert (money(129.5), money(20)) == ("129 dollars and 50 cents", "20 dollars")
    assert (money(-1.25), money(-3), money(-0.001)) == ("minus 1 dollars and 25 cents", "minus 3 dollars", "0 dollars")
    assert (listing(["a", "b", "c"]), listing(["a"]), listing([])) == ("a, b and c", "a", "")
