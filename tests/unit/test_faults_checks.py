"""The fault campaign finds what it looks for: an intact call passes, and each way to break one is found."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from api.client import CallEvent, CallResult, TurnSummary
from api.errors import OperatorError
from bench.faults import faulty_engine, silence
from bench.faults.calls import Trigger
from bench.faults.campaign import Outcome
from bench.faults.checks import Evidence, Finding, Kind, check, check_dead_letters, check_offsets, repeats
from bench.faults.faults import FAULTS, Promise, chosen
from bench.faults.faulty_engine import FaultyEngine, Order, give_order, take_order_back
from bench.faults.plan import Moment, Phase, Run, plan, plan_run
from bench.faults.poison import OVERSIZE_BYTES, garbage
from bench.faults.proxy import open_wire
from bench.faults.reference import Reference, UnfitSpeechError, refer, words
from bench.faults.report import row
from bench.faults.silence import Silence
from bench.faults.speech import load_speech
from processors import hosted
from processors.clickhouse.rows import TABLE_OF_TOPIC
from processors.engine import Capabilities, Reply, Request, Transcribe, Transcribed
from processors.hosted import HOSTED_ROLES
from schemas.event import Event
from schemas.events import (
    EVENTS,
    AudioFrame,
    Control,
    ControlKind,
    DeadLetter,
    Response,
    ResponseKind,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)
from streams.codec import CodecError, default_codec
from streams.settings import REPOSITORY, Settings

SPOKEN = np.arange(1, 6401, dtype=np.int16)
SENT = np.concatenate([SPOKEN, np.zeros(640, np.int16)])
CHUNK = 1600


def event(made: type[Event], name: str, **fields: Any) -> Any:
    envelope = {"session_id": "s", "tenant_id": "t", "agent_id": "a", "turn": 1, "seq": 0, "occurred_at": 0}
    return made(**{"event_id": name, **envelope, **fields})


def frame(number: int) -> AudioFrame:
    pcm = SPOKEN[640 * number : 640 * (number + 1)].tobytes()
    made: AudioFrame = event(AudioFrame, f"frame-{number}", pcm=pcm, sample_index=640 * number, captured_at=0)
    return made


def chunk(number: int) -> SpeechChunk:
    """Two sentences of two chunks each."""
    made: SpeechChunk = event(
        SpeechChunk,
        f"chunk-{number}",
        kind=SpeechChunkKind.AUDIO,
        pcm=bytes(2 * CHUNK),
        sample_index=CHUNK * number,
        sentence=number // 2,
        last_of_sentence=number % 2 == 1,
    )
    return made


def response(name: str, kind: ResponseKind, **fields: Any) -> Response:
    made: Response = event(Response, name, kind=kind, **fields)
    return made


def log() -> list[Event]:
    """One turn with a tool, two sentences, four chunks."""
    return [
        *(frame(number) for number in range(10)),
        event(Transcript, "final", kind=TranscriptKind.FINAL, utterance=0, text="It broke."),
        response("called", ResponseKind.TOOL_CALLED, tool_call_id="c", tool="open_ticket"),
        response("returned", ResponseKind.TOOL_RETURNED, tool_call_id="c", tool="open_ticket"),
        response("sentence-0", ResponseKind.SENTENCE, sentence=0),
        response("sentence-1", ResponseKind.SENTENCE, sentence=1),
        response("completed", ResponseKind.COMPLETED, sentence=2),
        *(chunk(number) for number in range(4)),
        event(SpeechChunk, "end", kind=SpeechChunkKind.END_OF_TURN, sample_index=4 * CHUNK, sentence=1),
    ]


def heard() -> list[CallEvent]:
    """What the client got of it: chunks of 100 ms, all at once."""
    return [
        CallEvent(500.0, {"type": "final", "turn": 1}),
        CallEvent(600.0, {"type": "completed", "turn": 1}),
        *(
            CallEvent(700.0, {"type": "audio", "turn": 1, "sample_index": CHUNK * number, "size_bytes": 2 * CHUNK})
            for number in range(4)
        ),
    ]


SUMMARY = TurnSummary("a.wav", 1, "It broke.", None, None, "", 400.0, 500.0, None, 600.0, 700.0, 300.0, 0.0)
ROWS = {"audio_frames": 10, "transcripts": 1, "responses": 5, "speech_chunks": 5}
RESULT = CallResult("s", "a", "hung_up", heard(), [SUMMARY], SENT, np.zeros(0, np.int16))
REFERENCE = refer([RESULT], [1])
TICKETS = ({"number": 1},)
INTACT = Evidence(RESULT, log(), TICKETS, ROWS)


def findings(evidence: Evidence, reference: Reference = REFERENCE) -> set[Kind]:
    return {finding.kind for finding in check(evidence, reference, TABLE_OF_TOPIC)}


def with_log(change: Callable[[list[Event]], Sequence[Event]]) -> Evidence:
    """As ClickHouse would have it, too."""
    events = change(log())
    ids = {one.event_id: TABLE_OF_TOPIC[one.TOPIC] for one in events}
    rows: dict[str, int] = {}
    for table in ids.values():
        rows[table] = rows.get(table, 0) + 1
    return replace(INTACT, events=events, rows=rows)


def without(name: str) -> Evidence:
    return with_log(lambda events: [one for one in events if one.event_id != name])


def again(name: str, **changes: Any) -> Evidence:
    """An event of another id that does what `name` did."""

    def change(events: list[Event]) -> list[Event]:
        (own,) = [one for one in events if one.event_id == name]
        return [*events, replace(own, event_id=f"{name}-again", **changes)]

    return with_log(change)


def with_heard(change: Callable[[list[CallEvent]], list[CallEvent]]) -> Evidence:
    return replace(INTACT, result=replace(RESULT, events=change(heard())))


def test_an_intact_call_has_nothing_wrong() -> None:
    assert check(INTACT, REFERENCE, TABLE_OF_TOPIC) == []


def answered_ahead(turn_end: str) -> Callable[[list[Event]], list[Event]]:
    """The log with the reply made ahead for one intent, and a void one for another; the turn's end is of `turn_end`."""

    def change(events: list[Event]) -> list[Event]:
        made: list[Event] = []
        for one in events:
            if isinstance(one, Response):
                end = one.kind is ResponseKind.COMPLETED
                made.append(replace(one, causation_id=turn_end if end else "intent-2", committed=end))
            elif isinstance(one, SpeechChunk):
                cause = f"sentence-{one.sentence}" if one.kind is SpeechChunkKind.AUDIO else "completed"
                made.append(replace(one, causation_id=cause, committed=one.event_id == "end"))
            else:
                made.append(one)
        void = response("void", ResponseKind.SENTENCE, sentence=0, causation_id="intent-1", committed=False)
        return [*made, void, replace(chunk(0), event_id="void-0", causation_id="void", committed=False)]

    return change


