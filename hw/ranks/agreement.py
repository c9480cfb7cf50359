"""What all ranks do alike: rank 0 decides from what every rank says, and all hear it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TypeVar

from layerwise.hw.ranks.session import Session

Said = TypeVar("Said")
Decided = TypeVar("Decided")


def agree(
    session: Session, name: str, value: Said, decide: Callable[[list[Said]], Decided]
) -> Decided:
    """`decide` of the values of all ranks, in rank order: run on rank 0, the answer everywhere.

    Through the host, nothing on the device. Every rank calls it the same number of times; `decide`
    of ranks other than 0 is not looked at.
    """
    said = session.gather(name, value)
    if session.store is None:
        return decide(said)
    call = session.store.add(f"agree/{name}/calls/{session.rank}", 1)
    key = f"agree/{name}/{call}"
    if session.rank == 0:
        # torch's stub says str; bytes are stored as they are.
        session.store.set(key, pickle.dumps(decide(said)))  # pyright: ignore[reportArgumentType]
    with session.waiting():
        return pickle.loads(session.store.get(key))
