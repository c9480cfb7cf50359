"""Files gone wrong: seeded mutations of bytes, and of what TOML and JSON are made of."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from typing import Any

TOKENS = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\n\n",
    b"\x1b[31m",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"'''",
    b"=",
    b",",
    b"#",
    b"-",
    b"1e999",
    b"NaN",
    b"[[x]]",
    "\u202e\u2028é".encode(),
)
# As TOML and JSON both write them, but where one of the two refuses.
LITERALS = (
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "1e999",
    "-1e999",
    "1e-320",
    "1e18",
    "1000000000",
    "10000000",
    "1000000000000000000000",
    "9" * 400,
    "9" * 5000,
    "0x" + "f" * 6000,
    "nan",
    "inf",
    "-inf",
    "NaN",
    "Infinity",
    "0.5",
    "true",
    "false",
    "null",
    '""',
    '"x"',
    '"80GB"',
    '"1e30TB"',
    '"20ms"',
    '"[red]x[/]"',
    '"\\u001b[31m"',
    '"\\u0000"',
    '"../../../../etc/passwd"',
    '"/dev/zero"',
    '"' + "a" * 5000 + '"',
    '"calibrated"',
    '"h200"',
    '"paper-30b"',
    "\"__import__('os')\"",
    "[]",
    "[[]]",
    "[1, 2]",
    "{}",
    "[" * 900 + "]" * 900,
    "[" * 100_000,
    "[" * 50_000 + "]" * 50_000,
    "1979-05-27T07:32:00Z",
    "07:32:00",
    "'",
    "'''",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    10**7,
    10**9,
    10**18,
    10**400,
    -(10**30),
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "x",
    "h200",
    "[red]x[/]",
    "\x1b[31m",
    "\x00",
    "\ud800",
    "../../../etc/passwd",
    "a" * 5000,
    [],
    {},
    [[]],
    [1, "x", None],
    {"x": {"y": 1}},
)
DEEP = 100_000
# 128 MiB each: of zeros, and of blank lines.
BOMB, BLANK_BOMB = (gzip.compress(sign * 2**27, mtime=0) for sign in (b"\0", b"\n"))

Mutation = Callable[[random.Random, bytes], bytes]


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to four cuts, copies, flips and insertions anywhere."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1)
        end = min(len(found), at + rng.choice((1, 2, 8, 64, 512)))
        match rng.randrange(5):
            case 0:
                found[at:end] = b""
            case 1:
                found[at:at] = found[at:end]
            case 2:
                found[at:at] = rng.choice(TOKENS)
            case 3 if at < len(found):
                found[at] ^= 1 << rng.randrange(8)
            case _:
                found[at:end] = rng.randbytes(end - at)
    return bytes(found)


def mutated_whole(rng: random.Random, data: bytes) -> bytes:
    """Truncated, saved by another editor, in another encoding, or something else entirely."""
    text = data.decode(errors="replace")
    return rng.choice(
        (
            lambda: data[: rng.randrange(len(data) + 1)],
            lambda: data.replace(b"\n", b"\r\n"),
            lambda: b"\xef\xbb\xbf" + data,
            lambda: text.encode("utf-16"),
            lambda: b"\xff" + data,
            lambda: data + data,
            lambda: b"",
            lambda: gzip.compress(data, mtime=0),
            lambda: b"a." * rng.choice((900, 20_000)) + b"b = 1\n" + data,
            lambda: b"[" * DEEP,
            lambda: b'{"a":' * DEEP,
            lambda: b"x = " + b"{a = " * 20_000,
        )
    )()


def mutated_toml(rng: random.Random, data: bytes) -> bytes:
    """Lines with other values, renamed, repeated, moved or lost."""
    lines = data.decode().splitlines()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        key, equals, _ = lines[at].partition(" = ")
        match rng.randrange(8):
            case 0:
                lines.insert(rng.randrange(len(lines)), lines[at])
            case 1:
                lines[at] = ""
            case 2 if equals:
                lines[at] = f"{key}{rng.choice('sx.')} = {rng.choice(LITERALS)}"
            case 3 if lines[at].startswith("["):
                lines[at] = rng.choice(("[[model]]", "[x.y]", "[run]", "[model.name]", "[]", "[a"))
            case _ if equals:
                lines[at] = f"{key} = {rng.choice(LITERALS)}"
            case _:
                lines.insert(at, rng.choice(("name = 1", "model = 1", "x = [", '"" = 1', "= 1")))
    return "\n".join(lines).encode()


def mutated_json(rng: random.Random, data: bytes) -> bytes:
    """Another value, type, key or nesting at one to three places of a document, or in its text."""
    document = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        places = _places(document)
        if not places:
            break
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0 if isinstance(holder, dict):
                holder[rng.choice(("x", "", "__class__", "\x1b", "name"))] = holder.pop(key)
            case 1:
                del holder[key]
            case 2:
                holder[key] = [holder[key]]
            case _:
                holder[key] = rng.choice(VALUES)
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.2:
        old = rng.choice((": ", ", "))
        text = text.replace(old, old + rng.choice(LITERALS) + rng.choice((", ", "")), 1)
    return text.encode(errors="surrogatepass")


def mutated_lines(rng: random.Random, data: bytes) -> bytes:
    """JSON lines: one of them mutated, repeated, lost or moved."""
    lines = data.splitlines()
    at = rng.randrange(min(len(lines), rng.choice((1, len(lines)))))
    match rng.randrange(6):
        case 0:
            lines.insert(rng.randrange(len(lines)), lines[at])
        case 1:
            del lines[at]
        case 2:
            lines.insert(at, rng.choice(LITERALS).encode())
        case _:
            lines[at] = mutated_json(rng, lines[at])
    return b"\n".join(lines) + b"\n"


def mutated_gzip(rng: random.Random, data: bytes) -> bytes:
    """A compressed file whose content is mutated, that is cut short, damaged, or unpacks to GBs."""
    match rng.randrange(20):
        case 0:
            return mutated_bytes(rng, gzip.compress(data, mtime=0))
        case 1:
            return gzip.compress(data, mtime=0)[: rng.randrange(len(data))]
        case 2:
            return rng.choice((BOMB, BLANK_BOMB, gzip.compress(data, mtime=0) + BOMB))
        case _:
            return gzip.compress(mutated_lines(rng, data), 1, mtime=0)


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key or index) in it."""
    found: list[tuple[Any, Any]] = []
    left = [document]
    while left:
        one = left.pop()
        keys = (
            list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        )
        found += [(one, key) for key in keys]
        left += [one[key] for key in keys]
    return found
