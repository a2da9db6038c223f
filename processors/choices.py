"""Which model answers for a role, and for whom: kept in the data directory, written by the supervisor, read by stages.

A role's engines come in generations. The settings' own is generation 0; each swap begins another one beside it. The
file lists them in the order in which they took over, and `routed` says which one a turn of a session is for. It
follows from the file, from when the session began and from what was asked of the role in that turn before, and from
no clock.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from processors import models
from processors.hosted import hosted_roles
from streams import ready
from streams.settings import Settings

Scope = Literal["standby", "new", "all", "agents"]
_GENERAL = ("new", "all")

# The role embeddings is not here: its vectors are compared with those that stages made of agents' files when they
# started, so another model is for a restart.
SWAPPABLE = ("stt", "llm", "tts")
TURNS_MAX = 4  # of a session that are remembered: those at work, and a late ask for the one before


class Choice(msgspec.Struct, frozen=True, omit_defaults=True):
    """A generation that took over at `since_us`: at the next turn of `all` sessions, or for `new` ones alone.

    One of scope `agents` answers the sessions of `agents`, whose files name it, whatever others take over; where none
    names it any more, `since_us` is when that came to be. One that is on `standby` is warm, and nobody's yet. `model`
    is empty where the engine chooses; `content` tells models of one name apart by their files.
    """

    generation: int
    engine: str
    model: str = ""
    content: str = ""
    scope: Scope = "all"
    since_us: int = 0
    agents: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What `swap` calls it."""
        return self.model or self.engine

    def same_model(self, other: "Choice") -> bool:
        """Whether its engines answer as the other's do: one may name the model that the other's engine chooses."""
        if self.content or other.content:
            return (self.engine, self.content) == (other.engine, other.content)
        return (self.engine, self.model) == (other.engine, other.model)


class Kept(msgspec.Struct, frozen=True):
    """A role's choices, oldest first; `last` is the highest number ever used.

    `settings` are engine and model as the settings named them: who changes them takes all swaps back.
    """

    settings: tuple[str, str]
    choices: tuple[Choice, ...]
    last: int = 0

    @property
    def current(self) -> Choice:
        """The choice for sessions that start now."""
        return current(self.choices)

    @property
    def generations(self) -> tuple[int, ...]:
        """Those whose processes are to run, in the order in which they took over."""
        return tuple(dict.fromkeys(choice.generation for choice in self.choices))


@dataclass(slots=True)
class History:
    """What a session asked of a role: when it began, which agent's it is, and each latest turn's generation."""

    began_us: int = 0
    turns: dict[int, int] = field(default_factory=dict)
    agent_id: str = ""

    def pin(self, turn: int, generation: int) -> None:
        """The turn keeps that generation; the lowest turns are forgotten."""
        self.turns[turn] = generation
        for old in sorted(self.turns)[:-TURNS_MAX]:
            del self.turns[old]


def current(choices: Sequence[Choice]) -> Choice:
    """The choice for sessions that start now, of agents that name no model."""
    return next(choice for choice in reversed(choices) if choice.scope in _GENERAL)


def routed(choices: Sequence[Choice], began_us: int, turns: Mapping[int, int], turn: int, agent_id: str = "") -> int:
    """The generation that a turn asks: the one it began with, while that is there, else the newest meant for it.

    `began_us` is when the session did; `turns` are the generations of its turns so far. What its agent's file names
    goes before what took over for all.
    """
    begun = turns.get(turn)
    if begun is not None and any(choice.generation == begun for choice in choices):
        return begun
    for choice in choices:
        if choice.scope == "agents" and agent_id in choice.agents:
            return choice.generation
    for choice in reversed(choices):
        if choice.scope == "all" or (choice.scope == "new" and began_us >= choice.since_us):
            return choice.generation
    return next(choice.generation for choice in choices if choice.scope in _GENERAL)


def needed(choices: Sequence[Choice], histories: Sequence[History]) -> set[int]:
    """The generations that somebody may still ask, in turns under way or to come, and what stands by."""
    wanted = {choice.generation for choice in choices if choice.scope == "standby" or choice.agents}
    wanted.add(current(choices).generation)
    for history in histories:
        latest = max(history.turns, default=0)
        wanted.add(routed(choices, history.began_us, history.turns, latest, history.agent_id))
        wanted.add(routed(choices, history.began_us, {}, latest + 1, history.agent_id))
    return wanted


def without(choices: Sequence[Choice], generation: int) -> tuple[Choice, ...]:
    """The choices less those of that generation; of two in a row that are the same then, the one for more sessions."""
    left: list[Choice] = []
    for choice in choices:
        if choice.generation == generation:
            continue
        last = left[-1] if left else None
        both = last is not None and last.scope in _GENERAL and choice.scope in _GENERAL
        if not both or left[-1].generation != choice.generation:
            left.append(choice)
        elif choice.scope == "all":
            left[-1] = choice
    return tuple(left)


def superseded_us(choices: Sequence[Choice], generation: int) -> int | None:
    """When another one took over from that generation; None where it is current, an agent's, or stands by."""
    own = [choice for choice in choices if choice.generation == generation]
    if any(choice.scope == "standby" or choice.agents for choice in own):
        return None
    lost = [choice.since_us for choice in own if choice.scope == "agents"]
    taken = [choice for choice in choices if choice.scope in _GENERAL]
    last = max((at for at, choice in enumerate(taken) if choice.generation == generation), default=None)
    if last is None:
        return max(lost, default=None)
    return max((taken[last + 1].since_us, *lost)) if last + 1 < len(taken) else None


