"""Who runs the tasks of a sweep: processes of this machine, or the workers of a Dask cluster.

Both are `concurrent.futures` executors; they differ in how they start, grow and lose a worker.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from concurrent.futures import BrokenExecutor, CancelledError, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Any, Protocol

from layerwise.scenarios.sweep.points import Result, Task, predict_points
from layerwise.sim.plan.errors import LayerwiseError, MissingPackageError, SpecError

if TYPE_CHECKING:
    from concurrent.futures import Executor

SLURM = "slurm"
TASKS_PER_WORKER = 3
CONNECT_S = 10.0


class Workers(Protocol):
    """Something that runs tasks."""

    @property
    def deaths(self) -> tuple[type[BaseException], ...]:
        """What a task's future raises when its worker died."""
        ...

    def window(self) -> int:
        """How many tasks to have under way."""
        ...

    def submit(self, task: Task, budget_s: float) -> Future[list[Result]]:
        """Send a task."""
        ...


class LocalWorkers:
    """A pool of processes; one that broke is replaced by the next task."""

    deaths = (BrokenExecutor,)

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._pool = self._new_pool()

    def window(self) -> int:
        return TASKS_PER_WORKER * self._num_workers

    def submit(self, task: Task, budget_s: float) -> Future[list[Result]]:
        try:
            return self._pool.submit(predict_points, task, budget_s)
        except BrokenExecutor:
            self._pool.shutdown(wait=True)
            self._pool = self._new_pool()
            return self._pool.submit(predict_points, task, budget_s)

    def close(self) -> None:
        """End the processes, after what they are at."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        # Not forked: the parent has threads by now.
        return ProcessPoolExecutor(self._num_workers, get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """A worker: Ctrl-C is its parent's business, and it ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class DaskWorkers:
    """The workers of a Dask cluster, whose scheduler runs a dead worker's tasks again itself."""

    def __init__(self, address: str, client: Any) -> None:
        from distributed import KilledWorker

        self.deaths: tuple[type[BaseException], ...] = (KilledWorker,)
        self._address, self._client = address, client
        self._pool: Executor = client.get_executor(pure=False)

    def window(self) -> int:
        return max(8, TASKS_PER_WORKER * sum(self._client.nthreads().values()))

    def submit(self, task: Task, budget_s: float) -> Future[list[Result]]:
        return self._pool.submit(predict_points, task, budget_s)


@contextmanager
def local_workers(num_workers: int = 0) -> Generator[LocalWorkers]:
    """Processes of this machine, as many as it has cores for us unless told."""
    workers = LocalWorkers(num_workers or len(os.sched_getaffinity(0)))
    try:
        yield workers
    finally:
        workers.close()


@contextmanager
def dask_workers(address: str, num_jobs: int = 0) -> Generator[DaskWorkers]:
    """The workers of the cluster at an address, or of a Slurm allocation made for this sweep.

    `slurm` submits `num_jobs` jobs as dask-jobqueue's own configuration says, and ends them after.
    Raises MissingPackageError without the packages, SpecError where nobody answers.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingPackageError(
            "distributed",
            "sweep on a Dask cluster",
            "pip install '.[cluster]'",
            "sweeping on this machine's cores",
        ) from error
    if address == SLURM:
        cluster = _slurm_cluster(num_jobs or 1)
        with cluster, Client(cluster, set_as_default=False) as client, _explained(address):
            yield DaskWorkers(address, client)
        return
    if num_jobs:
        raise SpecError(
            "--workers",
            num_jobs,
            "has no meaning with the address of a cluster",
            "start workers there, or use --dask slurm",
        )
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SpecError(
            "--dask",
            address,
            f"does not answer ({' '.join(str(error).split())})",
            "start one with `dask scheduler` and `dask worker`, and give its tcp://HOST:PORT",
        ) from error
    with client, _explained(address):
        yield DaskWorkers(address, client)


@contextmanager
def _explained(address: str) -> Generator[None]:
    """What a cluster does wrong, as an error that says so; the rows written so far stay."""
    try:
        yield
    except CancelledError as error:
        raise SpecError(
            "--dask", address, "went away", "run it again there, or without --dask, to go on"
        ) from error
    except (ImportError, RuntimeError) as error:
        if isinstance(error, LayerwiseError):
            raise
        raise SpecError(
            "--dask",
            address,
            f"has workers that cannot run layerwise ({error})",
            "install this version of it where they run",
        ) from error


def _slurm_cluster(num_jobs: int) -> Any:
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise MissingPackageError(
            "dask-jobqueue",
            "ask Slurm for workers",
            "pip install dask-jobqueue",
            "--dask with the address of a cluster that you started",
        ) from error
    try:
        cluster = SLURMCluster()
    except ValueError as error:
        raise SpecError(
            "--dask",
            SLURM,
            f"is not configured: {error}",
            "give cores and memory in the jobqueue.slurm section of ~/.config/dask/jobqueue.yaml",
        ) from error
    cluster.scale(jobs=num_jobs)
    return cluster
