"""Speech as it is made, at the rate that we pass on, without the silence at its ends."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import soxr

OUT_HZ = 16_000
CHUNK_BYTES = OUT_HZ * 2 // 5  # 200 ms
QUIET = 0.008  # of full scale: below this is no speech
SOFT = 0.004  # soft sounds, as an h or th, begin with less than speech, but with more than this
HEAD_MS = 30  # before the first sound in which a soft one may have begun
LEAD_MS = 5  # kept before that; callers hear an answer so much later
TAIL_MS = 200  # kept after the last one, as the pause between sentences

Wave = npt.NDArray[np.float32]


class Trimmer:
    """Takes a sentence's samples in order (float32 mono at `rate_hz`), and gives PCM16 little-endian at `OUT_HZ`.

    Silence is held back until a sound follows, so none of it is heard before the first or long after the last one.
    """

    def __init__(self, rate_hz: int) -> None:
        self._resampler = soxr.ResampleStream(rate_hz, OUT_HZ, 1, dtype="float32")
        self._held = np.zeros(0, np.float32)
        self._begun = False

    def feed(self, wave: Wave, last: bool = False) -> bytes:
        """What can be passed on by now; after `last` nothing more may be fed."""
        resampled = self._resampler.resample_chunk(np.ascontiguousarray(wave, np.float32), last)
        samples = np.concatenate((self._held, resampled))
        loud = np.flatnonzero(np.abs(samples) > QUIET)
        if loud.size == 0:
            # Before the first sound only its head can be of use.
            self._held = samples if self._begun else samples[-_samples(HEAD_MS + LEAD_MS) :]
            return b""
        first = 0 if self._begun else onset(samples, int(loud[0]), OUT_HZ)
        end = int(loud[-1]) + 1
        self._begun = True
        if last:
            return pcm16(samples[first : end + _samples(TAIL_MS)])
        self._held = samples[end:]
        return pcm16(samples[first:end])

    def finish(self) -> bytes:
        """What is left: the last sound's tail."""
        rest = self.feed(np.zeros(0, np.float32), last=True)
        if rest or not self._begun:
            return rest
        return pcm16(self._held[: _samples(TAIL_MS)])


def onset(samples: Wave, loud: int, rate_hz: int) -> int:
    """Where speech begins whose first sample above `QUIET` is `loud`: a little before what can be heard of it."""
    start = max(0, loud - rate_hz * HEAD_MS // 1000)
    begins = start + int(np.argmax(np.abs(samples[start : loud + 1]) > SOFT))  # the loud one at the latest
    return max(0, begins - rate_hz * LEAD_MS // 1000)


def pieces(pcm: bytes) -> Iterator[bytes]:
    """The same in pieces of at most `CHUNK_BYTES`."""
    for start in range(0, len(pcm), CHUNK_BYTES):
        yield pcm[start : start + CHUNK_BYTES]


def pcm16(samples: Wave) -> bytes:
    """Samples of -1 to 1 as PCM16 little-endian; what is louder is cut."""
    return (np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2").tobytes()


def _samples(length_ms: int) -> int:
    return OUT_HZ * length_ms // 1000
