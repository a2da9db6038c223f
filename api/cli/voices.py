"""`voices`: a brand's voice from a sample, with the consent of the person whose voice it is."""

from contextlib import aclosing
from pathlib import Path

from api.cli.context import actor, log_errors, note_access, running_settings, settings_of
from api.cli.output import print_json, print_table, when
from api.errors import OperatorError
from api.wav import write_mono
from processors.engine import Capabilities, EngineError, Speak, Spoken
from processors.engine_client import SocketEngine
from processors.tts.voices import Voice, VoiceError, VoiceStore
from schemas.events import AccessKind
from streams.clock import SystemClock
from streams.settings import Settings

ENGINE_S = 5.0
SPEAK_S = 120.0


async def add(name: str, sample: Path, consent: Path, data_dir: Path | None, as_json: bool) -> None:
    """Keeps the voice once that is in the audit trail; raises OperatorError, and then nothing of it stays."""
    settings = running_settings(data_dir)
    try:
        given = _read(sample, "sample"), _read(consent, "consent")
        prepared = VoiceStore(settings).prepare(name, *given, SystemClock().now_us(), actor())
        try:
            with log_errors(settings):
                await note_access(settings, AccessKind.ENROLLED, what=_what("add", prepared.voice))
            prepared.keep()
        finally:
            prepared.drop()
    except VoiceError as error:
        raise OperatorError(str(error), exit_code=2) from None
    if as_json:
        print_json(_shown(prepared.voice))
    else:
        print(f"voice {name} is kept: {prepared.voice.sample_s:.1f} s; an agent's file names it with voice.name")


def show(data_dir: Path | None, as_json: bool) -> None:
    """Prints all of them by name."""
    voices = VoiceStore(settings_of(data_dir)).all()
    if as_json:
        for voice in voices:
            print_json(_shown(voice))
        return
    columns = ("voice", "added (UTC)", "by", "sample s", "sample Hz", "consent sha256")
    rows = [
        (
            voice.name,
            when(voice.created_at),
            voice.created_by,
            f"{voice.sample_s:.1f}",
            voice.sample_rate_hz,
            voice.consent_sha256[:12],
        )
        for voice in voices
    ]
    print_table(columns, rows, right=("sample s", "sample Hz"))


async def remove(name: str, data_dir: Path | None) -> None:
    """Forgets sample and consent once that is in the audit trail; raises OperatorError."""
    settings = running_settings(data_dir)
    store = VoiceStore(settings)
    voice = store.find(name)
    try:
        if voice is not None:
            with log_errors(settings):
                await note_access(settings, AccessKind.WITHDRAWN, what=_what("remove", voice))
        store.remove(name)
    except VoiceError as error:
        raise OperatorError(str(error), exit_code=2) from None
    print("removed")


async def say(name: str, text: str, out: Path, language: str, speed: float, data_dir: Path | None) -> None:
    """Has the running engine speak, and writes PCM16 mono at 16,000 Hz; raises OperatorError."""
    settings = settings_of(data_dir)
    if VoiceStore(settings).find(name) is None:
        raise OperatorError(f"name: no voice is named {name!r}; `trunkline voices list` shows them", exit_code=2)
    try:
        pcm = await _speech(settings, Speak(text, name, speed, language))
    except EngineError as error:
        raise OperatorError(f"the tts engine did not speak: {error}") from None
    if not pcm:
        raise OperatorError("text: expected words, found none that the engine can say", exit_code=2)
    try:
        write_mono(out, pcm)
    except OSError as error:
        raise OperatorError(f"{out}: {error.strerror}") from None
    print(f"{out}: {len(pcm) / 32_000:.1f} s")


async def _speech(settings: Settings, request: Speak) -> bytes:
    client = SocketEngine(settings, "tts")
    try:
        engine: Capabilities = await client.capabilities(ENGINE_S)
        if not engine.clones:
            raise EngineError("invalid", f"{engine.model} speaks with no voices but its own; XTTS does")
        async with aclosing(client.ask(request, SPEAK_S)) as stream:
            return b"".join([reply.pcm async for reply in stream if isinstance(reply, Spoken)])
    finally:
        await client.close()


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise VoiceError(f"{field}: {path}: {error.strerror}") from None


def _what(done: str, voice: Voice) -> str:
    return f"voices {done} {voice.name}: sample sha256 {voice.sample_sha256}, consent sha256 {voice.consent_sha256}"


def _shown(voice: Voice) -> dict[str, object]:
    return {field: getattr(voice, field) for field in voice.__struct_fields__}
