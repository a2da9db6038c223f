"""Logs and metric labels cannot carry personal data."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from schemas import json_form
from schemas.events import EVENTS, Transcript
from streams.logs import MASK, PERSONAL, checked_labels, configure
from streams.settings import Settings

FINAL = [event for event in json_form.examples(Transcript) if event.text][-1]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_json_with_process_level_time_and_ids(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Settings(), "stt")
    structlog.get_logger("processors.stt").info("session opened", session_id="s1", frames=3)
    (line,) = lines(capsys)
    assert str(line.pop("timestamp")).endswith("Z")
    assert line == {
        "event": "session opened",
        "session_id": "s1",
        "frames": 3,
        "level": "info",
        "logger": "processors.stt",
        "process": "stt",
    }


def test_personal_fields_are_masked_at_any_depth(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Settings(), "stt")
    structlog.get_logger().warning("odd", text="my secret", found={"caller": "+43 1", "deeper": [{"words": ["a"]}]})
    (line,) = lines(capsys)
    assert line["text"] == MASK
    assert line["found"] == {"caller": MASK, "deeper": [{"words": MASK}]}


def test_events_parts_and_bytes_never_print(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Settings(), "stt")
    structlog.get_logger().error("bad", cause=FINAL, heard=FINAL.words, data=b"\x01\x02", more={"x": [FINAL, b"pcm"]})
    (line,) = lines(capsys)
    assert line["cause"] == {
        "event": "transcript",
        "event_id": FINAL.event_id,
        "session_id": FINAL.session_id,
        "turn": FINAL.turn,
    }
    assert line["heard"] == [MASK] * len(FINAL.words)
    assert line["data"] == MASK
    assert FINAL.text not in json.dumps(line)


def test_other_objects_appear_by_their_type(capsys: pytest.CaptureFixture[str]) -> None:
    class Holder:
        def __repr__(self) -> str:
            return "my secret words"

    configure(Settings(), "stt")
    structlog.get_logger().info("odd", holder=Holder(), error=ValueError("seq: a number is expected"))
    (line,) = lines(capsys)
    assert line["holder"] == "<Holder>"
    assert line["error"] == "seq: a number is expected"


def test_the_standard_librarys_logs_take_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Settings(), "api")
    logging.getLogger("some.library").warning("heard %s", 3)
    logging.getLogger("httpx").info("GET http://example.com/?q=words")
    (line,) = lines(capsys)
    assert (line["event"], line["process"]) == ("heard 3", "api")


def test_a_traceback_has_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Settings(), "stt")
    words = "very personal words"
    try:
        raise ValueError(f"{len(words)} words")
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = lines(capsys)
    assert "ValueError: 19 words" in str(line["exception"])
    assert line["event"] == "failed"


def test_the_level_is_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Settings(log_level="warning"), "stt")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_configuring_twice_prints_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Settings(), "a")
    configure(Settings(), "b")
    structlog.get_logger().info("once")
    assert [line["process"] for line in lines(capsys)] == ["b"]


def test_every_personal_field_of_every_schema_is_known() -> None:
    assert {name for event in EVENTS for name in event.PII} <= PERSONAL
    assert {"word", "raw", "value", "pcm", "caller", "digit"} <= PERSONAL
    assert not {"event_id", "session_id", "turn", "event", "intent", "confidence"} & PERSONAL


def test_labels_are_checked() -> None:
    assert checked_labels("stage", "reason", "tenant_id") == ("stage", "reason", "tenant_id")
    with pytest.raises(ValueError, match="label text: a personal field"):
        checked_labels("stage", "text")
    with pytest.raises(ValueError, match="label session_id: an id makes a series"):
        checked_labels("session_id")
