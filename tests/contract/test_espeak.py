"""The plain second voice: the program itself where it is installed, and programs that behave as it may."""

import os
import shutil
import stat
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from processors.breaker import State
from processors.engine import EngineError, Generate, Reply, Speak, Spoken
from processors.rungs import ladder
from processors.tts.espeak import MODEL, OUT_HZ, Espeak
from streams.clock import SystemClock
from tests.support.engines import replies, settings_in
from tests.support.tts_suite import TtsSuite

TEXT = "Your order 1042 is on its way."
# As espeak-ng writes to a pipe: 22,050 Hz, silence at both ends, and a header that claims two gigabytes.
TONE = """
import math, struct, sys
text = sys.stdin.read()
wave = [0] * 2000 + [int(9000 * math.sin(0.1 * at)) for at in range(22050)] + [0] * 9000
body = struct.pack(f"<{len(wave)}h", *wave)
head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 0x7FFFF024, b"WAVE", b"fmt ", 16, 1, 1, 22050, 44100, 2, 16)
head += struct.pack("<4sI", b"data", 0x7FFFF000)
open(sys.argv[0] + ".heard", "w").write(" ".join(sys.argv[1:]) + "|" + text)
sys.stdout.buffer.write(head + body)
"""


def program(folder: Path, source: str) -> str:
    file = folder / "espeak-ng"
    file.write_text(f"#!{sys.executable}\n{source}")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def pcm(pieces: list[Reply]) -> np.ndarray:
    return np.frombuffer(b"".join(piece.pcm for piece in pieces if isinstance(piece, Spoken)), "<i2")


async def test_its_sound_is_passed_on_at_our_rate_without_the_silence_around_it(tmp_path: Path) -> None:
    name = program(tmp_path, TONE)
    samples = pcm(await replies(Espeak(name), Speak(TEXT, speed=1.2)))
    assert abs(len(samples) - OUT_HZ) < 40
    assert np.abs(samples[:200]).max() > 4000
    heard = (tmp_path / "espeak-ng.heard").read_text()
    assert heard.startswith("-v en -s 198 --stdin --stdout|")
    assert "one zero four two" in heard


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import sys; sys.exit(3)", "crashed"),
        ("print('no sound')", "invalid"),
        ("import os; os.kill(os.getpid(), 9)", "crashed"),
        ("import time; time.sleep(600)", "timeout"),
    ],
)
async def test_a_program_that_fails_is_an_engine_that_fails(tmp_path: Path, source: str, reason: str) -> None:
    with pytest.raises(EngineError) as raised:
        await replies(Espeak(program(tmp_path, source)), Speak(TEXT), 1.5)
    assert raised.value.reason == reason


async def test_what_is_not_there_or_not_meant_for_it_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="crashed: espeak-ng cannot be run"):
        await replies(Espeak(str(tmp_path / "nothing")), Speak(TEXT))
    with pytest.raises(EngineError, match="invalid"):
        await replies(Espeak("espeak-ng"), Generate(()))


async def test_it_speaks_where_no_voice_of_ours_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, TONE)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    one = ladder(settings_in(tmp_path / "data"), "tts", SystemClock())
    pieces = await replies(one, Speak(TEXT))
    assert {piece.model for piece in pieces if isinstance(piece, Spoken)} == {MODEL}
    assert one.lanes[-1].breaker.state is State.CLOSED
    await one.close()


@pytest.fixture
def client() -> Espeak:
    return Espeak("espeak-ng")


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
class TestSuite(TtsSuite):
    """What every voice must do, by the program itself."""

    # It makes the whole of a text in less than the others need for its beginning.
    DEADLINE_S: ClassVar[float] = 0.01

    async def test_it_is_neither_faint_nor_too_long(self, client: Espeak) -> None:
        samples = pcm(await replies(client, Speak(TEXT)))
        assert OUT_HZ < len(samples) < 8 * OUT_HZ
        assert 2000 < np.abs(samples.astype(np.int32)).max() <= 32767
