"""Op -> torch: the engine runs a rank's actions on its tensors, through its peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import assert_never

import torch
from torch import Tensor

from layerwise.hw.engine.collectives import Peers
from layerwise.hw.engine.contexts import Contexts, StatedContexts
from layerwise.hw.engine.memory import DeviceMemory
from layerwise.hw.engine.schedule import LABEL_BYTES, Action
from layerwise.hw.errors import ExecutionError
from layerwise.hw.instrument.observe import Lane, Observer
from layerwise.hw.kernels import dispatch as kernels
from layerwise.hw.kernels.attention import attend
from layerwise.hw.ranks.progress import Progress
from layerwise.sim.plan import ops
from layerwise.sim.plan.errors import LayerwiseError
from layerwise.sim.plan.ops import Buffer
from layerwise.sim.plan.program import PlacedOp


class Engine:
    """One rank: its memory, its peers, how long its sequences are, and whoever watches."""

    def __init__(
        self,
        rank: int,
        memory: DeviceMemory,
        peers: Peers,
        observers: Sequence[Observer] = (),
        contexts: Contexts | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.rank, self.memory, self.peers = rank, memory, peers
        self.contexts = contexts or StatedContexts()
        self.observers = tuple(observers)
        self.progress = progress or Progress()

    @torch.inference_mode()
    def run(self, actions: Sequence[Action]) -> None:
        """Issue one step. Returns when everything is issued; on the CPU also done.

        Raises ExecutionError naming rank, op and cause.
        """
        progress = self.progress
        progress.begin_step()
        slate = progress.slate
        try:
            for action in actions:
                progress.at, slate[:LABEL_BYTES] = action, action.label
                self._perform(action)
        except LayerwiseError:
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise ExecutionError(self.rank, progress.op_name, cause) from error

    def _perform(self, action: Action) -> None:
        placed, op = action.placed, action.placed.op
        if action.sent_before is not None:
            self.peers.before_write(self._tensor(placed, action.sent_before))
        match op:
            case ops.Recv() if action.verb == "wait":
                self.peers.wait(self._tensor(placed, op.buffer))
                for observer in self.observers:
                    observer.arrived(placed)
            case ops.Recv():
                self._launch(placed, "recv")
            case ops.Send():
                self._launch(placed, "send")
            case _:
                self._launch(placed, "compute")

    def _launch(self, placed: PlacedOp, lane: Lane) -> None:
        with self.peers.on(lane):
            for observer in self.observers:
                observer.begin(placed, lane)
            self._dispatch(placed)
            for observer in reversed(self.observers):
                observer.end(placed, lane)

    def _dispatch(self, placed: PlacedOp) -> None:
        op = placed.op
        match op:
            case ops.AllReduce():
                buffer = self._tensor(placed, op.buffer)
                summed = self.peers.all_reduce(op, buffer)
                if summed is not buffer:
                    self.memory.rebind(op.buffer, placed.layer, placed.microbatch, summed)
            case ops.AllGather():
                source = self._tensor(placed, op.source)
                self.peers.all_gather(op, source, self._tensor(placed, op.output))
            case ops.Send():
                self.peers.send(op, self._tensor(placed, op.buffer))
            case ops.Recv():
                self.peers.receive(op, self._tensor(placed, op.buffer))
            case ops.Attention():
                self._attention(placed, op)
            case ops.RotaryWrite():
                self._rotary_write(placed, op)
            case ops.GatedActivation():
                count, growth_tokens = self.contexts.growing_after(placed)
                source, output = self._tensor(placed, op.source), self._tensor(placed, op.output)
                kernels.gated_activation(source, output, count, growth_tokens)
            case ops.Matmul() if op.kernel == "skinny":
                source, weight = self._tensor(placed, op.source), self._tensor(placed, op.weight)
                counters = self.memory.counters(op.columns)
                kernels.skinny_matmul(source, weight, self._tensor(placed, op.output), counters)
            case _:
                run_local(op, lambda buffer: self._tensor(placed, buffer))

    def _attention(self, placed: PlacedOp, op: ops.Attention) -> None:
        qkv, kv = self._tensor(placed, op.qkv), self._tensor(placed, op.kv)
        output = self._tensor(placed, op.output)
        context = self.contexts.of(placed, op.context_tokens)
        result = attend(op, qkv, kv, output, self.memory.lower_right_mask, context)
        if result is not output:
            self.memory.rebind(op.output, placed.layer, placed.microbatch, result)

    def _rotary_write(self, placed: PlacedOp, op: ops.RotaryWrite) -> None:
        cos, sin = self.memory.rotary_tables(op.rope_theta, op.head_dim, op.kv.shape[3])
        context = self.contexts.of(placed, op.start_tokens + op.query_tokens)
        kernels.rotary_write(
            self._tensor(placed, op.qkv),
            self._tensor(placed, op.kv),
            cos,
            sin,
            context,
            op.num_heads,
            op.num_key_value_heads,
        )

    def _tensor(self, placed: PlacedOp, buffer: Buffer) -> Tensor:
        return self.memory.tensor(buffer, placed.layer, placed.microbatch)


def run_local(op: ops.Op, tensor: Callable[[Buffer], Tensor]) -> None:
    """Run an op that needs nothing but its buffers, which `tensor` resolves."""
    match op:
        case ops.Matmul():
            torch.mm(tensor(op.source), tensor(op.weight).t(), out=tensor(op.output))
        case ops.Norm():
            delta = _rows(op, tensor(op.delta)) if op.delta else None
            source, weight = _rows(op, tensor(op.source)), tensor(op.weight)
            kernels.norm(source, weight, tensor(op.output), op.epsilon, delta)
        case ops.ResidualAdd():
            source, delta = _rows(op, tensor(op.source)), _rows(op, tensor(op.delta))
            kernels.residual_add(source, delta, tensor(op.output))
        case ops.Embed():
            weight, ids = tensor(op.weight), tensor(op.token_ids)
            torch.index_select(weight, 0, ids, out=tensor(op.output))
        case ops.Sample():
            torch.argmax(tensor(op.logits), dim=-1, out=tensor(op.token_ids))
        case (
            ops.Attention()
            | ops.RotaryWrite()
            | ops.GatedActivation()
            | ops.AllReduce()
            | ops.AllGather()
            | ops.Send()
            | ops.Recv()
        ):
            raise TypeError(f"{op.name} is not run here")
        case _:
            assert_never(op)


def _rows(op: ops.Norm | ops.ResidualAdd, whole: Tensor) -> Tensor:
    """All rows, or the last token's of each sequence (a copy: nobody needs the others again)."""
    if not op.select_last or op.query_tokens == 1:
        return whole
    return whole.view(op.sequences, op.query_tokens, op.hidden_size)[:, -1].contiguous()
