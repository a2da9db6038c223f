"""A turn answered while the caller may still go on: the conversation as it would be, kept apart from what it is.

Nothing of it enters the memory before the intent is committed, and what ends the turn is kept back until then; what
was said meanwhile lies in the log with `committed` false, under ids of its own since they derive from the intent.
"""

from dataclasses import dataclass, replace

import msgspec

from processors.llm import memory as remembering
from processors.llm.memory import Memory
from processors.llm.turn import Turn, cancelled, committed_end
from processors.stage import Ask, Cancel, Emit, Outcome, Position, Speculated
from schemas.events import Intent, Response, ResponseKind

_ENDS = (ResponseKind.COMPLETED, ResponseKind.CANCELLED)


@dataclass(frozen=True, slots=True)
class Ahead:
    """`memory` and `turn` are what they would be; `turn` is None once it is over, and `end` is how it ended.

    `asked_us` is since when an engine works on it, 0 while none does; `engine_ms` is what earlier asks took.
    """

    intent: Intent
    position: Position
    memory: Memory
    turn: Turn | None = None
    end: Response | None = None
    asked_us: int = 0
    engine_ms: float = 0.0

    def is_committed_by(self, intent: Intent) -> bool:
        """Whether the committed intent is on the same words, so that what was begun is the beginning of its answer.

        The words decide, and not what they were taken to mean: the gateway lets the speech pass by the same rule.
        """
        return _words(self.intent) == _words(intent)

    def went_on(self, memory: Memory, turn: Turn | None, outcomes: tuple[Outcome, ...], now_us: int) -> "Step":
        """After a step of the turn: the first end that it comes to is kept back, the rest may be done."""
        end, done = self.end, []
        asked_us, engine_ms = self.asked_us, self.engine_ms
        for outcome in outcomes:
            if isinstance(outcome, Emit) and isinstance(outcome.event, Response) and outcome.event.kind in _ENDS:
                end = end or outcome.event
                continue
            done.append(outcome)
        before = self.turn.ask_id if self.turn is not None else ""
        now = turn.ask_id if turn is not None else ""
        if before != now or any(isinstance(outcome, Ask) for outcome in done):
            engine_ms += (now_us - asked_us) / 1000 if asked_us else 0.0
            asked_us = now_us if now else 0
        ahead = replace(self, memory=memory, turn=turn, end=end, asked_us=asked_us, engine_ms=max(0.0, engine_ms))
        return ahead, done

    def joined(self, memory: Memory, turns_max: int) -> Memory:
        """The memory with what the turn changed in it."""
        mine = self.memory
        memory = msgspec.structs.replace(
            memory, turn=max(memory.turn, mine.turn), values=mine.values, pending=mine.pending
        )
        exchange = next((known for known in mine.history if known.turn == self.intent.turn), None)
        if exchange is None:
            return memory
        return remembering.remember_turn(memory, exchange, turns_max, self.intent.occurred_at)

    def committed_end(self, now_us: int) -> list[Outcome]:
        """The end that was kept back, where the turn has come to it and the log does not have it."""
        return [] if self.end is None else [Emit(replace(committed_end(self.end), occurred_at=now_us))]

    def leave(self, now_us: int) -> list[Outcome]:
        """Everything that was begun is void: readers are told, and engines stop."""
        outcomes: list[Outcome] = []
        if self.turn is not None:
            outcomes += [Cancel(self.turn.ask_id)] if self.turn.ask_id else []
            outcomes += cancelled(self.turn, now_us)
        elif self.end is not None:
            void = replace(self.end, kind=ResponseKind.CANCELLED, committed=False, occurred_at=now_us)
            outcomes.append(Emit(replace(void, outcome="", action="", action_target="")))
        return [*outcomes, Speculated("void", self.spent_ms(now_us))]

    def spent_ms(self, now_us: int) -> float:
        """Time that engines took so far."""
        return self.engine_ms + (max(0, now_us - self.asked_us) / 1000 if self.asked_us else 0.0)


Step = tuple[Ahead, list[Outcome]]


def _words(intent: Intent) -> tuple[int, int, int, str]:
    return intent.turn, intent.utterance, intent.revision, intent.text
