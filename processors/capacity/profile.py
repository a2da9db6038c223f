"""A capacity profile: the figures that sizes are computed from, each with its unit and where it comes from.

Two files: one for the models and what they run on, and the platform's, which it names. Those that ship are in
infra/capacity; figures that are others on your hardware are replaced in copies.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from processors.pipeline import PIPELINE
from streams.topics import TOPICS
from streams.yamlfile import load_yaml

# Its records are as many as frames of sound are sent, and chunks of it are made; all others are counted for each turn.
SOUND = ("voice.audio.in", "voice.audio.out")
ROLES = tuple(dict.fromkeys(role for stage in PIPELINE for role in stage.roles if role != "tools"))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Section):
    """One number. A `measured` one names command and machine, a `published` one its publication, a `setting` where it
    is set, an `assumed` one why it may be assumed."""

    value: float = Field(gt=0, allow_inf_nan=False, description="a number above 0")
    unit: str = Field(description="the unit of the value")
    origin: Literal["measured", "published", "setting", "assumed"]
    source: str = Field(min_length=1, description="which command and machine, which publication, which setting, or why")


def _in(unit: str) -> Callable[[Figure], Figure]:
    def check(figure: Figure) -> Figure:
        if figure.unit != unit:
            raise ValueError(f"expected the unit {unit}, found {figure.unit!r}")
        return figure

    return check


def _share(figure: Figure) -> Figure:
    if figure.value > 1:
        raise ValueError(f"expected a share of at most 1, found {figure.value:g}")
    return _in("share")(figure)


Seconds = Annotated[Figure, AfterValidator(_in("s"))]
Milliseconds = Annotated[Figure, AfterValidator(_in("ms"))]
Microseconds = Annotated[Figure, AfterValidator(_in("us"))]
Days = Annotated[Figure, AfterValidator(_in("days"))]
Bytes = Annotated[Figure, AfterValidator(_in("bytes"))]
Terabytes = Annotated[Figure, AfterValidator(_in("TB"))]
Gigabits = Annotated[Figure, AfterValidator(_in("Gbit/s"))]
ATurn = Annotated[Figure, AfterValidator(_in("a turn"))]
Count = Annotated[Figure, AfterValidator(_in("count"))]
Share = Annotated[Figure, AfterValidator(_share)]


class Traffic(_Section):
    """What a call is like."""

    turn: Seconds = Field(description="how often the caller takes a turn, in s")
    speech: Seconds = Field(description="how much of that the caller speaks, in s")
    pause: Seconds = Field(description="silence after speech in which frames are still short, in s")
    reply: Seconds = Field(description="how long the agent speaks in a turn, in s")
    call: Seconds = Field(description="how long a call lasts, in s")
    mean_of_peak: Share = Field(description="calls at once on average, as a share of those at the busiest time")
    frame: Milliseconds = Field(description="mean length of a frame of sound in speech and the pause after it, in ms")
    quiet_frame: Milliseconds = Field(description="the same while nobody speaks, in ms")
    chunk: Milliseconds = Field(description="mean length of a chunk of the agent's speech, in ms")
    sound: Bytes = Field(description="bytes of sound a millisecond, in the log")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.speech.value + self.pause.value > self.turn.value:
            raise ValueError("expected speech and pause to fit into a turn")
        return self


class Records(_Section):
    """What a topic gets: records for each turn, and bytes a record as stored, sound left out."""

    each: ATurn | None = Field(None, description="records a turn; left out for the topics of sound")
    size: Bytes = Field(description="bytes of a record")


class Log(_Section):
    """The Kafka cluster."""

    replication: Count = Field(description="copies of each record")
    record: Microseconds = Field(description="processor time of a broker for a record, at each copy, in us")
    cores: Count = Field(description="cores of a broker")
    cores_used: Share = Field(description="how much of them may be used")
    network: Gigabits = Field(description="what a broker's network carries one way, in Gbit/s")
    network_used: Share = Field(description="how much of it may be used")
    disk: Terabytes = Field(description="disk of a broker, in TB")
    disk_used: Share = Field(description="how much of it may be used")
    brokers_min: Count = Field(description="the smallest cluster")
    replicas_broker: Count = Field(description="partitions, each copy counted, that a broker may hold")
    replicas_cluster: Count = Field(description="the same of a cluster")
    partitions_min: Count = Field(description="the least number of partitions of a topic")
    partitions_max: Count = Field(description="the largest")
    spread: Count = Field(description="partitions for each worker, so that all get nearly as many")


class Processes(_Section):
    """Trunkline's own processes, one core each."""

    used: Share = Field(description="how much of its core a worker or gateway may use")
    read: Microseconds = Field(description="a worker's processor time for a record that it reads, in us")
    opened: Microseconds = Field(description="the same for decoding and opening it, in us")
    written: Microseconds = Field(description="the same for sealing, encoding and sending a record, in us")
    window: Microseconds = Field(description="the same of the detector for 32 ms of sound, in us")
    listened: Seconds = Field(description="silence after speech in which the detector still listens, in s")
    wire: Microseconds = Field(
        description="a gateway's processor time for 20 ms of sound over the wire, one way, in us"
    )
    taken: Microseconds = Field(description="the same for a record that it or another plain reader reads, in us")
    calls: Count = Field(description="calls that a gateway takes (api.sessions_max)")
    row: Microseconds = Field(description="the sink's processor time for a record: reading, decoding, chaining, rows")
    batch: Milliseconds = Field(description="the same for the batch of each second, in ms")
    alone_used: Share = Field(description="how much of its core a process may use of which there is one")
    spare: Count = Field(description="workers, gateways and engines of each kind beyond what is needed")


