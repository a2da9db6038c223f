"""Whether words are a whole sentence, by a small language model: how probable it is that a sentence ends with them.

After "Where is my order" SmolLM2 gives a mark, or the end of what somebody says, a probability of 0.4, after "Where is"
one of 0.0002. Recognition cannot tell as well: it closes nearly every text with a full stop. LiveKit's turn detector is
such a model trained further on transcripts; the plain one knows sentences, too.
"""

import math
import re
import threading
from pathlib import Path
from typing import Any

from processors.llm.llama_cpp import served

LANGUAGE = "en"  # what the model was trained on
CHARS_MAX = 200  # of the end of the text
_CANDIDATES = 40  # tokens that are looked at
_CONTEXT_TOKENS = 256
_BEFORE = "<|im_start|>user\n"
_MARKS = re.compile(r"[\s.?!,;:…]+$")
_ENDINGS = (".", "?", "!", ";", "\n", "<|im_end|>", "<|endoftext|>")


class Completeness:
    """The model, loaded. It is asked by one thread at a time; others wait."""

    def __init__(self, path: Path) -> None:
        self._server = served(path, threads=1, slots=1, context_tokens=_CONTEXT_TOKENS)
        self._lock = threading.Lock()

    def __call__(self, text: str) -> float:
        """The probability (0 to 1) that a sentence ends with these words, whatever mark stands behind them."""
        words = _MARKS.sub("", text[-CHARS_MAX:].strip())
        if not words:
            return 0.0
        asked = {"prompt": f"{_BEFORE}{words}", "n_predict": 1, "n_probs": _CANDIDATES, "temperature": 0.0}
        with self._lock:
            answer = self._server.handle_completions({**asked, "cache_prompt": True})
        return min(1.0, sum(math.exp(one["logprob"]) for one in _candidates(answer) if _is_end(one["token"])))


def _candidates(answer: Any) -> list[dict[str, Any]]:
    """The tokens that may come next, with their log probabilities."""
    return list(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"])


def _is_end(token: str) -> bool:
    return token.startswith(_ENDINGS)
