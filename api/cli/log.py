"""What the log holds: `topics`, `sessions`, `show`, `tail`. Personal data is shown: the operator asked for it."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from api.cli.context import log_errors, note_access, running_settings
from api.cli.output import print_json, print_table, size, when
from api.errors import OperatorError
from schemas.event import Event
from schemas.events import (
    Access,
    AccessKind,
    AudioFrame,
    Checkpoint,
    Control,
    DeadLetter,
    Delivery,
    Intent,
    IntentKind,
    Response,
    ResponseKind,
    Session,
    SessionKind,
    SpeechChunk,
    Transcript,
)
from streams.client import Partition, client_config
from streams.codec import Codec, CodecError
from streams.consumer import BEGINNING, END, LogReader, Record, read_range, session_records
from streams.registry import codec_for
from streams.settings import Settings
from streams.topics import TOPICS

_AUDIO = ("voice.audio.in", "voice.audio.out")
_TIMEOUT_S = 10.0


async def topics(data_dir: Path | None, as_json: bool) -> None:
    """Prints each topic with its size and the lag of each group that reads it."""
    settings = running_settings(data_dir)
    with log_errors(settings):
        rows = await _topic_rows(settings)
    if as_json:
        for row in rows:
            print_json(row)
        return
    columns = ("topic", "partitions", "retention", "records", "size", "lag")
    lines = [
        (
            row["topic"],
            row["partitions"],
            _retention(row["retention_ms"]),
            row["records"],
            size(row["size_bytes"]),
            ", ".join(f"{group.removeprefix('trunkline.')} {lag}" for group, lag in row["lag"].items()),
        )
        for row in rows
    ]
    print_table(columns, lines, right=("partitions", "records", "size"))


async def _topic_rows(settings: Settings) -> list[dict[str, Any]]:
    async with LogReader(settings, "trunkline.cli") as reader:
        partitions = {name: await reader.partitions(name) for name in TOPICS}
        every = [partition for group in partitions.values() for partition in group]
        begins, ends = await reader.begin_offsets(every), await reader.end_offsets(every)
    admin = AdminClient(client_config(settings, "trunkline.cli"))
    retention, committed = await asyncio.to_thread(lambda: (_retentions(admin), _committed(admin)))
    rows = []
    for name, own in partitions.items():
        lag = {
            group: sum(ends[partition] - offsets[partition] for partition in own if partition in offsets)
            for group, offsets in committed.items()
            if any(partition in offsets for partition in own)
        }
        records = sum(ends[partition] - begins[partition] for partition in own)
        row = {"topic": name, "partitions": len(own), "retention_ms": retention.get(name), "records": records}
        rows.append(row | {"size_bytes": _size_on_disk(settings, name), "lag": lag})
    return rows


def _retentions(admin: AdminClient) -> dict[str, int | None]:
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in TOPICS]
    found: dict[str, int | None] = {}
    for resource, future in admin.describe_configs(resources).items():
        configs = future.result(_TIMEOUT_S)
        compacted = "compact" in configs["cleanup.policy"].value
        found[resource.name] = None if compacted else int(configs["retention.ms"].value)
    return found


def _committed(admin: AdminClient) -> dict[str, dict[Partition, int]]:
    """What each group of the platform has committed."""
    listed = admin.list_consumer_groups(request_timeout=_TIMEOUT_S).result(_TIMEOUT_S).valid or ()
    groups = sorted(group.group_id for group in listed if group.group_id.startswith("trunkline."))
    found = {}
    for group in groups:
        asked = [ConsumerGroupTopicPartitions(group)]
        answer = admin.list_consumer_group_offsets(asked)[group].result(_TIMEOUT_S)
        pairs: Iterable[TopicPartition] = answer.topic_partitions or ()
        found[group] = {Partition(pair.topic, pair.partition): pair.offset for pair in pairs if pair.offset >= 0}
    return found


def _size_on_disk(settings: Settings, topic: str) -> int | None:
    """Bytes of the topic's segments, where the broker is the embedded one."""
    storage = settings.data_dir / "kafka" / "storage"
    if not storage.is_dir():
        return None
    return sum(segment.stat().st_size for segment in storage.glob(f"{topic}-[0-9]*/*.log"))


def _retention(retention_ms: int | None) -> str:
    if retention_ms is None:
        return "latest per key"
    return "for ever" if retention_ms < 0 else f"{retention_ms / 86_400_000:g} days"


@dataclass(slots=True)
class _Call:
    session_id: str
    agent: str = ""
    channel: str = ""
    started_at: int = 0
    ended: bool = False
    reason: str = ""
    duration_ms: int = 0


