"""What calls over production engines have in common: an agent that leaves everything to the language model."""

import json
from pathlib import Path

from api.client import Patience
from streams.settings import REPOSITORY
from tests.engines.conftest import KEY
from tests.support.vllm_server import MODEL

LONG_S = 240.0
PATIENCE = Patience(
    start_s=60.0, greeting_s=60.0, final_s=LONG_S, reply_s=LONG_S, told_s=LONG_S, hang_up_s=60.0, resume_s=LONG_S
)
QUESTIONS = [REPOSITORY / "infra" / "demo" / name for name in ("3_returns.wav", "4_stock.wav")]
APOLOGY = "I am sorry, something went wrong."
AGENT = f"""
name: Mountain Talk
greeting: Hello.
persona: You talk with callers about walking in the mountains.
entities:
  - {{name: order_number, kind: order_number, pattern: "[0-9]{{4}}"}}
tools:
  - name: get_order
    description: Looks an order up.
    url: "{{{{ erp_url }}}}/orders/{{{{ order_number }}}}"
    offered: true
intents:
  - name: goodbye
    examples: [goodbye, bye bye]
    end_call: true
    templates: {{ok: Goodbye!}}
# An answer begins when the turn is over, so that the caller learns of each sentence as it is made.
pauses: {{speculate: false}}
# Everything but a clear goodbye is for the language model, which has all the time that a busy machine may need.
limits:
  {{confidence_min: 0.95, sentences_max: 10, tokens_max: 2000, turn_s_max: 120, first_sentence_ms_max: 60000}}
texts:
  apology: {APOLOGY}
"""
# Answers are cut short under load, and these answers last; how busy the machine is shall not matter.
_UNHURRIED = {
    f"TRUNKLINE_LOAD__{name}": "1000000"
    for name in ("DEPTH_MAX", "OLDEST_MS_MAX", "WAITING_MS_MAX", "MACHINE_MAX", "REPLY_MS_MAX")
} | {"TRUNKLINE_LOAD__UTILISATION_MAX": "1"}


def environment(folder: Path, *urls: str) -> dict[str, str]:
    """For a platform with that agent, `mountain`, over the servers at these URLs; `folder` gets the agent's file.

    A server may be stopped for a while, and does not count as ill for that.
    """
    agents = folder / "agents"
    agents.mkdir()
    (agents / "mountain.yaml").write_text(AGENT)
    return _UNHURRIED | {
        "TRUNKLINE_AGENTS_DIR": str(agents),
        "TRUNKLINE_ENGINES__LLM": "openai",
        "TRUNKLINE_ENGINES__LLM_BASE_URLS": json.dumps(urls),
        "TRUNKLINE_ENGINES__LLM_KEY": KEY,
        "TRUNKLINE_ENGINES__LLM_MODEL": MODEL,
        "TRUNKLINE_ENGINES__LLM_FIRST_TOKEN_S": str(LONG_S),
        "TRUNKLINE_ENGINES__LLM_BETWEEN_TOKENS_S": str(LONG_S),
    }
