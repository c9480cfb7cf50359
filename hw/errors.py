"""What can go wrong while measuring, one class per cause. All are kinds of LayerwiseError."""

from __future__ import annotations

from collections.abc import Mapping

from layerwise.sim.plan.errors import LayerwiseError

GIB = 2**30


class ExecutionError(LayerwiseError):
    """An op failed on a rank. The cause is chained; the message names rank, op and cause."""

    def __init__(self, rank: int, op_name: str, cause: str) -> None:
        self.rank, self.op_name, self.cause = rank, op_name, cause
        super().__init__(rank, op_name, cause)

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.op_name} failed: {self.cause}"


class RanOutOfMemoryError(ExecutionError):
    """A rank ran out of memory in an op, or while its tensors were made. Carries its budget."""

    def __init__(self, rank: int, op_name: str, cause: str, budget: Mapping[str, int]) -> None:
        self.budget = dict(budget)
        super().__init__(rank, op_name, cause)

    def __str__(self) -> str:
        parts = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in self.budget.items() if size)
        total = f"{sum(self.budget.values()) / GIB:.2f} GiB"
        return (
            f"{super().__str__()}; the rank's own tensors take {total} ({parts}), beside workspaces and other processes; use a smaller "
            "workload.batch_size or workload.context_tokens, fewer key-value heads, or more GPUs"
        )


class RankFailedError(LayerwiseError):
    """A rank failed, died or stood still; every other rank was ended. Names rank, op and cause."""


class InterruptedRunError(LayerwiseError):
    """A run was ended by a signal (Ctrl-C, or a launcher that stops its ranks)."""

    def __init__(self, signal_number: int, text: str) -> None:
        self.signal_number = signal_number
        super().__init__(text)

    @property
    def exit_code(self) -> int:
        """128 + signal, as shells have it: 130 after Ctrl-C."""
        return 128 + self.signal_number


class NotAvailableError(LayerwiseError):
    """A described choice that this engine, machine or build cannot carry out."""


class CudaCallError(LayerwiseError):
    """A call of the CUDA runtime returned an error: the message names the call and the code."""

    def __init__(self, call: str, code: int, text: str) -> None:
        self.call, self.code = call, code
        super().__init__(f"{call} failed with CUDA error {code}: {text}")


class DoesNotFitError(LayerwiseError):
    """The tensors of a program do not fit on the device: an answer that carries its budget.

    `budget` is bytes per kind of buffer.
    """

    def __init__(
        self, subject: str, device: str, free_bytes: int, budget: Mapping[str, int]
    ) -> None:
        self.device, self.free_bytes, self.budget = device, free_bytes, dict(budget)
        parts = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in budget.items() if size)
        super().__init__(
            f"{subject} needs {sum(budget.values()) / GIB:.2f} GiB ({parts}) and {device} has "
            f"{free_bytes / GIB:.2f} GiB free; use a smaller workload.batch_size or "
            "workload.context_tokens, fewer key-value heads, or more GPUs"
        )


class UnmeasuredOpError(LayerwiseError):
    """An op ran and the tracer saw nothing of it: its row would be missing."""