def own_choice(settings: Settings, role: str) -> Choice:
    """Generation 0, as the settings name it."""
    return Choice(0, *named(settings, role))


def named(settings: Settings, role: str) -> tuple[str, str]:
    """Engine and model of the role in the settings."""
    return str(getattr(settings.engines, role)), str(getattr(settings.engines, f"{role}_model"))


def find(settings: Settings, role: str, name: str) -> Choice:
    """The model of that name, else the engine that chooses its own; as generation 0.

    Raises models.ModelError where it is neither, ConfigError where models.yaml cannot be read.
    """
    listed = [model for model in models.catalogue(settings) if model.role == role]
    engines = sorted({model.engine for model in listed} | {named(settings, role)[0]})
    model = next((model for model in listed if model.name == name), None)
    if model is None and name not in engines and ":" not in name:
        known = ", ".join(dict.fromkeys([*(model.name for model in listed), *engines]))
        raise models.ModelError(f"no {role} model or engine is called {name!r}; {settings.models_file} has {known}")
    choice = Choice(0, model.engine, model.name) if model is not None else Choice(0, name)
    return msgspec.structs.replace(choice, content=content_of(settings, role, choice))


def content_of(settings: Settings, role: str, choice: Choice) -> str:
    """A hash over the models that it loads, as models.yaml has them; empty for an engine that loads none of those.

    Raises ConfigError where models.yaml cannot be read.
    """
    chosen = settings_for(settings, role, choice)
    try:
        loaded = models.readers(chosen) if role == "stt" else (models.chosen(chosen, cast(Any, role)),)
    except models.ModelError:
        return ""
    files = [[model.name, *(file.sha256 for file in model.files)] for model in loaded]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16] if files else ""


def with_content(settings: Settings, role: str, kept: Kept, content: str | None = None) -> Kept:
    """The choices, the settings' own with the hash of what it loads: `content`, where that is known already."""
    if content is None:
        content = content_of(settings, role, own_choice(settings, role))
    own = tuple(
        choice if choice.generation or choice.content else msgspec.structs.replace(choice, content=content)
        for choice in kept.choices
    )
    return msgspec.structs.replace(kept, choices=own)


def settings_for(settings: Settings, role: str, choice: Choice) -> Settings:
    """The settings with that choice for the role."""
    engines = settings.engines.model_copy(update={role: choice.engine, f"{role}_model": choice.model})
    return settings.model_copy(update={"engines": engines})


def environment_for(role: str, choice: Choice) -> dict[str, str]:
    """The same for a process that reads its environment."""
    prefix = f"TRUNKLINE_ENGINES__{role.upper()}"
    return {prefix: choice.engine, f"{prefix}_MODEL": choice.model}


def path(settings: Settings) -> Path:
    """The file."""
    return settings.data_dir / "engines.json"


def read_all(settings: Settings) -> dict[str, Kept]:
    """What is kept, by role; a file that is none is as one that is not there."""
    try:
        return msgspec.json.decode(path(settings).read_bytes(), type=dict[str, Kept])
    except (OSError, msgspec.MsgspecError):
        return {}


def read(settings: Settings, role: str) -> Kept:
    """A role's choices: those kept, else the settings' own alone."""
    kept = read_all(settings).get(role)
    if kept is not None and kept.choices:
        return kept
    return Kept(named(settings, role), (own_choice(settings, role),))


def write(settings: Settings, role: str, kept: Kept) -> None:
    """Replaces the role's choices in one step."""
    ready.write_json(path(settings), msgspec.to_builtins({**read_all(settings), role: kept}))


def holds(settings: Settings, role: str, kept: Kept) -> bool:
    """Whether the choices still count: the settings name what they did then, and the role runs in processes of ours."""
    return role in hosted_roles(settings) and kept.settings == named(settings, role) and bool(kept.choices)


def settle(settings: Settings) -> list[str]:
    """Makes the file one to start from; returns the roles whose swaps were taken back.

    What was on standby when the last supervisor ended never took over. Where the settings name another engine or model
    than at the time of the swap, they are what counts.
    """
    kept, back = read_all(settings), []
    for role, one in list(kept.items()):
        if not holds(settings, role, one):
            del kept[role]
            back.append(role)
        else:
            taken = tuple(choice for choice in one.choices if choice.scope != "standby")
            kept[role] = msgspec.structs.replace(one, choices=taken)
    if kept or path(settings).exists():
        ready.write_json(path(settings), msgspec.to_builtins(kept))
    return back


class Watched:
    """A role's choices as the file has them now; a file that did not change is not read again."""

    def __init__(self, settings: Settings, role: str) -> None:
        self._settings = settings
        self._role = role
        self._stamp: tuple[int, ...] | None = ()
        self._choices: tuple[Choice, ...] = ()

    def choices(self) -> tuple[Choice, ...]:
        """Costs a look at the file's times, in microseconds."""
        try:
            facts = path(self._settings).stat()
            stamp: tuple[int, ...] | None = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
        except OSError:
            stamp = None
        if stamp != self._stamp:
            self._stamp, self._choices = stamp, read(self._settings, self._role).choices
        return self._choices