def test_what_was_made_ahead_counts_when_it_was_committed_and_else_not() -> None:
    assert check(with_log(answered_ahead("intent-2")), REFERENCE, TABLE_OF_TOPIC) == []
    assert Kind.LOST in findings(with_log(answered_ahead("intent-3")))
    assert Kind.DOUBLED in findings(with_log(lambda events: [*events, replace(chunk(0), event_id="again")]))


def test_repeated_records_are_harmless_and_counted() -> None:
    doubled = [*log(), *log()[3:7]]
    assert check(replace(INTACT, events=doubled), REFERENCE, TABLE_OF_TOPIC) == []
    assert repeats(doubled) == 4


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("final", Kind.LOST),
        ("completed", Kind.LOST),
        ("end", Kind.LOST),
        ("sentence-0", Kind.LOST),
        ("chunk-1", Kind.LOST),
        ("chunk-3", Kind.LOST),
        ("frame-4", Kind.LOST),
        ("frame-9", Kind.LOST),
        ("returned", Kind.EFFECT),
    ],
)
def test_what_is_missing_from_the_log_is_found(name: str, kind: Kind) -> None:
    assert kind in findings(without(name))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("final", Kind.DOUBLED),
        ("completed", Kind.DOUBLED),
        ("end", Kind.DOUBLED),
        ("sentence-1", Kind.DOUBLED),
        ("chunk-2", Kind.DOUBLED),
        ("frame-9", Kind.DOUBLED),
        ("returned", Kind.EFFECT),
    ],
)
def test_what_happened_twice_is_found(name: str, kind: Kind) -> None:
    assert kind in findings(again(name))


def test_a_turn_number_that_is_left_out_is_a_lost_turn() -> None:
    assert Kind.LOST in findings(again("final", turn=3))


