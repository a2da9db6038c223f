"""A call as it is printed while it happens."""

import io
from dataclasses import replace
from typing import Any

from rich.console import Console

from api.client import CallEvent, TurnSummary
from api.conversation import ConversationView, waterfall

TURN = TurnSummary(
    file="a.wav",
    turn=1,
    transcript="where is my order",
    intent="order_status",
    confidence=0.9,
    reply="It is on its way.",
    end_of_speech_ms=1000,
    final_ms=1400,
    intent_ms=1450,
    first_sentence_ms=1700,
    first_audio_ms=1800,
    voice_to_voice_ms=800,
    audible_after_ms=10,
)


def printed(*events: tuple[float, dict[str, Any]], terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, soft_wrap=True, highlight=False)
    with ConversationView(console) as view:
        for at_ms, message in events:
            view.event(CallEvent(at_ms, message))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_lines_say_who_speaks_and_what_the_agent_does() -> None:
    entities = [{"name": "order_number", "value": "1234"}]
    lines = printed(
        (10, {"type": "speech_started", "turn": 1}),
        (500, {"type": "partial", "text": "where is"}),
        (600, {"type": "partial", "text": "where is"}),
        (1400, {"type": "final", "text": "where is order [1234]"}),
        (1450, {"type": "intent", "intent": "order_status", "confidence": 0.934, "entities": entities}),
        (1460, {"type": "tool_called", "tool": "get_order", "arguments": '{"order_number":"1234"}'}),
        (1500, {"type": "tool_returned", "tool": "get_order", "outcome": "ok", "result": '{"state":"sent"}'}),
        (1700, {"type": "sentence", "text": "It is on its way."}),
        (1800, {"type": "audio", "size_bytes": 640}),
    ).splitlines()
    assert [line.strip() for line in lines] == [
        "0.50          hears: where is ...",
        "1.40  caller  where is order [1234]",
        "1.45          intent order_status (0.93) order_number=1234",
        '1.46          calls get_order {"order_number": "1234"}',
        '1.50          get_order answers ok {"state": "sent"}',
        "1.70  agent   It is on its way.",
    ]


def test_a_terminal_shows_partials_in_place() -> None:
    shown = printed(
        (500, {"type": "partial", "text": "where is"}), (900, {"type": "final", "text": "where"}), terminal=True
    )
    assert "hears:" not in shown
    assert "\x1b[" in shown


def test_the_waterfall_gives_each_stage_its_share() -> None:
    lines = waterfall(TURN)
    assert [line.split("#")[0].split("ms")[0].split() for line in lines] == [
        ["end", "of", "speech", "0"],
        ["final", "transcript", "400"],
        ["intent", "450"],
        ["first", "sentence", "700"],
        ["first", "audio", "800"],
    ]
    assert [line.split()[-2:] for line in lines[1:]] == [
        ["stt", "50%"],
        ["intent", "6%"],
        ["llm", "31%"],
        ["tts", "12%"],
    ]


def test_what_was_made_ahead_took_no_time() -> None:
    """The intent is told of after the speech that was made for it."""
    lines = waterfall(replace(TURN, intent_ms=1830, first_sentence_ms=1400))
    assert [line.split()[-1] for line in lines[1:]] == ["50%", "0%", "0%", "50%"]
    assert lines[4].split()[:4] == ["first", "audio", "800", "ms"]


def test_the_waterfall_stands_what_did_not_happen() -> None:
    lines = waterfall(replace(TURN, intent_ms=None))
    assert lines[2].split() == ["intent", "-"]
    assert lines[3].split()[-1] == "38%"


def test_a_turn_without_an_answer_says_why() -> None:
    console = Console(file=io.StringIO(), width=100)
    view = ConversationView(console)
    view.turn(replace(TURN, error="no reply was heard", voice_to_voice_ms=None))
    output = console.file
    assert isinstance(output, io.StringIO)
    assert "not answered: no reply was heard" in output.getvalue()
