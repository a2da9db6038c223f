import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.tts.spoken import spoken


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Order 48213 costs $49.90.", "Order four eight two one three costs $49.90."),
        ("Your order number is 1234.", "Your order number is one two three four."),
        ("Order #10042 shipped.", "Order number one zero zero four two shipped."),
        ("Ticket TR-4821 is open.", "Ticket T R, four eight two one is open."),
        ("The code: 0091", "The code: zero zero nine one"),
        ("Reference 12345678", "Reference one two three four, five six seven eight"),
        ("I want to order 250 tents", "I want to order 250 tents"),
        ("Orders over $50 ship free", "Orders over $50 ship free"),
        ("in 120 days, 1,234,567 or 3.14159", "in 120 days, 1,234,567 or 3.14159"),
        ("since 1998", "since 1998"),
        ("open 9:00-17:30", "open 9:00 to 5:30 PM"),
        ("from 09:00 to 18:00", "from 09:00 to 6 PM"),
        ("9am-5pm on Saturdays", "9am to 5pm on Saturdays"),
        ("49.90 EUR or USD 20", "€49.90 or $20"),
        ("Call 555-0142", "Call five five five, zero one four two"),
        (
            "+1 (415) 555-2671",
            "plus one, four one five, five five five, two six seven one",
        ),
        ("support@pine-peak.com", "support at pine dash peak dot com"),
        ("john_doe@example.com", "john underscore doe at example dot com"),
        ("_ana@pine.com_ or **b_c@pine.com**", "ana at pine dot com or b underscore c at pine dot com"),
        ("See https://www.pine.com/returns.", "See pine dot com slash returns."),
        ("www.pine.com/a_b", "pine dot com slash a underscore b"),
        ("**https://pine.com/a**.", "pine dot com slash a."),
        ("_https://pine.com/a_", "pine dot com slash a"),
        ("on 2026-05-01", "on 2026-05-01"),
        ("your code is 12-034", "your code is 12-zero three four"),
        ("open 24/7", "open twenty-four seven"),
        ("3x4 m", "3 by 4 m"),
        ("**Bold** and [a page](http://x.y)\n- one\n- two", "Bold and a page one two"),
        ("Hi 🙂", "Hi"),
        ("…", ""),
        ("", ""),
    ],
)
def test_what_a_voice_would_stumble_over_is_put_in_words(text: str, expected: str) -> None:
    assert spoken(text) == expected


@given(st.text())
def test_any_text_gives_one_clean_line(text: str) -> None:
    line = spoken(text)
    assert line == line.strip()
    assert "\n" not in line
    line.encode()
