"""Models that agents' files name: found, checked, and laid beside what the settings and swaps choose for all.

An agent that names a model is answered by a generation of that role's engines (`choices.py`) of its own. Several that
name the same one share it, and so they do with all others where that is what these ask.
"""

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from processors import choices
from processors.agents import Agent, load_agents
from processors.choices import SWAPPABLE, Choice, Kept
from processors.hosted import hosted_roles
from processors.models import ModelError
from streams.settings import Settings
from streams.yamlfile import ConfigError, Problem, problem_at


def named(agents: Mapping[str, Agent], role: str) -> dict[str, str]:
    """The model by agent, of those that name one for the role."""
    return {agent.id: name for agent in agents.values() if (name := getattr(agent.models, role))}


def check_models(settings: Settings, agents: Mapping[str, Agent]) -> None:
    """Raises ConfigError, which names the agent's file and field, where a model is none that could answer here."""
    problems = list(_problems(settings, agents))
    if problems:
        raise ConfigError(problems)


def _problems(settings: Settings, agents: Mapping[str, Agent]) -> Iterator[Problem]:
    for role in SWAPPABLE:
        for agent_id, name in named(agents, role).items():
            try:
                if role not in hosted_roles(settings):
                    raise ModelError(f"expected none: the {role} engine runs in no process of ours")
                choices.find(settings, role, name)
            except ModelError as error:
                path = next(settings.agents_dir.glob(f"{agent_id}.y*ml"))
                yield problem_at(path, ("models", role), str(error))


def wanted(settings: Settings, agents: Mapping[str, Agent], role: str) -> dict[str, Choice]:
    """The choice by agent, as generation 0; raises as `choices.find` does."""
    return {agent_id: choices.find(settings, role, name) for agent_id, name in named(agents, role).items()}


def laid_beside(kept: Kept, by_agent: Mapping[str, Choice], now_us: int) -> tuple[Kept, tuple[Choice, ...]]:
    """The role's choices once those agents ask these models, and the generations that are new among them."""
    there, fresh, agents = list(kept.choices), list[Choice](), dict[int, list[str]]()
    for agent_id, choice in sorted(by_agent.items()):
        found = next((one for one in there if one.same_model(choice)), None)
        if found is None:
            found = replace(choice, generation=kept.last + len(fresh) + 1)
            there.append(found)
            fresh.append(found)
        agents.setdefault(found.generation, []).append(agent_id)
    before = {choice.generation: choice for choice in kept.choices if choice.scope == "agents"}
    first = {choice.generation: choice for choice in reversed(there)}
    after = [choice for choice in kept.choices if choice.scope != "agents"]
    for generation in sorted({*before, *agents}):
        whose = tuple(agents.get(generation, ()))
        old = before.get(generation)
        if old is not None and old.agents == whose:
            after.append(old)
        else:
            after.append(replace(first[generation], scope="agents", since_us=now_us, agents=whose))
    return replace(kept, choices=tuple(after), last=kept.last + len(fresh)), tuple(fresh)


def adopt(settings: Settings, now_us: int, roles: tuple[str, ...] = SWAPPABLE) -> None:
    """Has a supervisor that starts begin with what agents' files name now; nobody needs what they named before.

    Raises ConfigError where a file is wrong.
    """
    agents = load_agents(settings.agents_dir)
    check_models(settings, agents)
    for role in set(roles) & set(SWAPPABLE) & set(hosted_roles(settings)):
        kept = choices.with_content(settings, role, choices.read(settings, role))
        after, _ = laid_beside(kept, wanted(settings, agents, role), now_us)
        left = tuple(choice for choice in after.choices if choice.scope != "agents" or choice.agents)
        if left != kept.choices:
            choices.write(settings, role, replace(after, choices=left))
