"""Audio at the edge, pure: mu-law, the telephone's 8 kHz to and from the platform's 16 kHz, regrouping into frames.

PCM here is always 16-bit little-endian mono, as bytes.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ: Final = 16_000
BYTES_PER_MS: Final = SAMPLE_RATE_HZ // 1000 * 2
MULAW_SILENCE: Final = b"\xff"
QUIET_PEAK: Final = 200  # of a 16-bit sample: -44 dBFS, above a line's noise and below any speech
QUIET_MARGIN_MS: Final = 200  # beyond the completion pause, so that an end of turn is never told later for it

_TAPS = 51
_KAISER_BETA = 5.65  # 60 dB of stop band


def _mulaw_decode_table() -> NDArray[np.int16]:
    """ITU-T G.711: sign, three bits of exponent, four of mantissa, all inverted, bias 0x84."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84) << ((code >> 4) & 0x07)
    table: NDArray[np.int16] = np.where(code & 0x80, 0x84 - magnitude, magnitude - 0x84).astype(np.int16)
    return table


def _mulaw_encode_table() -> NDArray[np.uint8]:
    """The code of every 16-bit sample, indexed by its unsigned reading."""
    sample = np.arange(65536, dtype=np.int32).astype(np.uint16).astype(np.int16).astype(np.int32)
    magnitude = np.minimum(np.abs(sample), 32635) + 0x84
    exponent = np.floor(np.log2(magnitude)).astype(np.int32) - 7
    mantissa = (magnitude >> (exponent + 3)) & 0x0F
    sign = np.where(sample < 0, 0x80, 0)
    table: NDArray[np.uint8] = (~(sign | (exponent << 4) | mantissa) & 0xFF).astype(np.uint8)
    return table


_DECODE = _mulaw_decode_table()
_ENCODE = _mulaw_encode_table()


def mulaw_to_pcm(data: bytes) -> bytes:
    """G.711 mu-law to PCM of the same rate."""
    pcm: bytes = _DECODE[np.frombuffer(data, np.uint8)].astype("<i2", copy=False).tobytes()
    return pcm


def pcm_to_mulaw(pcm: bytes) -> bytes:
    """PCM to G.711 mu-law of the same rate."""
    data: bytes = _ENCODE[np.frombuffer(pcm, "<u2")].tobytes()
    return data


def _half_band() -> NDArray[np.float32]:
    """A Kaiser-windowed sinc that passes the telephone band (to 3.4 kHz) at 16 kHz and stops its mirror above 4.6."""
    position = np.arange(_TAPS) - (_TAPS - 1) / 2
    taps = 0.5 * np.sinc(position / 2) * np.kaiser(_TAPS, _KAISER_BETA)
    scaled: NDArray[np.float32] = (taps / taps.sum()).astype(np.float32)
    return scaled


_HALF_BAND = _half_band()
# Every other tap of a half-band filter is zero but for the one in the middle, which passes a sample as it is.
_SIDES = (2 * _HALF_BAND[::2]).astype(np.float32)
_SIDES_DELAY = len(_SIDES) // 2


def _rounded(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """Whole numbers within 16 bits, in place: pieces are short, and an array costs more than what is in it."""
    np.rint(signal, out=signal)
    np.maximum(signal, -32768, out=signal)
    np.minimum(signal, 32767, out=signal)
    return signal


class Doubler:
    """PCM at 8 kHz to 16 kHz, piece by piece, 1.6 ms late.

    General resamplers filter by FFT blocks and would answer 26-66 ms late, which a caller would hear as slowness.
    """

    def __init__(self) -> None:
        self._history = np.zeros(len(_SIDES) - 1, np.float32)

    def process(self, pcm: bytes) -> bytes:
        """The next piece, twice as many samples as it was given: those that were there, and one between each two."""
        narrow = np.frombuffer(pcm, "<i2")
        if not len(narrow):
            return b""
        signal = np.concatenate((self._history, narrow))
        self._history = signal[1 - len(_SIDES) :]
        wide = np.empty(2 * len(narrow), "<i2")
        wide[::2] = _rounded(np.convolve(signal, _SIDES, "valid"))
        wide[1::2] = signal[_SIDES_DELAY : _SIDES_DELAY + len(narrow)]
        return wide.tobytes()


class Halver:
    """PCM at 16 kHz to 8 kHz, piece by piece, 1.6 ms late; frequencies above 4.6 kHz are removed by 60 dB."""

    def __init__(self) -> None:
        self._history = np.zeros(_TAPS - 1, np.float32)
        self._odd = False

    def process(self, pcm: bytes) -> bytes:
        """The next piece, half as many samples as it was given."""
        piece = np.frombuffer(pcm, "<i2")
        if not len(piece):
            return b""
        wide = np.concatenate((self._history, piece.astype(np.float32)))
        self._history = wide[-(_TAPS - 1) :].copy()
        filtered = np.convolve(wide, _HALF_BAND, "valid")[int(self._odd) :: 2]
        self._odd ^= bool(len(piece) % 2)
        halved: bytes = _rounded(filtered).astype("<i2").tobytes()
        return halved


def is_loud(pcm: bytes) -> bool:
    """Whether there may be something to hear in the piece, by its peak alone."""
    samples = np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2")
    # The method of an array takes twice as long.
    return len(samples) > 0 and bool(np.maximum.reduce(samples) > QUIET_PEAK)


class Frames:
    """Regroups PCM pieces of any length into frames, so that the log's records have one size, or two.

    With `quiet_frame_ms` frames are as long as that once nobody has spoken for `quiet_after_ms`: a record costs every
    stage the same, however little there is to hear. What may be speech, by its peak alone, ends a long frame at once.
    """

    def __init__(self, frame_ms: int, quiet_frame_ms: int = 0, quiet_after_ms: int = 1000) -> None:
        self._size = frame_ms * BYTES_PER_MS
        self._quiet_size = max(frame_ms, quiet_frame_ms) * BYTES_PER_MS
        self._quiet_after = quiet_after_ms * BYTES_PER_MS
        self._quiet_bytes = 0
        self._rest = b""

    def add(self, pcm: bytes) -> list[bytes]:
        """The frames that the piece completes; what is left over waits for the next piece."""
        data = self._rest + pcm if self._rest else pcm
        if self._quiet(pcm):
            size = self._quiet_size
        elif len(self._rest) >= self._size:
            size = min(self._quiet_size, len(data) - len(data) % self._size)
        else:
            size = self._size
        whole = len(data) - len(data) % size
        self._rest = data[whole:]
        return [data[start : start + size] for start in range(0, whole, size)]

    def flush(self) -> bytes:
        """What is left over, shorter than a frame; for the end of the call."""
        rest, self._rest = self._rest, b""
        return rest

    def _quiet(self, pcm: bytes) -> bool:
        """Whether there has been nothing to hear for long enough that no pause is being measured."""
        if self._quiet_size == self._size:
            return False
        if is_loud(pcm):
            self._quiet_bytes = 0
        else:
            self._quiet_bytes += len(pcm)
        return self._quiet_bytes > self._quiet_after
