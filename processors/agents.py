"""Agents: what answers a call, each a YAML file with its knowledge documents beside it.

`infra/agents/shop.yaml` is the agent `shop`. Everything is checked and every template compiled when it is loaded, so
that a mistake shows when the platform starts and not in the middle of a call.
"""

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from processors.outcomes import OutcomeName, OutcomeRule
from processors.templates import Template, TemplateText
from streams.yamlfile import ConfigError, Problem, load_yaml, problem_at

NONE_INTENT = "none"

_NUMBERED = re.compile(r"^\s*(\d{1,3})[.)]\s+")

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]
OperationName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*\.[a-z][a-z0-9_]*$", max_length=120)]
Variants = Annotated[tuple[TemplateText, ...], Field(min_length=1)]

# What every template may use, besides the entities of its intent.
SHARED_VARIABLES = frozenset({"agent", "caller", "context"})
# What a tool's URL, headers and body may use, besides entities and the shared variables.
TOOL_VARIABLES = frozenset({"erp_url", "secrets"})


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Voice(_Part):
    """How the agent sounds, whichever engine speaks."""

    name: str = Field(
        "", max_length=100, description="a voice of the engine's, or one of `trunkline voices`; empty: its first"
    )
    speed: float = Field(1.0, ge=0.5, le=2.0, description="times as fast as the voice speaks by itself")
    language: str = Field(
        "",
        pattern="^([A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})?)?$",
        description="what it speaks; empty: the first of languages",
    )


class Models(_Part):
    """Which models answer this agent's calls: of models.yaml, or an engine by its name; empty: those of all others."""

    stt: str = Field("", max_length=200, description="hears its callers")
    llm: str = Field("", max_length=200, description="answers freely")
    tts: str = Field("", max_length=200, description="speaks")


class Pauses(_Part):
    """Silences that decide whose turn it is."""

    hesitation_ms: int = Field(100, ge=20, le=5000, description="work on a reply may begin")
    turn_ms: int = Field(300, ge=20, le=5000, description="the turn ends when the caller sounds done")
    completion_ms: int = Field(900, ge=20, le=10000, description="the turn ends in any case")
    speculate: bool = Field(True, description="work on a reply begins before the turn is sure to be over")

    @model_validator(mode="after")
    def _ordered(self) -> "Pauses":
        if not self.hesitation_ms <= self.turn_ms <= self.completion_ms:
            raise ValueError("expected hesitation_ms <= turn_ms <= completion_ms")
        return self


class Limits(_Part):
    """What one answer may cost."""

    sentences_max: int = Field(3, ge=1, le=10, description="sentences of a freely generated answer")
    tokens_max: int = Field(120, ge=16, le=2000, description="tokens of a freely generated answer")
    tools_max: int = Field(2, ge=1, le=5, description="tools that the language model may choose for one answer")
    turn_s_max: float = Field(12.0, gt=0, le=120, description="seconds that an answer may take in all")
    first_sentence_ms_max: int = Field(
        800, ge=50, le=60_000, description="how long a freely generated answer may take to begin"
    )
    history_turns: int = Field(
        6, ge=1, le=50, description="turns that the language model is told; many need a model with room for them"
    )
    knowledge_score_min: float = Field(0.5, ge=0, le=1, description="similarity from which a passage answers")
    confidence_min: float = Field(0.3, ge=0, le=1, description="below it an intent counts as none")


