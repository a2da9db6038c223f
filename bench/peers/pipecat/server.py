"""A Pipecat agent on Twilio's wire, in an environment of its own (`make bench-peers`).

Everything that is Pipecat's is Pipecat's: transport, serializer, VAD, turn detection, Whisper service and aggregators.
Ours are the voice (the one Trunkline speaks with) and the answers: by keyword, at no cost, in the words of the shop's
templates. The models' files are given, and loaded once for all calls, which spares Pipecat a stall at each start.

    python server.py --port N --profile default|tuned --whisper FOLDER --voice FILE
"""

import argparse
import asyncio
import functools
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, WebSocket
from faster_whisper import WhisperModel
from hibari import Hibari
from loguru import logger
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADParams
from pipecat.frames.frames import (
    Frame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TTSSpeakFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.services.settings import TTSSettings
from pipecat.services.tts_service import TTSService
from pipecat.services.whisper.stt import WhisperSTTService
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

RATE_HZ = 8000
# Pipecat's own default: its Whisper service takes what it is given to be of this rate, whatever the pipeline's is.
HEARING_RATE_HZ = 16_000
# Of `tuned`, 300 ms in all, as Trunkline's turn pause: VAD's pause, and what may be said behind it.
VAD_STOP_S, SPEECH_TIMEOUT_S = 0.2, 0.1
GREETING = "Hello, this is Ridgeline Outdoor. How can I help you today?"
ANSWERS = (
    (r"\bnumber\b|\d", "Your order one zero four two is on its way with Swift Parcel. It should arrive on Thursday."),
    (r"\border\b", "Sure, I can look that up. What is your order number?"),
    (r"\breturn\b", "You can return an unused item within thirty days. We pay for the shipping."),
    (r"\bhow many\b|\bsleeping\b", "We have twelve sleeping bags in stock. Shall I put one aside for you?"),
)
OTHERWISE = "I am sorry, I do not know that. Shall I connect you with a colleague?"


class SharedWhisper(WhisperSTTService):
    """Pipecat's Whisper service on a model that is loaded already."""

    shared: WhisperModel

    def _load(self) -> None:
        self._model = self.shared


class HibariTTS(TTSService):
    """The voice that Trunkline speaks with, off the loop; silence at the head stays, as the model makes it."""

    voice: Hibari

    def __init__(self) -> None:
        settings = TTSSettings(model=None, voice="heart", language=None)
        super().__init__(push_start_frame=True, push_stop_frames=True, settings=settings)

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        """See Pipecat's TTSService."""
        async for frame in self._stream_audio_frames_from_iterator(
            self._spoken(text), in_sample_rate=self.voice.sample_rate, context_id=context_id
        ):
            yield frame

    async def _spoken(self, text: str) -> AsyncIterator[bytes]:
        sentences = iter(await asyncio.to_thread(self.voice.phonemize, text))
        make = functools.partial(_next_wave, self.voice, sentences)
        while (wave := await asyncio.to_thread(make)) is not None:
            yield wave


def _next_wave(voice: Hibari, sentences: Iterator[Any]) -> bytes | None:
    phonemes = next(sentences, None)
    if phonemes is None:
        return None
    wave = voice.from_phonemes(phonemes, 1.0, seed=0)
    return bytes((np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes())


class Rules(FrameProcessor):
    """In the place of a language model: an answer by keyword, at once."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """See Pipecat's FrameProcessor."""
        await super().process_frame(frame, direction)
        if not isinstance(frame, LLMContextFrame):
            await self.push_frame(frame, direction)
            return
        said = [message["content"] for message in frame.context.messages if message["role"] == "user"]
        await self.push_frame(LLMFullResponseStartFrame())
        await self.push_frame(LLMTextFrame(answer(str(said[-1]) if said else "")))
        await self.push_frame(LLMFullResponseEndFrame())


def answer(text: str) -> str:
    """What the shop says to that."""
    return next((reply for pattern, reply in ANSWERS if re.search(pattern, text.lower())), OTHERWISE)


def user_params(profile: str) -> LLMUserAggregatorParams:
    """default: Pipecat's own turn detection (Smart Turn). tuned: an end of turn by a short silence."""
    if profile == "default":
        return LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
    stop = SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=SPEECH_TIMEOUT_S)
    return LLMUserAggregatorParams(
        vad_analyzer=SileroVADAnalyzer(params=VADParams(stop_secs=VAD_STOP_S)),
        user_turn_strategies=UserTurnStrategies(stop=[stop]),
    )


async def serve_call(websocket: WebSocket, profile: str) -> None:
    """One call from its first message to its end."""
    await websocket.accept()
    start: dict[str, Any] = {}
    while start.get("event") != "start":
        start = json.loads(await websocket.receive_text())
    # Nobody is at Twilio to be told to hang up.
    quiet = TwilioFrameSerializer.InputParams(auto_hang_up=False)
    transport = FastAPIWebsocketTransport(
        websocket,
        FastAPIWebsocketParams(
            audio_in_enabled=True,
            audio_out_enabled=True,
            add_wav_header=False,
            serializer=TwilioFrameSerializer(start["start"]["streamSid"], params=quiet),
        ),
    )
    latency = {} if profile == "default" else {"ttfs_p99_latency": VAD_STOP_S + SPEECH_TIMEOUT_S}
    stt = SharedWhisper(settings=WhisperSTTService.Settings(model="given"), **latency)
    pair = LLMContextAggregatorPair(LLMContext(), user_params=user_params(profile))
    stages = [transport.input(), stt, pair.user(), Rules(), HibariTTS(), transport.output(), pair.assistant()]
    rates = PipelineParams(audio_in_sample_rate=HEARING_RATE_HZ, audio_out_sample_rate=RATE_HZ)
    worker = PipelineWorker(Pipeline(stages), params=rates)

    @transport.event_handler("on_client_connected")
    async def greet(_: Any, __: Any) -> None:
        await worker.queue_frames([TTSSpeakFrame(GREETING)])

    @transport.event_handler("on_client_disconnected")
    async def leave(_: Any, __: Any) -> None:
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


def create_app(profile: str) -> FastAPI:
    """Answers where Trunkline does."""
    app = FastAPI()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"state": "ready"}

    @app.websocket("/v1/twilio/media")
    async def media(websocket: WebSocket) -> None:
        await serve_call(websocket, profile)

    return app


def main() -> None:
    """Loads the models, warms them, and serves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--profile", choices=("default", "tuned"), required=True)
    parser.add_argument("--whisper", required=True, help="folder of a CTranslate2 model")
    parser.add_argument("--voice", required=True, help="hibari's model file")
    given = parser.parse_args()
    logger.remove()
    tuned = {"compute_type": "int8", "cpu_threads": 2} if given.profile == "tuned" else {}
    SharedWhisper.shared = WhisperModel(given.whisper, device="cpu", **tuned)
    list(SharedWhisper.shared.transcribe(np.zeros(16000, np.float32), language="en")[0])
    HibariTTS.voice = Hibari(voice="heart", model=given.voice, threads=1)
    for phonemes in HibariTTS.voice.phonemize("Hello there, qwyxt."):
        HibariTTS.voice.from_phonemes(phonemes, 1.0, seed=0)
    uvicorn.run(create_app(given.profile), host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
