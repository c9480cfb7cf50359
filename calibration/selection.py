"""Whole layers, and sizes of reads, to measure on one GPU: some to fit, others to score.

Layers never have the same width in both. A model of one layer touches its weights again in each
step, so they hit in the L2 as far as they fit (`warm`); as many layers as bring 300 MB of weights
push each other out (`cold`). Sequences and contexts are chosen so that weights alone, KV alone, or
both together, decide what stays.
"""

from __future__ import annotations

import math
from dataclasses import replace

from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import MODELS, ModelSpec
from layerwise.sim.plan.scenario import Launch, PlacementSpec, RunSpec, Scenario
from layerwise.sim.plan.workload import Phase, Workload

# What a fit of the L2's edge reads.
FIT_SIZES_BYTES = tuple(
    mib * 2**20
    for mib in (
        2,
        4,
        8,
        12,
        16,
        20,
        24,
        28,
        30,
        32,
        34,
        35,
        36,
        37,
        38,
        39,
        40,
        41,
        42,
        43,
        44,
        46,
        48,
        50,
        52,
        54,
        56,
        60,
        64,
        72,
        80,
        96,
        128,
        192,
        256,
        512,
        1024,
    )
)
# What scores that fit: none of its sizes, and finer where hits turn into misses.
SCORED_SIZES_BYTES = tuple(
    kib * 2**10
    for kib in (
        1024,
        3072,
        6144,
        14_336,
        22_528,
        26_624,
        33_792,
        36_352,
        37_376,
        39_424,
        41_472,
        42_496,
        43_520,
        44_544,
        45_568,
        46_592,
        48_128,
        50_176,
        52_224,
        54_272,
        59_392,
        68_608,
        112_640,
        163_840,
        393_216,
        786_432,
        2_097_152,
    )
)
COLD_BYTES = 300 * 10**6
HEAD_DIM = 128
DECODE_REPEATS, PREFILL_REPEATS = 30, 40
# A layer that lives in the L2 takes less than a host needs to launch the next graph.
WARM_STEPS_PER_GRAPH = 16
GROWING_STEPS, GROWING_REPEATS = 66, 3


def fit_layers() -> list[Scenario]:
    """Layers that a fit may use."""
    return [
        *both(decode(768, 1, 256)),
        *both(decode(1152, 8, 512)),
        decode(1152, 1, 3000, kv_heads=3),
        *both(decode(1408, 32, 200)),
        *both(decode(1792, 4, 1500)),
        *both(decode(2560, 16, 1000)),
        decode(2560, 64, 4096, kv_heads=5, intermediate=8960),
        decode(3584, 2, 6000),
        decode(3584, 128, 800, kv_heads=4, intermediate=12_544),
        decode(6144, 8, 300),
        prefill(1792, 1, 3072, chunk=1024),
        *_filling_the_l2(),
    ]


def _filling_the_l2() -> list[Scenario]:
    """Warm layers of 13 to 47 MB with their KV: where weights and kernels' code begin to leave.

    One comes cold as well, so that what is left of its kernels' own errors can be told apart.
    """
    return [
        decode(640, 1, 128),
        decode(640, 16, 128),
        *both(decode(896, 1, 128)),
        decode(896, 8, 256),
        decode(896, 4, 1500),
        decode(768, 16, 1024),
        *both(decode(1152, 1, 128, kv_heads=1, intermediate=2304)),
        decode(1152, 8, 300, kv_heads=3, intermediate=3456),
        decode(1408, 16, 128, kv_heads=1, intermediate=1408),
        decode(1408, 1, 200, kv_heads=1, intermediate=2816),
        decode(1408, 8, 400, kv_heads=1, intermediate=2816),
    ]


def seasoning_layers() -> list[Scenario]:
    """Layers that a process runs before what it measures counts: of several shapes, none kept."""
    return [
        decode(896, 8, 128),
        decode(640, 4, 400),
        decode(1408, 2, 100, kv_heads=1),
        decode(2560, 16, 300),
        decode(1152, 32, 128, kv_heads=3),
    ]


def validation_layers() -> list[Scenario]:
    """Layers that only score: by design, not a grid.

    Widths 1024, 1280 and 1536, whose weights fit in an H100's L2, just fit, and do not, meet each
    batch of 1, 8, 32 and each context of 128, 1024, 2500 once, warm and cold. Five warm ones come
    again with persisting windows over their weights, to be compared with themselves.
    """
    return [*_around_the_l2(), *_larger(), *_chunks(), *_with_windows()]


def _around_the_l2() -> list[Scenario]:
    return [
        *both(decode(1024, 1, 128)),
        *both(decode(1024, 8, 1024)),
        *both(decode(1024, 32, 2500, kv_heads=2)),
        *both(decode(1280, 1, 1024)),
        *both(decode(1280, 8, 2500, kv_heads=2)),
        *both(decode(1280, 32, 128, intermediate=4480)),
        *both(decode(1536, 1, 2500, kv_heads=3)),
        *both(decode(1536, 8, 128)),
        *both(decode(1536, 32, 1024, intermediate=5376)),
        # One long sequence against the weights: 10 MB of KV, 41 MB, and 34 MB in fewer heads.
        decode(1024, 1, 2500),
        decode(1024, 1, 10_000),
        decode(1024, 1, 32_768, kv_heads=2),
        cold(decode(1024, 128, 700)),
    ]


