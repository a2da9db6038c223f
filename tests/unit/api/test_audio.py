"""Mu-law, the telephone's rate, and frames."""

import itertools
import struct
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.audio import (
    BYTES_PER_MS,
    FRAME_MS_SPARE,
    MULAW_PEAKS,
    QUIET_PEAK,
    UNHEARD_QUIET_MS,
    Doubler,
    FrameLengths,
    Frames,
    Halver,
    mulaw_to_pcm,
    pcm_to_mulaw,
    peak_of,
    peak_of_mulaw,
)


def tone(frequency_hz: float, rate_hz: int, seconds: float = 1.0) -> bytes:
    samples = np.sin(2 * np.pi * frequency_hz * np.arange(int(rate_hz * seconds)) / rate_hz) * 10_000
    return samples.astype("<i2").tobytes()


def test_mulaw_follows_g711() -> None:
    values = {0: b"\xff", 32767: b"\x80", -32768: b"\x00", 1000: b"\xce", -1000: b"\x4e"}
    for sample, code in values.items():
        assert pcm_to_mulaw(np.array([sample], "<i2").tobytes()) == code
    assert np.frombuffer(mulaw_to_pcm(b"\x80\x00\xff\xce"), "<i2").tolist() == [32124, -32124, 0, 988]


def test_every_code_survives() -> None:
    codes = bytes(code for code in range(256) if code != 0x7F)  # 0x7F is the other zero
    assert pcm_to_mulaw(mulaw_to_pcm(codes)) == codes


@given(st.lists(st.integers(-32768, 32767)))
def test_companding_error_is_small(samples: list[int]) -> None:
    given_pcm = np.array(samples, "<i2")
    back = np.frombuffer(mulaw_to_pcm(pcm_to_mulaw(given_pcm.tobytes())), "<i2").astype(int)
    clipped = np.clip(given_pcm.astype(int), -32635, 32635)
    assert np.all(abs(back - clipped) <= np.maximum(abs(clipped) / 16, 8))


@pytest.mark.parametrize("frequency_hz", [300, 1000, 3000, 3400])
def test_the_telephone_band_passes_both_ways(frequency_hz: int) -> None:
    doubler, halver = Doubler(), Halver()
    narrow = tone(frequency_hz, 8000)
    wide = b"".join(doubler.process(narrow[start : start + 320]) for start in range(0, len(narrow), 320))
    back = np.frombuffer(halver.process(wide), "<i2").astype(float)[200:-200]
    basis_at = 2 * np.pi * frequency_hz * np.arange(len(back)) / 8000
    basis = np.stack([np.sin(basis_at), np.cos(basis_at)], axis=1)
    weights, *_ = np.linalg.lstsq(basis, back, rcond=None)
    noise = back - basis @ weights
    assert abs(np.hypot(*weights) / 10_000 - 1) < 0.01
    assert np.sqrt(np.mean(noise**2)) < 10_000 / 1000  # 57 dB below the tone


@pytest.mark.parametrize("frequency_hz", [4700, 6000, 7500])
def test_what_would_fold_back_is_removed(frequency_hz: int) -> None:
    out = np.frombuffer(Halver().process(tone(frequency_hz, 16_000)), "<i2")[100:]
    assert np.max(abs(out.astype(int))) <= 12


@given(st.lists(st.integers(0, 500), max_size=20))
def test_pieces_make_no_difference(sizes: list[int]) -> None:
    pcm = tone(440, 16_000, sum(sizes) / 16_000)[: 2 * sum(sizes)].ljust(2 * sum(sizes), b"\0")
    edges = np.cumsum([0, *sizes]) * 2
    for whole, pieced in ((Doubler(), Doubler()), (Halver(), Halver())):
        pieces = [pieced.process(pcm[a:b]) for a, b in itertools.pairwise(edges)]
        expected = np.frombuffer(whole.process(pcm), "<i2").astype(int)
        got = np.frombuffer(b"".join(pieces), "<i2").astype(int)
        assert len(got) == len(expected)
        assert np.all(abs(got - expected) <= 1)


