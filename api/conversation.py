"""A call as a person reads it while it happens: who says what, what the agent does, where each reply's time went."""

import json
import sys
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from api.client import CallEvent, TurnSummary

_BAR = 44
_STAGES = (("stt", "final transcript"), ("intent", "intent"), ("llm", "first sentence"), ("tts", "first audio"))


class ConversationView:
    """Prints events as lines; on a terminal, what is heard so far stands below them and changes in place."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._partial = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(Text(""), console=self._console, transient=True, refresh_per_second=12)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, event: CallEvent) -> None:
        """Shows one event, where a reader wants to see it."""
        message = event.message
        match event.type:
            case "partial":
                self._hear(str(message.get("text", "")), event.at_ms)
            case "final":
                self._hear("", event.at_ms)
                self._line(event.at_ms, "caller", str(message.get("text", "")), "bold cyan")
            case "sentence":
                self._line(event.at_ms, "agent", str(message.get("text", "")), "bold green")
            case "intent" | "tool_called" | "tool_returned" | "control_transfer" | "transfer" | "error" | "ended":
                self._line(event.at_ms, "", _aside(event.type, message), "red" if event.type == "error" else "dim")
            case "reconnecting":
                self._line(event.at_ms, "", "the connection broke, reconnecting", "red")
            case "resumed":
                self._line(event.at_ms, "", "the call goes on", "dim")
            case "clear":
                self._line(event.at_ms, "", "the agent stops talking", "dim")

    def turn(self, turn: TurnSummary) -> None:
        """Shows where the reply's time went."""
        if turn.error:
            self._print(Text(f"          not answered: {turn.error}", "red"))
        elif turn.voice_to_voice_ms is not None:
            for line in waterfall(turn):
                self._print(Text(line, "dim"))

    def say(self, line: str) -> None:
        """Shows a line of its own."""
        self._print(Text(line))

    def _hear(self, text: str, at_ms: float) -> None:
        if text == self._partial:
            return
        self._partial = text
        if self._live is not None:
            self._live.update(Text(f"{_time(at_ms)}  caller  {text} ...", "dim cyan") if text else Text(""))
        elif text:
            self._line(at_ms, "", f"hears: {text} ...", "dim")

    def _line(self, at_ms: float, who: str, text: str, style: str) -> None:
        self._print(Text.assemble((_time(at_ms), "dim"), "  ", (f"{who:<6}", style), "  ", (text, style)))

    def _print(self, text: Text) -> None:
        self._console.print(text)
        if not self._console.is_terminal:
            sys.stdout.flush()


def waterfall(turn: TurnSummary) -> list[str]:
    """The way from the end of speech to the first audio, in lines: milliseconds, bars, each stage's share."""
    marks = (turn.final_ms, turn.intent_ms, turn.first_sentence_ms, turn.first_audio_ms)
    total = turn.voice_to_voice_ms or 0.0
    lines = [f"          {'end of speech':<18}      0 ms"]
    before = turn.end_of_speech_ms
    for index, ((stage, name), mark_ms) in enumerate(zip(_STAGES, marks, strict=True)):
        if mark_ms is None:
            lines.append(f"          {name:<18}      -")
            continue
        # What was made ahead is there before the events that it came from: those took no time of the caller's.
        at_ms = min(later_ms for later_ms in marks[index:] if later_ms is not None)
        share = (at_ms - before) / total if total > 0 else 0.0
        start = (before - turn.end_of_speech_ms) / total if total > 0 else 0.0
        bar = " " * round(_BAR * max(0.0, start)) + "#" * max(1, round(_BAR * max(0.0, share)))
        after_ms = at_ms - turn.end_of_speech_ms
        lines.append(f"          {name:<18} {after_ms:6.0f} ms  {bar:<{_BAR + 1}} {stage} {share:4.0%}")
        before = at_ms
    return lines


def _aside(kind: str, message: Any) -> str:
    match kind:
        case "intent":
            found = " ".join(f"{entity['name']}={entity['value']}" for entity in message.get("entities", ()))
            return f"intent {message.get('intent')} ({message.get('confidence', 0):.2f}) {found}".rstrip()
        case "tool_called":
            return f"calls {message.get('tool')} {_compact(message.get('arguments', ''))}"
        case "tool_returned":
            return f"{message.get('tool')} answers {message.get('outcome')} {_compact(message.get('result', ''))}"
        case "ended":
            return f"the call ended ({message.get('reason')})"
        case "error":
            return " ".join(str(message.get(name, "")) for name in ("code", "message", "hint"))
    return f"{kind} {message.get('target', '')}"


def _compact(text: str, length_max: int = 160) -> str:
    """JSON on one line, cut where it is long."""
    try:
        text = json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        text = " ".join(text.split())
    return text if len(text) <= length_max else text[: length_max - 3] + "..."


def _time(at_ms: float) -> str:
    return f"{at_ms / 1000:8.2f}"