class AskKind(_Section):
    """One kind of ask to a model."""

    each: ATurn = Field(description="asks a turn")
    busy: Milliseconds = Field(description="how long a device works on one, in ms")


class Engine(_Section):
    """A model, and what it runs on."""

    model: str = Field(min_length=1, description="its name, for people")
    device: Literal["core", "GPU"]
    at_once: Count = Field(description="asks that a device works on at once in that time")
    used: Share = Field(description="how much of a device may be used")
    asks: dict[str, AskKind] = Field(min_length=1, description="each kind of ask, by a name for it")


class Keys(_Section):
    """The calls' keys, a file each in one directory."""

    look: Seconds = Field(description="how often all files are looked through, in s")
    file: Microseconds = Field(description="how long looking at one takes, in us")
    kept: Days = Field(description="how long a call's file is kept, in days")
    files: Count = Field(description="files that a file system can hold")


class Shipped(_Section):
    """What docker-compose.yml starts."""

    gateways: Count
    partitions: Count
    workers: Count = Field(description="workers of each stage")
    engines: Count = Field(description="devices of each model")


class Platform(_Section):
    """What is the same whatever models there are."""

    traffic: Traffic
    records: dict[str, Records] = Field(description="each topic of a call, by its name")
    log: Log
    processes: Processes
    keys: Keys

    @field_validator("records")
    @classmethod
    def _of_topics(cls, records: dict[str, Records]) -> dict[str, Records]:
        if unknown := sorted(records.keys() - TOPICS.keys()):
            raise ValueError(f"expected topics of the platform, found {', '.join(unknown)}")
        if missing := [name for name in SOUND if name not in records]:
            raise ValueError(f"expected {', '.join(missing)}, too")
        if wrong := [name for name, one in records.items() if (one.each is None) != (name in SOUND)]:
            raise ValueError(f"expected `each` everywhere but in {' and '.join(SOUND)}; see {', '.join(wrong)}")
        return records


class Models(_Section):
    """A profile's file: the models, and which file has the platform's figures."""

    name: str = Field(min_length=1, description="the profile's name, for people")
    platform: Path = Field(description="the file with the platform's figures, seen from this one")
    engines: dict[str, Engine] = Field(description=f"a model for each role: {', '.join(ROLES)}")
    shipped: Shipped

    @field_validator("engines")
    @classmethod
    def _of_roles(cls, engines: dict[str, Engine]) -> dict[str, Engine]:
        if set(engines) != set(ROLES):
            raise ValueError(f"expected {', '.join(ROLES)}, found {', '.join(sorted(engines))}")
        return engines


class Profile(Platform):
    """Everything that a plan is computed from."""

    name: str
    engines: dict[str, Engine]
    shipped: Shipped


class Named(NamedTuple):
    """A figure and the dotted path to it in the file."""

    path: str
    figure: Figure


def figures(section: BaseModel, path: str = "") -> Iterator[Named]:
    """All figures of a profile, in the file's order."""
    for name in type(section).model_fields:
        yield from _figures(getattr(section, name), f"{path}.{name}" if path else name)


def _figures(value: object, path: str) -> Iterator[Named]:
    if isinstance(value, Figure):
        yield Named(path, value)
    elif isinstance(value, BaseModel):
        yield from figures(value, path)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _figures(inner, f"{path}.{name}")


def load_profile(path: Path) -> Profile:
    """Reads one, and the platform's figures beside it. Raises ConfigError, which names file, line and field."""
    models = load_yaml(path, Models)
    platform = load_yaml(path.parent / models.platform, Platform)
    named = {name: getattr(platform, name) for name in Platform.model_fields}
    return Profile(**named, name=models.name, engines=models.engines, shipped=models.shipped)