def test_speech_that_never_reached_the_client_is_found() -> None:
    assert findings(with_heard(lambda events: events[:-1])) == {Kind.LOST}
    assert findings(with_heard(lambda events: [*events[:3], *events[4:]])) == {Kind.LOST}


def test_speech_that_the_client_got_twice_or_out_of_order_is_found() -> None:
    assert findings(with_heard(lambda events: [*events, events[-1]])) == {Kind.DOUBLED}
    assert findings(with_heard(lambda events: [*events[:2], *reversed(events[2:])])) == {Kind.LOST, Kind.DOUBLED}


def test_speech_of_another_turn_is_not_taken_for_that_of_this_one() -> None:
    other = with_heard(lambda e: [*e[:-1], replace(e[-1], message={**e[-1].message, "turn": 2})])
    assert Kind.LOST in findings(other)


def test_a_reply_cut_short_that_nobody_spoke_over_is_lost() -> None:
    barge_in = event(Control, "barge-in", kind=ControlKind.BARGE_IN, heard_ms=100)
    assert Kind.LOST in findings(with_log(lambda events: [*events, barge_in]))
    assert Kind.LOST in findings(with_heard(lambda events: [*events, CallEvent(750, {"type": "clear", "turn": 1})]))


def test_words_that_differ_from_the_undisturbed_calls_are_found() -> None:
    changed = replace(RESULT, turns=[replace(SUMMARY, transcript="it broke, twice")])
    assert findings(replace(INTACT, result=changed)) == {Kind.TRANSCRIPT}
    same = replace(RESULT, turns=[replace(SUMMARY, transcript="IT broke")])
    assert findings(replace(INTACT, result=same)) == set()


def test_words_that_are_known_may_be_heard_better_than_undisturbed_but_not_worse() -> None:
    poor = replace(RESULT, turns=[replace(SUMMARY, transcript="it brook")])
    reference = refer([poor], [1], ["It broke today."])

    def heard_as(transcript: str) -> set[Kind]:
        result = replace(RESULT, turns=[replace(SUMMARY, transcript=transcript)])
        return findings(replace(INTACT, result=result), reference)

    assert heard_as("it brook") == heard_as("it broke today") == heard_as("it broke") == set()
    assert heard_as("brook") == {Kind.TRANSCRIPT}


def test_a_sentence_whose_end_was_never_spoken_is_found() -> None:
    def change(events: list[Event]) -> list[Event]:
        return [replace(one, last_of_sentence=False) if isinstance(one, SpeechChunk) else one for one in events]

    assert findings(with_log(change)) == {Kind.LOST}


def test_a_turn_without_an_answer_is_lost() -> None:
    unanswered = replace(RESULT, turns=[replace(SUMMARY, error="no reply was heard")])
    assert findings(replace(INTACT, result=unanswered)) == {Kind.LOST}


def test_audio_in_the_log_that_was_not_sent_is_found() -> None:
    def change(events: list[Event]) -> list[Event]:
        assert isinstance(events[2], AudioFrame)
        return [*events[:2], replace(events[2], pcm=bytes(len(events[2].pcm))), *events[3:]]

    assert findings(with_log(change)) == {Kind.LOST}


@pytest.mark.parametrize("count", [0, 2])
def test_effects_are_exactly_those_of_an_undisturbed_call(count: int) -> None:
    assert findings(replace(INTACT, tickets=TICKETS * count)) == {Kind.EFFECT}


@pytest.mark.parametrize("rows", [{**ROWS, "responses": 4}, {**ROWS, "responses": 6}, {**ROWS, "intents": 1}, {}])
def test_rows_are_exactly_the_events(rows: dict[str, int]) -> None:
    assert findings(replace(INTACT, rows=rows)) == {Kind.ROWS}


def test_a_group_that_does_not_reach_the_end_is_found() -> None:
    assert list(check_offsets({"g a-0": 7, "g a-1": None}, {"g a-0": 7, "g a-1": 0})) == []
    found = list(check_offsets({"g a-0": 6, "g a-1": None}, {"g a-0": 7, "g a-1": 2}))
    assert [finding.kind for finding in found] == [Kind.OFFSETS, Kind.OFFSETS]


