"""CUDA graphs: steps captured once, replayed with one launch.

Capture needs everything warm: kernels compiled, libraries initialised, communicators connected.
Drop the graphs before the process group: destroying NCCL under a live graph never returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from layerwise.hw.engine.execute import Engine
from layerwise.hw.engine.schedule import Action
from layerwise.hw.instrument.observe import Observer


def capture(
    engine: Engine,
    body: Sequence[Sequence[Action]],
    observers_of: Callable[[int], Sequence[Observer]] = lambda index: (),
) -> torch.cuda.CUDAGraph:
    """Capture the steps of `body` into one graph; `observers_of(index)` watch each of them.

    The lanes of the peers fork from the capturing stream and are joined before the end. The
    engine's own observers are left out, and back in place afterwards.
    """
    device = engine.memory.device
    graph = torch.cuda.CUDAGraph()
    stream, observers = torch.cuda.Stream(device), engine.observers
    torch.cuda.synchronize(device)
    try:
        # NCCL's watchdog thread queries events at any time: only this thread's calls are checked.
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for index, actions in enumerate(body):
                    engine.observers = tuple(observers_of(index))
                    engine.run(actions)
                engine.peers.join()
            except BaseException:
                with suppress(RuntimeError):  # what broke the capture is the better message
                    graph.capture_end()
                raise
            graph.capture_end()
    finally:
        engine.observers = observers
    return graph
