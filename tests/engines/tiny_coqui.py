"""Coqui models of random weights, small enough for any machine: real code paths, no speech that anybody would know."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from TTS.tts.configs.shared_configs import CharactersConfig
from TTS.tts.configs.vits_config import VitsConfig
from TTS.tts.configs.xtts_config import XttsArgs, XttsConfig
from TTS.tts.models.vits import Vits, VitsArgs
from TTS.tts.models.xtts import Xtts, _legacy_safe_globals

XTTS_LANGUAGES = ("en", "de", "fr")
SPEAKER = "Ana Tester"
_LETTERS = "abcdefghijklmnopqrstuvwxyzäöüß"
_TOKENS = ["[STOP]", "[UNK]", "[SPACE]", *(f"[{language}]" for language in XTTS_LANGUAGES), "[START]"]


def make_xtts(folder: Path, speakers: bool = True, legacy: bool = False) -> Path:
    """An XTTS model directory as its publisher lays it out; `legacy`: with the configuration pickled as a class."""
    folder.mkdir(parents=True)
    torch.manual_seed(11)
    vocabulary = folder / "vocab.json"
    _tokenizer().save(str(vocabulary))
    config = XttsConfig(model_args=_xtts_args(vocabulary), languages=list(XTTS_LANGUAGES), gpt_cond_len=6)
    model = Xtts(config)
    model.tokenizer = model.tokenizer.__class__(vocab_file=vocabulary)
    model.init_models()
    _loud(model)
    weights: dict[str, Any] = {"model": model.state_dict(), "config": config.to_dict()}
    if legacy:
        with _legacy_safe_globals():
            torch.save({**weights, "config": config}, folder / "model.pth")
    else:
        torch.save(weights, folder / "model.pth")
    if speakers:
        latents = {"gpt_cond_latents": torch.randn(1, 32, 64), "speaker_embedding": torch.randn(1, 512, 1)}
        torch.save({SPEAKER: latents}, folder / "speakers_xtts.pth")
    _save_config(config, folder)
    return folder


def make_vits(folder: Path, speakers: tuple[str, ...] = ()) -> Path:
    """A VITS model directory that reads English letters, without a phonemizer."""
    folder.mkdir(parents=True)
    torch.manual_seed(12)
    characters = CharactersConfig(
        characters_class="TTS.tts.models.vits.VitsCharacters",
        pad="_",
        eos="",
        bos="",
        characters=_LETTERS,
        punctuations="!,.? ",
        phonemes="",
    )
    arguments = VitsArgs(
        hidden_channels=64,
        hidden_channels_ffn_text_encoder=64,
        upsample_initial_channel_decoder=64,
        num_layers_text_encoder=2,
        num_layers_flow=2,
        use_sdp=False,
        init_discriminator=False,
    )
    config = VitsConfig(model_args=arguments, use_phonemes=False, text_cleaner="basic_cleaners", characters=characters)
    config.phoneme_language = "en"
    if speakers:
        (folder / "speakers.json").write_text(json.dumps({name: n for n, name in enumerate(speakers)}))
        for part in (config, config.model_args):
            part.use_speaker_embedding = True
            part.num_speakers = len(speakers)
            part.speakers_file = str(folder / "speakers.json")
    model = Vits(config)
    torch.save({"model": model.state_dict(), "config": config.to_dict()}, folder / "model.pth")
    _save_config(config, folder)
    return folder


def _save_config(config: Any, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    trainer = BpeTrainer(vocab_size=200, special_tokens=_TOKENS, initial_alphabet=list(_LETTERS + ".,!?'"))
    tokenizer.train_from_iterator(["your order is on its way and we are open until six"], trainer)
    return tokenizer


def _xtts_args(vocabulary: Path) -> XttsArgs:
    return XttsArgs(
        tokenizer_file=str(vocabulary),
        gpt_layers=2,
        gpt_n_model_channels=64,
        gpt_n_heads=2,
        gpt_max_audio_tokens=25,
        gpt_num_audio_tokens=130,
        gpt_start_audio_token=128,
        gpt_stop_audio_token=129,
        gpt_use_perceiver_resampler=True,
        decoder_input_dim=64,
    )


def _loud(model: Any) -> None:
    """Random weights whisper; what is below the threshold of a sound would be taken for silence."""
    with torch.no_grad():
        model.hifigan_decoder.waveform_decoder.conv_post.weight.mul_(4)