def test_dead_letters_are_of_the_poison_and_of_nothing_else() -> None:
    poison = [("t", 0, number) for number in range(3)]
    assert check_dead_letters(poison, poison, ()) == []
    assert check_dead_letters([*poison, ("t", 1, 0)], poison, [("t", 1, 0)]) == []
    assert len(check_dead_letters(poison[:2], poison, ())) == 1
    assert len(check_dead_letters([*poison, poison[0]], poison, ())) == 1
    assert len(check_dead_letters([*poison, ("t", 1, 0)], poison, ())) == 1


# Silence.


def audio(at_ms: float, milliseconds: int, turn: int = 1) -> CallEvent:
    return CallEvent(at_ms, {"type": "audio", "turn": turn, "sample_index": 0, "size_bytes": 32 * milliseconds})


def test_silence_inside_a_reply_is_what_the_ear_misses_not_what_the_wire_does() -> None:
    assert silence.gap_inside_ms([audio(0, 1000), audio(900, 500), audio(1200, 100)]) == 0
    assert silence.gap_inside_ms([audio(0, 1000), audio(1800, 500)]) == 800
    assert silence.gap_inside_ms([audio(0, 1000), audio(5000, 500, turn=2)]) == 0


def test_cleared_speech_did_not_play() -> None:
    played = silence.pieces([audio(0, 1000), audio(0, 1000), CallEvent(400, {"type": "clear"}), audio(500, 100)])
    assert [(piece.starts_ms, piece.ends_ms) for piece in played] == [(0, 400), (500, 600)]


def test_added_silence_is_beyond_what_is_usual_before_and_inside() -> None:
    late = replace(SUMMARY, voice_to_voice_ms=1300.0)
    assert silence.added(heard(), [late], REFERENCE) == Silence(before_ms=1000.0, inside_ms=0.0)
    broken = [audio(700, 100), audio(2000, 100)]
    assert silence.added(broken, [SUMMARY], REFERENCE) == Silence(before_ms=0.0, inside_ms=1200.0)
    assert Silence(3.0, 5.0).longest_ms == 5.0


def test_undisturbed_calls_must_be_answered_and_alike() -> None:
    other = replace(RESULT, turns=[replace(SUMMARY, transcript="It broke down.")])
    assert refer([RESULT, other], [1, 1]).turns[0].transcripts == {words("it broke"), words("it broke down")}
    with pytest.raises(UnfitSpeechError, match="different numbers of tickets"):
        refer([RESULT, RESULT], [1, 2])
    with pytest.raises(UnfitSpeechError, match=r"a\.wav: not answered"):
        refer([replace(RESULT, turns=[replace(SUMMARY, error="nothing came")])], [1])


# The plan.

CONVERSATIONS = load_speech().conversations


def test_a_run_is_the_same_whatever_else_is_planned() -> None:
    whole = plan(7, list(FAULTS), 4, CONVERSATIONS)
    (alone,) = [run for run in plan(7, ["kill.stt"], 9, CONVERSATIONS) if run.number == 3]
    assert alone in whole
    assert alone == plan_run(7, "kill.stt", 3, CONVERSATIONS)
    assert alone != plan_run(8, "kill.stt", 3, CONVERSATIONS)


def test_twenty_runs_meet_every_phase_of_every_conversation() -> None:
    runs = plan(1, ["kill.stt"], 20, CONVERSATIONS)
    assert {(run.conversation, run.moment.phase) for run in runs} == {
        (number, phase) for number, _ in enumerate(CONVERSATIONS) for phase in Phase
    }
    assert len({run.moment.part for run in runs}) > 15
    assert all(run.moment.turn < len(CONVERSATIONS[run.conversation].turns) for run in runs)


def test_faults_are_chosen_by_name_or_family() -> None:
    assert [fault.name for fault in chosen("client.cut,kill.stt")] == ["client.cut", "kill.stt"]
    assert all(fault.name.startswith("kill.") for fault in chosen("kill"))
    assert [fault.name for fault in chosen("", cluster=True)] == ["kafka.leader"]
    assert [*chosen(""), *chosen("", cluster=True)] == sorted(FAULTS.values(), key=lambda fault: fault.needs_cluster)
    with pytest.raises(OperatorError, match="no such fault"):
        chosen("kill.nothing")


