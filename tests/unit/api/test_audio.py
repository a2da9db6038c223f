"""Mu-law, the telephone's rate, and frames."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.audio import BYTES_PER_MS, Doubler, Frames, Halver, mulaw_to_pcm, pcm_to_mulaw


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


@given(st.lists(st.binary(max_size=3000), max_size=20), st.integers(20, 100))
def test_frames_lose_nothing(pieces: list[bytes], frame_ms: int) -> None:
    frames = Frames(frame_ms)
    out = [frame for piece in pieces for frame in frames.add(piece)]
    assert {len(frame) for frame in out} <= {frame_ms * 32}
    assert b"".join(out) + frames.flush() == b"".join(pieces)
    assert frames.flush() == b""


def test_frames_are_long_only_where_nobody_has_spoken_for_a_while() -> None:
    frames = Frames(40, 100, 1500)
    silence, speech = bytes(640), tone(440, 16_000, 0.02)[:640]

    def lengths_ms(piece: bytes, count: int) -> list[int]:
        return [len(frame) // BYTES_PER_MS for _ in range(count) for frame in frames.add(piece)]

    assert set(lengths_ms(speech, 50)) == {40}
    pause = lengths_ms(silence, 1500 // 20)
    assert set(pause) == {40}
    assert set(lengths_ms(silence, 102)) == {100}
    # A sound ends the wait at once: in one piece with the silence before it, not a long frame later.
    assert lengths_ms(speech, 1) == [80]
    assert set(lengths_ms(speech, 10)) == {40}


@given(st.lists(st.sampled_from((bytes(640), b"\x00\x40" * 320, bytes(5))), max_size=200))
def test_frames_of_two_lengths_lose_nothing(pieces: list[bytes]) -> None:
    frames = Frames(20, 100)
    out = [frame for piece in pieces for frame in frames.add(piece)]
    assert {len(frame) for frame in out} <= {length_ms * BYTES_PER_MS for length_ms in (20, 40, 60, 80, 100)}
    assert b"".join(out) + frames.flush() == b"".join(pieces)
