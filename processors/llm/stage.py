"""Puts the llm stage's core together from settings, agents and an embedding model that is up."""

import os
from collections.abc import Callable, Mapping

from processors.agents import Agent
from processors.llm.core import Conversation
from processors.llm.knowledge import EmbedTexts, KnowledgeIndex
from streams.settings import Settings

SECRET_PREFIX = "TRUNKLINE_SECRET_"


def create_core(
    settings: Settings,
    agents: Mapping[str, Agent],
    embed: EmbedTexts,
    environment: Mapping[str, str] | None = None,
    short: Callable[[], bool] = lambda: False,
    busy: Callable[[], bool] = lambda: False,
) -> Conversation:
    """The conversation over these agents; embeds their documents, one request for each agent, so call it off the loop.

    `short`, `busy`: see `Conversation`. `TRUNKLINE_SECRET_CRM_TOKEN` is `secrets.crm_token` in tools' URLs and headers.
    """
    environment = os.environ if environment is None else environment
    secrets = {
        name.removeprefix(SECRET_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(SECRET_PREFIX)
    }
    variables = {"erp_url": settings.erp_url.rstrip("/"), "secrets": secrets}
    knowledge = {name: KnowledgeIndex.build(agent, embed) for name, agent in agents.items()}
    return Conversation(agents, knowledge, variables, short, busy)