def test_speech_of_a_folder_makes_calls_of_two_turns(tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        (tmp_path / f"{name}.wav").write_bytes(Path(CONVERSATIONS[0].turns[0].name).read_bytes())
    assert all(all(one.words) for one in CONVERSATIONS)
    assert [len(one.turns) for one in load_speech(tmp_path).conversations] == [2, 1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(OperatorError, match="no WAV files"):
        load_speech(tmp_path / "empty")


def test_a_trigger_waits_for_its_turn_and_fires_once() -> None:
    started, spoken = CallEvent(0, {"type": "speech_started"}), CallEvent(0, {"type": "audio", "turn": 1})
    caller = Trigger(Moment(1, Phase.CALLER, 0.5), 2000, 600, 3000)
    assert caller.event(started) is None
    caller.turn_over()
    assert caller.event(spoken) is None
    assert caller.event(started) == 1000
    assert caller.event(started) is None
    assert Trigger(Moment(0, Phase.THINKING, 0.5), 2000, 600, 3000).event(started) == 2300
    agent = Trigger(Moment(0, Phase.AGENT, 0.5), 2000, 600, 3000)
    assert agent.event(CallEvent(0, {"type": "audio", "turn": 0})) is None
    assert agent.event(spoken) == 1500


# The wire.


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_a_wire_carries_falls_silent_and_is_cut() -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, open_wire(f"http://127.0.0.1:{port}") as (wire, url), asyncio.timeout(20):
        own_port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", own_port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        silent = asyncio.create_task(wire.fall_silent(0.3))
        await asyncio.sleep(0)
        writer.write(b"two")
        arriving = asyncio.create_task(reader.readexactly(3))
        await silent
        assert await arriving == b"two"
        cutting = asyncio.create_task(wire.cut(0.3))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        refused, _ = await asyncio.open_connection("127.0.0.1", own_port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await refused.readexactly(1)
        await cutting
        reader, writer = await asyncio.open_connection("127.0.0.1", own_port)
        writer.write(b"new")
        assert await reader.readexactly(3) == b"new"
        writer.close()


# The report.


def outcome(number: int, longest_ms: float, *found: Kind) -> Outcome:
    run = Run("kill.stt", number, 0, Moment(0, Phase.CALLER, 0.5), "s")
    broken = tuple(Finding(kind, "") for kind in found)
    return Outcome(run, "ticket", ("s",), 1.0, (Silence(longest_ms, 0.0),), broken, 2, 1, (), 20.0)


def test_a_row_sums_its_runs_up_and_holds_them_to_the_promise() -> None:
    outcomes = [outcome(0, 900), outcome(1, 2000, Kind.LOST, Kind.CALL, Kind.EFFECT), outcome(2, 100, Kind.ROWS)]
    one = row("kill.stt", Promise(1000, 2500), outcomes)
    assert (one.runs, one.silence_p50_ms, one.silence_max_ms, one.kept) == (3, 900, 2000, True)
    assert (one.lost, one.doubled, one.transcripts, one.effects, one.others) == (2, 0, 0, 1, 1)
    assert (one.reconnects, one.repeats) == (3, 6)
    assert row("kill.stt", Promise(1000, 1500), outcomes).kept is False
    assert row("kill.stt", Promise(800, 2500), outcomes).kept is False
    assert row("kill.stt", None, outcomes).kept is None


# The poison.


def test_poison_that_must_be_refused_is_no_event_and_the_rest_is_one() -> None:
    codec = default_codec()
    seen = {True: 0, False: 0}
    for topic, key, value, refused in garbage(Random(3), 2000, ["s"]):
        seen[refused] += 1
        try:
            codec.decode_keyed(topic, key, value)
        except CodecError:
            assert refused
        else:
            assert not refused
    assert seen[True] > 1500
    assert seen[False] > 50


def test_poison_comes_on_every_topic_under_live_keys_too_and_again_from_its_seed() -> None:
    records = list(garbage(Random(3), 1000, ["live"]))
    assert {record.topic for record in records} == {event.TOPIC for event in EVENTS}
    assert any(record.key == b"live" for record in records)
    assert max(len(record.value or b"") for record in records) == OVERSIZE_BYTES
    assert all(record.refused for record in records if record.topic == DeadLetter.TOPIC)
    assert records == list(garbage(Random(3), 1000, ["live"]))


# Engines that obey.


class Usual:
    """Gives two replies to each ask."""

    capabilities = Capabilities("stt", "usual")

    def warm(self) -> None:
        pass

    def answer(self, request: Request) -> Iterator[Reply]:
        yield Transcribed("usual", (), 1.0, "en", "usual", 1.0)
        yield Transcribed("again", (), 1.0, "en", "usual", 1.0)


def create(settings: Settings) -> Usual:
    """The factory, under the name by which roles' modules have it."""
    return Usual()


@pytest.fixture
def obedient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaultyEngine:
    monkeypatch.setitem(hosted.FACTORIES, "stt", __name__)
    return faulty_engine.stt(Settings(data_dir=tmp_path))


ASK = Transcribe(bytes(320))
USUAL = ["usual", "again"]


def texts(engine: FaultyEngine) -> list[str]:
    return [reply.text for reply in engine.answer(ASK) if isinstance(reply, Transcribed)]


def test_an_engine_obeys_orders_for_its_process_or_its_role_until_they_are_taken_back(
    obedient: FaultyEngine, tmp_path: Path
) -> None:
    assert texts(obedient) == USUAL
    for whose in (os.getpid(), "stt"):
        give_order(tmp_path, whose, Order.NOTHING)
        assert texts(obedient) == []
        give_order(tmp_path, whose, Order.GARBAGE)
        first, second = texts(obedient), texts(obedient)
        assert first != second
        assert not {"", *USUAL} & {*first, *second}
        give_order(tmp_path, whose, Order.RAISE)
        with pytest.raises(RuntimeError):
            texts(obedient)
        take_order_back(tmp_path, whose)
        assert texts(obedient) == USUAL
    for whose in (os.getpid() + 1, "tts"):
        give_order(tmp_path, whose, Order.NOTHING)
    assert texts(obedient) == USUAL


def test_orders_are_obeyed_in_the_middle_of_an_answer(obedient: FaultyEngine, tmp_path: Path) -> None:
    replies = obedient.answer(ASK)
    next(replies)
    give_order(tmp_path, "stt", Order.RAISE)
    with pytest.raises(RuntimeError):
        next(replies)


def test_a_slow_engine_takes_as_many_times_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    moments = iter(range(100))
    monkeypatch.setitem(hosted.FACTORIES, "stt", __name__)
    monkeypatch.setattr(faulty_engine, "time", SimpleNamespace(monotonic=lambda: next(moments), sleep=slept.append))
    engine = faulty_engine.stt(Settings(data_dir=tmp_path))
    for order in (Order.SLOW, "slow 12", ""):
        give_order(tmp_path, "stt", order)
        assert texts(engine) == USUAL
    assert slept == [4.0, 4.0, 11.0, 11.0, 0.0, 0.0]


async def test_a_hung_engine_answers_when_its_order_is_taken_back(obedient: FaultyEngine, tmp_path: Path) -> None:
    give_order(tmp_path, "stt", Order.HANG)
    asked = asyncio.create_task(asyncio.to_thread(texts, obedient))
    done, _ = await asyncio.wait({asked}, timeout=0.2)
    assert not done
    take_order_back(tmp_path, "stt")
    assert await asked == USUAL


def test_a_crashing_engine_takes_its_process_with_it(tmp_path: Path) -> None:
    give_order(tmp_path, "stt", Order.CRASH)
    script = (
        "from bench.faults import faulty_engine as f; from pathlib import Path; from streams.settings import Settings\n"
        "from processors import hosted; from processors.engine import Transcribe\n"
        f"hosted.FACTORIES['stt'] = {__name__!r}\n"
        f"list(f.stt(Settings(data_dir=Path({str(tmp_path)!r}))).answer(Transcribe(b'')))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(Path(__file__).parent)))}
    assert subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, env=environment).returncode == 1


def test_every_hosted_role_can_be_ill() -> None:
    names = {name.rpartition(".")[2] for name in FAULTS if name.startswith("engine.")}
    assert names == set(HOSTED_ROLES)
    assert all(callable(getattr(faulty_engine, role)) for role in HOSTED_ROLES)


def test_every_kind_of_fault_is_described() -> None:
    described = (REPOSITORY / "docs" / "faults.md").read_text(encoding="utf-8")
    families = {name.partition(".")[0] for name in FAULTS}
    assert [family for family in families if f"`{family}" not in described] == []
