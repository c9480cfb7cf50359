"""What can go wrong, one class per cause. Every message names the key, the value and the fix.

LayerwiseError
├── SpecError              a value in a scenario, model or hardware description is wrong
│   ├── UnknownKeyError    a key nobody reads (the nearest known one is named)
│   ├── UnsupportedModelError  a model this project cannot describe (mixture of experts, ...)
│   └── PlacementError     the model, the cluster and the placement do not go together
├── ProgramError           compiled programs contradict each other (a bug, or a hand-made program)
│   └── DeadlockError      ranks wait for each other for ever
├── FileFormatError        a file is not what its name promises (syntax, schema version)
├── ProfileMismatchError   a calibration profile belongs to another GPU
├── TraceMismatchError     two traces cannot be compared
├── UnknownKindError       a table of this project does not list a kind of op (a bug, or a strange file)
└── MissingPackageError    an optional package is needed here
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")

MAX_SHOWN = 200


class LayerwiseError(Exception):
    """Base of every error this project raises on purpose."""


class SpecError(LayerwiseError, ValueError):
    """A described value is not allowed.

    Attributes: `key` (dotted, as the user writes it), `value`, `problem`, `fix`, `source` (a file).
    """

    def __init__(self, key: str, value: Any, problem: str, fix: str, source: str = "") -> None:
        self.key, self.value, self.problem, self.fix = key, value, problem, fix
        self.source = source
        super().__init__(key, value, problem, fix, source)

    def __str__(self) -> str:
        where = f"{self.source}: " if self.source else ""
        return f"{where}{self.key}={shown(self.value)} {self.problem}; {self.fix}"

    def in_file(self, source: str, prefix: str = "") -> SpecError:
        """The same error, with the file (and the table in it) that the value came from."""
        key = f"{prefix}.{self.key}" if prefix else self.key
        return type(self)(key, self.value, self.problem, self.fix, source)


def shown(value: Any) -> str:
    """As people would write it, as much of it as fits a line or two."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Python writes no number of more than 4,300 digits.
        return f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def nearest(key: str, known: Iterable[str]) -> str:
    """Return a fix that names the known keys most like this one, or all of them."""
    known = sorted(known)
    # 'h100' means one of the H100s, though 'h200' has more letters in common.
    begun = [name for name in known if key and name.startswith(key)]
    close = begun or difflib.get_close_matches(key, known, n=1)
    return did_you_mean(close) or f"known keys are {known}"


def did_you_mean(names: Iterable[str]) -> str:
    """Return the question that names these; "" for none."""
    text = " or ".join(map(repr, names))
    return text and f"did you mean {text}?"


def visible(text: str, keep: str = "") -> str:
    """Text as it is, but every sign that a terminal would obey, or that shows nothing, spelled out.

    `keep`: such signs that are meant.
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or sign in keep else sign.encode("unicode_escape").decode()
        for sign in text
    )


class UnknownKeyError(SpecError):
    """A key that nobody reads."""


class UnsupportedModelError(SpecError):
    """A model outside what this project describes."""


class PlacementError(SpecError):
    """Model, cluster and placement do not go together."""


class ProgramError(LayerwiseError):
    """Programs of different ranks contradict each other, or one contradicts itself."""


class DeadlockError(ProgramError):
    """Ranks wait for each other for ever; the message lists who waits for what."""


class FileFormatError(LayerwiseError, ValueError):
    """A file is not what it should be: syntax, schema or version."""


class ProfileMismatchError(LayerwiseError):
    """A calibration profile belongs to another GPU than the scenario's."""


class TraceMismatchError(LayerwiseError):
    """Two traces cannot be compared: other ops, other kernels, other scenario."""


class UnknownKindError(LayerwiseError, ValueError):
    """A table lists every kind of op, or constant, and not this one; the message names both."""

    def __init__(self, kind: str, table: str, known: Iterable[str]) -> None:
        super().__init__(
            f"{kind!r} is not listed in {table}, which has {sorted(known)}; add it there, or correct "
            "the name"
        )


class MissingPackageError(LayerwiseError, ImportError):
    """An optional package is needed: the message says how to install it and what works without."""

    def __init__(self, package: str, needed_for: str, install: str, still_works: str) -> None:
        super().__init__(
            f"{package} is not installed and is needed to {needed_for}; "
            f"install it with `{install}`. Without it, {still_works} still works."
        )


def require_listed(table: Mapping[str, Value], kind: str, name: str) -> Value:
    """Return what a table holds for a kind; raise UnknownKindError where it does not list it."""
    if kind not in table:
        raise UnknownKindError(kind, name, table)
    return table[kind]
