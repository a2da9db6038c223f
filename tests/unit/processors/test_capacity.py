"""Plans: sums that can be done by hand, and what holds for all profiles and numbers of calls."""

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from api import session_router
from api.audio import MULAW_SILENCE, pcm_to_mulaw
from api.calls import caller_frames
from api.dialects.twilio import TwilioDialect
from bench.records import sizes
from bench.utterances import load
from processors.agents import Pauses
from processors.capacity import traffic
from processors.capacity.limits import Limit, first_to_break
from processors.capacity.plan import ALONE, Plan, engine_carries, plan, process_carries
from processors.capacity.profile import SOUND, Profile, figures, load_profile
from processors.capacity.traffic import flows, rate
from processors.tts.core import SENTENCE_PAUSE_MS, chunk_end
from streams.settings import REPOSITORY, Settings
from streams.topics import STAGES, TOPICS
from streams.yamlfile import ConfigError

FOLDER = REPOSITORY / "infra" / "capacity"
FILES = [FOLDER / "cpu.yaml", FOLDER / "gpu.yaml"]
PROFILES = [load_profile(path) for path in FILES]
KEPT_DAYS = {name: topic.retention_ms / 86_400_000 for name, topic in TOPICS.items()}
calls = st.integers(1, 200_000)
every_profile = st.sampled_from(PROFILES)


def planned(profile: Profile, sessions: int) -> Plan:
    return plan(profile, sessions, KEPT_DAYS)


def numbers(made: Plan) -> list[float]:
    """Everything that there is to buy."""
    per_topic = [(one.records_s, one.in_mb_s, one.between_mb_s, one.out_mb_s, one.disk_tb) for one in made.topics]
    units = [one.units for one in (*made.processes, *made.engines)]
    total = made.totals
    sums = (total.cores, total.gpus, total.disk_tb, total.network_mb_s)
    return [*itertools.chain(*per_topic), *units, made.log.partitions, made.log.brokers, *sums]


def with_figure(profile: Profile, path: str, factor: float) -> Profile:
    """The same profile, one figure of it larger or smaller."""
    data: Any = profile.model_dump()
    *steps, last = path.split(".") if not path.startswith("records.") else record_path(path)
    inner = data
    for step in steps:
        inner = inner[step]
    inner[last]["value"] *= factor
    return Profile.model_validate(data)


def record_path(path: str) -> list[str]:
    """Topics have dots in their names."""
    topic, _, field = path.removeprefix("records.").rpartition(".")
    return ["records", topic, field]


# One call, by hand.


def test_frames_are_as_many_as_performance_says() -> None:
    """docs/performance.md: 6.9 records a second in the benchmark's calls, where frames of 40 ms alone would be 25."""
    assert flows(PROFILES[0])["voice.audio.in"].records_s == pytest.approx((3.1 / 0.05 + 6.9 / 1.0) / 10)


def test_sound_is_32_bytes_a_millisecond() -> None:
    flow = flows(PROFILES[0])["voice.audio.in"]
    assert flow.bytes_s - flow.records_s * flow.record_bytes == pytest.approx(32_000)
    spoken = flows(PROFILES[0])["voice.audio.out"]
    assert spoken.records_s == pytest.approx((4 / 0.467 + 1) / 10)
    assert spoken.bytes_s - spoken.records_s * spoken.record_bytes == pytest.approx(0.4 * 32_000)


def test_a_device_carries_what_its_asks_leave_room_for() -> None:
    ears = PROFILES[0].engines["stt"]
    assert engine_carries(ears, 10) == pytest.approx(0.5 * 10 / (1.5 * 0.320 + 0.22 * 0.640))


def test_a_worker_carries_what_its_records_leave_room_for() -> None:
    """tts reads responses, controls and sessions, and writes chunks and snapshots."""
    read_s, written_s = (4.25 + 2.25 + 0.25) / 10, (4 / 0.467 + 1 + 1.12) / 10
    takes = read_s * (160 + 22) + written_s * 29
    assert process_carries("tts", PROFILES[0], flows(PROFILES[0])) == pytest.approx(0.5e6 / takes)