def _larger() -> list[Scenario]:
    return [
        decode(2048, 1, 128),
        cold(decode(2048, 32, 3500, kv_heads=4, intermediate=7168)),
        decode(4096, 8, 128),
        decode(4096, 32, 2048, kv_heads=8, intermediate=14_336),
        decode(4096, 1, 32_768),
        decode(5120, 8, 5500),
        decode(5120, 1, 1024, kv_heads=10),
        decode(8192, 1, 128, kv_heads=8, intermediate=28_672),
        decode(8192, 32, 512),
        decode(8192, 128, 20_000, kv_heads=8, intermediate=28_672),
    ]


def _chunks() -> list[Scenario]:
    return [
        prefill(1024, 1, 4096, chunk=1024),
        cold(prefill(2048, 2, 6144, chunk=2048, kv_heads=4)),
        prefill(4096, 1, 9000, chunk=3000, kv_heads=8),
        prefill(8192, 1, 5000, chunk=2500, kv_heads=8, intermediate=28_672),
    ]


def _with_windows() -> list[Scenario]:
    return [
        _named(replace(layer, run=replace(layer.run, persisting_weights=True)))
        for layer in (
            decode(1024, 1, 128),
            decode(1024, 1, 10_000),
            decode(1536, 8, 128),
            decode(2048, 1, 128),
            decode(4096, 8, 128),
        )
    ]


def engine_layers() -> list[Scenario]:
    """Layers that only score, in the kernels that the profile chooses and with contexts that grow.

    Other batches and contexts than `validation_layers`: from 1 to 128 sequences, 128 to 32,768
    tokens, warm and cold. The last ones let the context grow by a token a step, in one graph.
    """
    wide = {"kv_heads": 8, "intermediate": 28_672}
    return [
        decode(1024, 8, 128),
        *both(decode(1024, 2, 600)),
        decode(1024, 16, 300, kv_heads=2),
        decode(1024, 128, 128, kv_heads=2),
        *both(decode(1280, 8, 128)),
        decode(1280, 4, 1500, kv_heads=2),
        *both(decode(1536, 1, 128)),
        decode(1536, 16, 700, kv_heads=3),
        decode(2048, 8, 400),
        decode(2048, 8, 10_000, kv_heads=4),
        decode(2048, 128, 1024, kv_heads=4),
        decode(4096, 1, 128),
        decode(4096, 8, 1024, kv_heads=8),
        decode(4096, 16, 10_000, kv_heads=8),
        decode(4096, 128, 2500, kv_heads=8),
        decode(4096, 2, 32_768, kv_heads=8),
        decode(5120, 8, 128),
        decode(5120, 32, 4096, kv_heads=10),
        decode(8192, 8, 128, **wide),
        decode(8192, 4, 32_768, **wide),
        growing(1024, 8, 128),
        growing(2048, 1, 4000),
        growing(4096, 8, 1000, kv_heads=8),
        growing(4096, 32, 9000, kv_heads=8),
        growing(8192, 4, 2000, **wide),
    ]


def two_gpu_runs(gpu: str) -> list[Scenario]:
    """Both strategies over two GPUs, to score: never fitted.

    The paper's layer in models of 2 to 8 layers, and a layer that lives in the L2; one to sixteen
    microbatches; decode, prefill, and one eager run of each strategy.
    """
    paper, small = MODELS["paper-16"], _model(1024, 0, 0)
    layers, tensors = (
        PlacementSpec(strategy="layer-wise"),
        PlacementSpec(strategy="tensor-pipeline", tensor_parallel=2),
    )
    return [
        *(_pair(gpu, paper, 2, layers, 32, 5000, m) for m in (1, 2, 4, 8, 16)),
        *(_pair(gpu, paper, 2, tensors, 32, 5000, m) for m in (1, 4)),
        *(_pair(gpu, paper, 8, layers, 64, 1500, m) for m in (2, 8)),
        _pair(gpu, paper, 8, tensors, 64, 1500, 1),
        _pair(gpu, paper, 8, tensors, 8, 128, 1),
        *(_pair(gpu, small, 2, layers, 16, 250, m) for m in (2, 4)),
        _pair(gpu, small, 2, tensors, 16, 250, 1),
        _pair(gpu, small, 16, tensors, 4, 128, 1),
        *(_pair(gpu, paper, 4, place, 4, 4096, 4, phase="prefill") for place in (layers, tensors)),
        *(_pair(gpu, paper, 2, place, 8, 1000, 2, launch="eager") for place in (layers, tensors)),
        _over_peer_memory(_pair(gpu, paper, 2, tensors, 32, 5000, 1)),
        _over_peer_memory(_pair(gpu, small, 16, tensors, 4, 128, 1)),
    ]


