"""Records that nobody should write: events whose JSON was changed at random, and headers of every kind."""

import json
from collections.abc import Callable, Iterator, Sequence
from random import Random

from services import Raw, event

from contracts.dead_letter import REDRIVEN_FOR, ROUNDS, TRIES

DEEP = 100_000
"""Levels of nesting: more than any parser goes down."""
PIECES = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"-", b"0", b"1e999", b"NaN", b"Infinity",
    b"\\ud800", b"\\udfff\\ud800", b"\\u0000", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
    b"\xef\xbb\xbf", b"\x00", b"\x1f", b"\r\n", b"\xe2\x80\xa8", b"/**/", b"9" * 400,
    b"-9223372036854775809", b"18446744073709551616",
)  # fmt: skip
VALUES: Sequence[object] = (
    None, True, -1, 151, 0.5, 1e308, 2**63, -(2**63) - 1, 2**64, 10**400, "", "36", "x" * 65, "\u0000",
    [], {}, [[]], {"a": {}},
)  # fmt: skip
NAMES = ("", "trace", "content-type", "correlation_id", "reply_to", TRIES, ROUNDS, REDRIVEN_FOR, "größe", "\0")


def mutated(seed: int, count: int) -> Iterator[Raw]:
    """Yield so many records; a seed repeats them."""
    random = Random(seed)
    events = [_encode(event(f"event-{i}", text=name)) for i, name in enumerate(["Ada", "Žofie 日本 🙂", "x" * 300])]
    for _ in range(count):
        value: bytes | None = random.choice(events)
        for _ in range(random.choice((0, 1, 1, 1, 2, 5))):
            value = random.choices(MUTATIONS, WEIGHTS)[0](random, value or b"")
        yield Raw(value, _some_bytes(random), _headers(random))


def bent(random: Random, sent: bytes) -> bytes:
    """Return what was to be sent with one to five changes."""
    for _ in range(random.randint(1, 5)):
        sent = random.choice((_flip, _cut, _leave_out, _insert, _repeat))(random, sent)
    return sent


def _flip(random: Random, value: bytes) -> bytes:
    changed = bytearray(value)
    for _ in range(random.randint(1, 4)):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(random: Random, value: bytes) -> bytes:
    return value[: random.randint(0, len(value))]


def _leave_out(random: Random, value: bytes) -> bytes:
    at = random.randint(0, len(value))
    return value[:at] + value[at + random.randint(1, 20) :]


def _insert(random: Random, value: bytes) -> bytes:
    at = random.randint(0, len(value))
    return value[:at] + random.choice(PIECES) * random.choice((1, 1, 1, 3)) + value[at:]


def _repeat(random: Random, value: bytes) -> bytes:
    start, end = sorted((random.randint(0, len(value)), random.randint(0, len(value))))
    return value[:end] + value[start:end] + value[end:]


def _replace_field(random: Random, value: bytes) -> bytes:
    """Change a field, leave one out, or add one; what is no object any more stays as it is."""
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError):
        return value
    if not isinstance(fields, dict) or not fields:
        return value
    name = random.choice(list(fields))
    match random.randrange(3):
        case 0:
            fields[name] = random.choice(VALUES)
        case 1:
            del fields[name]
        case _:
            fields[name + "2"] = random.choice(VALUES)
    return _encode(fields)


def _repeat_key(random: Random, value: bytes) -> bytes:
    return value[:-1] + b',"%s":%s}' % (
        random.choice((b"id", b"number", b"text", b"other")),
        _encode(random.choice(VALUES)),
    )


def _nest(random: Random, value: bytes) -> bytes:
    opened, closed = random.choice(((b"[", b"]"), (b'{"a":', b"}")))
    depth = random.choice((1, 50, 2_000))
    return value[:-1] + b',"deep":' + opened * depth + b"1" + closed * depth + b"}"


def _nest_without_end(random: Random, value: bytes) -> bytes:
    return value[:-1] + b',"deep":' + random.choice((b"[", b'{"a":')) * DEEP


def _no_value(_: Random, __: bytes) -> None:
    return None


def _noise(random: Random, _: bytes) -> bytes:
    return random.randbytes(random.choice((0, 1, 7, 300)))


Mutation = Callable[[Random, bytes], bytes | None]
BY_WEIGHT: Sequence[tuple[Mutation, int]] = (
    (_flip, 2000), (_cut, 800), (_leave_out, 800), (_insert, 2000), (_repeat, 500), (_replace_field, 1000),
    (_repeat_key, 500), (_nest, 100), (_nest_without_end, 2), (_no_value, 100), (_noise, 300),
)  # fmt: skip
MUTATIONS = [mutation for mutation, _ in BY_WEIGHT]
WEIGHTS = [weight for _, weight in BY_WEIGHT]


def _headers(random: Random) -> tuple[tuple[str, bytes | None], ...]:
    if not random.randrange(100):  # as if it had been sent back before
        return (TRIES, _some_bytes(random)), (ROUNDS, _some_bytes(random)), (REDRIVEN_FOR, _some_bytes(random))
    count = random.choice((0, 0, 0, 1, 2, 5))
    return tuple((random.choice(NAMES), _some_bytes(random)) for _ in range(count))


def _some_bytes(random: Random) -> bytes | None:
    return random.choice((None, b"", b"text", b"\x00\xff\xfe", b"\x7f\xff\xff\xff", random.randbytes(4)))


def _encode(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
