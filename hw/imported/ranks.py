"""Which process of a profiler's files is which rank of a scenario."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from layerwise.hw.errors import UnmeasuredOpError
from layerwise.hw.instrument.spans import ProcessRecords, Recording
from layerwise.sim.plan.errors import SpecError
from layerwise.sim.plan.program import PlacedOp, Program

NAMED = 4  # of what is wrong, so many are named in a message
HOW_TO_PROFILE = (
    "profile with `nsys profile --trace=cuda,nvtx --cuda-graph-trace=node`, from before the first "
    "step, a run that pushes a range per op in the domain 'layerwise': eagerly `layerwise measure "
    "--timing events`, in a graph `--timing none`; or eagerly with torch.profiler and a "
    "`record_function` per op"
)


@dataclass(frozen=True)
class Found:
    """One process of one file, with the ranges that name ops."""

    path: Path
    file_index: int
    tool: str
    process: ProcessRecords

    def __str__(self) -> str:
        return f"{self.path.name} process {self.process.process_id}"


def find_processes(
    paths: Sequence[Path], recordings: Sequence[Recording], programs: Mapping[int, list[Program]]
) -> tuple[list[Found], int]:
    """Processes that ran ops, and how many kernels the others ran."""
    ops = frozenset(chain.from_iterable(names_of(ps) for ps in programs.values()))
    found: list[Found] = []
    others, ranges = 0, set[str]()
    for index, (path, recording) in enumerate(zip(paths, recordings, strict=True)):
        for process in recording.processes:
            # Ranges of anything else (torch's collectives, a user's own) are not asked about.
            markers = tuple(marker for marker in process.markers if marker.name in ops)
            ranges |= {marker.name for marker in process.markers}
            if markers:
                known = replace(process, markers=markers)
                found.append(Found(path, index, recording.tool, known))
            else:
                others += len(process.kernels)
    if not found:
        seen = f"the ranges there are {some_of(ranges)}" if ranges else "there are none"
        raise UnmeasuredOpError(
            f"{', '.join(path.name for path in paths)}: no range of an op of this scenario; "
            f"{seen}; {HOW_TO_PROFILE}"
        )
    return found, others


def assign_ranks(
    found: Sequence[Found], names: Mapping[int, frozenset[str]], rank_of: Mapping[int, int]
) -> dict[int, Found]:
    """Rank -> process, in rank order. `names`: the ops of each rank.

    Asked for by process id, or said by the file, or else by the names of the ranges; processes of
    equal names in order of file, device and first kernel. Raises SpecError, UnmeasuredOpError.
    """
    _check_rank_of(found, names, rank_of)
    taken: dict[int, Found] = {}
    only = next(iter(names)) if len(names) == 1 else None
    for each in sorted(found, key=lambda each: (_stated(each, rank_of, only) is None, _turn(each))):
        rank = _stated(each, rank_of, only)
        if rank is None:
            rank = _rank_by_names(each, {r: own for r, own in names.items() if r not in taken})
        if rank in taken or rank not in names:
            holder = f"is {taken[rank]} already" if rank in taken else "is no rank of the scenario"
            raise SpecError(
                "--import",
                str(each),
                f"would be rank {rank}, which {holder}",
                "give one process per rank; say which is which with --rank-of PID=RANK",
            )
        taken[rank] = each
    if missing := sorted(names.keys() - taken.keys()):
        raise SpecError(
            "--import",
            [str(each) for each in found],
            f"show no process for ranks {missing} of {len(names)}",
            "give the files of all ranks, or measure one alone with run.only_rank",
        )
    return dict(sorted(taken.items()))


def _check_rank_of(
    found: Sequence[Found], names: Mapping[int, frozenset[str]], rank_of: Mapping[int, int]
) -> None:
    known = [each.process.process_id for each in found]
    for process_id, rank in rank_of.items():
        if known.count(process_id) != 1 or rank not in names:
            raise SpecError(
                "--rank-of",
                f"{process_id}={rank}",
                f"does not pair one of the processes {known} with one of the ranks {sorted(names)}",
                "correct it, or leave it out",
            )


def _stated(each: Found, rank_of: Mapping[int, int], only: int | None) -> int | None:
    # A process alone says that it is rank 0, whichever rank's ops it ran.
    said = each.process.rank if only is None else only
    return rank_of.get(each.process.process_id, said)


def _turn(each: Found) -> tuple[int, int, int]:
    first = min(each.process.kernels, key=lambda kernel: kernel.start_ns, default=None)
    return (each.file_index, first.device_id, first.start_ns) if first else (each.file_index, 0, 0)


def _rank_by_names(each: Found, free: Mapping[int, frozenset[str]]) -> int:
    seen = frozenset(marker.name for marker in each.process.markers)
    matching = [rank for rank, names in free.items() if names == seen]
    if not matching:
        nearest = min(free, key=lambda rank: len(free[rank] ^ seen), default=None)
        lacking = free[nearest] - seen if nearest is not None else frozenset[str]()
        raise UnmeasuredOpError(
            f"{each}: its ranges are not the ops of any rank that is left; of rank {nearest} it "
            f"lacks {some_of(lacking)}; say which rank it is with "
            f"--rank-of {each.process.process_id}=RANK, or give the scenario that ran"
        )
    return matching[0]


def names_of(programs: Iterable[Program]) -> frozenset[str]:
    """The names of all ops of the programs."""
    placed: Iterable[PlacedOp] = chain.from_iterable(programs)
    return frozenset(each.name for each in placed)


def some_of(names: Iterable[str]) -> str:
    """A few of many names."""
    every = sorted(set(names))
    more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return ", ".join(every[:NAMED]) + more
