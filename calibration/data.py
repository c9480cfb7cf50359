"""Where profiles, measured traces and committed predictions lie, and files read by name.

Importing this costs nothing: no scipy, no numpy. A folder that is missing holds no files.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TRACE_SUFFIXES = (".jsonl", ".jsonl.gz")


def profile_path(gpu: str) -> Path:
    """The shipped profile of a GPU type; it may not exist."""
    return FOLDER / "profiles" / _file_name(f"{gpu}.json")


def transfers_path(gpu: str = "") -> Path:
    """The shipped messages and collectives, which one GPU cannot measure: a GPU's own, or anyone's."""
    own = FOLDER / _file_name(f"transfers-{gpu}.json")
    return own if gpu and own.is_file() else FOLDER / "transfers.json"


def validation_trace_paths(folder: Path | None = None) -> tuple[Path, ...]:
    """The committed validation traces, by name: runs that no fit has seen."""
    place = folder or FOLDER / "traces" / "validation"
    if not place.is_dir():
        return ()
    return tuple(sorted(path for path in place.iterdir() if path.name.endswith(TRACE_SUFFIXES)))


def prediction_path(trace_name: str, folder: Path | None = None) -> Path:
    """Where the prediction made before the run of this name is committed; it may not exist."""
    return (folder or FOLDER / "predictions") / _file_name(f"{trace_name}.json")


def windows_path(gpu: str) -> Path:
    """Where a GPU's kernels under persisting windows were measured, if they were."""
    return FOLDER / "traces" / _file_name(f"windows-{gpu}") / "windows.json"


def unseen_folder(gpu: str) -> Path:
    """Where points, layers and reads lie that were measured on a GPU and never fitted."""
    return FOLDER / "traces" / _file_name(f"unseen-{gpu}")


def unseen_prediction_path(gpu: str) -> Path:
    """The predictions of all of these, committed before they were measured; may not exist."""
    return FOLDER / "predictions" / _file_name(f"unseen-{gpu}.json")


def overlap_path() -> Path:
    """What messages and ops cost each other, which one GPU cannot show."""
    return FOLDER / "traces" / "two-h200" / "overlap.json"


def file_hash(path: Path) -> str:
    """Short SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _file_name(text: str) -> str:
    """A name in its folder, whatever it is made of: names of GPUs and runs come from files."""
    return re.sub(r"[/\\\0]", "_", text)
