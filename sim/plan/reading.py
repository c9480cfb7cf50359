"""Files as text, TOML and JSON, whoever wrote them: bounded, and every fault named.

Files are data: nothing here evaluates, unpickles or imports what it reads.
"""

from __future__ import annotations

import json
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from layerwise.sim.plan.errors import FileFormatError

MIB = 2**20
# What people write by hand. The parser's time grows with the square of a dotted key's parts: this
# much of such keys it goes through in a second.
MAX_TOML_BYTES, MAX_DOTS = MIB // 4, 200
FLOAT = re.compile(r"(?<![\w.])\d+\.\d+(?:[eE][+-]?\d+)?(?![\w.])")
# A hundred times the largest profile.
MAX_BYTES = 256 * MIB


def read_bytes(path: Path, most_bytes: int = MAX_BYTES) -> bytes:
    """A regular file's bytes: a pipe or a device might never end.

    Raises FileFormatError when it cannot be read, is something else, or is larger than this.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in its name
        raise FileFormatError(f"{str(path)!r}: cannot be read: {error}") from error
    if len(data) > most_bytes:
        raise FileFormatError(
            f"{path}: cannot be read: it is larger than {most_bytes / MIB:g} MiB; is it the file "
            "you meant?"
        )
    return data


def require_regular(path: Path) -> None:
    """Raises FileFormatError for a folder, a pipe or a device, OSError where there is nothing."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise FileFormatError(f"{path}: cannot be read: it is not a regular file; name a file")


def read_text(path: Path, most_bytes: int = MAX_BYTES) -> str:
    """A file's text, with or without a byte-order mark. Raises FileFormatError."""
    try:
        return read_bytes(path, most_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: cannot be read: {error}; save it as UTF-8") from error


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's tables. Raises FileFormatError naming the file when it is none."""
    try:
        text = read_text(path, MAX_TOML_BYTES)
        _refuse_endless_keys(text, path)
        return tomllib.loads(text)
    except FileFormatError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise FileFormatError(f"{path}: is not a TOML file: {error.__cause__}") from error
        raise
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: is not a TOML file: {_what_is_wrong(error)}") from error


def _refuse_endless_keys(text: str, path: Path) -> None:
    if text.count(".") <= MAX_DOTS:
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MAX_DOTS and FLOAT.sub("", line).count(".") > MAX_DOTS:
            raise FileFormatError(
                f"{path}: line {number} has more than {MAX_DOTS} dots; no key has so many parts"
            )


def read_json(path: Path) -> Any:
    """A JSON document. Raises FileFormatError naming the file when it is none."""
    return parse_json(read_text(path), f"{path}:")


def parse_json(text: str, where: str) -> Any:
    """A JSON document in which no key is there twice, for then one of the two would be lost.

    Raises FileFormatError, which begins with `where` the text is from.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{where} is not JSON: {_what_is_wrong(error)}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{repeated!r} is there twice; keep one of them")
    return found


def _what_is_wrong(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
