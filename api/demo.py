"""`make demo`: brings the platform up, holds a recorded call with the demo agent, and accounts for it.

The caller's turns are in `infra/demo/script.yaml`. The call's audio goes to a file; ClickHouse is asked for the call
and must answer with the same numbers that the log has.
"""

import asyncio
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from api.cli.analytics import ask
from api.cli.context import key_of, log_errors, settings_of
from api.cli.output import print_table
from api.cli.running import Progress, platform_supervisor, tell_leftovers, with_port
from api.client import CallResult, Spoken, load_turns, place_call
from api.conversation import ConversationView
from api.errors import OperatorError
from api.platform import api_url, lay_out
from api.supervisor import hold
from schemas.event import Event
from schemas.events import Intent, SpeechChunk, SpeechChunkKind, Transcript, TranscriptKind
from streams.consumer import session_records
from streams.registry import codec_for
from streams.settings import REPOSITORY, Settings
from streams.yamlfile import ConfigError, load_yaml

ResultT = TypeVar("ResultT")
Facts = dict[str, str]

SCRIPT = REPOSITORY / "infra" / "demo" / "script.yaml"

_TABLES_WITHIN_S = 15.0

TOPIC_OF = {
    "transcripts": "voice.transcripts",
    "intents": "voice.intents",
    "responses": "voice.responses",
    "speech_chunks": "voice.audio.out",
}
# What is counted in the tables and on the topics: (table, kind).
COUNTS: Mapping[str, tuple[str, str]] = {
    "final transcripts": ("transcripts", "final"),
    "intents": ("intents", "detected"),
    "tool calls": ("responses", "tool_called"),
    "tool results": ("responses", "tool_returned"),
    "sentences": ("responses", "sentence"),
    "completed turns": ("responses", "completed"),
}


class ScriptTurn(BaseModel):
    """What the caller says in one turn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(description="a WAV file; relative paths start at the script")
    says: str = Field(description="the words in it")
    voice: Literal["synthetic", "human"] = "synthetic"


class Script(BaseModel):
    """A recorded caller."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent: str
    about: str = ""
    turns: tuple[ScriptTurn, ...] = Field(min_length=1)


async def run_demo(data_dir: Path, out: Path, script_path: Path = SCRIPT) -> int:
    """Runs the whole demo; returns 0 when every turn was answered and the numbers agree. Raises OperatorError."""
    began_s = time.monotonic()
    try:
        script = load_yaml(script_path, Script)
    except ConfigError as error:
        raise OperatorError(f"the demo's script cannot be read: {error}") from error
    turns = load_turns([script_path.parent / turn.file for turn in script.turns])
    # It stops soon: spares and second engines would only compete with its one call.
    settings = with_port(settings_of(data_dir), 0).model_copy(update={"spares": False})
    settings = settings.model_copy(update={"engines": settings.engines.model_copy(update={"replicas": 1})})
    progress = Progress()
    print("Starting Trunkline: Apache Kafka, the stages with their models, ClickHouse, the API", flush=True)
    with hold(settings):
        await tell_leftovers(settings, progress)
        layout = lay_out(settings)
        supervisor = platform_supervisor(layout, progress)
        is_up = asyncio.Event()
        platform = asyncio.create_task(supervisor.run(when_ready=is_up.set))
        try:
            await _either(is_up.wait(), platform)
            print(f"Everything is ready after {time.monotonic() - began_s:.1f} s.\n", flush=True)
            print(_introduction(script), flush=True)
            result = await _either(_call(layout.settings, script, turns), platform)
            result.write(out)
            print(f"\nThe call is in {out}: caller left, agent right.\n")
            agree = await _either(_account(layout.settings, result), platform)
        finally:
            supervisor.stop()
            await asyncio.wait({platform})
    platform.result()
    print("Stopped everything.")
    return _verdict(settings, result, agree)