def in_frames(frames: Frames, pieces: Iterable[bytes], pieces_a_beat: int = 2, *, seldom: bool = False) -> list[int]:
    """Lengths in ms of the frames of pieces of 20 ms; what is left over stays in `frames`."""
    lengths = []
    for count, piece in enumerate(pieces, 1):
        frames.add(piece, peak_of(piece))
        if count % pieces_a_beat == 0:
            lengths += [len(frame) // BYTES_PER_MS for frame in frames.take_due(seldom=seldom)]
    return lengths


@given(st.lists(st.binary(max_size=3000), max_size=20), st.integers(20, 100))
def test_frames_lose_nothing(pieces: list[bytes], frame_ms: int) -> None:
    frames = Frames(frame_ms)
    out = []
    for piece in pieces:
        frames.add(piece, peak_of(piece))
        out += frames.take_due()
    assert all(frame_ms * BYTES_PER_MS <= len(frame) <= (frame_ms + FRAME_MS_SPARE) * BYTES_PER_MS for frame in out)
    assert b"".join(out) + frames.flush() == b"".join(pieces)
    assert frames.flush() == b""


SILENCE, SPEECH, MURMUR = bytes(640), tone(440, 16_000, 0.02)[:640], (b"\x00\x02" * 320)
LENGTHS = FrameLengths(speech_ms=120, quiet_ms=500, quiet_after_ms=1000)


def test_frames_are_long_only_where_nobody_waits_for_them() -> None:
    frames = Frames(20, LENGTHS)
    speech = in_frames(frames, [SPEECH] * 53)
    assert set(speech[:5]) == {40}, "an onset is told at once"
    assert set(speech[5:]) == {120}
    pause = in_frames(frames, [SILENCE] * 51)
    assert (pause[0], set(pause[1:])) == (60, {40}), "a pause is told at once"
    assert set(in_frames(frames, [SILENCE] * 78)) <= {500, 520}
    assert in_frames(frames, [SILENCE, SPEECH]) == [80], "a sound ends the wait at once"


def test_where_audio_comes_seldom_a_dip_waits_that_has_only_begun() -> None:
    for dip_ms, seldom, written_ms in ((0, False, 0), (20, False, 40), (20, True, 0), (40, True, 0), (60, True, 80)):
        frames = Frames(20, LENGTHS)
        in_frames(frames, [SPEECH] * 48)
        frames.flush()
        for piece in [SPEECH] + [SILENCE] * (dip_ms // 20):
            frames.add(piece, peak_of(piece))
        assert sum(map(len, frames.take_due(seldom=seldom))) == written_ms * BYTES_PER_MS, (dip_ms, seldom)


def test_neither_an_onset_nor_a_click_in_a_pause_waits() -> None:
    frames = Frames(20, LENGTHS)
    assert set(in_frames(frames, [SPEECH] * 8, seldom=True)) == {40}
    in_frames(frames, [SPEECH] * 40, seldom=True)
    in_frames(frames, [SILENCE] * 6, seldom=True)
    assert set(in_frames(frames, [SPEECH, *[SILENCE] * 3] * 4, seldom=True)) == {40}


def test_over_the_agent_a_dip_does_not_wait() -> None:
    frames = Frames(20, LENGTHS)
    in_frames(frames, [SPEECH] * 48)
    frames.flush()
    frames.add(SILENCE, peak_of(SILENCE))
    assert len(frames.take_due(spoken_over=True, seldom=True)) == 1


@pytest.mark.parametrize("piece", [SPEECH, SILENCE, MURMUR])
def test_frames_are_long_while_the_log_is_behind(piece: bytes) -> None:
    frames, lengths = Frames(20, LENGTHS), []
    for _ in range(12):
        frames.add(piece, peak_of(piece))
        lengths += [len(frame) // BYTES_PER_MS for frame in frames.take_due(spoken_over=True, behind=True)]
    assert lengths == [120, 120]


def test_over_the_agents_speech_no_frame_waits() -> None:
    frames = Frames(20, LENGTHS)
    in_frames(frames, [SPEECH] * 48)
    frames.flush()
    for piece in (SPEECH, SPEECH):
        frames.add(piece, peak_of(piece))
    assert frames.take_due() == []
    assert [len(frame) for frame in frames.take_due(spoken_over=True)] == [40 * BYTES_PER_MS]


def test_silence_waits_sooner_where_no_pause_is_measured() -> None:
    for measured, quiet_ms in ((False, UNHEARD_QUIET_MS), (True, LENGTHS.quiet_after_ms)):
        frames, lengths = Frames(20, LENGTHS), []
        in_frames(frames, [SPEECH] * 48)
        frames.flush()
        for _ in range(int(quiet_ms) // 20 + 26):
            frames.add(SILENCE, peak_of(SILENCE))
            due = frames.take_due(spoken_over=True, measured=measured)
            lengths += [len(frame) // BYTES_PER_MS for frame in due]
        assert lengths == [20] * (int(quiet_ms) // 20) + [260, 260]


def test_a_pause_lasts_since_the_voice_was_gone() -> None:
    frames = Frames(20, LENGTHS)
    in_frames(frames, [SPEECH] * 48)
    assert frames.pause_ms == 0
    in_frames(frames, [MURMUR] * 3)
    assert frames.pause_ms == 60, "a loud line is no voice"
    in_frames(frames, [SILENCE] * 3)
    assert frames.pause_ms == 120
    in_frames(frames, [SPEECH])
    assert frames.pause_ms == 0
    softly = Frames(20, LENGTHS)
    in_frames(softly, [MURMUR] * 48 + [SILENCE] * 3 + [SPEECH])
    assert softly.pause_ms == 0, "an onset is voice at once"


def test_who_begins_to_speak_over_a_loud_line_is_heard_at_once() -> None:
    frames = Frames(20, LENGTHS)
    assert set(in_frames(frames, [MURMUR] * 48)[-3:]) == {120}
    assert in_frames(frames, [SPEECH] * 2) == [80]


def test_a_pause_on_a_noisy_line_is_told_by_how_loud_the_caller_was() -> None:
    frames = Frames(20, LENGTHS)
    assert peak_of(MURMUR) > QUIET_PEAK
    in_frames(frames, [SPEECH] * 48)
    assert in_frames(frames, [MURMUR] * 4) == [80, 40]


@pytest.mark.parametrize(("samples", "peak"), [((), 0), ((5, -300, 20), 300), ((-32768,), 32768), ((7, 9), 9)])
def test_the_loudest_sample_is_of_either_sign(samples: tuple[int, ...], peak: int) -> None:
    assert peak_of(struct.pack(f"<{len(samples)}h", *samples)) == peak


def test_somebody_who_speaks_more_softly_is_heard_as_speaking() -> None:
    frames = Frames(20, LENGTHS)
    in_frames(frames, [SPEECH] * 48)
    assert set(in_frames(frames, [MURMUR] * 600)[-20:]) == {120}


@given(st.lists(st.sampled_from((SILENCE, SPEECH, MURMUR, bytes(5))), max_size=200), st.integers(1, 4))
def test_frames_of_all_lengths_lose_nothing(pieces: list[bytes], pieces_a_beat: int) -> None:
    frames = Frames(20, LENGTHS)
    out = []
    for count, piece in enumerate(pieces, 1):
        frames.add(piece, peak_of(piece))
        if count % pieces_a_beat == 0:
            out += frames.take_due()
    assert b"".join(out) + frames.flush() == b"".join(pieces)


@given(st.binary(max_size=400))
def test_the_peak_of_mulaw_is_told_without_decoding_it(data: bytes) -> None:
    samples = np.frombuffer(mulaw_to_pcm(data), "<i2").astype(int)
    peak = int(abs(samples).max()) if len(samples) else 0
    told = peak_of_mulaw(data)
    assert told <= peak
    assert (told > QUIET_PEAK) == (peak > QUIET_PEAK)
    assert told == max((limit + 1 for limit in MULAW_PEAKS if peak > limit), default=0)