async def sessions(data_dir: Path | None, limit: int, as_json: bool) -> None:
    """Prints the newest calls, the newest last."""
    settings = running_settings(data_dir)
    with log_errors(settings):
        await note_access(settings, AccessKind.LISTED, what="sessions")
        calls = await _calls(settings)
    for_print = calls[-limit:]
    if as_json:
        for call in for_print:
            state = "ended" if call.ended else "running"
            row: dict[str, Any] = {
                "session_id": call.session_id,
                "agent": call.agent,
                "channel": call.channel,
                "state": state,
            }
            row |= {"started_at": call.started_at, "duration_ms": call.duration_ms, "reason": call.reason}
            print_json(row)
        return
    lines = [
        (
            call.session_id,
            when(call.started_at)[:-4],
            call.agent,
            call.channel,
            f"ended ({call.reason})" if call.ended else "running",
            f"{call.duration_ms / 1000:.1f} s" if call.ended else "",
        )
        for call in for_print
    ]
    print_table(("session", "started (UTC)", "agent", "channel", "state", "length"), lines, right=("length",))


async def _calls(settings: Settings) -> list[_Call]:
    """Every call that is on voice.sessions, by its start."""
    codec = codec_for(settings)
    calls: dict[str, _Call] = {}
    async for record in read_range(settings, await _whole(settings, ["voice.sessions"])):
        event = _decoded(codec, record)
        if not isinstance(event, Session):
            continue
        call = calls.setdefault(event.session_id, _Call(event.session_id, event.agent_id))
        if event.kind is SessionKind.STARTED and not call.started_at:
            call.channel, call.started_at = event.channel, event.occurred_at
        elif event.kind is SessionKind.ENDED:
            call.ended, call.reason, call.duration_ms = True, event.reason, event.duration_ms
    return sorted(calls.values(), key=lambda call: call.started_at)


async def _whole(settings: Settings, names: Sequence[str]) -> dict[Partition, tuple[int, int]]:
    async with LogReader(settings, "trunkline.cli") as reader:
        return {partition: (BEGINNING, END) for name in names for partition in await reader.partitions(name)}


async def show(session: str, data_dir: Path | None, as_json: bool) -> None:
    """Prints the call's timeline; runs of audio are one line each, but one object each in JSON."""
    settings = running_settings(data_dir)
    with log_errors(settings):
        if session == "last":
            calls = await _calls(settings)
            session = calls[-1].session_id if calls else ""
        records = await session_records(settings, session)
        if records:
            await note_access(settings, AccessKind.READ, session, "show")
    if not records:
        raise OperatorError(f"no session is called {session}; `trunkline sessions` lists them")
    codec = codec_for(settings)
    timeline = [(record, _decoded(codec, record)) for record in records]
    if as_json:
        for record, event in timeline:
            print_json(_as_json(record, event))
        return
    _print_timeline(session, timeline)


@dataclass(slots=True)
class _Line:
    time_us: int
    topic: str
    partition: int
    offsets: list[int]
    what: str
    audio_ms: float = 0.0


def _print_timeline(session: str, timeline: Sequence[tuple[Record, Event | CodecError]]) -> None:
    lines: list[_Line] = []
    for record, event in timeline:
        audio_ms = _audio_ms(event)
        last = lines[-1] if lines else None
        if last and audio_ms and last.audio_ms and last.topic == record.topic:
            last.offsets.append(record.offset)
            last.audio_ms += audio_ms
            continue
        lines.append(
            _Line(_time_us(record, event), record.topic, record.partition, [record.offset], what(event), audio_ms)
        )
    start_us = lines[0].time_us
    print(f"session {session}, {when(start_us)} UTC")
    rows = [
        (
            f"{(line.time_us - start_us) / 1e6:.3f}",
            line.topic.removeprefix("voice."),
            line.partition,
            str(line.offsets[0]) + (f"-{line.offsets[-1]}" if len(line.offsets) > 1 else ""),
            f"{line.audio_ms / 1000:.2f} s of audio" if line.audio_ms else line.what,
        )
        for line in lines
    ]
    print_table(("s", "topic", "partition", "offset", "what"), rows, right=("s", "partition", "offset"))


async def tail(names: Sequence[str], session: str, from_start: bool, data_dir: Path | None, as_json: bool) -> None:
    """Prints events as they come, without end."""
    chosen = _topics_named(names)
    settings = running_settings(data_dir)
    codec = codec_for(settings)
    with log_errors(settings):
        await note_access(settings, AccessKind.FOLLOWED, session, f"tail {' '.join(chosen)}")
        async with LogReader(settings, "trunkline.tail") as reader:
            start = BEGINNING if from_start else END
            partitions = [partition for name in chosen for partition in await reader.partitions(name)]
            await reader.add(dict.fromkeys(partitions, start))
            async for record in reader:
                if session and record.key != session.encode():
                    continue
                _print_record(record, _decoded(codec, record), as_json)


