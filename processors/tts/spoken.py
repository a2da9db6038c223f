"""English text as it is to be read aloud: numbers that identify are spelled out, web addresses and hours put in words.

Amounts, dates, units and ordinary numbers are left alone: the voice reads them well.
"""

import re
import unicodedata
from collections.abc import Callable

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NAMING = (
    r"(?:order|orders|ticket|reference|ref|tracking|account|customer|invoice|case|confirmation|booking|code|pin"
    r"|number|numbers|no\.|nr\.|id|#)"
)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_MARKS = re.compile(r"(?m)^\s*(?:#{1,6}|[-*•])\s+|[*_`~]{1,3}(?=\S)|(?<=\S)[*_`~]{1,3}")
# Addresses may have marks within, and marks around them ("_ana@pine.com_"): they begin and end with what is none.
_MAIL = re.compile(r"(?<![^\W_])([^\W_][\w.+-]*)@([\w-]+(?:\.[\w-]+)*\.[^\W_](?:[\w-]*[^\W_])?)")
_WEB = re.compile(
    r"(?<![^\W_])https?://(?:www\.)?([^\s,;]+?)(?=[.,;!?]?(?:\s|$))|(?<![^\W_])www\.([^\s,;]+?)(?=[.,;!?]?(?:\s|$))"
)
_ALWAYS_OPEN = re.compile(r"(?<![\d/])24/7(?![\d/])")
_HOURS = re.compile(
    r"(?<![\d:])(\d{1,2}:\d{2}|\d{1,2}\s?[ap]\.?m\.?)\s?[-–—]\s?(?=\d{1,2}(?::\d{2}|\s?[ap]\.?m))", re.I
)
_CLOCK = re.compile(r"(?<![\d:])([01]?\d|2[0-4]):([0-5]\d)(?![\d:])(?!\s?[ap]\.?m)", re.I)
_MONEY_AFTER = re.compile(r"(?<![\w.,])(\d+(?:,\d{3})*(?:\.\d\d)?)\s?(USD|EUR|GBP|dollars?|€|£)(?!\w)")
_MONEY_BEFORE = re.compile(r"\b(USD|EUR|GBP)\s?(?=\d)")
_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "€": "€", "£": "£", "dollar": "$", "dollars": "$"}
_PHONE = re.compile(
    r"(?<![\w.])(\+\d{1,3}[\s.-]?)?(\(\d{2,4}\)[\s.-]?|\d{3}[\s.-])(\d{3,4})[\s.-](\d{3,4})(?![\w-]|\.\d)"
)
_SHORT_PHONE = re.compile(r"(?<![\w.-])\d{3}-\d{4}(?![\w-])")
_CODE = re.compile(r"\b(?=[A-Z0-9-]*[A-Z])(?=(?:[A-Z-]*\d){2})[A-Z0-9]+(?:-[A-Z0-9]+)*\b")
_NAMED = re.compile(
    rf"(?i)((?<!to )\b{_NAMING}|#)(\s+(?:is|was|number|no\.|nr\.|#))*[\s:]*(?:#\s?)?(\d{{3,}}(?:-\d+)*)(?![\d%]|[.,]\d)"
)
_LONG = re.compile(r"(?<![\w.,$€£¥])\d{5,}(?:-\d+)*(?![\d%]|[.,]\d)")
_LEADING_ZERO = re.compile(r"(?<![\w.,:$€£¥])(?<!\d{4}-)(?<!\d{4}-\d\d-)0\d+(?![\d%:]|[.,]\d)")
_SIZE = re.compile(r"(?<=\d)\s?[x×]\s?(?=\d)")


def spoken(text: str) -> str:
    """The text with what a voice would stumble over put in words; text without anything to say gives ''."""
    text = "".join(" " if char != "\n" and unicodedata.category(char) in ("Zs", "Cc", "Cf") else char for char in text)
    text = "".join(char for char in text if unicodedata.category(char) not in ("So", "Cs", "Co", "Cn", "Sk"))
    rules: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str] | str], ...] = (
        (_LINK, r"\1"),
        (_MAIL, lambda found: f"{_address(found[1])} at {_address(found[2])}"),
        (_WEB, lambda found: _address((found[1] or found[2]).rstrip("*_`~"))),
        (_MARKS, ""),
        (_ALWAYS_OPEN, "twenty-four seven"),
        (_HOURS, r"\1 to "),
        (_CLOCK, _clock),
        (_MONEY_AFTER, lambda found: _SYMBOLS[found[2]] + found[1]),
        (_MONEY_BEFORE, lambda found: _SYMBOLS[found[1]]),
        (_PHONE, _phone),
        (_SHORT_PHONE, lambda found: _spelled(found[0])),
        (_CODE, lambda found: found[0] if re.search("[A-Z]{4}", found[0]) else _spelled(found[0])),
        (_NAMED, lambda found: f"{found[0][: -len(found[3])].replace('#', ' number ')} {_spelled(found[3])}"),
        (_LONG, lambda found: _spelled(found[0])),
        (_LEADING_ZERO, lambda found: _spelled(found[0])),
        (_SIZE, " by "),
    )
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\s+", " ", text).strip()
    return text if any(char.isalnum() for char in text) else ""


def _spelled(code: str) -> str:
    """Letters by name and digits one by one, with a breath between groups of more than five."""
    groups: list[str] = []
    for piece in re.findall(r"[A-Za-z]+|\d+", code):
        if piece.isdigit():
            groups.extend(" ".join(_DIGITS[int(digit)] for digit in part) for part in _breaths(piece))
        else:
            groups.append(" ".join(piece.upper()))
    return ", ".join(groups)


def _breaths(digits: str) -> list[str]:
    if len(digits) <= 5:
        return [digits]
    size = 4 if len(digits) % 4 == 0 else 3
    return [digits[start : start + size] for start in range(0, len(digits), size)]


def _clock(found: re.Match[str]) -> str:
    hour, minute = int(found[1]), found[2]
    if hour < 13 or hour == 24:
        return found[0]
    return f"{hour - 12} PM" if minute == "00" else f"{hour - 12}:{minute} PM"


def _phone(found: re.Match[str]) -> str:
    country = f"plus {_spelled(found[1])}, " if found[1] else ""
    return country + ", ".join(_spelled(part) for part in found.groups()[1:])


def _address(address: str) -> str:
    names = {
        ".": " dot ",
        "/": " slash ",
        "-": " dash ",
        "_": " underscore ",
        "+": " plus ",
        "?": " ",
        "=": " ",
        "&": " ",
    }
    return "".join(names.get(char, char) for char in address.rstrip("/")).strip()
