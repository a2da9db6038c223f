"""A call of the gateway, without its socket and its log."""

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest

from api.audio import BYTES_PER_MS
from api.beat import LATE_KEPT_S, Lateness, Patience, Wait
from api.calls import (
    BEGINS_FOR_MS,
    DECIDES_FOR_MS,
    GOES_ON_AFTER_MS,
    PAUSES_APART_MS,
    URGENT_S,
    Call,
    new_call,
)
from api.dialects.dialect import Playout, Start
from api.dialects.native import NativeDialect
from api.history import Marks
from api.journal import UNACKNOWLEDGED_MAX, Journal
from api.playback import Playback
from api.replay import Replayed
from api.session_router import summary_of
from processors.agents import Pauses
from processors.stage import caused
from schemas.event import Event
from schemas.events import (
    AudioFrame,
    Control,
    ControlKind,
    Response,
    ResponseKind,
    SpeechChunk,
    SpeechChunkKind,
    Transcript,
    TranscriptKind,
)
from streams.clock import SystemClock
from streams.settings import ApiSettings, Settings


class Hands(SystemClock):
    """A clock that is moved by hand."""

    now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s


class Gateway:
    """What a call needs of its gateway: a log that acknowledges when it is told to, a line that remembers."""

    def __init__(self) -> None:
        self.published: list[Any] = []
        self.third = asyncio.Event()
        self.acknowledged: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.sent: list[dict[str, Any]] = []
        self.spoken = 0
        self.router: Any = MagicMock(
            clock=SystemClock(),
            settings=Settings(),
            agents={"shop": SimpleNamespace(languages=("en",), pauses=Pauses())},
            producer=SimpleNamespace(publish=self.publish),
            lateness=Lateness(),
        )
        self.router.mint.return_value = "c1a5a8e2-b45f-4d0f-a99c-537e67854882"
        self.router.resume_token.return_value = "token"
        self.router.name = "api.0"
        self.line = MagicMock(send=self.send, stuck=False)

    def publish(self, event: Event) -> asyncio.Future[Any]:
        self.published.append(event)
        if len(self.published) == 3:
            self.third.set()
        return self.acknowledged

    def send(self, frames: Iterable[str | bytes], **rules: Any) -> None:
        for frame in frames:
            if isinstance(frame, str):
                self.sent.append(msgspec.json.decode(frame))
            else:
                self.spoken += len(frame)


async def begun(gateway: Gateway) -> Call:
    """A call whose start the log has acknowledged, as it does all that comes."""
    gateway.acknowledged.set_result(None)
    call = new_call(gateway.router, NativeDialect(), gateway.line, Start(), "demo", "shop", lambda: None)
    await call.begin()
    return call


async def say(call: Call, pcm: bytes) -> None:
    """What was read of the socket at once is written as a frame as soon as all of it has been taken."""
    call.audio(pcm)
    await asyncio.sleep(0)


def agent_speaks(gateway: Gateway, call: Call) -> None:
    """Two seconds of it."""
    speech = {"kind": SpeechChunkKind.AUDIO, "pcm": bytes(64_000), "last_of_sentence": True}
    call.deliver(caused(gateway.published[0], SpeechChunk, "chunk", 1, **speech))


def hears(gateway: Gateway, call: Call, kind: TranscriptKind, **fields: int) -> None:
    """stt says so of the caller's audio."""
    name = f"{kind}-{fields}"
    call.deliver(caused(gateway.published[0], Transcript, name, 1, kind=kind, turn=1, utterance=0, **fields))


def caller_begins(gateway: Gateway, call: Call) -> None:
    """An utterance is open."""
    speech = {"kind": TranscriptKind.SPEECH_STARTED, "turn": 1, "utterance": 0}
    call.deliver(caused(gateway.published[0], Transcript, "started", 1, **speech))


