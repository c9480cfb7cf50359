"""Applies one wrong formula at a time to a copy of the tree, and says which test notices.

python -m tests.mutants                 # all of them, and writes caught.json
python -m tests.mutants --only ramp     # those whose names begin with this
python -m tests.mutants --list
python -m tests.mutants --draw cost     # an area's expressions, in the order of the draw
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.candidates import AREAS, drawn
from tests.mutants.caught import read_caught, write_caught
from tests.mutants.running import Copy
from tests.mutants.table import MUTANTS, Mutant


def main() -> int:
    """Exit code 1 where a mutant survives that somebody could observe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", help="mutants whose names begin with this")
    parser.add_argument("--list", action="store_true", help="name them, and do nothing")
    parser.add_argument("--draw", choices=AREAS, help="list an area's expressions as drawn")
    asked = parser.parse_args()
    if asked.draw:
        print("\n".join(f"{one.function}: {one.expression}" for one in drawn(asked.draw)))
        return 0
    chosen = [one for one in MUTANTS if one.name.startswith(tuple(asked.only or [""]))]
    if asked.list:
        print("\n".join(f"{one.name}\n    {one.function}: {one.matters}" for one in chosen))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        survivors = _apply_all(chosen, Copy.made_in(Path(folder)))
    print(f"{len(chosen)} mutants, {len(survivors)} survived")
    return 1 if [one for one in survivors if not one.equivalent] else 0


def _apply_all(mutants: list[Mutant], copy: Copy) -> list[Mutant]:
    survivors: list[Mutant] = []
    for number, mutant in enumerate(mutants, 1):
        print(f"{number} of {len(mutants)}  {mutant.name}: ", end="", flush=True)
        begun = time.monotonic()
        found = copy.catching_test(mutant)
        print(f"{f'caught by {found}' if found else 'SURVIVED'} ({time.monotonic() - begun:.0f} s)")
        write_caught(read_caught() | {mutant.name: found})
        survivors += [] if found else [mutant]
    return survivors


if __name__ == "__main__":
    sys.exit(main())
