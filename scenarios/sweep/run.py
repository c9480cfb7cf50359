"""A sweep's life: resolve points, take over known rows, run the rest, write rows as they come.

Points go to workers in tasks of a second or so. A task whose worker died is cut in two and sent
again; one that has killed two workers runs with nothing beside it, and a single point that kills
one more then is a row that says so.
"""

from __future__ import annotations

import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path

from layerwise.scenarios.sweep.journal import (
    LAST_COLUMNS,
    Journal,
    Row,
    finish,
    journal_path,
    open_journal,
    read_header,
    read_rows,
)
from layerwise.scenarios.sweep.points import (
    FAILED,
    REFUSED,
    Point,
    Result,
    Task,
    code_digest,
    content_key,
)
from layerwise.scenarios.sweep.spec import Settings, Sweep
from layerwise.scenarios.sweep.workers import Workers
from layerwise.sim.cost.model import Belief
from layerwise.sim.plan.errors import FileFormatError, LayerwiseError
from layerwise.sim.profile import Profile

TASK_POINTS, TASK_S = 128, 1.0
# Tasks that share a worker's profile, and what was looked up in it.
TASKS_PER_PROFILE = 64
# Deaths after which a task runs alone, so that a death is its own.
ALONE = 2
STOP_S = 5.0

Progress = Callable[[int, int], None]
"""Told how many points are done, and of how many."""


@dataclass
class Outcome:
    """How a run of a sweep ended. `taken_over`: rows that were there before, of any file.

    `statuses` and `reasons` count rows of the whole sweep, `num_alike` points that are another's
    equal and share its row.
    """

    num_points: int
    taken_over: int = 0
    computed: int = 0
    num_alike: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    statuses: Counter[str] = field(default_factory=Counter[str])
    reasons: Counter[str] = field(default_factory=Counter[str])

    @property
    def done(self) -> int:
        """Points whose row is written."""
        return self.taken_over + self.computed + self.num_alike


@dataclass(frozen=True)
class Placed:
    """A point of the sweep: what it is called in the file, and what is run, or why nothing is.

    `place`: among the rows of the result.
    """

    place: int
    key: str
    written: tuple[object, ...]
    point: Point | None
    refusal: str = ""


def columns_of(sweep: Sweep) -> Row:
    """The header of a sweep's result."""
    return (*sweep.keys, "belief", *sweep.columns, *LAST_COLUMNS)


def place_points(sweep: Sweep, profiles: Mapping[str, Profile]) -> Iterator[Placed]:
    """Every point, resolved and keyed; one that is no scenario carries the reason."""
    digests = {gpu: profile.digest for gpu, profile in profiles.items()}
    for place, settings, belief in sweep.in_running_order():
        yield _placed(sweep, digests, place, settings, belief)


def _placed(
    sweep: Sweep, digests: Mapping[str, str], place: int, settings: Settings, belief: Belief
) -> Placed:
    written = (*sweep.written(settings), belief)
    try:
        scenario = sweep.resolve(settings)
    except LayerwiseError as error:
        key = content_key(belief, "", {"settings": settings, "base": repr(sweep.asked.tables)})
        return Placed(place, key, written, None, str(error))
    key = content_key(belief, digests.get(scenario.cluster.gpu.name, ""), scenario)
    return Placed(place, key, written, Point(key=key, scenario=scenario, belief=belief))


def run_sweep(
    sweep: Sweep,
    out: Path,
    profiles: Mapping[str, Profile],
    workers: Workers,
    *,
    reuse: Sequence[Path] = (),
    progress: Progress = lambda done, total: None,
) -> Outcome:
    """Write a row per point to `out`; what `out` and `reuse` have is taken over.

    An interrupt ends it early with `interrupted` set; the same call goes on from there. Raises
    FileFormatError where `out` has rows that this sweep does not ask for.
    """
    begin = time.monotonic()
    outcome = Outcome(num_points=sweep.num_points)
    known = _known_rows(reuse, sweep.columns)
    header = columns_of(sweep)
    with open_journal(out, header) as journal:
        points: Iterator[Placed] = place_points(sweep, profiles)
        if journal.rows:
            points = iter(found := list(points))
            _refuse_strangers(out, journal, {placed.key for placed in found})
        run = _Run(sweep, journal, outcome, known, lambda: progress(outcome.done, sweep.num_points))
        try:
            run.execute(points, profiles, workers)
        except KeyboardInterrupt:
            outcome.interrupted = True
        for row in (row for key, row in journal.rows.items() if key in run.keys):
            outcome.statuses[row[-3]] += 1
            outcome.reasons[row[-2]] += 1
        del outcome.reasons[""]
        if not outcome.interrupted:
            finish(journal, out, sorted(run.keys, key=run.keys.__getitem__))
    outcome.seconds = time.monotonic() - begin
    return outcome


def _refuse_strangers(out: Path, journal: Journal, keys: set[str]) -> None:
    strange = len(journal.rows.keys() - keys)
    if strange:
        raise FileFormatError(
            f"{journal_path(out)}: {strange} of its rows are of points that this sweep does not have "
            "(another base, axis, profile or version of the simulator); name another --out, and take "
            f"over what they share with --reuse {out}"
        )