async def test_started_comes_first_even_when_the_greeting_is_faster_than_the_logs_acknowledgement() -> None:
    gateway = Gateway()
    call = new_call(gateway.router, NativeDialect(), gateway.line, Start(), "demo", "shop", lambda: None)
    beginning = asyncio.create_task(call.begin())
    await asyncio.sleep(0)
    (started,) = gateway.published
    greeting = caused(started, Response, "greeting", 1, kind=ResponseKind.SENTENCE, text="Hello.")
    call.deliver(greeting)
    call.deliver(greeting)
    gateway.acknowledged.set_result(None)
    await beginning
    call.deliver(caused(started, Response, "more", 2, kind=ResponseKind.SENTENCE, sentence=1, text="How can I help?"))
    assert [(message["type"], message.get("text")) for message in gateway.sent] == [
        ("started", None),
        ("sentence", "Hello."),
        ("sentence", "How can I help?"),
    ]
    call.end("hung_up")


async def test_what_was_sent_to_a_client_that_fell_silent_is_not_taken_for_heard() -> None:
    gateway = Gateway()
    clock = gateway.router.clock = Hands()
    call = await begun(gateway)
    started = gateway.published[0]
    await say(call, bytes(2 * 16_000))
    speech = {"kind": SpeechChunkKind.AUDIO, "pcm": bytes(3200), "last_of_sentence": True}
    call.deliver(caused(started, SpeechChunk, "chunk", 1, **speech))
    clock.now_s += 5.0  # the chunk lasts 100 ms, and the client is quiet for longer than a living one
    call._tick()
    assert not [event for event in gateway.published if isinstance(event, Control)]
    call.audio(bytes(640))
    (heard,) = [event for event in gateway.published if isinstance(event, Control)]
    assert (heard.kind, heard.heard_ms) == (ControlKind.PLAYOUT, 100)
    call.end("hung_up")


async def test_what_a_log_that_is_away_has_to_take_later_is_long_enough_for_an_outage() -> None:
    gateway = Gateway()
    gateway.router.clock = Hands()
    call = await begun(gateway)
    gateway.acknowledged = asyncio.get_running_loop().create_future()
    for number in range(20 * 50):  # of words and gaps, in which no frame is long else
        await say(call, bytes(640) if number % 10 else b"\x00\x40" * 320)
    frames = [event for event in gateway.published if isinstance(event, AudioFrame)]
    assert len(frames) < UNACKNOWLEDGED_MAX
    assert sum(len(event.pcm) for event in frames) >= 19_500 * 32, "of 20 s of speech"
    call.end("hung_up")


async def test_a_sound_over_the_agent_is_urgent_for_a_moment_from_its_onset() -> None:
    gateway = Gateway()
    clock = gateway.router.clock = Hands()
    call = await begun(gateway)
    quiet, sound = bytes(640), b"\x00\x40" * 320
    await say(call, sound)
    assert call.may_wait().wait is not Wait.NONE, "the agent is silent"
    agent_speaks(gateway, call)
    await say(call, sound)
    assert call.may_wait().wait is not Wait.NONE, "the sound was there before"
    await say(call, quiet)
    await say(call, sound)
    assert call.may_wait().wait is Wait.NONE
    clock.now_s += URGENT_S
    await say(call, sound)
    assert call.may_wait().wait is Wait.MEDIUM
    call.end("hung_up")


async def test_a_sound_between_quiet_pieces_that_were_read_together_is_urgent_too() -> None:
    gateway = Gateway()
    gateway.router.clock = Hands()
    call = await begun(gateway)
    agent_speaks(gateway, call)
    call.audio(bytes(640), bytes(640))
    assert call.may_wait().wait is not Wait.NONE
    call.audio(bytes(640), b"\x00\x40" * 320, bytes(640))
    assert call.may_wait().wait is Wait.NONE
    call.end("hung_up")


