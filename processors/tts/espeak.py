"""eSpeak NG, where it is installed: a plain voice that needs no model and next to no memory, for when ours fail.

It runs as a program for each sentence, so that nothing of it can hang or leak, and its licence (GPL) stays its own.
"""

import asyncio
import io
import time
import wave
from collections.abc import AsyncGenerator

import numpy as np
import soxr

from processors.engine import EngineError, Reply, Request, Speak, Spoken
from processors.lane import Description
from processors.tts.limits import within
from processors.tts.spoken import spoken

MODEL = "espeak-ng"
OUT_HZ = 16_000
CHUNK_BYTES = OUT_HZ * 2 // 5
WORDS_A_MINUTE = 165
_QUIET = 200  # of 32,768: the silence that it makes at both ends


class Espeak:
    """An `EngineClient` for the role tts."""

    def __init__(self, program: str) -> None:
        self._program = program

    @property
    def description(self) -> Description:
        """See `Described`."""
        return Description(MODEL, "cpu", self._program)

    async def ask(self, request: Request, deadline_s: float) -> AsyncGenerator[Reply, None]:
        """See `EngineClient`: the whole sentence is made, then passed on in pieces of 200 ms; none without words."""
        asked = within(request)
        text = " ".join(spoken(asked.text).split())
        if not text:
            return
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(deadline_s):
                sound = await self._run(asked, text)
        except TimeoutError:
            raise EngineError("timeout", f"{MODEL} was not done within {deadline_s:g} s") from None
        pcm = _pcm(sound)
        compute_ms = 1000 * (time.monotonic() - started_s)
        for start in range(0, len(pcm), CHUNK_BYTES):
            yield Spoken(pcm[start : start + CHUNK_BYTES], MODEL, compute_ms if start == 0 else 0.0)

    async def close(self) -> None:
        """See `EngineClient`; nothing is kept open."""

    async def _run(self, request: Speak, text: str) -> bytes:
        """A WAV file. The text goes through the program's input: on its command line others could read it."""
        speed = str(round(WORDS_A_MINUTE * request.speed))
        command = (self._program, "-v", request.language, "-s", speed, "--stdin", "--stdout")
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            raise EngineError("crashed", f"{MODEL} cannot be run: {type(error).__name__}") from error
        try:
            sound, _ = await process.communicate(text.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise EngineError("crashed", f"{MODEL} ended with status {process.returncode}")
        return sound


def _pcm(sound: bytes) -> bytes:
    """PCM16 at 16,000 Hz; raises EngineError for what is no mono WAV of 16 bits."""
    try:
        # Written to a pipe, its header claims any length: what is there is read.
        with wave.open(io.BytesIO(sound)) as file:
            rate_hz, form = file.getframerate(), (file.getnchannels(), file.getsampwidth())
            frames = file.readframes((len(sound) - 44) // 2)
    except (wave.Error, EOFError) as error:
        raise EngineError("invalid", f"expected a WAV file of {MODEL}: {error}") from error
    if form != (1, 2):
        raise EngineError("invalid", f"expected mono of 16 bits, found {form[0]} channels of {form[1]} bytes")
    samples = np.frombuffer(frames[: len(frames) // 2 * 2], "<i2")
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > _QUIET)
    samples = samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]
    resampled = soxr.resample(samples.astype(np.float32), rate_hz, OUT_HZ)
    return bytes(np.clip(resampled, -32_768, 32_767).astype("<i2").tobytes())
