"""The life of an utterance in four rows: audio -> transcript -> intent -> response -> audio."""

from dataclasses import dataclass

from schemas.event import Event
from schemas.events import AudioFrame, Control, Intent, Response, Session, SpeechChunk, Transcript
from streams.topics import consumer_group


@dataclass(frozen=True, slots=True)
class Stage:
    """One row: what a stage reads, what it writes, and whom it asks.

    `guards` are the topics whose undecodable records this stage sends to the dead letters, so that a record that
    several stages read becomes one dead letter. `roles` are the engines that it asks (see `engine.py`).
    """

    name: str
    consumes: tuple[type[Event], ...]
    produces: type[Event]
    guards: tuple[type[Event], ...]
    roles: tuple[str, ...]

    @property
    def group(self) -> str:
        """The consumer group of the stage's workers."""
        return consumer_group(self.name)


PIPELINE = (
    Stage("stt", (AudioFrame, Control, Session), Transcript, guards=(AudioFrame, Session), roles=("stt",)),
    Stage("intent", (Transcript, Session), Intent, guards=(Transcript,), roles=("embeddings",)),
    Stage(
        "llm",
        (Intent, Control, Session),
        Response,
        guards=(Intent, Control),
        roles=("llm", "embeddings", "tools"),
    ),
    Stage("tts", (Response, Control, Session), SpeechChunk, guards=(Response,), roles=("tts",)),
)

STAGES = {stage.name: stage for stage in PIPELINE}
