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
class _Row:
    document: str
    passage: Passage
    sentences: tuple[str, ...]
    sentence: int


class KnowledgeIndex:
    """Every sentence of the documents under its headings, as a unit vector; searched by brute force.

    A few thousand sentences take well under a millisecond.
    """

    def __init__(self, rows: Sequence[_Row], vectors: Vectors) -> None:
        self._rows = tuple(rows)
        self._vectors = vectors

    @classmethod
    def build(cls, agent: Agent, embed: EmbedTexts) -> "KnowledgeIndex":
        """Embeds the agent's documents, in one request; `embed` returns a row of length 1 for each text."""
        rows: list[_Row] = []
        texts: list[str] = []
        for document in agent.documents:
            for passage in document.passages:
                sentences = split_sentences(passage.text)
                about = passage.heading if passage.heading == document.title else f"{document.title}: {passage.heading}"
                for index, sentence in enumerate(sentences):
                    rows.append(_Row(document.name, passage, sentences, index))
                    texts.append(f"{about}. {sentence}" if passage.heading else sentence)
        vectors = np.asarray(embed(tuple(texts)), dtype=np.float32) if texts else np.zeros((0, 1), dtype=np.float32)
        return cls(rows, vectors)

    def search(self, vector: Vectors, documents: Sequence[str] = (), passages_max: int = 3) -> list[Hit]:
        """The best passages, best first, each once; only from `documents` when any are named.

        A vector of another length than the index's finds nothing.
        """
        if not self._rows or vector.shape != (self._vectors.shape[1],):
            return []
        scores = self._vectors @ vector
        hits: dict[tuple[str, str], Hit] = {}
        for index in np.argsort(-scores, kind="stable"):
            row = self._rows[index]
            key = (row.document, row.passage.text)
            if key in hits or (documents and row.document not in documents):
                continue
            hits[key] = Hit(row.document, row.passage, row.sentences, row.sentence, float(scores[index]))
            if len(hits) == passages_max:
                break
        return list(hits.values())

    def first(self, documents: Sequence[str]) -> Hit | None:
        """The beginning of the first of those documents, for when nothing can be compared."""
        row = next((row for row in self._rows if row.document in documents), None)
        return Hit(row.document, row.passage, row.sentences, 0, 0.0) if row else None
