"""What the conversation remembers of a call: bounded, and small enough to be kept in a snapshot after every turn."""

from collections.abc import Mapping
from typing import Any

import msgspec

from schemas.events import Control

HISTORY_BYTES_MAX = 5000
HISTORY_TURNS_MIN = 12  # what a tool's values may come from, however little of it the language model is told
EXCHANGE_CHARS_MAX = 400
VALUE_CHARS_MAX = 400
VALUES_MAX = 8
REMEMBERED_BYTES_MAX = 120
PENDING_BYTES_MAX = 1200
CALLER_CHARS_MAX = 60
CONTEXT_BYTES_MAX = 1000
RECORD_BYTES_MAX = 1000
CUTS_MAX = 3


class Exchange(msgspec.Struct, frozen=True, array_like=True):
    """A turn: what the caller said (empty for the greeting) and which of the agent's sentences were heard."""

    turn: int
    caller: str
    agent: tuple[str, ...]


_NO_ANSWER = Exchange(-1, "", ())


class Value(msgspec.Struct, frozen=True, array_like=True):
    """An entity's value and the turn in which it was last said."""

    name: str
    value: str
    turn: int


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """An intent that waits for a value. When `optional` it is not asked for again: the caller may go on elsewhere."""

    intent: str
    entity: str
    values: dict[str, str]
    tries: int = 0
    optional: bool = False


class Cut(msgspec.Struct, frozen=True, array_like=True):
    """Where the caller stopped hearing a turn: in that sentence, after those words of it."""

    turn: int
    sentence: int
    words: str


class Memory(msgspec.Struct, frozen=True, array_like=True):
    """Everything that outlives a turn. `turn` is the last one begun, -1 before the greeting.

    `record` is what another system knows of the caller. `answered_at` is when that came which was answered last with
    words, in microseconds since the epoch, 0 where the caller has cut the answer off. `cuts` are those of turns not
    in the history yet: their tool is let finish, or, after a crash, they are answered after their cut was read.
    """

    turn: int = -1
    caller: str = ""
    context: dict[str, str] = msgspec.field(default_factory=dict)
    history: tuple[Exchange, ...] = ()
    values: tuple[Value, ...] = ()
    pending: Pending | None = None
    ending: bool = False
    record: dict[str, str] = msgspec.field(default_factory=dict)
    answered_at: int = 0
    cuts: tuple[Cut, ...] = ()

    @property
    def answered(self) -> int:
        """The last turn that was answered with words, -1 for none."""
        return self._last_answer.turn

    @property
    def said(self) -> str:
        """The latest words of the agent."""
        return " ".join(self._last_answer.agent)

    @property
    def _last_answer(self) -> Exchange:
        return next((known for known in reversed(self.history) if known.agent), _NO_ANSWER)

    def known(self, name: str) -> Value | None:
        """The remembered value of that entity."""
        return next((value for value in self.values if value.name == name), None)


def introduce(memory: Memory, caller: str | None, context: Mapping[str, str]) -> Memory:
    """Takes over who calls and what is known about it, as much as fits."""
    kept = _fitting(context, CONTEXT_BYTES_MAX)
    return msgspec.structs.replace(memory, caller=(caller or "")[:CALLER_CHARS_MAX], context=kept)


def recognise(memory: Memory, record: Any) -> Memory:
    """Takes over the caller's record, as many of its plain fields as fit; whatever is no record is none."""
    fields = record if isinstance(record, dict) else {}
    plain = {str(name): str(value) for name, value in fields.items() if isinstance(value, str | int | float)}
    return msgspec.structs.replace(memory, record=_fitting(plain, RECORD_BYTES_MAX))


