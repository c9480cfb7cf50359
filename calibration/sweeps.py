"""The sweep: which ops, at which shapes, are measured to fit a profile. Each point is a program.

`sweep` is what the shipped profile was fitted to; `supplement` adds points where its fit was weak.
Both are for fitting: `unseen` has the points that no fit may see. Matmuls of the paper's own layer,
whole or split eight ways, and its context are left out on purpose: they belong to the validation
runs. (Its gated activation is in.)

Points are short bursts in random order, so that the power they draw is a mixture's, as in a stage.
A large matmul repeated alone for a quarter of a second meets the power cap harder than any layer
does and runs 13 % slower: fitted that way, prefill stages came out 7 to 20 % too slow; fitted to
bursts, within 5 %.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from layerwise.calibration.points import (
    COLD_BYTES,
    MAX_REPEATS,
    SweepPoint,
    activation_point,
    attention,
    attention_point,
    embed_point,
    matmul_point,
    norm_point,
    point,
    repeated,
    residual_point,
    rotary_point,
    sample_point,
)
from layerwise.sim.cost.kinds import kind_of
from layerwise.sim.plan import ops
from layerwise.sim.plan.compile import KernelChoice
from layerwise.sim.plan.ops import AttentionKernel, Buffer, suits_skinny
from layerwise.sim.plan.program import buffers_of

HELD_OUT_MATMULS = frozenset(
    {
        (12288, 4096),
        (4096, 4096),
        (32768, 4096),
        (4096, 16384),
        (1536, 4096),
        (4096, 512),
        (4096, 2048),
    }
)
HELD_OUT_CONTEXT = 10_000
# What certainly stays in the L2 between two uses.
WARM_BYTES = 40 * 2**20
WARM_KV_BYTES = 32 * 2**20


def sweep(kernels: KernelChoice, seed: int = 1) -> list[SweepPoint]:
    """All points, the order shuffled so that drift of clocks does not look like physics."""
    points = [
        *_matmul_points(),
        *_decode_points(kernels.decode_attention),
        *_prefill_points(kernels.prefill_attention),
        *_chunk_points(kernels.chunked_prefill_attention),
        *_pointwise_points(),
        *_edge_points(),
        *_launch_points(),
    ]
    return shuffled(points, seed)


def supplement(kernels: KernelChoice, seed: int = 2) -> list[SweepPoint]:
    """More points to fit, none of which `sweep` has, aimed at what it tells least of.

    Warm matmuls of many rows, matmuls of hundreds of rows, decode attention over short contexts,
    chunks of several sequences, and pointwise ops of narrow models. `seed` shuffles.
    """
    points = [
        *_warm_matmuls(),
        *_middling_matmuls(),
        *_short_decodes(kernels.decode_attention),
        *_random_chunks(kernels.chunked_prefill_attention, 60),
        *_narrow_pointwise(),
    ]
    have = {point.name for point in sweep(kernels)}
    return shuffled((point for point in points if point.name not in have), seed)


def split_decodes(kernels: KernelChoice, seed: int = 6) -> list[SweepPoint]:
    """Decode attention in this project's own kernel, at the shapes that the sweep has for another.

    It alone takes a context that grows inside a graph.
    """
    del kernels
    return shuffled([*_decode_points("split_kv"), *_short_decodes("split_kv")], seed)


def flash_attention(kernels: KernelChoice, seed: int = 10) -> list[SweepPoint]:
    """Attention in torch's FLASH kernel, at the shapes that the sweep has for another.

    Decode, and whole prompts; later chunks of a prompt are in the sweep.
    """
    del kernels
    points = [*_decode_points("flash"), *_short_decodes("flash"), *_prefill_points("flash")]
    return shuffled(points, seed)


def flash_random(kernels: KernelChoice, seed: int = 12) -> list[SweepPoint]:
    """Random shapes of FLASH attention, which say how far a fit to the grid is off between its lines.

    Heads and lengths are drawn by a rule of their own: no multiples of a step, and groups that the
    points kept for scoring do not have.
    """
    del kernels
    rng = random.Random(seed)
    heads = ((32, 8), (24, 8), (48, 8), (16, 4), (12, 12), (36, 36), (8, 1))
    points: list[SweepPoint] = []
    while len(points) < 240:
        h, kv = rng.choice(heads)
        if len(points) < 150:
            sequences, context = log_uniform(rng, 1, 160), log_uniform(rng, 150, 20_000)
            if 512 * sequences * kv * context <= 4e9:
                points.append(attention_point(sequences, h, kv, 1, context, "flash"))
            continue
        sequences, length = rng.choice((1, 2, 3, 5)), log_uniform(rng, 200, 12_000)
        if sequences * h * length**2 <= 32 * 9000**2:
            points.append(attention_point(sequences, h, kv, length, length, "flash"))
    return shuffled(points, seed)


def skinny_matmuls(kernels: KernelChoice, seed: int = 8) -> list[SweepPoint]:
    """Matmuls of at most 16 rows in this project's own kernel: layers' shapes, and random ones."""
    del kernels
    rng = random.Random(9)
    shapes = _weight_shapes() + [
        (64 * round(2 ** rng.uniform(2.5, 9)), 128 * round(2 ** rng.uniform(2, 7.5)))
        for _ in range(60)
    ]
    shapes = [s for s in shapes if s not in HELD_OUT_MATMULS and suits_skinny(1, *s)]
    points = [
        matmul_point(rows, *shape, warm=warm, kernel="skinny")
        for shape in shapes
        for rows in (1, 2, 4, 8, 16)
        for warm in (False, True)
        if not warm or 2 * math.prod(shape) <= WARM_BYTES
    ]
    return shuffled(points, seed)


# Points of kernels beside the chosen ones, a list a task; a new kernel's are one more.
OTHER_KERNELS: dict[str, Callable[[KernelChoice], list[SweepPoint]]] = {
    "split-kv": split_decodes,
    "skinny": skinny_matmuls,
    "flash": flash_attention,
    "flash-random": flash_random,
}


def shuffled(points: Iterable[SweepPoint], seed: int) -> list[SweepPoint]:
    """Each name once, in a random order that the seed decides."""
    unique = list({point.name: point for point in points}.values())
    random.Random(seed).shuffle(unique)
    return unique


def _launch_points() -> Iterator[SweepPoint]:
    """One small op a varying number of times: the intercept is what a graph launch costs."""
    op = residual_point(8, 4096).op
    for repeats in (2, 4, 8, 16, 32, 64, 128):
        yield repeated("graph_launch", f"graph_launch/r{repeats}/warm", op, repeats, rotates=False)


def _matmul_points() -> Iterator[SweepPoint]:
    few = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128)
    many = (160, 192, 256, 384, 512, 1024, 2048, 4096, 8192)
    for (columns, inner), rows in itertools.product(_weight_shapes(), (*few, *many)):
        if 2 * rows * columns * inner <= 9e12:
            yield matmul_point(rows, columns, inner)
    for columns, inner in _weight_shapes():
        if columns * inner * 2 <= WARM_BYTES:
            for rows in (1, 8, 32, 128):
                yield matmul_point(rows, columns, inner, warm=True)
    for columns, inner in (
        (10240, 5120),
        (40960, 5120),
        (5120, 20480),
        (9216, 3072),
        (24576, 3072),
    ):
        for rows in (6000, 9000, 12000):
            yield matmul_point(rows, columns, inner)
    yield from _random_matmuls(250)


def _weight_shapes() -> list[tuple[int, int]]:
    """(columns, inner) of Llama-like layers of several widths, whole and split over ranks."""
    shapes: set[tuple[int, int]] = set()
    for hidden, shards in itertools.product((1024, 2048, 3072, 4096, 5120, 8192), (1, 2, 4, 8)):
        if hidden // shards < 256 or (hidden == 3072 and shards > 2):
            continue
        wide = 4 * hidden // shards
        shapes |= {(3 * hidden // shards, hidden), (hidden, hidden // shards)}
        shapes |= {(2 * wide, hidden), (hidden, wide)}
    return sorted(shapes - HELD_OUT_MATMULS)


def _random_matmuls(count: int) -> Iterator[SweepPoint]:
    rng = random.Random(7)
    made = 0
    while made < count:
        rows = round(2 ** rng.uniform(0, 13))
        columns, inner = (64 * round(2 ** rng.uniform(2.5, 8.5)) for _ in range(2))
        if (columns, inner) not in HELD_OUT_MATMULS and rows * columns * inner <= 3e12:
            made += 1
            yield matmul_point(rows, columns, inner)


def _decode_points(kernel: AttentionKernel) -> Iterator[SweepPoint]:
    contexts = (128, 384, 1024, 2048, 3000, 4096, 6000, 8192, 12_000, 16_384, 32_768)
    heads = ((32, 32), (16, 16), (8, 8), (4, 4), (32, 8), (8, 2))
    for (h, kv), sequences, context in itertools.product(
        heads, (1, 2, 4, 8, 16, 32, 64, 96, 128), contexts
    ):
        if 512 * sequences * kv * context <= 20e9:
            op = attention(sequences, h, kv, 1, context, kernel)
            label = f"s{sequences}.h{h}.kv{kv}.c{context}"
            yield point(kind_of(op).name, label, op, op.kv.num_bytes)
            if op.kv.num_bytes <= WARM_KV_BYTES:
                yield point(kind_of(op).name, label, op, op.kv.num_bytes, warm=True)


def _prefill_points(kernel: AttentionKernel) -> Iterator[SweepPoint]:
    lengths = (
        128,
        256,
        512,
        1024,
        1536,
        2048,
        3072,
        4096,
        5120,
        6144,
        7168,
        8192,
        9216,
        11_264,
        12_288,
        16_384,
    )
    heads = ((40, 40), (32, 32), (24, 24), (16, 16), (8, 8), (4, 4), (32, 8))
    for (h, kv), sequences, length in itertools.product(heads, (1, 2, 4, 8), lengths):
        is_small = sequences * h * length**2 <= 32 * 12_288**2
        if is_small and (sequences == 1 or (h <= 32 and length in lengths[:8])):
            op = attention(sequences, h, kv, length, length, kernel)
            label = f"s{sequences}.h{h}.kv{kv}.q{length}.c{length}"
            yield point(kind_of(op).name, label, op, op.kv.num_bytes)


def _chunk_points(kernel: AttentionKernel) -> Iterator[SweepPoint]:
    for (h, kv), query, context in itertools.product(
        ((32, 32), (8, 8), (32, 8)), (512, 1024, 2048, 4096), (2048, 4096, 8192, 16_384)
    ):
        if query < context:
            op = attention(1, h, kv, query, context, kernel)
            label = f"s1.h{h}.kv{kv}.q{query}.c{context}"
            yield point("chunked_prefill_attention", label, op, op.kv.num_bytes)


def _pointwise_points() -> Iterator[SweepPoint]:
    tokens = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 12_288)
    for count, hidden in itertools.product(tokens, (1024, 2048, 3072, 5120, 8192)):
        yield norm_point(count, hidden, fused=True)
        yield norm_point(count, hidden, fused=False)
        yield residual_point(count, hidden)
        yield activation_point(count, 2 * hidden)
        yield rotary_point(count, hidden // 128, hidden // 128)
    for count in tokens:
        yield rotary_point(count, 32, 8)
        yield activation_point(count, 14_336)


def _edge_points() -> Iterator[SweepPoint]:
    for rows, vocab in itertools.product((1, 8, 32, 64, 128), (32_000, 64_000, 128_256)):
        yield sample_point(rows, vocab)
    for tokens, hidden in itertools.product((1, 8, 64, 128, 1024, 8192), (1024, 2048, 5120)):
        yield embed_point(tokens, hidden, 32_000, f"t{tokens}.h{hidden}")


def _warm_matmuls() -> Iterator[SweepPoint]:
    """Every second weight shape that stays in the L2, at numbers of rows that `sweep` lacks."""
    small = [shape for shape in _weight_shapes() if 2 * shape[0] * shape[1] <= WARM_BYTES]
    rows = (2, 4, 16, 24, 48, 64, 96, 192, 256, 512, 1024, 2048, 4096)
    for (columns, inner), count in itertools.product(small[::2], rows):
        yield matmul_point(count, columns, inner, warm=True)


def _middling_matmuls() -> Iterator[SweepPoint]:
    """Random cold matmuls between decode and prefill, then a few of prefill."""
    rng = random.Random(8)
    for lowest, highest, count in ((64, 2048, 250), (2048, 10_000, 60)):
        made = 0
        while made < count:
            rows = log_uniform(rng, lowest, highest)
            columns, inner = (log_uniform(rng, 512, 16_384, step=64) for _ in range(2))
            if (columns, inner) not in HELD_OUT_MATMULS:
                made += 1
                yield matmul_point(rows, columns, inner)


def log_uniform(rng: random.Random, lowest: int, highest: int, step: int = 1) -> int:
    """A multiple of `step` from `lowest` to `highest`, each octave as likely as another."""
    drawn = lowest * (highest / lowest) ** rng.random()
    return min(highest, max(lowest, step * round(drawn / step)))


def _short_decodes(kernel: AttentionKernel) -> Iterator[SweepPoint]:
    """Warm wherever the cache may stay in the L2; cold at every second combination."""
    heads = ((32, 32), (16, 16), (8, 8), (32, 8), (40, 40), (64, 8), (10, 10))
    contexts, sequences = (128, 192, 256, 512, 768, 1536, 2500), (1, 2, 4, 8, 16, 32, 64, 128)
    grid = itertools.product(enumerate(heads), enumerate(contexts), enumerate(sequences))
    for (a, (h, kv)), (b, context), (c, count) in grid:
        if (a + b + c) % 2 == 0:
            yield attention_point(count, h, kv, 1, context, kernel)
        warm = attention_point(count, h, kv, 1, context, kernel, warm=True)
        if isinstance(warm.op, ops.Attention) and warm.op.kv.num_bytes <= WARM_KV_BYTES:
            yield warm


def _random_chunks(kernel: AttentionKernel, count: int) -> Iterator[SweepPoint]:
    rng, made = random.Random(9), 0
    while made < count:
        h, kv = rng.choice(((32, 32), (16, 16), (8, 8), (32, 8), (12, 12), (40, 40)))
        sequences, query = rng.randint(1, 4), log_uniform(rng, 256, 4096, step=64)
        context = query + log_uniform(rng, 256, 20_480, step=128)
        if sequences * h * query * context <= 32 * 4096 * 12_288:
            made += 1
            yield attention_point(sequences, h, kv, query, context, kernel)


def _narrow_pointwise() -> Iterator[SweepPoint]:
    """Narrow models: warm, as in a layer; and rotating, where 128 repeats can leave the L2."""
    for tokens, hidden in itertools.product((1, 16, 128), (768, 1280, 1536, 1792)):
        for made in (*_wide_points(tokens, hidden), rotary_point(tokens, hidden // 128, 2)):
            yield replace(made, name=made.name.replace("/cold", "/warm"))
    for hidden in (1280, 1792):
        yield from map(_rotating, _wide_points(256, hidden))


def _wide_points(tokens: int, hidden: int) -> tuple[SweepPoint, ...]:
    return (
        norm_point(tokens, hidden, fused=True),
        norm_point(tokens, hidden, fused=False),
        residual_point(tokens, hidden),
        activation_point(tokens, 4 * hidden),
    )


def _rotating(made: SweepPoint) -> SweepPoint:
    """The same op with activations of its own in each repeat, so that none is still in the L2."""
    own = {
        name: replace(buffer, per_layer=True)
        for name in type(made.op).__dataclass_fields__
        if isinstance(buffer := getattr(made.op, name), Buffer) and buffer.kind == "activation"
    }
    op = replace(made.op, **own)
    rotating_bytes = sum(buffer.num_bytes for buffer in buffers_of(op) if buffer.per_layer)
    assert MAX_REPEATS * rotating_bytes >= COLD_BYTES, "the L2 must be left behind"
    kind, label, _ = made.name.split("/")
    return point(kind, f"{label}.rotating", op, rotating_bytes)
