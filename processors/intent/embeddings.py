"""Sentence embeddings from a BERT-like ONNX model and its tokenizer file: mean of the last layer, made unit length."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from processors.engine import Capabilities, Embed, Embedded, EngineError, Reply, Request

TOKENS_MAX = 256  # what the model was trained on; the rest of a longer text is left out
_ROWS = 32  # texts in one run of the model


class SentenceEmbeddings:
    """An `Engine` for the role embeddings."""

    def __init__(self, model: Path, tokenizer: Path, name: str, licence: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._inputs = {one.name for one in self._session.get_inputs()}
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(TOKENS_MAX)
        self._tokenizer.enable_padding()
        self._dimensions = int(self._session.get_outputs()[0].shape[-1])
        self._name = name
        self._licence = licence

    @property
    def capabilities(self) -> Capabilities:
        """See `Engine`."""
        return Capabilities("embeddings", self._name, concurrency=2, licence=self._licence)

    def warm(self) -> None:
        """See `Engine`."""
        self._embed(["Where is my order?"])

    def answer(self, request: Request) -> Iterator[Reply]:
        """See `Engine`: one reply for all texts."""
        if not isinstance(request, Embed):
            raise EngineError("invalid", f"expected Embed, found {type(request).__name__}")
        started_s = time.perf_counter()
        texts = list(request.texts)
        rows = [self._embed(texts[start : start + _ROWS]) for start in range(0, len(texts), _ROWS)]
        vectors = np.concatenate(rows) if rows else np.zeros((0, self._dimensions), np.float32)
        compute_ms = 1000 * (time.perf_counter() - started_s)
        yield Embedded(vectors.astype("<f4").tobytes(), self._dimensions, self._name, compute_ms)

    def _embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        encoded = self._tokenizer.encode_batch(texts)
        mask = np.array([one.attention_mask for one in encoded], np.int64)
        feed = {
            "input_ids": np.array([one.ids for one in encoded], np.int64),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        feed = {name: value for name, value in feed.items() if name in self._inputs}
        (hidden,) = self._session.run(None, feed)
        weights = mask[:, :, None].astype(np.float32)
        mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        unit: npt.NDArray[np.float32] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return unit