def test_a_core_carries_less_than_any_process_alone() -> None:
    made = planned(PROFILES[0], 100)
    assert made.calls_a_core < min(one.sessions_each for one in made.processes) / 0.5


def test_a_gateway_takes_no_more_calls_than_it_is_set_to() -> None:
    quick = with_figure(PROFILES[0], "processes.wire", 0.1)
    (gateway,) = [one for one in planned(quick, 100).processes if one.name == "gateway"]
    assert gateway.sessions_each == 100


def test_disk_is_what_comes_in_for_as_long_as_it_is_kept_on_each_copy() -> None:
    made = plan(PROFILES[0], 1000, {**KEPT_DAYS, "voice.audio.in": 10})
    (sound,) = [one for one in made.topics if one.topic == "voice.audio.in"]
    assert sound.disk_tb == pytest.approx(sound.in_mb_s * 1e6 * 10 * 86_400 * 0.3 * 3 / 1e12)
    assert sound.between_mb_s == pytest.approx(2 * sound.in_mb_s)
    assert sound.out_mb_s == pytest.approx(2 * sound.in_mb_s)  # stt and the sink


def test_of_snapshots_only_the_latest_count() -> None:
    made = planned(PROFILES[0], 1000)
    (state,) = [one for one in made.topics if one.topic == "voice.state.stt"]
    assert state.kept_days is None
    assert state.disk_tb == pytest.approx(3 * 1000 * PROFILES[0].records["voice.state.stt"].size.value / 1e12)


@pytest.mark.parametrize(("sessions", "partitions"), [(1, 16), (1000, 16), (1411, 32), (10_000, 128)])
def test_partitions_are_a_power_of_two_and_two_for_each_worker(sessions: int, partitions: int) -> None:
    assert planned(PROFILES[0], sessions).log.partitions == partitions


def test_one_unit_of_each_kind_is_spare_but_of_those_that_are_alone() -> None:
    for one in planned(PROFILES[0], 1).processes:
        assert one.units == (1 if one.name in ALONE else 2)


LIMITS = [Limit("a", 5, "", bought=True), Limit("b", 50, "", bought=True), Limit("c", 70, ""), Limit("d", 700, "")]


@pytest.mark.parametrize(
    ("since", "until", "name"),
    [(0, 60, "a"), (5, 60, "b"), (0, 70, "c"), (70, 699, None), (70, 700, "d"), (0, 4, None)],
)
def test_what_breaks_first_is_what_cannot_be_bought(since: int, until: int, name: str | None) -> None:
    found = first_to_break(LIMITS, since, until)
    assert (found.name if found else None) == name


# For all profiles and numbers.


@given(every_profile, calls, calls)
def test_more_calls_never_need_less(profile: Profile, one: int, other: int) -> None:
    few, many = sorted((one, other))
    for less, more in zip(numbers(planned(profile, few)), numbers(planned(profile, many)), strict=True):
        assert less <= more


@given(every_profile, calls)
def test_what_is_planned_carries_all_calls(profile: Profile, sessions: int) -> None:
    made = planned(profile, sessions)
    for one in (*made.processes, *made.engines):
        if one.name not in ALONE:
            assert (one.units - 1) * one.sessions_each >= sessions * (1 - 1e-9)
            assert (one.units - 2) * one.sessions_each < sessions
    assert made.log.brokers == max(made.log.needs.values())
    assert made.log.partitions >= 2 * max(one.units for one in made.processes if one.name in STAGES)


@given(every_profile, calls)
def test_limits_come_in_order_and_the_first_is_one_of_them(profile: Profile, sessions: int) -> None:
    made = planned(profile, sessions)
    assert [one.sessions for one in made.limits] == sorted(one.sessions for one in made.limits)
    if made.first is None:
        assert all(one.sessions > sessions for one in made.limits)
    else:
        assert made.first in made.limits
        assert made.first.sessions <= sessions


COSTS = [path for path, figure in figures(PROFILES[0]) if path.endswith((".busy", ".size")) or figure.unit == "us"]


