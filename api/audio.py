"""Audio at the edge, pure: mu-law, the telephone's 8 kHz to and from the platform's 16 kHz, regrouping into frames.

PCM here is always 16-bit little-endian mono, as bytes.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ: Final = 16_000
BYTES_PER_MS: Final = SAMPLE_RATE_HZ // 1000 * 2
MULAW_SILENCE: Final = b"\xff"
QUIET_PEAK: Final = 200  # of a 16-bit sample: -44 dBFS, above a line's noise and below any speech
FRAME_MS_SPARE: Final = 200  # by which a frame may be longer than the longest, before it is two
MULAW_PEAKS: Final = (0, 50, 100, QUIET_PEAK, 400, 800, 1600, 3200, 6400, 12_800, 25_600)
UNHEARD_QUIET_MS: Final = 300  # in which nobody began to speak, so that the end of no pause is waited for
QUIET_MARGIN_MS: Final = 200  # beyond the completion pause, so that an end of turn is never told later for it

_DIP_MS = 60  # by which stt has heard none of a pause, which it takes to begin later
_STRONG_MS = 200  # of speech without a pause
_STRONG = 1 / 16  # of the loudest sample a moment ago: 24 dB below it there is a pause, or the hiss of the line
_RISE = 4  # times the loudest sample a moment ago: 12 dB above it somebody begins to speak
_FADES_BY = 0.5  # what was loudest counts half as much a second later

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
_BLOCK = 32


def _sides_of_block() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The sides' filter for a block of samples at once, as matrices: what the block before gives to it, and its own.

    A convolution takes a call for each sample.
    """
    matrix = np.zeros((2 * _BLOCK, _BLOCK), np.float32)
    for column in range(_BLOCK):
        last = _BLOCK + column + 1
        matrix[last - len(_SIDES) : last, column] = _SIDES[::-1]
    return matrix[:_BLOCK], matrix[_BLOCK:]


