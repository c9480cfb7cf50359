"""The committed answers: read, written, and compared value by value."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("answers.json.gz")
VERSION = 1


def read_answers() -> dict[str, Any]:
    """What is committed, by question."""
    data = json.loads(gzip.decompress(PATH.read_bytes()))
    assert data["version"] == VERSION
    return data["answers"]


def write_answers(found: dict[str, Any]) -> None:
    """Commit these; the same answers make the same bytes."""
    text = json.dumps({"version": VERSION, "answers": found}, indent=0, sort_keys=True)
    PATH.write_bytes(gzip.compress(text.encode(), mtime=0))


def differences(committed: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """A line for each value that is not equal to the last bit; new and missing ones count."""
    return [line for name in found for line in _differ(committed.get(name), found[name], name)]


def _differ(before: Any, now: Any, where: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        told = [f"{where}/{key}: gone" for key in before.keys() - now.keys()]
        told += [f"{where}/{key}: new" for key in now.keys() - before.keys()]
        for key in sorted(before.keys() & now.keys()):
            told += _differ(before[key], now[key], f"{where}/{key}")
        return told
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return [
            line
            for index, (one, other) in enumerate(zip(before, now, strict=True))
            for line in _differ(one, other, f"{where}[{index}]")
        ]
    return [] if before == now else [f"{where}: {before!r} -> {now!r}"]
