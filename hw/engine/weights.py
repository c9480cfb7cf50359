"""Where weights come from, and which part of each a tensor-parallel rank holds."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from layerwise.sim.plan.errors import ProgramError
from layerwise.sim.plan.model import ModelSpec

WEIGHT_STD = 0.02
NORM_STD = 0.1
# A measurement makes small what a layer adds to the residual stream, by a power of two, so that its
# digits stay as random as any. At full size a step that is repeated on its own output makes all
# tokens alike: 200 repeats of a layer bring the correlation between tokens to 0.98. On an H200
# prefill stages repeated so held 1.65 to 1.76 GHz, and matmuls of tokens that differ 1.45. That
# alike operands draw less power is the likely reason; the stages were not measured again.
RESIDUAL_WEIGHTS = ("attn.out.weight", "mlp.down.weight")
RESIDUAL_SCALE = 2.0**-12

WeightSource = Callable[[str, int], Tensor]
"""(buffer name, layer; -1 outside layers) -> the whole tensor, as one rank would hold it."""


@dataclass(frozen=True)
class GivenWeights:
    """Whole tensors by (buffer name, layer); layer -1 outside layers. Can be sent to processes."""

    tensors: Mapping[tuple[str, int], Tensor]

    def __call__(self, name: str, layer: int) -> Tensor:
        if (name, layer) not in self.tensors:
            raise ProgramError(f"no weight was given for {name!r} of layer {layer}")
        return self.tensors[name, layer]


@dataclass(frozen=True)
class RandomWeights:
    """Seeded random weights, made on the device: equal on every rank of one kind of device.

    Matmul weights have a standard deviation of 0.02, norm weights lie near 1: activations keep
    the magnitudes, and so the power draw, of a real model. `residual_scale` multiplies those that
    write to the residual stream: RESIDUAL_SCALE where only time counts; 1 where numbers are
    compared, for else a layer that does nothing would pass.
    """

    model: ModelSpec
    device: torch.device
    seed: int = 0
    residual_scale: float = 1.0

    def __call__(self, name: str, layer: int) -> Tensor:
        generator = torch.Generator(self.device)
        generator.manual_seed(zlib.crc32(f"{self.seed}/{name}/{layer}".encode()))
        dtype = getattr(torch, self.model.dtype)
        whole = torch.empty(whole_shape(name, self.model), device=self.device, dtype=dtype)
        if whole.dim() == 1:
            return whole.normal_(1.0, NORM_STD, generator=generator)
        scale = self.residual_scale if name in RESIDUAL_WEIGHTS else 1.0
        return whole.normal_(0.0, WEIGHT_STD * scale, generator=generator)


def whole_shape(name: str, model: ModelSpec) -> tuple[int, ...]:
    """Shape of a weight before sharding. Matmul weights are [columns, inner].

    Raises ProgramError for a name that no compiled program of a model has.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    shapes = {
        "attn.norm.weight": (hidden,),
        "attn.qkv.weight": (model.query_size + 2 * model.key_value_size, hidden),
        "attn.out.weight": (hidden, model.query_size),
        "mlp.norm.weight": (hidden,),
        "mlp.gate_up.weight": (2 * inner, hidden),
        "mlp.down.weight": (hidden, inner),
        "head.norm.weight": (hidden,),
        "head.matmul.weight": (model.vocab_size, hidden),
        "embed.weight": (model.vocab_size, hidden),
    }
    if name not in shapes:
        raise ProgramError(f"weight {name!r} belongs to no layer; known are {sorted(shapes)}")
    return shapes[name]


def shard(
    name: str, full: Tensor, model: ModelSpec, tensor_rank: int, tensor_parallel: int
) -> Tensor:
    """The part of a whole weight that one rank of a tensor-parallel group holds (Megatron's cut).

    Query, key, value, gate and up are cut by output rows, each by itself; output and down by
    input columns; the LM head by vocabulary; norms and embedding are whole everywhere.
    """
    if tensor_parallel == 1:
        return full

    def rows(block: Tensor) -> Tensor:
        return block.chunk(tensor_parallel, dim=0)[tensor_rank]

    match name:
        case "attn.qkv.weight":
            sizes = [model.query_size, model.key_value_size, model.key_value_size]
            return torch.cat([rows(block) for block in full.split(sizes)])
        case "mlp.gate_up.weight":
            return torch.cat([rows(block) for block in full.chunk(2)])
        case _ if name in RESIDUAL_WEIGHTS:
            return full.chunk(tensor_parallel, dim=1)[tensor_rank].contiguous()
        case "head.matmul.weight":
            return rows(full).clone()
        case _:
            return full