_BEFORE, _WITHIN = _sides_of_block()


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
        self._history = np.zeros(_BLOCK, np.float32)

    def process(self, pcm: bytes) -> bytes:
        """The next piece, twice as many samples as it was given: those that were there, and one between each two."""
        narrow = np.frombuffer(pcm, "<i2")
        if not len(narrow):
            return b""
        end = _BLOCK + len(narrow)
        signal = np.zeros(-(-end // _BLOCK) * _BLOCK, np.float32)
        signal[:_BLOCK] = self._history
        signal[_BLOCK:end] = narrow
        self._history = signal[end - _BLOCK : end]
        blocks = signal.reshape(-1, _BLOCK)
        between = (blocks[:-1] @ _BEFORE + blocks[1:] @ _WITHIN).reshape(-1)
        wide = np.empty(2 * len(narrow), "<i2")
        wide[::2] = _rounded(between[: len(narrow)])
        wide[1::2] = signal[_BLOCK - _SIDES_DELAY + 1 : end - _SIDES_DELAY + 1]
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


_BELOW = [bytes(code for code in range(256) if abs(int(_DECODE[code])) <= limit) for limit in MULAW_PEAKS]


def peak_of_mulaw(data: bytes) -> int:
    """The loudest of MULAW_PEAKS that a sample of either sign is beyond, and one more; without decoding them."""
    beyond = bisect_left(_BELOW, True, key=lambda below: not data.translate(None, below))
    return MULAW_PEAKS[beyond - 1] + 1 if beyond else 0


def peak_of(pcm: bytes) -> int:
    """The largest sample of the piece, of either sign; 0 of an empty one."""
    samples = np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2")
    # The method of an array takes twice as long.
    return max(int(np.maximum.reduce(samples)), -int(np.minimum.reduce(samples))) if len(samples) else 0


@dataclass(frozen=True, slots=True)
class FrameLengths:
    """How long frames are, in ms: amid speech, and from `quiet_after_ms` of quiet on."""

    speech_ms: int
    quiet_ms: int
    quiet_after_ms: float = math.inf


class Frames:
    """Regroups a caller's audio into frames: what has come by the time that somebody asks is one, or waits for more.

    A record costs every stage the same, however little there is to hear, so frames are long where nobody waits for
    what is in them: in the midst of speech, and in silence. A sound ends a wait in silence at once, and a pause one in
    speech, unless the line itself is nearly as loud as the caller (24 dB below is quiet enough).
    """

    def __init__(
        self, frame_ms_min: int, lengths: FrameLengths | None = None, bytes_per_ms: int = BYTES_PER_MS
    ) -> None:
        """`bytes_per_ms` is of the audio as it comes, which need not be PCM; without `lengths` none is longer."""
        self._bytes_per_ms = bytes_per_ms
        self._frame_ms_min = frame_ms_min
        self._lengths = lengths or FrameLengths(frame_ms_min, frame_ms_min)
        self._size_max = (self._lengths.quiet_ms + FRAME_MS_SPARE) * bytes_per_ms
        # How much of the newest audio is quiet, or strong, or no voice, without a break.
        self._quiet_bytes = self._strong_bytes = self._weak_bytes = 0
        self._loudest = 0.0
        self._flows = False  # a voice in full but for dips
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0

    @property
    def waiting_ms(self) -> float:
        """How much is in no frame yet."""
        return self._waiting_bytes / self._bytes_per_ms

    @property
    def pause_ms(self) -> float:
        """For how long there has been nothing nearly as loud as what was loudest a moment ago."""
        return self._weak_bytes / self._bytes_per_ms

    @property
    def in_silence(self) -> bool:
        """Whether it has been quiet for so long that no pause is measured any more."""
        return self._quiet_ms > self._lengths.quiet_after_ms

    @property
    def in_speech(self) -> bool:
        """Whether the newest of it is a voice in full, which does not end in a moment that matters."""
        return self._strong_bytes / self._bytes_per_ms > _STRONG_MS

    @property
    def _quiet_ms(self) -> float:
        return self._quiet_bytes / self._bytes_per_ms

    def add(self, piece: bytes, peak: int) -> bool:
        """Takes the next piece, and its largest sample; whether there may be something to hear in it."""
        self._waiting.append(piece)
        self._waiting_bytes += len(piece)
        piece_ms = len(piece) / self._bytes_per_ms
        loud = peak > QUIET_PEAK
        rises = peak > _RISE * self._loudest
        self._loudest = max(peak, self._loudest * _FADES_BY ** (piece_ms / 1000))
        voiced = loud and peak >= _STRONG * self._loudest
        strong = voiced and not rises
        self._quiet_bytes = 0 if loud else self._quiet_bytes + len(piece)
        self._strong_bytes = self._strong_bytes + len(piece) if strong else 0
        self._weak_bytes = 0 if voiced else self._weak_bytes + len(piece)
        self._flows = self.in_speech or (self._flows and self.pause_ms < _DIP_MS)
        return loud

    def take_due(
        self, spoken_over: bool = False, measured: bool = True, behind: bool = False, seldom: bool = False
    ) -> list[bytes]:
        """The frames to be written now; what is left over waits for more.

        Over the agent's speech (`spoken_over`) nothing waits but silence, half as long: the agent is to be stopped
        soon, and the newest frame tells how much of it has been heard where a gateway is killed. That is sooner a
        silence where no pause is `measured`, since no utterance is open. While the log is `behind` nobody hears it
        soon, and as many frames as may wait shall hold as much speech as they can. Where audio comes `seldom`, much at
        a time, a dip that has only begun waits, too: stt takes it for no pause yet.
        """
        due_ms = self._due_ms(spoken_over, measured, seldom)
        if self.waiting_ms < (max(due_ms, self._lengths.speech_ms) if behind else due_ms):
            return []
        data = self.flush()
        frames = [data[start : start + self._size_max] for start in range(0, len(data), self._size_max)]
        if len(frames[-1]) < self._frame_ms_min * self._bytes_per_ms:
            rest = frames.pop()
            self._waiting, self._waiting_bytes = [rest], len(rest)
        return frames

    def take_rest(self) -> bytes:
        """What waits, if it is enough for a frame: for when no more comes."""
        return self.flush() if self.waiting_ms >= self._frame_ms_min else b""

    def flush(self) -> bytes:
        """Everything that waits; for the end of the call."""
        data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        return data

    def _due_ms(self, spoken_over: bool, measured: bool, seldom: bool) -> float:
        if self.in_silence or (not measured and self._quiet_ms > UNHEARD_QUIET_MS):
            return self._lengths.quiet_ms / (2 if spoken_over else 1)
        goes_on = self._strong_bytes >= self._waiting_bytes and self.in_speech
        waits = goes_on or (seldom and self._flows)
        return self._lengths.speech_ms if waits and not spoken_over else self._frame_ms_min