async def _either(work: Coroutine[Any, Any, ResultT], platform: asyncio.Task[None]) -> ResultT:
    """The work's result; raises at once when the platform fails or is told to stop meanwhile."""
    task = asyncio.create_task(work)
    await asyncio.wait({task, platform}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
        platform.result()
        raise OperatorError("the demo was interrupted", exit_code=130)
    return task.result()


def _introduction(script: Script) -> str:
    human = sum(turn.voice == "human" for turn in script.turns)
    voices = f"{len(script.turns) - human} turns are synthetic speech, {human} a human voice"
    return f"A recorded caller now calls the agent `{script.agent}` over the WebSocket, in real time ({voices}).\n"


async def _call(settings: Settings, script: Script, turns: Sequence[Spoken]) -> CallResult:
    with ConversationView() as view:
        return await place_call(
            api_url(settings),
            turns,
            agent=script.agent,
            caller="demo",
            key=key_of(settings),
            on_event=view.event,
            on_turn=view.turn,
        )


async def _account(settings: Settings, result: CallResult) -> bool:
    """Prints what ClickHouse knows of the call beside what the topics hold; says whether they agree."""
    with log_errors(settings):
        on_topics = await _facts_on_topics(settings, result.session_id)
    deadline_s = time.monotonic() + _TABLES_WITHIN_S
    while True:
        in_tables = await asyncio.to_thread(_facts_in_tables, settings, result.session_id)
        if in_tables == on_topics or time.monotonic() > deadline_s:
            break
        await asyncio.sleep(0.25)
    print("The call in ClickHouse, beside the topics it came from:")
    names = sorted({*in_tables, *on_topics}, key=lambda name: (name.startswith("turn "), name))
    rows = [(name, in_tables.get(name, "-"), on_topics.get(name, "-")) for name in names]
    print_table(("", "ClickHouse", "Kafka"), rows)
    print()
    return in_tables == on_topics


async def _facts_on_topics(settings: Settings, session_id: str) -> Facts:
    """The counts of `COUNTS`, and each turn's intent and milliseconds from end of speech to first audio."""
    codec = codec_for(settings)
    records = await session_records(settings, session_id, tuple(TOPIC_OF.values()))
    return facts_of([codec.decode(record.topic, record.value) for record in records])


def facts_of(events: Sequence[Event]) -> Facts:
    """What is compared, from a call's events."""
    kinds = Counter((event.TOPIC, str(getattr(event, "kind", ""))) for event in events)
    facts: Facts = {name: str(kinds[TOPIC_OF[table], kind]) for name, (table, kind) in COUNTS.items()}
    intents = {event.turn: event.intent for event in events if isinstance(event, Intent)}
    finals = dict[int, tuple[int, int, int]]()
    sounded = dict[tuple[int, int], int]()
    for event in events:
        if isinstance(event, Transcript) and event.kind is TranscriptKind.FINAL and event.speech_ended_at is not None:
            finals.setdefault(event.turn, (event.revision, event.speech_ended_at, event.occurred_at))
        elif isinstance(event, SpeechChunk) and event.kind is SpeechChunkKind.AUDIO:
            reply = event.turn, event.revision
            sounded[reply] = min(event.occurred_at, sounded.get(reply, event.occurred_at))
    for turn, (revision, ended_us, final_us) in finals.items():
        if (first_us := sounded.get((turn, revision))) is not None:
            # What was made ahead of the final is not heard before it.
            facts[f"turn {turn}"] = _turn_fact(intents.get(turn, ""), (max(first_us, final_us) - ended_us) / 1000)
    return facts


def _facts_in_tables(settings: Settings, session_id: str) -> Facts:
    session = f"session_id = '{_checked(session_id)}'"
    facts = {}
    for name, (table, kind) in COUNTS.items():
        query = f"SELECT count() FROM {table} FINAL WHERE {session} AND kind = '{kind}'"
        facts[name] = str(ask(settings, query)["data"][0][0])
    intents = dict(ask(settings, f"SELECT turn, intent FROM intents FINAL WHERE {session}")["data"])
    turns = f"SELECT turn, total_ms FROM turns WHERE {session} AND total_ms IS NOT NULL"
    for turn, total_ms in ask(settings, turns)["data"]:
        facts[f"turn {turn}"] = _turn_fact(intents.get(turn, ""), total_ms)
    return facts


def _turn_fact(intent: str, total_ms: float) -> str:
    return f"{intent}, {total_ms:.0f} ms to first audio"


def _checked(session_id: str) -> str:
    """The id as it may stand in a query."""
    return str(uuid.UUID(session_id))


def _verdict(settings: Settings, result: CallResult, agree: bool) -> int:
    unanswered = [turn for turn in result.turns if turn.error]
    if unanswered:
        raise OperatorError(
            f"{len(unanswered)} of {len(result.turns)} turns were not answered ({unanswered[0].error}); "
            f"the logs are in {settings.log_dir}; try `make demo` again on a machine with less other work"
        )
    if not agree:
        raise OperatorError(
            f"ClickHouse does not have what is on the topics; its log is {settings.log_dir / 'clickhouse.log'}; "
            "`trunkline topics` shows whether the sink is behind"
        )
    middle = statistics.median(turn.voice_to_voice_ms for turn in result.turns if turn.voice_to_voice_ms is not None)
    print(f"{len(result.turns)} turns, all answered, voice to voice {middle:.0f} ms (median), ClickHouse equals Kafka.")
    return 0