class EntityType(_Part):
    """A kind of value that callers say.

    order_number and digits are spoken digits in one; pattern (a regular expression for the normalised value) narrows
    them. choice maps each canonical value to other ways of saying it. text is the whole utterance, when asked for.
    """

    name: Name
    kind: Literal["order_number", "digits", "date", "amount", "choice", "text"]
    description: str = Field("", description="what it is, for a language model that chooses a tool which needs it")
    pattern: str = ""
    values: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    keep: bool = Field(True, description="whether a later intent may use the value without asking again")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"expected a regular expression; {error}") from error
        return value

    @field_validator("values", mode="before")
    @classmethod
    def _synonyms(cls, value: Any) -> Any:
        return {name: [] for name in value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _choices(self) -> "EntityType":
        if (self.kind == "choice") != bool(self.values):
            raise ValueError("expected values for kind choice, and for no other kind")
        return self


class Slot(_Part):
    """A value that an intent needs, and the question that gets it."""

    entity: str
    question: TemplateText


class Tool(_Part):
    """A call into another system: to a URL, or an adapter's operation (`operation: sap.order_status`).

    A call of a URL carries an `Idempotency-Key`, the same on every retry; an operation has its own way to that.
    """

    name: Name
    description: str = ""
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    url: TemplateText | None = None
    headers: Mapping[str, TemplateText] = Field(default_factory=dict)
    body: Mapping[str, TemplateText] = Field(default_factory=dict, description="fields of the JSON body")
    operation: OperationName | None = None
    arguments: Mapping[Name, TemplateText] = Field(default_factory=dict, description="the operation's arguments")
    timeout_s: float = Field(3.0, gt=0, le=60)
    effect: Literal["read", "write"] = Field(
        "read",
        description="write: waits until the turn is sure, and is never given up halfway; only GET may leave it out",
    )
    outcomes: tuple[OutcomeRule, ...] = ()
    offered: bool = Field(
        False, description="to the language model, which may choose it where no intent fits, by its description"
    )

    @model_validator(mode="after")
    def _safe(self) -> "Tool":
        if (self.url is None) == (self.operation is None):
            raise ValueError("expected either url, or operation")
        if self.operation is None and self.arguments:
            raise ValueError("expected arguments only beside operation")
        if self.operation is not None and (self.headers or self.body or self.method != "GET"):
            raise ValueError("expected method, headers and body only beside url: the adapter has the operation's")
        if self.operation is None and self.method == "GET" and (self.body or self.effect == "write"):
            raise ValueError("expected a GET tool to have no body and effect read")
        if self.method != "GET" and "effect" not in self.model_fields_set:
            # What only asks is called before the turn is sure, and perhaps in vain: nothing may be charged by default.
            raise ValueError(
                f"expected effect (read or write) beside method {self.method}: whether it changes something"
            )
        if self.offered and not self.description:
            raise ValueError("expected a description beside offered: the language model chooses by it")
        return self

    @property
    def variables(self) -> frozenset[str]:
        """All names that its templates use."""
        return frozenset[str]().union(*(text.variables for _, text in self.texts()))

    def texts(self) -> Iterator[tuple[tuple[str, ...], Template]]:
        """Its templates, each with its place."""
        if self.url is not None:
            yield ("url",), self.url
        for field in ("headers", "body", "arguments"):
            for name, text in getattr(self, field).items():
                yield (field, name), text


class CallerRecord(_Part):
    """What another system knows of the caller, asked for as the call begins; the greeting waits for it so long."""

    operation: OperationName
    arguments: Mapping[Name, TemplateText] = Field(default_factory=dict)
    deadline_ms: int = Field(400, ge=10, le=5000)


class IntentSpec(_Part):
    """Something a caller may want, and how it is answered."""

    name: Name
    description: str = ""
    examples: tuple[str, ...] = Field(min_length=1)
    required: tuple[Slot, ...] = ()
    optional: tuple[str, ...] = ()
    tool: str | None = None
    templates: Mapping[OutcomeName, Variants] = Field(default_factory=dict, description="texts by outcome")
    documents: tuple[str, ...] = Field((), description="knowledge documents that answer it")
    courtesy: bool = Field(False, description="said beside the matter: gives way to what else is meant")
    escalate: bool = False
    end_call: bool = False

    @field_validator("templates", mode="before")
    @classmethod
    def _variants(cls, value: Any) -> Any:
        return {name: _listed(texts) for name, texts in value.items()} if isinstance(value, Mapping) else value

    @property
    def entity_names(self) -> tuple[str, ...]:
        """All entities that it can use, the required ones first."""
        return (*(slot.entity for slot in self.required), *self.optional)


class Escalation(_Part):
    """Handing the call to a person."""

    target: str = Field("", description="where the gateway transfers the call to")
    phrases: tuple[str, ...] = Field((), description="words that always lead to a person")


class Texts(_Part):
    """What is said when nothing better is known; several variants take turns."""

    clarification: Variants = (Template("Sorry, I did not catch that. Could you say it again, please?"),)
    unheard: Variants = (
        Template("I am sorry, I could not hear you for a moment. Could you say that again, please?"),
        Template("Sorry, I lost you for a moment. Could you please say that once more?"),
    )
    unreachable: Variants = (
        Template(
            "I am sorry, our system is not answering right now, so I cannot confirm that. Please try again later."
        ),
    )
    unknown: Variants = (Template("I am afraid I do not know that. Is there anything else I can help you with?"),)
    apology: Variants = (Template("I am sorry, something went wrong on our side. Please try again in a moment."),)
    goodbye: Variants = (Template("Thank you for calling. Goodbye!"),)
    escalation: Variants = (Template("Of course. I am putting you through to a colleague. One moment, please."),)

    @field_validator("*", mode="before")
    @classmethod
    def _variants(cls, value: Any) -> Any:
        return _listed(value)


class Passage(_Part):
    """A paragraph of a document; `heading` says what it is about."""

    heading: str
    text: str


class Document(_Part):
    """A Markdown file of the agent's knowledge; `name` is its path beside the YAML file without the suffix."""

    name: str
    title: str
    passages: tuple[Passage, ...]


class AgentFile(_Part):
    """An agent as people write it."""

    name: str = Field(min_length=1, max_length=80)
    description: str = ""
    tenant: str = Field(
        "", max_length=100, description="whose it is, and no other tenant may call it; empty: everybody's"
    )
    languages: tuple[str, ...] = Field(
        ("en",), min_length=1, description="what callers speak; of several the first until another one is heard"
    )
    voice: Voice = Voice()
    models: Models = Models()
    greeting: Variants
    persona: str = Field(min_length=1)
    rules: tuple[str, ...] = ()
    entities: tuple[EntityType, ...] = ()
    tools: tuple[Tool, ...] = ()
    caller_record: CallerRecord | None = None
    intents: tuple[IntentSpec, ...] = Field(min_length=1)
    knowledge: tuple[str, ...] = Field((), description="Markdown files or patterns, relative to the YAML file")
    vocabulary: tuple[str, ...] = Field((), description="words that recognition shall expect")
    pauses: Pauses = Pauses()
    limits: Limits = Limits()
    escalation: Escalation = Escalation()
    texts: Texts = Texts()

    @field_validator("greeting", mode="before")
    @classmethod
    def _variants(cls, value: Any) -> Any:
        return _listed(value)


class Agent(AgentFile):
    """An agent ready for use. `id` is its file's name, and `agent_id` in every event."""

    id: str
    documents: tuple[Document, ...] = ()

    @property
    def spoken_language(self) -> str:
        """What its voice speaks: a code such as de."""
        return self.voice.language or self.languages[0]

    def intent(self, name: str) -> IntentSpec | None:
        """The intent of that name."""
        return next((intent for intent in self.intents if intent.name == name), None)

    def tool(self, name: str) -> Tool:
        """The tool of that name; raises KeyError, which a loaded agent's own references never do."""
        return {tool.name: tool for tool in self.tools}[name]

    def entity(self, name: str) -> EntityType | None:
        """The entity type of that name."""
        return next((entity for entity in self.entities if entity.name == name), None)


def load_agents(directory: Path) -> Mapping[str, Agent]:
    """Every agent of the directory by id, in order of name; raises ConfigError with all problems of all files."""
    files = sorted((*directory.glob("*.yaml"), *directory.glob("*.yml")))
    if not files:
        raise ConfigError([Problem(directory, 1, "", "holds no agent; expected a .yaml file for each agent")])
    agents: dict[str, Agent] = {}
    problems: list[Problem] = []
    for path in files:
        try:
            agent = load_agent(path)
            if agent.id in agents:
                raise ConfigError([Problem(path, 1, "", f"expected one file for the agent {agent.id}, found two")])
            agents[agent.id] = agent
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return MappingProxyType(agents)


def load_agent(path: Path) -> Agent:
    """The agent in that file with its documents; raises ConfigError, which names file, line, field and expectation."""
    written = load_yaml(path, AgentFile)
    documents, missing = _documents(path, written)
    found = [*_cross_checks(written, {document.name for document in documents}), *missing]
    if found:
        problems = [problem_at(path, location, expected) for location, expected in found]
        raise ConfigError(sorted(problems, key=lambda problem: problem.line))
    values = {name: getattr(written, name) for name in AgentFile.model_fields}
    return Agent.model_construct(**values, id=path.stem, documents=documents)


Location = tuple[int | str, ...]
Found = tuple[Location, str]


def _cross_checks(agent: AgentFile, documents: set[str]) -> Iterator[Found]:
    """Mistakes that lie between fields: each place and what is expected there."""
    for field in ("entities", "tools", "intents"):
        seen: set[str] = set()
        for index, part in enumerate(getattr(agent, field)):
            if part.name in seen:
                yield (field, index, "name"), f"expected a name of its own, {part.name!r} is used above"
            seen.add(part.name)
    entities = {entity.name for entity in agent.entities}
    tools = {tool.name: tool for tool in agent.tools}
    for index, intent in enumerate(agent.intents):
        for location, expected in _intent_checks(intent, entities, tools, documents):
            yield ("intents", index, *location), expected
        if intent.escalate and not agent.escalation.target:
            yield ("intents", index, "escalate"), "expected escalation.target, where the call is transferred to"
    for index, tool in enumerate(agent.tools):
        yield from _tool_checks(index, tool, entities)
        if tool.offered and tool.effect == "write" and not any(intent.tool == tool.name for intent in agent.intents):
            yield (
                ("tools", index, "offered"),
                "expected an intent with the tool: its texts say what was done in any case",
            )
    yield from _text_checks(agent)


def _text_checks(agent: AgentFile) -> Iterator[Found]:
    """Of what is said or sent whatever the intent."""
    if agent.caller_record is not None:
        for name, text in agent.caller_record.arguments.items():
            yield from _unknown(("caller_record", "arguments", name), text.variables, SHARED_VARIABLES)
    for index, text in enumerate(agent.greeting):
        yield from _unknown(("greeting", index), text.variables, SHARED_VARIABLES)
    for name in type(agent.texts).model_fields:
        for index, text in enumerate(getattr(agent.texts, name)):
            yield from _unknown(("texts", name, index), text.variables, SHARED_VARIABLES)


def _intent_checks(
    intent: IntentSpec, entities: set[str], tools: Mapping[str, Tool], documents: set[str]
) -> Iterator[Found]:
    if intent.name == NONE_INTENT:
        yield ("name",), f"expected another name, {NONE_INTENT!r} stands for no intent of the agent"
    places: list[tuple[Location, str]] = [
        (("required", index, "entity"), slot.entity) for index, slot in enumerate(intent.required)
    ]
    places += [(("optional", index), name) for index, name in enumerate(intent.optional)]
    for location, name in places:
        if name not in entities:
            yield location, _expected_one_of("an entity", name, entities)
    if intent.tool is not None and intent.tool not in tools:
        yield ("tool",), _expected_one_of("a tool", intent.tool, tools)
    for index, name in enumerate(intent.documents):
        if name not in documents:
            yield ("documents", index), _expected_one_of("a knowledge document", name, documents)
    known = SHARED_VARIABLES | set(intent.entity_names)
    for index, slot in enumerate(intent.required):
        yield from _unknown(("required", index, "question"), slot.question.variables, known)
    yield from _template_checks(intent, known)
    if intent.tool is not None and intent.tool in tools:
        needs = tools[intent.tool]
        for name in sorted((needs.variables & entities) - set(intent.entity_names)):
            yield ("tool",), f"uses the entity {name!r}; expected it under required or optional"


def _template_checks(intent: IntentSpec, known: AbstractSet[str]) -> Iterator[Found]:
    answered = intent.escalate or intent.end_call or bool(intent.documents)
    if "ok" not in intent.templates and (intent.tool is not None or not answered):
        yield ("templates",), "expected a text for the outcome ok"
    if intent.tool is None:
        for outcome in sorted(set(intent.templates) - {"ok"}):
            yield ("templates", outcome), "expected only ok where there is no tool"
    for outcome, texts in intent.templates.items():
        allowed = known | {"result", "outcome"} if intent.tool is not None else known
        for index, text in enumerate(texts):
            yield from _unknown(("templates", outcome, index), text.variables, allowed)


def _tool_checks(index: int, tool: Tool, entities: set[str]) -> Iterator[Found]:
    known = SHARED_VARIABLES | TOOL_VARIABLES | entities
    for place, text in tool.texts():
        yield from _unknown(("tools", index, *place), text.variables, known)
    for rule, outcome in enumerate(tool.outcomes):
        if outcome.when is not None:
            where = ("tools", index, "outcomes", rule, "when")
            yield from _unknown(where, outcome.when.variables, entities | {"result", "status"})


def _unknown(location: Location, used: frozenset[str], known: AbstractSet[str]) -> Iterator[Found]:
    for name in sorted(used - known):
        yield location, f"uses the unknown variable {name!r}; expected one of {', '.join(sorted(known))}"


def _expected_one_of(what: str, name: str, known: Any) -> str:
    names = ", ".join(sorted(known)) or "none is defined"
    return f"expected {what} of this agent ({names}), found {name!r}"


def _documents(path: Path, agent: AgentFile) -> tuple[tuple[Document, ...], list[Found]]:
    documents: dict[str, Document] = {}
    missing: list[Found] = []
    root = path.parent.resolve()
    for index, pattern in enumerate(agent.knowledge):
        files = [] if Path(pattern).is_absolute() else [f for f in sorted(root.glob(pattern)) if f.is_file()]
        if not files:
            missing.append((("knowledge", index), f"expected a Markdown file below {path.parent}, found none"))
        for file in files:
            name = file.relative_to(root).with_suffix("").as_posix() if file.is_relative_to(root) else ""
            text = file.read_text(encoding="utf-8", errors="replace")
            passages = tuple(split_passages(text))
            if not name or not passages:
                missing.append(
                    (("knowledge", index), f"expected paragraphs of text below {path.parent} in {file.name}")
                )
                continue
            heading = re.search(r"^#\s+(.+?)\s*#*$", text, flags=re.MULTILINE)
            title = heading[1] if heading else file.stem.replace("_", " ").capitalize()
            documents[name] = Document(name=name, title=title, passages=passages)
    return tuple(documents.values()), missing


def split_passages(markdown: str) -> Iterator[Passage]:
    """The paragraphs and list items of a document with the headings above them; comments and front matter are left out.

    Blank lines part passages, so a list belongs to the line right above it.
    """
    markdown = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    markdown = re.sub(r"<!--.*?-->", "", markdown, flags=re.DOTALL)
    headings: list[str] = []
    for block in re.split(r"\n\s*\n", markdown.strip()):
        lines = block.strip().splitlines()
        while lines and (match := re.match(r"(#{1,6})\s+(.*?)\s*#*$", lines[0])):
            headings = [*headings[: len(match[1]) - 1], match[2]]
            lines = lines[1:]
        text = " ".join(_without_markers(lines)).strip()
        if text:
            yield Passage(heading=headings[-1] if headings else "", text=text)


def _without_markers(lines: list[str]) -> Iterator[str]:
    """The lines without what makes them items of a list.

    Numbers are that where there are several, and each is the next one (or the same, as Markdown allows); any other is a
    fact.
    """
    numbers = [int(found[1]) for line in lines if (found := _NUMBERED.match(line))]
    listed = len(numbers) > 1 and all(after - before in (0, 1) for before, after in pairwise(numbers))
    for line in lines:
        line = re.sub(r"^\s*[-*+]\s+", "", line)
        yield (_NUMBERED.sub("", line) if listed else line).strip()