@pytest.mark.parametrize(("paused_ms", "waits"), [(GOES_ON_AFTER_MS, True), (GOES_ON_AFTER_MS - 20, False)])
async def test_a_reply_waits_for_who_is_heard_again_after_a_pause(paused_ms: float, waits: bool) -> None:
    gateway = Gateway()
    clock = gateway.router.clock = Hands()
    call = await begun(gateway)
    quiet, sound = bytes(640), b"\x00\x40" * 320
    await say(call, sound)
    for _ in range(round(paused_ms / 20)):
        clock.now_s += 0.02
        await say(call, quiet)
    clock.now_s += 0.02
    call.audio(quiet, sound, quiet)
    agent_speaks(gateway, call)
    assert (gateway.spoken == 0) is waits
    call.end("hung_up")


async def test_pieces_that_were_read_together_make_the_same_frames() -> None:
    pieces = [bytes([number]) * 640 for number in range(9)]
    heard: list[list[bytes]] = []
    for together in (1, 9):
        gateway = Gateway()
        gateway.router.clock = Hands()
        call = await begun(gateway)
        for start in range(0, 9, together):
            call.audio(*pieces[start : start + together])
        await asyncio.sleep(0)
        call.end("hung_up")
        heard.append([event.pcm for event in gateway.published if isinstance(event, AudioFrame)])
    assert heard[0] == heard[1]
    assert b"".join(heard[0]) == b"".join(pieces)


async def test_who_may_be_answered_soon_is_read_soon_and_others_seldom() -> None:
    gateway = Gateway()
    clock = gateway.router.clock = Hands()
    call = await begun(gateway)
    turn_ms, completion_ms = Pauses().turn_ms, Pauses().completion_ms

    by_pause = await patience_by_pause(call)
    begins_ms, decides_ms = Pauses().hesitation_ms + PAUSES_APART_MS, turn_ms + PAUSES_APART_MS
    assert by_pause[0] == Patience(Wait.LONG, decides_ms), "the caller speaks"
    assert by_pause[20] == Patience(Wait.LONG, begins_ms - 20)
    assert {by_pause[ms].wait for ms in (begins_ms, begins_ms + BEGINS_FOR_MS - 20)} == {Wait.SHORT}
    begun_ms = begins_ms + BEGINS_FOR_MS
    assert by_pause[begun_ms] == Patience(Wait.LONG, decides_ms - begun_ms)
    assert {by_pause[ms].wait for ms in (decides_ms, decides_ms + DECIDES_FOR_MS - 20)} == {Wait.SHORT}
    goes_on_ms = decides_ms + DECIDES_FOR_MS
    assert by_pause[goes_on_ms] == Patience(Wait.MEDIUM, completion_ms + PAUSES_APART_MS - goes_on_ms)
    assert by_pause[completion_ms + PAUSES_APART_MS].wait is Wait.SHORT
    assert {by_pause[ms].wait for ms in range(completion_ms + 240, 1200, 20)} == {Wait.LONG}
    agent_speaks(gateway, call)
    await say(call, b"\x00\x40" * 320)
    clock.now_s += URGENT_S
    assert set((await patience_by_pause(call)).values()) == {Patience(Wait.MEDIUM)}, "the agent may have to be silenced"
    caller_begins(gateway, call)
    await say(call, b"\x00\x40" * 320)
    clock.now_s += URGENT_S
    waits = {patience.wait for patience in (await patience_by_pause(call)).values()}
    assert waits == set(Wait) - {Wait.NONE}, "it is silent"
    call.end("hung_up")


async def test_finals_tell_when_stt_takes_a_pause_to_begin() -> None:
    gateway = Gateway()
    gateway.router.clock = Hands()
    call = await begun(gateway)
    for apart_ms, believed_ms in ((100.0, 80.0), (100.0, 90.0), (-40.0, 25.0), (900.0, 25.0)):
        await patience_by_pause(call, until_ms=400)
        began_ms = sum(len(event.pcm) for event in gateway.published if isinstance(event, AudioFrame)) / 32 - 400
        hears(gateway, call, TranscriptKind.FINAL, audio_end_ms=round(began_ms + apart_ms))
        by_pause = await patience_by_pause(call, until_ms=400)
        assert by_pause[260].within_ms == Pauses().turn_ms + believed_ms - 260
    call.end("hung_up")


