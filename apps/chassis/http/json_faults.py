"""Explain why JSON cannot be decoded, in a caller's terms."""

import json
import re

import msgspec

TRUNCATED = "Input data was truncated"
HALF_A_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}.{0,5}\Z", re.DOTALL)
"""Half of a surrogate pair so near the end that the decoder looks for the other half behind it."""
IN_NAME = "`key` in "


def split_fault(error: msgspec.MsgspecError, text: bytes) -> tuple[str, str]:
    """Return the JSON path of a decoder's error (`$` is the whole text), and what is wrong there."""
    detail, _, path = str(error).partition(" - at ")
    if detail == TRUNCATED and HALF_A_PAIR.search(text[-11:]) and _is_whole(text):
        detail = "JSON is malformed: half of a surrogate pair at the end"
    if path.startswith(IN_NAME):
        path, detail = path.removeprefix(IN_NAME), f"{detail} as a name"
    return path.strip("`") or "$", detail


def _is_whole(text: bytes) -> bool:
    """Return whether JSON is complete, apart from surrogate pairs."""
    try:
        json.loads(text, parse_int=str)  # `int` refuses more than 4,300 digits
    except (ValueError, RecursionError):
        return False
    return True
