"""Puts the llm stage's core together from settings, agents and an embedding model that is up."""

from collections.abc import Callable, Mapping

from processors.agents import Agent
from processors.llm.core import Conversation
from processors.llm.knowledge import EmbedTexts, KnowledgeIndex
from processors.llm.patience import Patience
from processors.secrets import secrets_of
from streams.settings import Settings


def create_core(
    settings: Settings,
    agents: Mapping[str, Agent],
    embed: EmbedTexts,
    environment: Mapping[str, str] | None = None,
    short: Callable[[], bool] = lambda: False,
    busy: Callable[[], bool] = lambda: False,
    patience: Patience | None = None,
) -> Conversation:
    """The conversation over these agents; embeds their documents, one request for each agent, so call it off the loop.

    `short`, `busy`, `patience`: see `Conversation`. `TRUNKLINE_SECRET_CRM_TOKEN` is `secrets.crm_token` in tools' URLs
    and headers.
    """
    variables = {"erp_url": settings.erp_url.rstrip("/"), "secrets": secrets_of(environment)}
    knowledge = {name: KnowledgeIndex.build(agent, embed) for name, agent in agents.items()}
    return Conversation(agents, knowledge, variables, short, busy, patience)
