"""Silero VAD v6 as a streaming detector whose whole memory is an explicit value.

The network hears windows of 512 samples (32 ms at 16,000 Hz) with the 64 samples before each, and carries two LSTM
vectors of 128 from window to window. The core keeps these as bytes in its state, so that a new owner of a call hears
exactly what the old one heard.

Where there has been nothing to hear for a second, it is not asked until there is: that is most of a call, and a network
that has not listened to seconds of nothing tells the onset of speech as soon, or sooner.
"""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from processors import models
from processors.stt.state import WINDOW_SAMPLES
from streams.settings import Settings

MODEL = "silero-vad"

QUIET_PEAK = 100  # of a 16-bit sample: -50 dBFS, half of what the gateway takes for a line's noise
QUIET_WINDOWS = 31  # a second: longer than any pause that is being measured

_CONTEXT_SAMPLES = 64
_UNITS = 128
_CONTEXT = slice(2 * _UNITS, 2 * _UNITS + _CONTEXT_SAMPLES)
_STATE_BYTES = 4 * (2 * _UNITS + _CONTEXT_SAMPLES + 1)  # the last one counts quiet windows in a row


class SileroDetector:
    """Tells speech from silence; see `core.Detector`. Deterministic; may be shared by all sessions of a thread."""

    def __init__(self, path: Path) -> None:
        """Loads the ONNX file. One thread that never spins: a window takes a tenth of a millisecond."""
        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, state: bytes, windows: bytes) -> tuple[list[float], bytes]:
        """See `core.Detector`. The network hears the windows in one call, a third sooner than one for each."""
        memory = np.frombuffer(state.ljust(_STATE_BYTES, b"\0"), dtype=np.float32)
        pcm = np.frombuffer(windows, dtype="<i2").reshape(-1, WINDOW_SAMPLES)
        heard, quiet = _heard(pcm, int(memory[-1]))
        probabilities = [0.0] * len(pcm)
        if not heard:
            return probabilities, state
        samples = np.empty((len(heard), _CONTEXT_SAMPLES + WINDOW_SAMPLES), dtype=np.float32)
        samples[:, _CONTEXT_SAMPLES:] = pcm if len(heard) == len(pcm) else pcm[heard]
        samples[:, _CONTEXT_SAMPLES:] /= 32768
        samples[0, :_CONTEXT_SAMPLES] = memory[_CONTEXT]
        samples[1:, :_CONTEXT_SAMPLES] = samples[:-1, -_CONTEXT_SAMPLES:]
        found, hidden, cell = self._session.run(
            None,
            {
                "input": samples,
                "h": memory[:_UNITS].reshape(1, 1, _UNITS),
                "c": memory[_UNITS : 2 * _UNITS].reshape(1, 1, _UNITS),
            },
        )
        for at, probability in zip(heard, found.tolist(), strict=True):
            probabilities[at] = probability
        context = samples[-1, -_CONTEXT_SAMPLES:]
        after: bytes = hidden.tobytes() + cell.tobytes() + context.tobytes() + np.float32(quiet).tobytes()
        return probabilities, after


def _heard(pcm: NDArray[np.int16], quiet: int) -> tuple[list[int], int]:
    """Which of the windows the network hears, and how many quiet ones in a row it has heard then."""
    heard = []
    highest, lowest = np.maximum.reduce(pcm, axis=1).tolist(), np.minimum.reduce(pcm, axis=1).tolist()
    for at, (high, low) in enumerate(zip(highest, lowest, strict=True)):
        if high - low > 2 * QUIET_PEAK:  # whatever a line's direct current, of either sign
            quiet = 0
        elif quiet < QUIET_WINDOWS:
            quiet += 1
        else:
            continue
        heard.append(at)
    return heard, quiet


def create(settings: Settings) -> SileroDetector:
    """The detector of the catalogue; raises models.ModelError when its file is missing or altered."""
    return SileroDetector(models.resolve(settings, MODEL).path)
