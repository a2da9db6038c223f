"""What the campaign's callers say: conversations of WAV files, the repository's own or a folder of somebody else's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from api.client import FRAME_SAMPLES, Spoken, load_turns
from api.demo import ScriptTurn
from api.errors import OperatorError
from api.wav import SAMPLE_RATE_HZ
from bench.voice import lines
from streams.yamlfile import ConfigError, load_yaml

SCRIPT = Path(__file__).with_name("speech") / "script.yaml"
TURNS_A_CALL = 2


class CallersScript(BaseModel):
    """`script.yaml`: which files make a call."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent: str
    about: str = ""
    turns: tuple[ScriptTurn, ...] = ()
    conversations: dict[str, tuple[str, ...]] = Field(min_length=1, description="the files of each call, in order")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One call's worth of turns; `words` are those in each, empty where nobody knows them."""

    name: str
    turns: tuple[Spoken, ...]
    words: tuple[str, ...] = ()

    def speech_ms(self, turn: int) -> float:
        """How long the turn's file lasts, up to its last frame with speech."""
        return (self.turns[turn].last_speech_frame + 1) * FRAME_SAMPLES * 1000 / SAMPLE_RATE_HZ


@dataclass(frozen=True, slots=True)
class Speech:
    """A speech set: whom to call, and what is said."""

    agent: str
    conversations: tuple[Conversation, ...]


def load_speech(folder: Path | None = None, agent: str = "") -> Speech:
    """The repository's own callers, or the folder's: by its script.yaml, else its WAV files by name, two to a call.

    Raises OperatorError where there is nothing to say.
    """
    script = SCRIPT if folder is None else folder / "script.yaml"
    if script.exists():
        return _scripted(script, agent)
    assert folder is not None
    files = sorted(folder.glob("*.wav"))
    if not files:
        raise OperatorError(f"{folder}: holds no WAV files; expected some, or a script.yaml")
    groups = [files[start : start + TURNS_A_CALL] for start in range(0, len(files), TURNS_A_CALL)]
    return Speech(agent, tuple(_conversation(group[0].stem, group, {}) for group in groups))


def _scripted(path: Path, agent: str) -> Speech:
    try:
        script = load_yaml(path, CallersScript)
    except ConfigError as error:
        raise OperatorError(f"the callers' script cannot be read: {error}") from error
    conversations = script.conversations.items()
    known = {line.path: line.words for line in lines()[1]}
    known |= {(path.parent / turn.file).resolve(): turn.says for turn in script.turns}
    return Speech(
        agent or script.agent,
        tuple(_conversation(name, [path.parent / file for file in files], known) for name, files in conversations),
    )


def _conversation(name: str, files: Sequence[Path], known: Mapping[Path, str]) -> Conversation:
    words = tuple(known.get(file.resolve(), "") for file in files)
    return Conversation(name, tuple(load_turns(files)), words)