def _pair(
    gpu: str,
    model: ModelSpec,
    num_layers: int,
    placement: PlacementSpec,
    batch: int,
    context: int,
    microbatches: int,
    *,
    phase: Phase = "decode",
    launch: Launch = "graph",
) -> Scenario:
    tensor = placement.tensor_parallel
    name = f"{f'tp{tensor}' if tensor > 1 else 'layers'}.{model.name}.l{num_layers}"
    name += f".b{batch}.c{context}.m{microbatches}.{phase}{'' if launch == 'graph' else '.eager'}"
    return Scenario(
        name=name,
        model=replace(model, num_layers=num_layers),
        cluster=dgx_cluster(GPUS[gpu], 2),
        placement=placement,
        workload=Workload(
            phase=phase, batch_size=batch, context_tokens=context, num_microbatches=microbatches
        ),
        run=RunSpec(
            launch=launch, repeats=DECODE_REPEATS if phase == "decode" else 10, regime="burst"
        ),
    )


def _over_peer_memory(pair: Scenario) -> Scenario:
    """The same with one-shot all-reduces."""
    kernels = KernelChoice(
        decode_attention="cudnn",
        prefill_attention="cudnn",
        chunked_prefill_attention="flash",
        all_reduce="one_shot",
        small_matmul="skinny",
    )
    return replace(pair, name=f"{pair.name}.one_shot", kernels=kernels)


def growing(hidden: int, batch: int, context: int, **shape: int) -> Scenario:
    """A decode step whose context grows by one token each time, in one graph that serves them all."""
    layer = decode(hidden, batch, context, **shape)
    run = replace(
        layer.run,
        steps_per_graph=1,
        context_growth_tokens=1,
        num_steps=GROWING_STEPS,
        repeats=GROWING_REPEATS,
    )
    return _named(replace(layer, run=run))


def decode(
    hidden: int, batch: int, context: int, *, kv_heads: int = 0, intermediate: int = 0
) -> Scenario:
    """A steady decode step of one layer in a graph. Heads have 128 dimensions.

    `kv_heads` 0 gives each head its own, `intermediate` 0 is 4 * hidden, as in the paper's layer.
    """
    workload = Workload(batch_size=batch, context_tokens=context, num_microbatches=1)
    layer = _scenario(hidden, kv_heads, intermediate, workload, DECODE_REPEATS)
    return replace(layer, run=replace(layer.run, steps_per_graph=WARM_STEPS_PER_GRAPH))


def prefill(
    hidden: int, batch: int, context: int, *, chunk: int, kv_heads: int = 0, intermediate: int = 0
) -> Scenario:
    """All chunks of a prompt through one layer, in one graph."""
    workload = Workload(
        phase="prefill",
        batch_size=batch,
        context_tokens=context,
        prefill_chunk_tokens=chunk,
        num_microbatches=1,
    )
    return _scenario(hidden, kv_heads, intermediate, workload, PREFILL_REPEATS)


def _scenario(
    hidden: int, kv_heads: int, intermediate: int, workload: Workload, repeats: int
) -> Scenario:
    return _named(
        Scenario(
            name="",
            model=_model(hidden, kv_heads, intermediate),
            cluster=dgx_cluster(GPUS["h100-sxm"], 1),
            placement=PlacementSpec(strategy="layer-wise", num_gpus=1),
            workload=workload,
            run=RunSpec(launch="graph", num_steps=4, repeats=repeats, regime="burst"),
        )
    )


def _model(hidden: int, kv_heads: int, intermediate: int) -> ModelSpec:
    heads = hidden // HEAD_DIM
    return ModelSpec(
        name=f"h{hidden}",
        num_layers=1,
        hidden_size=hidden,
        intermediate_size=intermediate or 4 * hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        head_dim=HEAD_DIM,
    )


def cold(warm: Scenario) -> Scenario:
    """The same with as many layers as bring at least 300 MB of weights."""
    layers = math.ceil(COLD_BYTES / warm.model.layer_weight_bytes)
    run = replace(warm.run, steps_per_graph=1)
    return _named(replace(warm, model=replace(warm.model, num_layers=layers), run=run))


def both(warm: Scenario) -> tuple[Scenario, Scenario]:
    """One layer, and as many as push each other out of the L2."""
    return warm, cold(warm)


def _named(scenario: Scenario) -> Scenario:
    """`h1024.kv8.l1.b8.c128.decode`, with what is not the rule.

    `.i<size>`: the MLP is not 4 * hidden wide. `.q<size>`: tokens of a chunk. `.persist`: windows
    keep the weights. `.growing`: the context grows from step to step.
    """
    model, workload = scenario.model, scenario.workload
    parts = [
        f"h{model.hidden_size}",
        f"kv{model.num_key_value_heads}",
        f"l{model.num_layers}",
        f"b{workload.batch_size}",
        f"c{workload.context_tokens}",
    ]
    if model.intermediate_size != 4 * model.hidden_size:
        parts.append(f"i{model.intermediate_size}")
    if workload.phase == "prefill":
        parts.append(f"q{workload.prefill_chunk_tokens}")
    parts.append(workload.phase)
    if scenario.run.context_growth_tokens:
        parts.append("growing")
    if scenario.run.persisting_weights:
        parts.append("persist")
    return replace(scenario, name=".".join(parts))
