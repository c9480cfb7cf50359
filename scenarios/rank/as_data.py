"""A ranking as data: stable keys, SI units in their names."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from layerwise.scenarios.predict.beliefs import provenance_of, unfitted_as_data
from layerwise.scenarios.rank.asked import Candidate
from layerwise.scenarios.rank.flips import Flip
from layerwise.scenarios.rank.ranking import Ranking, widths_of_ratio
from layerwise.scenarios.rank.words import (
    flip_sentence,
    leeway_sentence,
    short_reason,
    unfitted_sentences,
    unvalidated_sentence,
    verdict,
)


def ranking_as_data(ranking: Ranking) -> dict[str, Any]:
    """Everything that a ranking says."""
    asked, tied = ranking.asked, ranking.tied
    winner, rival = ranking.winner, ranking.rival
    widths = widths_of_ratio(winner, rival) if winner and rival else None
    return {
        "model": asdict(asked.model),
        "cluster": asdict(asked.cluster),
        "workload": asdict(asked.workload),
        "run": asdict(asked.run),
        "belief": asked.belief,
        "provenance": provenance_of(asked.profile),
        "tpot_below_s": ranking.tpot_below_s,
        "winner": _optional(winner),
        "rival": _optional(rival),
        "lead": winner.tokens_per_s / rival.tokens_per_s - 1 if winner and rival else None,
        "lead_half_width_calibrated": widths[0] if widths else None,
        "lead_half_width_unvalidated": widths[1] if widths else None,
        "tied": [each.layout.name for each in tied],
        "verdict": verdict(ranking),
        "what_flips_it": flip_sentence(ranking),
        "what_the_bar_leaves_room_for": leeway_sentence(ranking),
        "what_is_not_validated": unvalidated_sentence(ranking),
        "what_is_unfitted": list(unfitted_sentences(ranking)),
        "flips": [_flip_as_data(flip) for flip in ranking.flips],
        "candidates": [
            candidate_as_data(each)
            | {"meets": each.meets(ranking.tpot_below_s), "tied_with_winner": each in tied}
            for each in ranking.candidates
        ],
        "pareto_front": [candidate_as_data(each) for each in ranking.front],
        "smaller_batch": _optional(ranking.needed),
        "remedies": [asdict(remedy) for remedy in ranking.remedies],
        "fits_on": [asdict(room) | {"layout": room.layout.name} for room in ranking.rooms],
        "larger_batch": _optional(ranking.leeway.larger),
        "fewer_gpus": _optional(ranking.leeway.fewer),
        "left_out": [asdict(each) for each in ranking.refused],
    }


def candidate_as_data(each: Candidate) -> dict[str, Any]:
    """One row."""
    bottleneck, share = each.bottleneck
    interval = each.interval
    return {
        "placement": each.layout.name,
        "strategy": each.layout.spec.strategy,
        "tensor_parallel": each.layout.tensor_parallel,
        "pipeline_parallel": each.layout.pipeline_parallel,
        "data_parallel": each.layout.data_parallel,
        "all_reduce": each.layout.all_reduce if each.layout.tensor_parallel > 1 else None,
        "batch_size": each.batch_size,
        "num_microbatches": each.num_microbatches,
        "fits": each.fits,
        "does_not_fit": "" if each.fits else short_reason(each.memory),
        "memory": asdict(each.memory) | {"total_bytes": each.memory.total_bytes},
        "tokens_per_s": each.tokens_per_s,
        "tokens_per_s_interval": asdict(interval) if interval else None,
        "tokens_per_s_per_gpu": each.tokens_per_s_per_gpu,
        "tpot_s": each.tpot_s,
        "ttft_s": each.ttft_s,
        "bottleneck": bottleneck,
        "bottleneck_share": share,
        "bound_share": dict(each.share),
        "bubble_share": each.bubble,
        "num_extrapolated_ops": each.num_extrapolated_ops,
        "is_steady": each.is_steady,
        "unvalidated": [asdict(part) for part in each.unvalidated],
        "unfitted": unfitted_as_data(each.unfitted),
    }


def _optional(each: Candidate | None) -> dict[str, Any] | None:
    return candidate_as_data(each) if each else None


def _flip_as_data(flip: Flip) -> dict[str, Any]:
    return {
        "name": flip.knob.name,
        "key": flip.knob.key,
        "value": flip.value,
        "searched_from_factor": flip.knob.low,
        "searched_to_factor": flip.knob.high,
        "flips_below_factor": flip.below,
        "flips_above_factor": flip.above,
        "log_lead_at_half": flip.lead_at_half,
        "log_lead_at_double": flip.lead_at_double,
        "log_lead_switched": flip.lead_switched,
    }
