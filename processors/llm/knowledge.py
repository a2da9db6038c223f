"""An agent's knowledge documents, found by the similarity of sentence embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from processors.agents import Agent, Passage
from processors.llm.sentences import split_sentences

Vectors = NDArray[np.float32]
EmbedTexts = Callable[[tuple[str, ...]], Vectors]

QUOTE_SENTENCES_MAX = 2
QUOTE_CHARS_MAX = 260


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage and how well it fits (cosine, -1 to 1); `best` is its most similar sentence's index."""

    document: str
    passage: Passage
    sentences: tuple[str, ...]
    best: int
    score: float

    def quote(self) -> tuple[str, ...]:
        """What of the passage is worth saying: all of a short one, else the best sentence and the one after it."""
        if len(self.sentences) <= QUOTE_SENTENCES_MAX and len(self.passage.text) <= QUOTE_CHARS_MAX:
            return self.sentences
        quoted = [self.sentences[self.best]]
        for following in self.sentences[self.best + 1 : self.best + QUOTE_SENTENCES_MAX]:
            if len(quoted[0]) + len(following) <= QUOTE_CHARS_MAX:
                quoted.append(following)
        return tuple(quoted)


@dataclass(frozen=True, slots=True)
class _Source:
    """A passage and the rows of the index that it has: one for each sentence, then one for the whole."""

    document: str
    passage: Passage
    sentences: tuple[str, ...]
    rows: slice


class KnowledgeIndex:
    """Every passage and each of its sentences under their headings, as unit vectors; searched by brute force.

    A few thousand sentences take well under a millisecond.
    """

    def __init__(self, sources: Sequence[_Source], vectors: Vectors) -> None:
        self._sources = tuple(sources)
        self._vectors = vectors

    @classmethod
    def build(cls, agent: Agent, embed: EmbedTexts) -> "KnowledgeIndex":
        """Embeds the agent's documents, in one request; `embed` returns a row of length 1 for each text."""
        sources: list[_Source] = []
        texts: list[str] = []
        for document in agent.documents:
            for passage in document.passages:
                sentences = split_sentences(passage.text)
                if not sentences:
                    continue
                about = passage.heading if passage.heading == document.title else f"{document.title}: {passage.heading}"
                prefix = f"{about}. " if passage.heading else ""
                own = [*sentences, passage.text] if len(sentences) > 1 else list(sentences)
                rows = slice(len(texts), len(texts) + len(own))
                sources.append(_Source(document.name, passage, sentences, rows))
                texts.extend(prefix + text for text in own)
        vectors = np.asarray(embed(tuple(texts)), dtype=np.float32) if texts else np.zeros((0, 1), dtype=np.float32)
        return cls(sources, vectors)

    def search(self, vector: Vectors, documents: Sequence[str] = (), passages_max: int = 3) -> list[Hit]:
        """The best passages, best first; only from `documents` when any are named.

        A vector of another length than the index's finds nothing.
        """
        if not self._sources or vector.shape != (self._vectors.shape[1],):
            return []
        scores = self._vectors @ vector
        hits: list[Hit] = []
        for source in self._sources:
            if documents and source.document not in documents:
                continue
            own = scores[source.rows]
            best = int(np.argmax(own[: len(source.sentences)]))
            hits.append(Hit(source.document, source.passage, source.sentences, best, float(own.max())))
        return sorted(hits, key=lambda hit: -hit.score)[:passages_max]

    def first(self, documents: Sequence[str]) -> Hit | None:
        """The beginning of the first of those documents, for when nothing can be compared."""
        source = next((source for source in self._sources if source.document in documents), None)
        return Hit(source.document, source.passage, source.sentences, 0, 0.0) if source else None
