from typing import Any

import pytest

from processors.json_text import DEPTH_MAX, json_in


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": [1, 2.5, true, null, "x"]}', {"a": [1, 2.5, True, None, "x"]}),
        (b'"\xc3\xa9"', "é"),
        ("", None),
        (b"", None),
        ("not json", None),
        (b"\xff\xfe\xff", None),
        ("9" * 5000, None),
        ("[" * 60_000, None),
        ("[" * 30_000 + "]" * 30_000, None),
        ("[" * DEPTH_MAX + "]" * DEPTH_MAX, ...),
        ("[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1), None),
        (r'{"t\ud800": ["\udfff tent", "\ud83d\ude00"]}', {"t?": ["? tent", "😀"]}),
    ],
)
def test_whatever_others_wrote_is_a_plain_value_or_none(text: str | bytes, found: Any) -> None:
    assert json_in(text) == found if found is not ... else json_in(text) is not None