@given(st.sampled_from(COSTS), st.floats(1, 10), calls)
def test_what_costs_more_needs_no_less(path: str, factor: float, sessions: int) -> None:
    dearer = planned(with_figure(PROFILES[0], path, factor), sessions)
    for less, more in zip(numbers(planned(PROFILES[0], sessions)), numbers(dearer), strict=True):
        assert less <= more * (1 + 1e-9)


@given(every_profile, calls)
def test_all_numbers_are_finite(profile: Profile, sessions: int) -> None:
    assert all(math.isfinite(number) and number >= 0 for number in numbers(planned(profile, sessions)))


# The figures are what they say.


def test_the_shipped_records_are_those_that_are_measured(tmp_path: Path) -> None:
    """Where this fails, schemas or stages have changed: run `python -m bench.records` and write down what it prints."""
    measured = {one.topic: one for one in sizes(tmp_path)}
    shipped = PROFILES[0].records
    assert set(shipped) == set(measured)
    for topic, records in shipped.items():
        assert records.size.value == pytest.approx(measured[topic].mean_bytes, rel=0.1)
        if records.each is not None:
            assert records.each.value == pytest.approx(measured[topic].a_turn, rel=0.1)


def _mean_chunk_ms(sentence_ms: int) -> float:
    chunks = said_bytes = 0  # the pause is in the last one
    while said_bytes < 32 * sentence_ms:
        chunks, said_bytes = chunks + 1, chunk_end(said_bytes)
    return (sentence_ms + SENTENCE_PAUSE_MS) / chunks


def _mean_frame_ms(settings: Settings, loud_s: float) -> float:
    """In speech and the pause after it, of the calls that the profile is about."""
    frames, dialect = caller_frames(settings.api, Pauses(), TwilioDialect.bytes_per_ms), TwilioDialect()
    spoken = load(REPOSITORY / "infra" / "demo" / "3_returns.wav", "", "synthetic", 8000).frames
    pieces = [pcm_to_mulaw(piece.astype("<i2").tobytes()) for piece in spoken]
    pieces += [MULAW_SILENCE * 160] * (round(loud_s * 50) - len(pieces))
    count = 0
    for number, piece in enumerate(pieces):
        frames.add(piece, dialect.peak(piece))
        count += len(frames.take_due()) if number % 2 else 0
    return 1000 * loud_s / count


def test_settings_are_as_the_figures_say() -> None:
    settings, platform = Settings(), PROFILES[0]
    said = platform.traffic
    assert said.pause.value == Pauses().completion_ms / 1000
    assert said.quiet_frame.value == settings.api.quiet_frame_ms
    assert said.frame.value == pytest.approx(_mean_frame_ms(settings, said.speech.value + said.pause.value), rel=0.05)
    assert said.chunk.value == round(_mean_chunk_ms(sentence_ms=2700))
    assert platform.processes.calls.value == settings.api.sessions_max
    assert platform.keys.look.value == settings.privacy.look_s
    assert platform.keys.kept.value == max(
        topic.retention_days(settings) for topic in TOPICS.values() if topic.event and topic.event.PII
    )
    (bounds,) = [bound.le for bound in type(settings.kafka).model_fields["partitions"].metadata if hasattr(bound, "le")]
    assert platform.log.partitions_max.value == bounds
    for profile in PROFILES:
        assert all(engine.used.value == settings.load.utilisation_max for engine in profile.engines.values())


