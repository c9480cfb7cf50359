"""Writes the frozen answers, or says which differ from those that are committed.

    python -m tests.frozen --check          # exit code 1 where an answer differs
    python -m tests.frozen --write          # after a change that is meant, listed in README.md

Two processes ask at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tests.frozen.answers import PATH, differences, read_answers, write_answers
from tests.frozen.questions import iter_answers, questions


def main() -> int:
    """Ask everything, or what `--only` names, and compare or write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write what is answered now")
    parser.add_argument("--check", action="store_true", help="compare with what is committed")
    parser.add_argument("--only", default="", help="questions that begin with this")
    chosen = parser.parse_args()
    names = [name for name in questions() if name.startswith(chosen.only)]
    found = dict(_asked(names))
    if chosen.write:
        write_answers({**(read_answers() if chosen.only else {}), **found})
        print(f"{PATH}: {len(found)} answers written")
        return 0
    told = differences(read_answers(), found)
    for line in told:
        print(line)
    print(f"{len(found)} answers, {len(told)} differences")
    return 1 if told else 0


def _asked(names: list[str]) -> Iterator[tuple[str, Any]]:
    # Sweeps have workers of their own, and large ones: they are asked here, one after the other.
    own = [name for name in names if name.startswith("sweep")]
    with ProcessPoolExecutor(2) as pool:
        rest = [name for name in names if name not in own]
        for number, (name, answer) in enumerate(zip(rest, pool.map(_ask, rest), strict=True), 1):
            print(f"\r{number} of {len(names)} {name:60.60}", end="", file=sys.stderr)
            yield name, json.loads(answer)
    for name in own:
        yield name, json.loads(_ask(name))
    print(file=sys.stderr)


def _ask(name: str) -> str:
    return json.dumps(next(iter_answers([name]))[1])


if __name__ == "__main__":
    sys.exit(main())
