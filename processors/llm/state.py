"""What the llm stage knows of a call while it is under way."""

from dataclasses import dataclass, field, replace

from processors.llm.ahead import Ahead
from processors.llm.memory import Memory
from processors.llm.turn import Turn
from processors.stage import Position
from schemas.events import Intent

_SPOKEN_US = 70_000  # that a character of a reply takes to be heard, at most of voices' usual rates


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered, the turns that are open (the last one that is not void is speaking), and one ahead.

    `saying` is the turn whose reply the caller is hearing, or is about to, -1 for none; the last one was heard to its
    end, or cut, at `heard_at`, and no turn up to `heard_turn` is heard any more. After a crash that is not known, and
    reckoned by the length of the last reply's words.
    """

    session_id: str
    memory: Memory = field(default_factory=Memory)
    open: tuple[Turn, ...] = field(default=(), repr=False)
    ahead: Ahead | None = field(default=None, repr=False)
    saying: int = -1
    heard_at: int = 0
    heard_turn: int = -1

    @classmethod
    def remembered(cls, session_id: str, memory: Memory) -> "State":
        """The state after a crash."""
        spoken_us = len(memory.said) * _SPOKEN_US if memory.answered_at else 0
        return cls(session_id, memory, heard_at=memory.answered_at + spoken_us)

    def says(self, turn: int) -> "State":
        """With that turn's reply as the one that the caller is about to hear, unless it was heard already."""
        return self if turn <= self.heard_turn else replace(self, saying=turn)

    def heard_out(self, turn: int, at_us: int) -> "State":
        """The caller has heard all that it will of that turn, and what came before it."""
        state = replace(self, heard_turn=max(self.heard_turn, turn))
        return replace(state, saying=-1, heard_at=at_us) if turn >= max(self.saying, self.memory.answered) else state

    @property
    def held(self) -> set[Position]:
        """Records that are needed again after a crash, since they began what is not over."""
        ahead = {self.ahead.position} if self.ahead is not None else set()
        return ahead | {turn.held for turn in self.open if turn.held is not None}

    @property
    def speaking(self) -> Turn | None:
        """The turn that is being answered."""
        return next((turn for turn in self.open if not turn.void), None)

    def is_over_reply(self, intent: Intent) -> bool:
        """Whether a reply was still being made or heard when the words of the intent were said."""
        unheard = self.speaking is not None or self.saying >= 0
        return unheard or (intent.speech_ended_at is not None and intent.speech_ended_at < self.heard_at)

    @property
    def said(self) -> str:
        """The latest words of the agent."""
        if self.speaking is not None and self.speaking.sentences:
            return " ".join(self.speaking.sentences)
        return self.memory.said

    def with_turn(self, turn: Turn) -> "State":
        """With the turn as it is now, behind all others."""
        return replace(self, open=(*self.without(turn), turn))

    def without(self, turn: Turn) -> tuple[Turn, ...]:
        """All other open turns."""
        return tuple(known for known in self.open if known.number != turn.number)
