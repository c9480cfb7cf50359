"""Whole models, and ranks of models, to measure sustained on one GPU: some to fit, others to score.

Dimensions are of models that people deploy; no model is in both. Batches and contexts of those that
score are drawn by a seed, after everything else was decided.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from layerwise.sim.plan.hardware import GPUS, dgx_cluster
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.scenario import PlacementSpec, RunSpec, Scenario
from layerwise.sim.plan.workload import Phase, Workload

SEED = 2015
BATCHES = (1, 1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (512, 768, 1024, 2048, 3000, 4096, 8192, 12_000, 16_384)
# Weights and KV of one GPU, with room for activations and graphs.
MAX_BYTES = 120 * 10**9
# Of a batch of prompts: a step of a second or two.
MAX_PROMPT_TOKENS = 32_768
REPEATS = 20


def _model(
    name: str,
    num_layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    head_dim: int = 128,
) -> ModelSpec:
    return ModelSpec(
        name=name,
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
    )


# Source: each model's config.json on the Hugging Face hub; biases and sliding windows are left out.
FITTED = {
    "1.1b": _model("1.1b", 22, 2048, 5632, 32, 4, 32_000, 64),
    "1.5b": _model("1.5b", 28, 1536, 8960, 12, 2, 151_936),
    "7b": _model("7b", 32, 4096, 14_336, 32, 8, 32_000),
    "9b": _model("9b", 48, 4096, 11_008, 32, 4, 64_000),
    "13b": _model("13b", 40, 5120, 13_824, 40, 40, 32_000),
}
SCORED = {
    "1b": _model("1b", 16, 2048, 8192, 32, 8, 128_256, 64),
    "3b": _model("3b", 28, 3072, 8192, 24, 8, 128_256),
    "7.6b": _model("7.6b", 28, 3584, 18_944, 28, 4, 152_064),
    "8b": _model("8b", 32, 4096, 14_336, 32, 8, 128_256),
    "14b": _model("14b", 48, 5120, 13_824, 40, 8, 152_064),
    "20b": _model("20b", 48, 6144, 16_384, 48, 8, 92_544),
    "24b": _model("24b", 40, 5120, 32_768, 32, 8, 131_072),
    "32b": _model("32b", 64, 5120, 27_648, 40, 8, 152_064),
    "70b": _model("70b", 80, 8192, 28_672, 64, 8, 128_256),
}
# (model, tensor parallel degree): what one GPU holds of it.
DECODING = (
    ("1b", 1),
    ("1b", 1),
    ("3b", 1),
    ("3b", 1),
    ("7.6b", 1),
    ("8b", 1),
    ("8b", 1),
    ("14b", 1),
    ("20b", 1),
    ("24b", 1),
    ("32b", 1),
    ("70b", 2),
    ("70b", 4),
    ("70b", 8),
)
PREFILLING = (("1b", 1), ("3b", 1), ("8b", 1), ("14b", 1), ("32b", 1), ("70b", 4))


def fit_models(gpu: str) -> list[Scenario]:
    """Return decode steps of whole models that a fit may see."""
    work = (
        ("1.1b", 1, 512),
        ("1.1b", 32, 1024),
        ("1.5b", 1, 2048),
        ("1.5b", 64, 512),
        ("7b", 1, 600),
        ("7b", 16, 4096),
        ("7b", 128, 1024),
        ("9b", 2, 1024),
        ("9b", 256, 700),
        ("13b", 4, 1500),
    )
    return [_scenario(gpu, FITTED[name], 1, "decode", *sizes) for name, *sizes in work]


def validation_models(gpu: str) -> list[Scenario]:
    """Return the twenty that only score: fourteen that decode, six that prefill."""
    rng = random.Random(SEED)
    return list(_drawn(gpu, rng, "decode", DECODING)) + list(
        _drawn(gpu, rng, "prefill", PREFILLING)
    )


def _drawn(
    gpu: str, rng: random.Random, phase: Phase, models: Iterable[tuple[str, int]]
) -> Iterable[Scenario]:
    """Draw batch and context of each until one GPU holds it, and no two are alike."""
    taken = set[str]()
    for name, shards in models:
        while True:
            batch, context = rng.choice(BATCHES), rng.choice(CONTEXTS)
            one = _scenario(gpu, SCORED[name], shards, phase, batch, context)
            if one.name not in taken and _fits(one, shards):
                taken.add(one.name)
                yield one
                break


def _fits(scenario: Scenario, shards: int) -> bool:
    model, work = scenario.model, scenario.workload
    tokens = work.batch_size * work.context_tokens
    kv_bytes = tokens * model.kv_bytes_per_token_per_layer * model.num_layers
    held = (2 * model.parameters + kv_bytes) / shards
    return held <= MAX_BYTES and (work.phase == "decode" or tokens <= MAX_PROMPT_TOKENS)


def _scenario(
    gpu: str, model: ModelSpec, shards: int, phase: Phase, batch: int, context: int
) -> Scenario:
    alone = PlacementSpec(strategy="layer-wise", num_gpus=1)
    split = PlacementSpec(strategy="tensor-pipeline", tensor_parallel=shards)
    named = f"{model.name}.tp{shards}.b{batch}.c{context}.{phase}"
    run = RunSpec(num_steps=4, repeats=REPEATS, only_rank=0 if shards > 1 else -1)
    return Scenario(
        name=named,
        model=model,
        cluster=dgx_cluster(GPUS[gpu], shards),
        placement=split if shards > 1 else alone,
        workload=Workload(
            phase=phase, batch_size=batch, context_tokens=context, num_microbatches=1
        ),
        run=run,
    )
