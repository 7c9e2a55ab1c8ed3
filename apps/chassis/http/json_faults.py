"""Explain why JSON cannot be decoded, in a caller's terms."""

import json
import re

import msgspec

TRUNCATED = "Input data was truncated"
HALF_A_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}.{0,5}\Z", re.DOTALL)
"""Half of a surrogate pair so near the end that the decoder looks for the other half behind it."""
HALF_A_PAIR_FAULT = "JSON is malformed: half of a surrogate pair at the end"
IN_NAME = "`key` in "


def split_fault(error: msgspec.MsgspecError, text: bytes) -> tuple[str, str]:
    """Return the JSON path of a decoder's error (`$` is the whole text), and what is wrong there."""
    detail, _, path = str(error).partition(" - at ")
    if is_half_a_pair(error, text):
        detail = HALF_A_PAIR_FAULT
    if path.startswith(IN_NAME):
        path, detail = path.removeprefix(IN_NAME), f"{detail} as a name"
    return path.strip("`") or "$", detail


def is_half_a_pair(error: Exception, text: bytes) -> bool:
    """Return whether a decoder calls JSON truncated because half of a surrogate pair stands at its end."""
    return str(error) == TRUNCATED and bool(HALF_A_PAIR.search(text[-11:])) and _is_whole(text)


def _is_whole(text: bytes) -> bool:
    """Return whether JSON is complete, apart from surrogate pairs."""
    try:
        json.loads(text, parse_int=str)  # `int` refuses more than 4,300 digits
    except (ValueError, RecursionError):
        return False
    return True
