"""A stage whose state matters, as a process to be stopped, killed and replaced: it numbers a call's transcripts.

`python -m tests.support.counting_worker BOOTSTRAP WORKER FILE`; the file appears when the worker is ready. It runs in
the group and with the topics of the intent stage, in the real shell.
"""

import asyncio
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop

from processors.pipeline import STAGES
from processors.shell import Shell
from processors.stage import Emit, Happening, Received, Step, caused
from schemas.events import Intent, IntentKind, Transcript
from streams.clock import SystemClock
from streams.producer import LogProducer
from streams.registry import codec_for
from streams.settings import KafkaSettings, Settings


@dataclass(frozen=True)
class Count:
    """How many transcripts the call had."""

    number: int = 0


class CountingCore:
    """Answers the n-th transcript of a call with an intent that says n."""

    def start(self, session_id: str) -> Count:
        """See `Core`."""
        return Count()

    def apply(self, state: Count, happening: Happening, now_us: int) -> Step[Count]:
        """See `Core`."""
        match happening:
            case Received(Transcript() as event):
                state = replace(state, number=state.number + 1)
                said = {"kind": IntentKind.DETECTED, "intent": str(state.number), "confidence": 1.0}
                return Step(state, (Emit(caused(event, Intent, "count", now_us, **said)),))
            case _:
                return Step(state)

    def save(self, state: Count) -> bytes:
        """See `Core`."""
        return str(state.number).encode()

    def load(self, session_id: str, data: bytes) -> Count:
        """See `Core`."""
        return Count(int(data or b"0"))


async def work(bootstrap_servers: str, worker: str, file: str) -> None:
    """Runs until SIGTERM."""
    kafka = KafkaSettings(bootstrap_servers=bootstrap_servers, session_timeout_ms=600)
    settings = Settings(kafka=kafka, worker=worker)
    stage = STAGES["intent"]
    codec = codec_for(settings)
    producer = LogProducer(settings, f"test.{worker}", codec)
    shell = Shell(settings, stage, CountingCore(), {}, producer, codec, SystemClock())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, shell.stop)
    running = asyncio.create_task(shell.run())
    ready = asyncio.create_task(shell.ready())
    await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.to_thread(Path(file).touch)
    await running
    await producer.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work(*sys.argv[1:]))