def test_what_docker_compose_starts_is_as_the_figures_say() -> None:
    text = (REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8")
    services = yaml.safe_load(text)["services"]
    brokers = [name for name in services if name.startswith("kafka-")]
    replicas = {services[stage]["deploy"]["replicas"] for stage in STAGES}
    partitions = int(re.findall(r"TRUNKLINE_KAFKA__PARTITIONS:-(\d+)", text)[0])
    for profile in PROFILES:
        assert {profile.shipped.workers.value} == replicas
        assert profile.shipped.gateways.value == services["api"].get("deploy", {}).get("replicas", 1)
        assert profile.shipped.partitions.value == profile.log.partitions_min.value == partitions
        assert profile.log.brokers_min.value == profile.log.replication.value == len(brokers)
    assert PROFILES[0].shipped.engines.value == replicas.pop() * Settings().engines.replicas


def test_the_gateway_reads_what_it_is_said_to_read() -> None:
    assert traffic.GATEWAY_READS == session_router.TOPICS


def test_records_of_every_topic_are_counted_once_by_each_reader() -> None:
    flowing = flows(PROFILES[0])
    sunk = rate(flowing, traffic.READS["sink"])
    assert sunk == pytest.approx(sum(flow.records_s for name, flow in flowing.items() if "state" not in name))
    assert {name: flow.readers for name, flow in flowing.items() if name in SOUND} == {
        "voice.audio.in": 2,  # stt, the sink
        "voice.audio.out": 2,  # the gateway, the sink
    }


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_every_figure_says_where_it_is_from(profile: Profile) -> None:
    for path, figure in figures(profile):
        assert len(figure.source) > 10 or figure.origin == "setting", path
        if figure.origin == "measured":
            assert re.search(r"docs/|python -m bench|core|docker-compose", figure.source), path


# Bad profiles.


def wrong(name: str, old: str, new: str, folder: Path) -> str:
    """What is said of a profile with that change in one of its files."""
    for path in FOLDER.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert path.name != name or old in text
        (folder / path.name).write_text(text.replace(old, new, 1) if path.name == name else text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_profile(folder / "cpu.yaml")
    return str(error.value)


def mistakes() -> Iterator[tuple[str, str, str, str, str]]:
    yield (
        "platform.yaml",
        "turn: {value: 10, unit: s",
        "turn: {value: 10, unit: ms",
        "traffic.turn",
        "the unit s, found",
    )
    yield "platform.yaml", "turn: {value: 10,", "turn: {value: 0,", "traffic.turn.value", "greater than 0"
    yield "platform.yaml", "turn: {value: 10,", "turn: {value: .inf,", "traffic.turn.value", "finite"
    yield "platform.yaml", "turn: {value: 10,", "turn: {value: 2,", "traffic", "speech and pause to fit into a turn"
    yield "platform.yaml", "mean_of_peak: {value: 0.3", "mean_of_peak: {value: 3", "traffic.mean_of_peak", "at most 1"
    yield "platform.yaml", "origin: assumed", "origin: guessed", "traffic.turn.origin", "'measured', 'published'"
    yield "platform.yaml", "  look: {", "  looks: {", "keys.looks", "did you mean look?"
    yield "platform.yaml", "  voice.intents:", "  voice.intent:", "records", "found voice.intent"
    yield "platform.yaml", "  voice.audio.out:", "  voice.clear:", "records", "expected voice.audio.out, too"
    yield "cpu.yaml", "  tts:", "  voice:", "engines", "expected stt, embeddings, llm, tts"
    yield "cpu.yaml", "platform: platform.yaml\n", "", "platform", "is missing"
    yield "cpu.yaml", "device: core", "device: TPU", "engines.stt.device", "'core' or 'GPU'"


@pytest.mark.parametrize(("name", "old", "new", "field", "expected"), list(mistakes()))
def test_a_mistake_is_named(name: str, old: str, new: str, field: str, expected: str, tmp_path: Path) -> None:
    said = wrong(name, old, new, tmp_path)
    assert re.search(rf"{name}:\d+: {re.escape(field)}: ", said), said
    assert expected in said


def test_the_line_is_that_of_the_mistake(tmp_path: Path) -> None:
    said = wrong("platform.yaml", "pause: {value: 0.9, unit: s", "pause: {value: 0.9, unit: min", tmp_path)
    text = (tmp_path / "platform.yaml").read_text(encoding="utf-8")
    line = 1 + [line.strip().startswith("pause:") for line in text.splitlines()].index(True)
    assert f"platform.yaml:{line}: traffic.pause: expected the unit s, found 'min'" in said


def test_records_but_those_of_sound_are_counted_a_turn(tmp_path: Path) -> None:
    each = "    each: {value: 0.25, unit: a turn, origin: measured, source: python -m bench.records}\n"
    assert "see voice.sessions" in wrong("platform.yaml", each, "", tmp_path)


def test_a_platform_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    said = wrong("cpu.yaml", "platform: platform.yaml", "platform: elsewhere.yaml", tmp_path)
    assert "elsewhere.yaml:1: cannot be read" in said