def _known_rows(files: Sequence[Path], columns: Sequence[str]) -> dict[str, Row]:
    """What other results have: status, reason and the columns asked for, by key."""
    known: dict[str, Row] = {}
    for path in files:
        rows, header = read_rows(path), read_header(path)
        missing = [name for name in columns if name not in header]
        if missing:
            raise FileFormatError(
                f"{path}: lacks the columns {missing}; drop them from `columns`, or do not reuse it"
            )
        places = [header.index(name) for name in (*columns, "status", "reason")]
        known |= {
            key: tuple(row[place] for place in places)
            for key, row in rows.items()
            if row[-3] != FAILED
        }
    return known


class _Run:
    """One pass over the points: what is known is written at once, the rest goes to workers."""

    def __init__(
        self,
        sweep: Sweep,
        journal: Journal,
        outcome: Outcome,
        known: Mapping[str, Row],
        tell: Callable[[], None],
    ) -> None:
        self.keys: dict[str, int] = {}
        self._sweep, self._journal, self._outcome = sweep, journal, outcome
        self._known, self._tell = known, tell
        self._written: dict[str, tuple[object, ...]] = {}

    def execute(
        self, points: Iterator[Placed], profiles: Mapping[str, Profile], workers: Workers
    ) -> None:
        """Run all; on an interrupt, what workers were about to hand back is written first."""
        # Small sweeps in small tasks, so that every worker has some.
        size = min(TASK_POINTS, 1 + self._sweep.num_points // (2 * workers.window()))
        queue = _Queue(self._tasks(points, profiles, size), workers)
        try:
            for results in queue.results():
                self._write(results)
        except KeyboardInterrupt:
            for results in queue.stop(STOP_S):
                self._write(results)
            raise

    def _tasks(
        self, points: Iterator[Placed], profiles: Mapping[str, Profile], size: int
    ) -> Iterator[Task]:
        new = filter(None, map(self._if_new, points))
        packed = {gpu: pickle.dumps(profile) for gpu, profile in sorted(profiles.items())}
        for number in count():
            chunk = tuple(islice(new, size))
            if not chunk:
                return
            gpus = {point.scenario.cluster.gpu.name for point in chunk}
            yield Task(
                points=chunk,
                profiles={gpu: packed[gpu] for gpu in packed if gpu in gpus},
                columns=self._sweep.columns,
                code=code_digest(),
                generation=number // TASKS_PER_PROFILE,
            )

    def _if_new(self, placed: Placed) -> Point | None:
        """The point if it has to be run; otherwise its row is there, or is written now."""
        if placed.key in self.keys:
            self._outcome.num_alike += 1
            self.keys[placed.key] = min(placed.place, self.keys[placed.key])
            return None
        self.keys[placed.key] = placed.place
        if placed.key in self._journal.rows:
            self._outcome.taken_over += 1
            return None
        if placed.key in self._known:
            *values, status, reason = self._known[placed.key]
            self._outcome.taken_over += 1
            self._journal.append([(*placed.written, *values, status, reason, placed.key)])
            return None
        self._written[placed.key] = placed.written
        if placed.point is None:
            self._write([Result(placed.key, REFUSED, placed.refusal)])
        return placed.point

    def _write(self, results: Sequence[Result]) -> None:
        none = (None,) * len(self._sweep.columns)
        self._journal.append(
            (*self._written.pop(one.key), *(one.values or none), one.status, one.reason, one.key)
            for one in results
        )
        self._outcome.computed += len(results)
        self._tell()


class _Queue:
    """Tasks on their way through the workers: a few for each, so that none waits for the next."""

    def __init__(self, tasks: Iterator[Task], workers: Workers) -> None:
        self._tasks, self._workers = tasks, workers
        self._again: deque[Task] = deque()
        self._pending: dict[Future[list[Result]], Task] = {}

    def results(self) -> Iterator[list[Result]]:
        """Results as tasks come back, until all have."""
        while self._fill():
            done, _ = wait(self._pending, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                yield self._taken(future)

    def stop(self, timeout_s: float) -> Iterator[list[Result]]:
        """Start nothing more; results of what ends in time."""
        for future in self._pending:
            future.cancel()
        running = [future for future in self._pending if not future.cancelled()]
        for future in wait(running, timeout_s).done:
            if future.exception() is None:
                yield future.result()

    def _fill(self) -> bool:
        while len(self._pending) < self._workers.window():
            task = self._next()
            if task is None:
                break
            self._pending[self._workers.submit(task, TASK_S)] = task
        return bool(self._pending)

    def _next(self) -> Task | None:
        if any(task.num_deaths >= ALONE for task in self._pending.values()):
            return None
        if not self._again:
            return next(self._tasks, None)
        if self._again[0].num_deaths >= ALONE and self._pending:
            return None
        return self._again.popleft()

    def _taken(self, future: Future[list[Result]]) -> list[Result]:
        task = self._pending.pop(future)
        try:
            found = future.result()
        except self._workers.deaths as death:
            return self._after_death(task, death)
        if len(found) < len(task.points):
            self._again.append(replace(task, points=task.points[len(found) :]))
        return found

    def _after_death(self, task: Task, death: BaseException) -> list[Result]:
        if len(task.points) == 1 and task.num_deaths >= ALONE:
            why = (
                f"its worker died, with nothing else on it: {type(death).__name__}; out of memory?"
            )
            return [Result(task.points[0].key, FAILED, why)]
        half = -(-len(task.points) // 2)
        for points in filter(None, (task.points[:half], task.points[half:])):
            self._again.append(replace(task, points=points, num_deaths=task.num_deaths + 1))
        return []
