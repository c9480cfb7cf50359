"""Numbers that other people measured and published, as constants of the physics forms.

Most are of one H100 SXM. Rates are shares of the datasheet's, so they carry over to any GPU;
latencies are taken as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from layerwise.sim.plan.hardware import GpuSpec
from layerwise.sim.profile import Constant

AIC = "ai-dynamo/aiconfigurator 095f58a, H100 SXM"
GPU_BENCHES = "RRZE-HPC/gpu-benches 1038c5d"
GEMM = f"{AIC}: tile model of 35,742 cuBLAS shapes (6 % off up to 128 rows, 9 % above)"
DECODE = f"{AIC}: waves and bytes of SGLang's FlashAttention-3 decode rows (8.5 % off)"
PREFILL = (
    f"{AIC}: FlashAttention-3, 32 heads of 128: 98 to 664 TFLOP/s for prompts of 512 to "
    "16,384 tokens, which these four constants give within 5 %"
)
SMALL = f"{GPU_BENCHES} gpu-small-kernels: 10,000 elementwise kernels in a CUDA graph (2.9 % off)"
COPY = f"{AIC} and {GPU_BENCHES}: kernels that read and write reach 0.75 to 0.86 of peak"
L2_KERNELS = f"{AIC}: FlashAttention-3 decode of 32 MiB of KV in L2 reads at 5.9 TB/s"
# Published: 1.13 of peak / (1 + 0.39 * 64 * (1 / rows + 1 / columns of the tile)).
GEMM_128X256 = f"{GEMM}, at a tile of 128 x 256"
GEMM_64X64 = f"{GEMM}: the loads of a tile of 64 x 64 then take as long as that tile"
NO_SUCH_TERM = "the published model has no such term"


@dataclass(frozen=True, slots=True)
class Published:
    """A published number; `unit` says of what it is a share, or that it is absolute."""

    value: float
    unit: str
    source: str

    def on(self, gpu: GpuSpec) -> Constant:
        """Return the constant that it is on a GPU."""
        shares = {"of HBM rate": gpu.hbm_bytes_per_s, "of L2 rate": gpu.l2_bytes_per_s}
        absolute = self.unit not in shares
        return Constant(
            value=self.value if absolute else self.value * shares[self.unit],
            standard_error=0.0,
            unit=self.unit if absolute else "bytes/s",
            source=self.source if absolute else f"{self.value:g} {self.unit}: {self.source}",
        )


class Given(Protocol):
    """A constant that follows from a GPU's datasheet."""

    def on(self, gpu: GpuSpec) -> Constant:
        """Return the constant that it is on a GPU."""
        ...


@dataclass(frozen=True, slots=True)
class PerSm:
    """Seconds for which an SM's share of a rate moves so many bytes: one block walks a row of them."""

    num_bytes: int
    in_words: str
    rate: Published

    def on(self, gpu: GpuSpec) -> Constant:
        """Return the constant that it is on a GPU."""
        rate = self.rate.on(gpu)
        return Constant(
            value=self.num_bytes * gpu.num_sms / rate.value,
            standard_error=0.0,
            unit="s",
            source=f"derived: {self.in_words} bytes at one SM's share of {rate.source}",
        )


# 5.9 TB/s of the 10.1 that 80 slices deliver; an H200 reaches 6.8 of 12.2, the same share.
L2_RATE = Published(0.58, "of L2 rate", L2_KERNELS)
ELEMENTWISE = {
    "launch_s": Published(1.23e-6, "s", SMALL),
    "hbm_bytes_per_s": Published(0.80, "of HBM rate", COPY),
    "l2_bytes_per_s": L2_RATE,
}
PROMPT = {
    "launch_s": Published(11.7e-6, "s", PREFILL),
    "efficiency": Published(0.704, "of peak", PREFILL),
    "block_s": Published(5.9e-6, "s", PREFILL),
    "tail": Published(0.0, "tiles", PREFILL),
}
ONE_OF_TWO = "none published: two blocks on an SM are taken to share it"
CHUNK = PROMPT | {
    "solo": Published(0.5, "1", ONE_OF_TWO),
    "split_efficiency": Published(1.0, "1", "none published"),
    "split_s": Published(0.0, "s", "none published"),
}
MATMUL = {
    "launch_s": Published(2.28e-6, "s", GEMM),
    "hbm_bytes_per_s": Published(0.846, "of HBM rate", GEMM),
    "l2_bytes_per_s": L2_RATE,
    "efficiency": Published(0.874, "of peak", GEMM_128X256),
    "sm_bytes_per_s": Published(149e9, "bytes/s per SM", GEMM_64X64),
    "prologue_s": Published(0.51e-6, "s", GEMM),
    "epilogue_bytes_per_s": Published(math.inf, "bytes/s per SM", NO_SUCH_TERM),
    "miss_s": Published(0.0, "s", NO_SUCH_TERM),
    "split_s": Published(2.26e-6, "s", GEMM),
    "reduction_bytes_per_s": Published(math.inf, "bytes/s", NO_SUCH_TERM),
    "power": Published(3.46, "1", GEMM),
}
SKINNY = {
    name: MATMUL[name]
    for name in (
        "launch_s",
        "hbm_bytes_per_s",
        "l2_bytes_per_s",
        "miss_s",
        "split_s",
        "power",
    )
} | {"step_s": Published(0.0, "s", NO_SUCH_TERM)}
DECODE_ATTENTION = {
    "launch_s": Published(8.8e-6, "s", f"{DECODE}: 6.9 us and one wave of 1.9 us"),
    "hbm_bytes_per_s": Published(0.88, "of HBM rate", DECODE),
    "l2_bytes_per_s": Published(0.424, "of L2 rate", f"{DECODE}: 4.3 TB/s"),
    "tile_s": Published(0.0, "s", NO_SUCH_TERM),
    "miss_s": Published(0.0, "s", NO_SUCH_TERM),
    "split_s": Published(0.0, "s", NO_SUCH_TERM),
}
READ_RATE = Published(
    0.92, "of HBM rate", f"{AIC}: weights of over 512 MB stream at 0.89 to 0.92 of peak"
)
FLASH_3 = ("FlashAttention-3",)
SAMPLE = {"launch_s": ELEMENTWISE["launch_s"], "seconds_per_logit": PerSm(2, "two", READ_RATE)}