def _topics_named(names: Sequence[str]) -> list[str]:
    events = [topic.name for topic in TOPICS.values() if topic.event is not None]
    if not names:
        return [name for name in events if name not in _AUDIO]
    chosen = [name if name in TOPICS else f"voice.{name}" for name in names]
    for given, name in zip(names, chosen, strict=True):
        if name not in events:
            raise OperatorError(f"no topic is called {given}; expected one of {', '.join(events)}", exit_code=2)
    return chosen


def _print_record(record: Record, event: Event | CodecError, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(record, event))
        return
    key = (record.key or b"").decode(errors="replace")
    place = f"{record.topic.removeprefix('voice.')}-{record.partition}@{record.offset}"
    print(f"{when(_time_us(record, event))[11:]}  {key[:8]}  {place:<22} {what(event)}", flush=True)


def what(event: Event | CodecError) -> str:
    """The event in a line for people, words included."""
    match event:
        case CodecError():
            return f"not an event: {event}"
        case AudioFrame() | SpeechChunk() if event.pcm:
            return f"{_audio_ms(event):.0f} ms of audio"
        case Transcript():
            return _joined(event.kind, f'"{event.text}"' if event.text else "", f"turn {event.turn}")
        case Intent():
            found = ", ".join(f"{entity.name}={entity.value}" for entity in event.entities)
            if event.kind is IntentKind.WITHDRAWN:
                return _joined(event.kind, _ahead(event), f"turn {event.turn}")
            return _joined(event.intent, f"{event.confidence:.2f}", found, _ahead(event), f"turn {event.turn}")
        case Response():
            return _response(event)
        case Session():
            return _joined(event.kind, event.channel, event.reason)
        case Control():
            return _joined(event.kind, event.digit, f"heard {event.heard_ms} ms of turn {event.turn}", event.reason)
        case DeadLetter() | Delivery() | Access() | Checkpoint():
            return _aside(event)
        case SpeechChunk():
            return _joined(event.kind, event.text, f"turn {event.turn}")
    return event.NAME


def _aside(event: DeadLetter | Delivery | Access | Checkpoint) -> str:
    match event:
        case DeadLetter():
            place = f"{event.source_topic}-{event.source_partition}@{event.source_offset}"
            return _joined(event.stage, event.reason, event.detail, place)
        case Delivery():
            return _joined(event.kind, event.endpoint_id, str(event.status_code), event.reason)
        case Access():
            return _joined(event.kind, event.actor, event.via, event.what)
    return f"number {event.seq}, {len(event.heads)} chains"


def _response(event: Response) -> str:
    turn = _joined(_ahead(event), f"turn {event.turn}")
    if event.kind is ResponseKind.TOOL_CALLED:
        return _joined(event.kind, f"{event.tool}({event.arguments})", turn)
    if event.kind is ResponseKind.TOOL_RETURNED:
        return _joined(event.kind, event.tool, event.outcome, event.result, turn)
    return _joined(event.kind, f'"{event.text}"' if event.text else "", event.source, event.action, turn)


def _ahead(event: Intent | Response) -> str:
    """What was made before the caller's words were final names the revision that must be committed for it to count."""
    return "" if event.committed else f"ahead, revision {event.revision}"


def _joined(*parts: str) -> str:
    return "  ".join(str(part) for part in parts if part)


def _decoded(codec: Codec, record: Record) -> Event | CodecError:
    try:
        return codec.decode(record.topic, record.value)
    except CodecError as error:
        return error


def _audio_ms(event: Event | CodecError) -> float:
    if isinstance(event, AudioFrame | SpeechChunk):
        return len(event.pcm) / 2 / event.sample_rate_hz * 1000
    return 0.0


def _time_us(record: Record, event: Event | CodecError) -> int:
    return record.timestamp_ms * 1000 if isinstance(event, CodecError) else event.occurred_at


def _as_json(record: Record, event: Event | CodecError) -> dict[str, Any]:
    place: dict[str, Any] = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    place |= {"timestamp_ms": record.timestamp_ms}
    if isinstance(event, CodecError):
        return place | {"error": event.reason, "detail": event.detail}
    values: Mapping[str, Any] = event.to_record()
    if isinstance(event, DeadLetter):
        headers = {name: value.decode(errors="replace") for name, value in event.record_headers.items()}
        values = {**values, "record_headers": headers}
    return place | {"type": event.ce_type, "time": when(event.occurred_at)} | dict(values)
