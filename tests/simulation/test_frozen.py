"""A process that was stopped and goes on: its timers are late, and what came for it meanwhile waits."""

from typing import Any

import pytest

from processors.pipeline import STAGES
from processors.runner import Record, Runner
from processors.stage import Happening, Position, Received, Refuse, Step, Wake, Woken
from schemas.events import Intent, IntentKind
from tests.simulation.log import Producer, SimulatedLog, Weather
from tests.simulation.world import Process, World

SESSION = "7359c053-a544-4840-a1ab-ac56ee22b9b5"


class Patient:
    """A core that notes when nothing came for two seconds after its last record."""

    def start(self, session_id: str) -> tuple[str, ...]:
        return ()

    def apply(self, state: tuple[str, ...], happening: Happening, now_us: int) -> Step[tuple[str, ...]]:
        match happening:
            case Received(event):
                return Step((*state, event.event_id), (Wake("silence", now_us + 2_000_000),))
            case Woken(name):
                return Step((*state, name))
            case _:
                return Step(state)

    def save(self, state: tuple[str, ...]) -> bytes:
        return repr(state).encode()

    def load(self, session_id: str, data: bytes) -> tuple[str, ...]:
        return ()


def frozen(for_s: float, later: bool) -> bytes:
    """What the core noted of a record, a freeze of so many seconds, and perhaps a record that came meanwhile."""
    world = World(1)
    log = SimulatedLog(world, 1, Weather())
    process = Process(world, "stage")
    producer: Any = Producer(log, process)
    kept: list[bytes] = []

    class Log:
        def publish(self, event: Any) -> Any:
            return producer.publish(event)

        def publish_state(self, stage: str, session_id: str, snapshot: bytes | None) -> Any:
            kept.append(snapshot or b"")
            return producer.publish_raw("voice.state.llm", b"key", snapshot, partition=0)

    def refused(record: Record, refuse: Refuse) -> Any:
        raise AssertionError("nothing is refused here")

    runner: Runner[Any] = Runner(
        STAGES["llm"],
        Patient(),
        {},
        Log(),
        process,
        on_done=lambda position: None,
        on_refused=refused,
        on_bug=lambda bug: world.errors.append(repr(bug)),
    )

    def deliver(offset: int) -> None:
        intent = Intent(
            event_id=f"record-{offset}",
            session_id=SESSION,
            tenant_id="demo",
            agent_id="shop",
            turn=offset,
            seq=offset,
            occurred_at=0,
            kind=IntentKind.DETECTED,
            intent="none",
            confidence=1.0,
        )
        runner.deliver(Record(Position(Intent.TOPIC, 0, offset), intent, None, b"", {}))

    world.send(process, 0.0, deliver, 0)
    world.after(1.0, process.freeze, for_s)
    if later:
        # It arrived while the process was stopped, and is read a moment after that goes on.
        world.send(process, 1.0 + for_s + 0.05, deliver, 1)
    world.run(1.0 + for_s + (1.5 if later else 8.0), lambda: False)
    world.close()
    assert not world.errors
    return kept[-1]


@pytest.mark.parametrize("for_s", [0.9, 1.05, 10.0])
def test_a_process_that_was_stopped_reads_what_came_before_it_believes_in_silence(for_s: float) -> None:
    assert b"silence" not in frozen(for_s, later=True)


def test_silence_is_noticed_all_the_same_where_there_was_some() -> None:
    assert b"silence" in frozen(10.0, later=False)
    assert b"silence" in frozen(0.5, later=False)