async def test_a_final_amid_speech_tells_nothing_of_pauses() -> None:
    gateway = Gateway()
    gateway.router.clock = Hands()
    call = await begun(gateway)
    await patience_by_pause(call, until_ms=80)
    hears(gateway, call, TranscriptKind.FINAL, audio_end_ms=400)
    by_pause = await patience_by_pause(call, until_ms=260)
    assert by_pause[260].within_ms == Pauses().turn_ms + PAUSES_APART_MS - 260
    call.end("hung_up")


async def test_what_is_read_seldom_makes_long_frames_and_what_is_read_often_none_in_a_dip() -> None:
    lengths: list[list[int]] = []
    speech, dip = b"\x00\x40" * 320, bytes(640)
    for together in (1, 4):
        gateway = Gateway()
        gateway.router.clock = Hands()
        call = await begun(gateway)
        pieces = [speech] * 48 + [dip] * 2 + [speech] * 46
        for start in range(0, len(pieces), together):
            call.audio(*pieces[start : start + together])
            await asyncio.sleep(0)
        call.end("hung_up")
        lengths.append([len(event.pcm) // 32 for event in gateway.published if isinstance(event, AudioFrame)])
    often, seldom = lengths
    assert min(often[15:-1]) == 20
    assert min(seldom[4:-1]) >= 100


async def test_where_speech_is_heard_late_nobody_is_read_soon() -> None:
    gateway, second = Gateway(), Gateway()
    clock = gateway.router.clock = second.router.clock = Hands()
    second.router.lateness = gateway.router.lateness
    call, other = await begun(gateway), await begun(second)
    for _ in range(100):
        await say(call, b"\x00\x40" * 320)
    hears(gateway, call, TranscriptKind.SPEECH_STARTED, audio_start_ms=100)
    assert Wait.SHORT in {patience.wait for patience in (await patience_by_pause(other)).values()}, "of much at once"
    clock.now_s += 2.0
    hears(gateway, call, TranscriptKind.SPEECH_STARTED, audio_start_ms=900)
    assert {patience.wait for patience in (await patience_by_pause(other)).values()} == {Wait.LONG}
    clock.now_s += LATE_KEPT_S
    assert {patience.wait for patience in (await patience_by_pause(other)).values()} > {Wait.LONG}
    call.end("hung_up")
    other.end("hung_up")


async def patience_by_pause(call: Call, until_ms: int = 1200) -> dict[float, Patience]:
    """After half a second of speech, how long the socket may wait after so many ms of silence."""
    found: dict[float, Patience] = {}
    for at_ms in range(-480, until_ms + 20, 20):
        await say(call, bytes(640) if at_ms > 0 else b"\x00\x40" * 320)
        found[at_ms] = call.may_wait()
    return found


async def test_over_the_agent_frames_of_silence_are_long_while_no_utterance_is_open() -> None:
    gateway = Gateway()
    gateway.router.clock = Hands()
    call = await begun(gateway)
    agent_speaks(gateway, call)

    async def longest_ms() -> int:
        first = len(gateway.published)
        await say(call, b"\x00\x40" * 320)
        for _ in range(40):
            await say(call, bytes(640))
        frames = [event for event in gateway.published[first:] if isinstance(event, AudioFrame)]
        return max(len(frame.pcm) for frame in frames) // BYTES_PER_MS

    assert await longest_ms() == 500
    caller_begins(gateway, call)
    assert await longest_ms() == 20, "a pause is measured"
    call.end("hung_up")


async def test_a_client_that_stops_sending_is_called_quiet_once() -> None:
    gateway = Gateway()
    clock = gateway.router.clock = Hands()
    call = await begun(gateway)
    said = []
    for pause_s in (0.5, 1.0, 1.0):
        await say(call, bytes(2 * 16_000))
        clock.now_s += pause_s
        call._listen_for_silence()
        said.append(len([event for event in gateway.published if isinstance(event, Control)]))
    assert said == [0, 1, 2]
    assert {event.kind for event in gateway.published if isinstance(event, Control)} == {ControlKind.QUIET}
    assert len({event.event_id for event in gateway.published}) == len(gateway.published)
    call.end("hung_up")


async def test_what_waits_to_be_a_long_frame_is_written_when_the_client_stops_sending() -> None:
    gateway = Gateway()
    clock = gateway.router.clock = Hands()
    call = await begun(gateway)

    def written() -> int:
        return sum(len(event.pcm) for event in gateway.published if isinstance(event, AudioFrame))

    for _ in range(14):
        await say(call, b"\x00\x40" * 320)
    assert written() < 14 * 640
    clock.now_s += 0.3
    call._listen_for_silence()
    assert written() < 14 * 640, "it may still go on"
    clock.now_s += 0.3
    call._listen_for_silence()
    assert written() == 14 * 640
    assert not [event for event in gateway.published if isinstance(event, Control)], "before it is called quiet"
    call.end("hung_up")


async def test_a_lost_connection_waits_and_its_gateway_ends_it_after_the_grace() -> None:
    gateway = Gateway()
    gateway.router.settings = Settings(api=ApiSettings(resume_grace_s=0.05))
    call = await begun(gateway)
    call.lost()
    assert call.ended.is_set()
    assert [(event.kind, event.reason) for event in gateway.published[1:]] == [("updated", "connection_lost")]
    (waiting,) = gateway.router.put.call_args.args
    await asyncio.wait_for(gateway.third.wait(), 5)
    assert (gateway.published[2].kind, gateway.published[2].reason) == ("ended", "connection_lost")
    assert [event.seq for event in gateway.published] == [0, 1, 2]
    assert waiting.over


async def test_the_client_is_told_what_the_log_has() -> None:
    gateway = Gateway()
    call = await begun(gateway)
    await say(call, b"\x00\x40" * 17_000)
    await asyncio.sleep(0)  # until the log's acknowledgement is known
    await say(call, b"\x00\x40" * 1000)
    told = [message for message in gateway.sent if message["type"] == "acknowledged"]
    assert told == [{"type": "acknowledged", "sample_index": 17_000}]
    call.end("hung_up")


async def test_pieces_that_were_read_together_are_one_frame() -> None:
    gateway = Gateway()
    call = await begun(gateway)
    call.audio(bytes(640))
    call.audio(bytes(640))
    await say(call, bytes(320))
    await say(call, bytes(320))  # too little for a frame, but the connection breaks
    call.audio(bytes(640))
    call.lost()
    frames = [event for event in gateway.published if isinstance(event, AudioFrame)]
    assert [(event.sample_index, len(event.pcm)) for event in frames] == [(0, 1600), (800, 960)]


async def test_a_frame_is_the_same_event_whoever_writes_it() -> None:
    ids = []
    for _ in range(2):
        gateway = Gateway()
        call = await begun(gateway)
        for _ in range(10):
            await say(call, bytes(1280))
        ids.append([event.event_id for event in gateway.published if isinstance(event, AudioFrame)])
        call.end("hung_up")
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 10


def speech(gateway: Gateway, turn: int, number: int, ms: int, **fields: Any) -> SpeechChunk:
    """A chunk of the agent's speech, the turn's `number`th."""
    fields = {"kind": SpeechChunkKind.AUDIO, "turn": turn, "pcm": bytes(ms * BYTES_PER_MS), **fields}
    event = caused(gateway.published[0], SpeechChunk, f"chunk-{turn}-{number}", 1, **fields)
    assert isinstance(event, SpeechChunk)
    return event


def controls(gateway: Gateway) -> list[Control]:
    """What the call wrote of what was heard and done."""
    return [event for event in gateway.published if isinstance(event, Control)]


async def test_a_client_that_sends_no_silence_gets_all_of_a_long_reply() -> None:
    gateway = Gateway()
    clock = gateway.router.clock = Hands()
    call = await begun(gateway)
    await say(call, bytes(2 * 16_000))
    for number in range(12):
        call.deliver(speech(gateway, 0, number, 1000, sentence=number, last_of_sentence=True))
    assert gateway.spoken == 6 * 32_000, "the lead, and a chunk"
    for _ in range(8):
        clock.now_s += 1.0
        call._tick()
    assert gateway.spoken == 12 * 32_000
    assert [event.heard_ms for event in controls(gateway)] == [1000, 2000], "by when it has perhaps lost its network"
    call.audio(bytes(640))
    assert [event.heard_ms for event in controls(gateway)] == [1000 * number for number in range(1, 9)]
    call.end("hung_up")


async def test_what_was_hushed_goes_on_for_a_client_that_sends_no_silence() -> None:
    gateway = Gateway()
    clock = gateway.router.clock = Hands()
    call = await begun(gateway)
    await say(call, bytes(2 * 16_000))
    call.deliver(speech(gateway, 0, 0, 1000, last_of_sentence=True))
    clock.now_s += 0.6
    caller_begins(gateway, call)
    clock.now_s += 3.0
    call._tick()
    assert gateway.spoken == 32_000 + 0.4 * 32_000
    assert not controls(gateway)
    call.end("hung_up")


async def test_what_a_client_that_fell_silent_was_sent_counts_as_heard_after_the_grace() -> None:
    gateway = Gateway()
    clock = gateway.router.clock = Hands()
    call = await begun(gateway)
    await say(call, bytes(2 * 16_000))
    call.deliver(speech(gateway, 0, 0, 1000, last_of_sentence=True))
    clock.now_s += 10.0
    call.deliver(caused(gateway.published[0], SpeechChunk, "end", 1, kind=SpeechChunkKind.END_OF_TURN))
    assert not controls(gateway)
    assert call._timer is not None
    left_s = gateway.router.settings.api.resume_grace_s - 10.0
    assert call._timer.when() - asyncio.get_running_loop().time() == pytest.approx(left_s, abs=0.5)
    clock.now_s += left_s
    call._tick()
    assert [(event.heard_ms, event.reason) for event in controls(gateway)] == [(1000, "end_of_turn")]
    call.end("hung_up")


def replied(gateway: Gateway) -> list[float]:
    """How long each reply was waited for, in seconds."""
    return [args[0] for args, _ in gateway.router.door.replied.call_args_list]


async def test_the_first_of_each_reply_is_measured_once_and_of_what_was_said_before_a_break_nothing() -> None:
    gateway = Gateway()
    call = await begun(gateway)
    now_us = gateway.router.clock.now_us()
    for turn, number in ((1, 0), (1, 1), (2, 0), (1, 2)):
        call.deliver(speech(gateway, turn, number, 100, speech_ended_at=now_us - 300_000))
    assert [round(waited_s, 1) for waited_s in replied(gateway)] == [0.3, 0.3]
    call.end("hung_up")

    gateway.router.door.replied.reset_mock()
    journal = Journal(gateway.router, gateway.published[0], Marks(session=1, turn=2))
    summary = summary_of(gateway.published[0], turn=2)
    again = Call(gateway.router, NativeDialect(), gateway.line, journal, summary, lambda: None)
    break_us = 20_000_000
    early = speech(gateway, 3, 0, 100, speech_ended_at=now_us - break_us)
    await again.resume(Replayed(Playback()), [early], [])
    again.deliver(speech(gateway, 2, 9, 100, speech_ended_at=now_us - break_us))
    assert replied(gateway) == []
    again.deliver(speech(gateway, 4, 0, 100, speech_ended_at=now_us - 300_000))
    assert [round(waited_s, 1) for waited_s in replied(gateway)] == [0.3]
    again.end("hung_up")


async def test_a_call_that_ends_amid_a_reply_says_before_its_end_what_had_been_heard() -> None:
    gateway = Gateway()
    clock = gateway.router.clock = Hands()
    call = await begun(gateway)
    call.deliver(speech(gateway, 0, 0, 500, last_of_sentence=True, text="Good morning."))
    call.deliver(speech(gateway, 0, 1, 1200, sentence=1, last_of_sentence=True, text="Your order is on its way"))
    clock.now_s += 1.15
    call.end("hung_up")
    told = [(event.sentence, event.heard_ms, event.heard_text, event.reason) for event in controls(gateway)]
    assert told == [(0, 500, "Good morning.", ""), (1, 1150, "Your order is", "")]
    assert [event.kind for event in gateway.published[1:]] == ["playout", "playout", "ended"]
    assert len({event.event_id for event in gateway.published}) == 4


@pytest.mark.parametrize(("grace_s", "reason"), [(30.0, "hung_up"), (0.0, "connection_lost")])
async def test_of_a_client_that_was_gone_when_its_call_ended_nothing_counts_as_heard_since_then(
    grace_s: float, reason: str
) -> None:
    gateway = Gateway()
    gateway.router.settings = Settings(api=ApiSettings(resume_grace_s=grace_s))
    clock = gateway.router.clock = Hands()
    call = await begun(gateway)
    await say(call, bytes(2 * 16_000))
    for number, words in enumerate(("One and", "two and", "three and", "four.")):
        call.deliver(speech(gateway, 0, number, 1000, sentence=number, last_of_sentence=True, text=words))
    clock.now_s += 1.1
    await say(call, bytes(640))
    clock.now_s += 2.8
    call.end(reason)
    assert [(event.sentence, event.heard_ms) for event in controls(gateway)] == [(0, 1000)]


async def test_of_what_a_client_does_not_read_nothing_counts_as_heard_when_its_call_ends() -> None:
    gateway = Gateway()
    clock = gateway.router.clock = Hands()
    call = await begun(gateway)
    call.deliver(speech(gateway, 0, 0, 500, last_of_sentence=True, text="Good morning."))
    clock.now_s += 1.0
    gateway.line.stuck = True
    call.end("failed", 1008)
    assert controls(gateway) == []


async def test_a_call_writes_nothing_after_its_end() -> None:
    gateway = Gateway()
    clock = gateway.router.clock = Hands()
    call = await begun(gateway)
    await say(call, bytes(2 * 16_000))
    goodbye = {"kind": ResponseKind.COMPLETED, "action": "hang_up"}
    call.deliver(speech(gateway, 0, 0, 100, last_of_sentence=True))
    call.deliver(caused(gateway.published[0], Response, "goodbye", 1, **goodbye))
    call.deliver(caused(gateway.published[0], SpeechChunk, "end", 1, kind=SpeechChunkKind.END_OF_TURN))
    clock.now_s += 5.0
    call._listen_for_silence()
    call._tick()
    assert not call.ended.is_set()
    call.audio(b"\x00\x40" * 320)
    assert call.ended.is_set(), "the goodbye was heard, as is known now that the client lives"
    written = len(gateway.published)
    assert gateway.published[-1].reason == "completed"
    assert call._silence is None
    call._playback = MagicMock()
    call.audio(bytes(64_000))
    assert call._writing is None
    call.dtmf("5")
    call.playout(Playout(0, 0, 100))
    assert not call._playback.method_calls
    clock.now_s += 5.0
    call._listen_for_silence()
    await asyncio.sleep(0)
    assert len(gateway.published) == written
    assert call._silence is None
