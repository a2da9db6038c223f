"""What stages ask of models: requests and replies for each role, and the two protocols around them.

An `Engine` is the model itself; it runs in a process of its own (`engine_host.py`), is warmed before that process says
it is ready, and may be killed at any time. An `EngineClient` is what a stage's runner holds: it reaches an engine over
its socket, or a remote service over HTTP.
"""

from collections.abc import AsyncGenerator, Iterator
from typing import Protocol

import msgspec


class Transcribe(msgspec.Struct, frozen=True, tag=True):
    """Speech to text. `pcm` is PCM16 little-endian mono at 16,000 Hz, at most 30 s.

    `partial`: more follows, so a rough reading will do. `quick`: the smallest model alone shall read it. Where
    `languages` are several, the speech may be in any of them, and `language` is the one that it is probably in.
    `doubtful` is what the reading before this one, of the same utterance, said of itself.
    """

    pcm: bytes
    language: str = "en"
    vocabulary: tuple[str, ...] = ()
    partial: bool = False
    quick: bool = False
    languages: tuple[str, ...] = ()
    doubtful: bool = False


class HeardWord(msgspec.Struct, frozen=True):
    """A word with its times in milliseconds from the start of `pcm`."""

    word: str
    start_ms: int
    end_ms: int
    confidence: float


class Transcribed(msgspec.Struct, frozen=True, tag=True):
    """What was heard; an empty text means no speech. `doubtful`: such words are read by more than one model.

    `complete` is how probable (0 to 1) it is that a sentence ends with these words, by the words alone; None where that
    is not known. `provisional`: a surer reading of the same audio follows, perhaps with other words; the times of these
    are estimated. `compute_ms` is what it took since the reply before.
    """

    text: str
    words: tuple[HeardWord, ...]
    confidence: float
    language: str
    model: str
    compute_ms: float
    doubtful: bool = False
    complete: float | None = None
    provisional: bool = False


class Embed(msgspec.Struct, frozen=True, tag=True):
    """Sentences to unit vectors."""

    texts: tuple[str, ...]


class Embedded(msgspec.Struct, frozen=True, tag=True):
    """float32 little-endian, `len(texts)` rows of `dimensions`, each of length 1."""

    vectors: bytes
    dimensions: int
    model: str
    compute_ms: float


class Offered(msgspec.Struct, frozen=True):
    """A tool that the language model may choose. `parameters` is the JSON Schema of an object, as JSON."""

    name: str
    description: str
    parameters: str


class Chosen(msgspec.Struct, frozen=True):
    """A tool that the language model chose. `arguments` is what it wrote, which should be JSON, but may be anything.

    `id` ties a tool's answer to it within a chat; it is empty as it comes from the model.
    """

    tool: str
    arguments: str
    id: str = ""


class Message(msgspec.Struct, frozen=True):
    """One message of a chat: role is system, user, assistant or tool.

    An assistant's message may be, or end with, the choice of a tool; one of role tool is the answer to that `choice`.
    """

    role: str
    content: str
    choice: Chosen | None = None


class Generate(msgspec.Struct, frozen=True, tag=True):
    """A chat to be continued by the language model, streamed: with words, or with the choice of one of the `tools`.

    Where `may_choose` is false the tools are only named, so that the chat still begins as it did before.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 120
    temperature: float = 0.2
    stop: tuple[str, ...] = ()
    tools: tuple[Offered, ...] = ()
    may_choose: bool = True


class Generated(msgspec.Struct, frozen=True, tag=True):
    """A piece of the answer as it is made; counts and time come with the last.

    `choosing`: no words for now, since a choice is being written, which comes as one piece, and ends the answer, or is
    none, and then words follow.
    """

    text: str
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    compute_ms: float = 0.0
    choosing: bool = False
    chosen: Chosen | None = None


class Speak(msgspec.Struct, frozen=True, tag=True):
    """A sentence to be spoken, streamed.

    `heard_bytes` of it were spoken already, by `heard_model`. An engine speaks the whole sentence all the same; who
    chooses among engines may let another one speak the rest alone, and then says `Spoken.resumed`.
    """

    text: str
    voice: str = ""
    speed: float = 1.0
    language: str = "en"
    heard_bytes: int = 0
    heard_model: str = ""


class Spoken(msgspec.Struct, frozen=True, tag=True):
    """A piece of the speech as it is made: PCM16 little-endian mono at 16,000 Hz.

    `compute_ms` is what this piece took: the pieces' sum is what the speech cost. `resumed`, on a stream's first piece:
    the stream begins after what was heard, not with the sentence.
    """

    pcm: bytes
    model: str = ""
    compute_ms: float = 0.0
    resumed: bool = False


class CallTool(msgspec.Struct, frozen=True, tag=True):
    """An HTTP call into another system. Sent again with the same `idempotency_key`, it has no second effect."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes
    idempotency_key: str


class CallOperation(msgspec.Struct, frozen=True, tag=True):
    """An adapter's operation (`sap.create_ticket`); under the same `idempotency_key` it has no second effect."""

    operation: str
    arguments: dict[str, str]
    idempotency_key: str


class ToolReturned(msgspec.Struct, frozen=True, tag=True):
    """What the other system answered; `status` is the HTTP status, `outcome` what an adapter makes of it."""

    status: int
    body: bytes
    compute_ms: float
    outcome: str = ""


Request = Transcribe | Embed | Generate | Speak | CallTool | CallOperation
Reply = Transcribed | Embedded | Generated | Spoken | ToolReturned


def is_provisional(reply: Reply) -> bool:
    """Whether a surer reading of the same audio follows."""
    return isinstance(reply, Transcribed) and reply.provisional


class Capabilities(msgspec.Struct, frozen=True):
    """What an engine can do; stages adapt to this and never branch on names."""

    role: str
    model: str
    streaming: bool = False
    languages: tuple[str, ...] = ("en",)
    sample_rate_hz: int = 16000
    concurrency: int = 1
    licence: str = ""
    device: str = "cpu"
    clones: bool = False  # it speaks with stored voices (`trunkline voices`), too


class EngineError(Exception):
    """An engine could not answer; `reason` is that of `stage.Failed`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Engine(Protocol):
    """A model. Calls come from one or more threads, `capabilities.concurrency` at a time."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; known once it is loaded."""
        ...

    def warm(self) -> None:
        """Runs the model once, so that the first caller does not wait for lazy loading."""
        ...

    def answer(self, request: Request) -> Iterator[Reply]:
        """Answers in pieces; closing the iterator cancels the rest.

        Raises EngineError for what it cannot do. What its runtime raises where memory does not suffice is let through:
        the process that it runs in knows it (`memory.py`), asks for less at once, and tries again.
        """
        ...


class EngineClient(Protocol):
    """How a runner reaches an engine."""

    def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """Streams the replies; raises EngineError. Closing the generator cancels the work at the engine."""
        ...

    async def close(self) -> None:
        """Lets go of the connection; open asks fail with `crashed`."""
        ...
