"""What is measured of records and engines is what is meant."""

from pathlib import Path

import pytest

from bench.engines import requests
from bench.records import FORMAT_BYTES, measure_keys, record_bytes, sizes
from schemas import json_form
from schemas.events import AudioFrame
from streams.codec import BuiltInIds, Codec, headers
from streams.keyring import Keyring
from streams.kms import LocalKeys


def test_a_record_is_counted_sealed_with_key_headers_and_format_and_without_sound(tmp_path: Path) -> None:
    codec = Codec(BuiltInIds(), Keyring(tmp_path, LocalKeys(tmp_path)))
    (frame, *_) = [event for event in json_form.examples(AudioFrame) if len(event.pcm) > 100]
    head = sum(len(name) + len(value) for name, value in headers(frame))
    whole = FORMAT_BYTES + len(frame.session_id) + head + len(codec.encode(frame))
    assert 0 < whole - len(frame.pcm) - record_bytes(codec, frame) < 60  # sealing's nonce, tag and lengths


def test_a_call_of_every_seed_writes_as_much(tmp_path: Path) -> None:
    one, other = (sizes(tmp_path / str(seed), seed) for seed in (1, 2))
    assert [size.topic for size in one] == [size.topic for size in other]
    for a, b in zip(one, other, strict=True):
        assert a.a_turn == pytest.approx(b.a_turn, rel=0.1, abs=0.25)  # or one record in the four turns
        assert a.mean_bytes == pytest.approx(b.mean_bytes, rel=0.05)


def test_a_call_has_one_small_file_of_keys(tmp_path: Path) -> None:
    found = measure_keys(tmp_path)
    assert found.rows[0].distribution.count == 1000
    assert (found.rows[0].distribution.max or 0) < 1000


@pytest.mark.parametrize("role", ["embeddings", "llm", "tts"])
def test_no_two_asks_are_the_same(role: str) -> None:
    asked = requests(role, 20)
    assert len(set(map(repr, asked))) == 20
