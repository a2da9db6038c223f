"""Keeps a language model from inventing a customer's facts.

A sentence is grounded when every number, date, address and amount in it occurs in what the model was told, and when it
does not claim that something was done or will be done: only tools do things.
"""

import re
from collections import Counter

from processors.llm.sentences import word_set

LOOP_RUNS = 3
ISO_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")

_NUMBER_WORDS = word_set(
    "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million dozen half "
    "once twice double"
)
_TIME_WORDS = word_set(
    "monday tuesday wednesday thursday friday saturday sunday january february march april june july august "
    "september october november december today tomorrow tonight yesterday noon midnight"
)
_PERIODS = re.compile(
    r"\b(?:next|this|within|in|a|an|one|another) (?:\w+ )?(?:hours?|days?|weeks?|months?|years?|minutes?)\b"
)
_MONEY_WORDS = word_set("free discount coupon voucher dollar dollars euro euros cent cents percent guarantee")
_ADDRESS = re.compile(r"\S+@\S+|https?://\S+|www\.\S+|\b[\w-]+\.(?:com|net|org|io|eu|de|co|shop)\b")
_DONE = re.compile(
    r"\b(?:i|we)(?:['’]ve| have| had)? (?:just |already |now )?"
    r"(?:sent|shipped|ordered|refunded|cancell?ed|booked|scheduled|issued|processed|registered|opened|created|updated|"
    r"changed|reserved|charged|checked|found|arranged|notified|emailed|called|placed|confirmed|added|applied)\b"
)
_IRREGULAR = {"sent": "send", "found": "find"}
_PROMISE = re.compile(
    r"\b(?:i|we)(?:['’]ll| will| shall| am going to| are going to)\b(?! (?:be (?:happy|glad)|help|need|try))"
)
_THEIRS = re.compile(
    r"\byour (?:\w+ )?(?:order|orders|package|parcel|delivery|shipment|refund|return|account|balance|payment|invoice|"
    r"ticket|warranty|item|booking|reservation)\b[^.?!]*\b(?:is|are|was|were|has|have|will|should|can|arrives?|ships?)\b"
)


def is_grounded(sentence: str, told: str, *, looked_up: bool = False, done: str = "") -> bool:
    """Whether the sentence says nothing of a customer's facts beyond `told`, the words that the model was given.

    Where something was `looked_up` for the answer, the state of what is the caller's may be put in other words. Of what
    was `done`, the descriptions of the tools that did it, it may be said that it was. Numbers, dates and addresses have
    to be as they were told.
    """
    said, known = sentence.lower().replace("’", "'"), told.lower().replace("’", "'")
    words = set(re.findall(r"[a-z]+", said))
    checked = words & (_NUMBER_WORDS | _TIME_WORDS | _MONEY_WORDS)
    if checked - set(re.findall(r"[a-z]+", known)):
        return False
    if numbers_in(said) - numbers_in(known):
        return False
    if any(found.rstrip(".,") not in known for found in _ADDRESS.findall(said)):
        return False
    if any(match[0] not in known for match in _PERIODS.finditer(said)):
        return False
    if _is_question(said):
        return True
    claims = [match[0] for claim in (_PROMISE, *(() if looked_up else (_THEIRS,))) for match in claim.finditer(said)]
    claims += [match[0] for match in _DONE.finditer(said) if _stem(match[0]) not in done.lower()]
    return all(claim in known for claim in claims)


def is_repetitive(text: str) -> bool:
    """Whether the model has fallen into a loop: the same three words for the third time."""
    words = re.findall(r"[\w']+", text.lower())
    runs = Counter(zip(words, words[1:], words[2:], strict=False))
    return any(count >= LOOP_RUNS for count in runs.values())


def _stem(claim: str) -> str:
    """What its last word has in common with other forms of it: `we have cancelled` becomes `canc`, as in "Cancels"."""
    word = claim.split()[-1]
    return _IRREGULAR.get(word, word[: max(3, min(4, len(word) - 2))])


def _is_question(said: str) -> bool:
    return said.rstrip("\"') ").endswith("?")


def numbers_in(text: str) -> set[str]:
    """The numbers as digits alone: `1,042`, `1042` and `1 0 4 2` are the same."""
    spelled = {re.sub(r"\D", "", run) for run in re.findall(r"\b\d(?: \d)+\b", text)}
    plain = {re.sub(r"[^\d.]", "", run).strip(".") for run in re.findall(r"\d[\d.,]*", text)}
    return spelled | {re.sub(r"\.0+$", "", number) for number in plain}