def remember_turn(memory: Memory, exchange: Exchange, turns_max: int, asked_at: int) -> Memory:
    """Adds a turn to the history, asked at that time, and lets go of the oldest ones beyond the bounds.

    `turns_max` is what the language model is told of it. Of a turn that the caller has cut off, what was heard.
    """
    cut = next((cut for cut in memory.cuts if cut.turn == exchange.turn), None)
    agent = exchange.agent if cut is None else _heard(exchange.agent, cut)
    clipped = Exchange(exchange.turn, _clip(exchange.caller), _clip_all(agent))
    history = [*(known for known in memory.history if known.turn != exchange.turn), clipped]
    history = sorted(history, key=lambda known: known.turn)[-max(turns_max, HISTORY_TURNS_MIN) :]
    while len(history) > 1 and len(msgspec.msgpack.encode(history)) > HISTORY_BYTES_MAX:
        del history[0]
    answered_at = max(asked_at, memory.answered_at) if agent else memory.answered_at
    cuts = tuple(cut for cut in memory.cuts if cut.turn != exchange.turn)
    memory = msgspec.structs.replace(memory, history=tuple(history), answered_at=answered_at, cuts=cuts)
    return memory if cut is None else _without_answer(memory, exchange.turn)


def remember_values(memory: Memory, values: Mapping[str, str], turn: int) -> Memory:
    """Keeps values for later turns; the longest unused go first. One that is too long is asked for again, not cut."""
    new = [Value(name, text, turn) for name, text in values.items() if len(text.encode()) <= REMEMBERED_BYTES_MAX]
    kept = [value for value in memory.values if value.name not in values]
    return msgspec.structs.replace(memory, values=tuple((*kept, *new)[-VALUES_MAX:]))


def wait_for(memory: Memory, pending: Pending | None) -> Memory:
    """Remembers what is waited for, with the values said so far, as many as fit."""
    if pending is None:
        return msgspec.structs.replace(memory, pending=None)
    kept = _fitting(pending.values, PENDING_BYTES_MAX)
    return msgspec.structs.replace(memory, pending=msgspec.structs.replace(pending, values=kept))


def forget_values(memory: Memory, names: tuple[str, ...]) -> Memory:
    """Lets go of values that turned out wrong."""
    return msgspec.structs.replace(memory, values=tuple(value for value in memory.values if value.name not in names))


def heard_until(memory: Memory, barge_in: Control) -> Memory:
    """Cuts a turn's reply off where the caller stopped hearing it, at a word's end: in the history, or once there."""
    cut = Cut(barge_in.turn, barge_in.sentence, _clip(barge_in.heard_text))
    history = tuple(
        Exchange(known.turn, known.caller, _heard(known.agent, cut)) if known.turn == cut.turn else known
        for known in memory.history
    )
    cuts = memory.cuts
    if all(known.turn != cut.turn for known in history):
        cuts = (*(known for known in cuts if known.turn != cut.turn), cut)[-CUTS_MAX:]
    return _without_answer(msgspec.structs.replace(memory, history=history, cuts=cuts), cut.turn)


def _without_answer(memory: Memory, turn: int) -> Memory:
    """Where the turn was cut off, no answer up to it is being heard any more."""
    return msgspec.structs.replace(memory, answered_at=0) if turn >= memory.answered else memory


def _fitting(fields: Mapping[str, str], bytes_max: int) -> dict[str, str]:
    """The fields that have room, in their order."""
    kept: dict[str, str] = {}
    size = 0
    for name, text in fields.items():
        size += len(name.encode()) + len(text.encode())
        if size <= bytes_max:
            kept[name] = text
    return kept


def _heard(sentences: tuple[str, ...], cut: Cut) -> tuple[str, ...]:
    if cut.sentence >= len(sentences):
        return sentences
    whole, last = sentences[: cut.sentence], sentences[cut.sentence]
    if not cut.words:
        return whole
    return (*whole, last if cut.words == last else f"{cut.words} …")


def _clip(text: str) -> str:
    return text if len(text) <= EXCHANGE_CHARS_MAX else text[: EXCHANGE_CHARS_MAX - 1] + "…"


def _clip_all(sentences: tuple[str, ...]) -> tuple[str, ...]:
    room, kept = EXCHANGE_CHARS_MAX, []
    for sentence in sentences:
        if room <= 0:
            break
        kept.append(_clip(sentence[:room]))
        room -= len(sentence)
    return tuple(kept)
