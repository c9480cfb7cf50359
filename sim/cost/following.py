"""What each fitted constant is a rate or a time of: one table for every way a profile is moved."""

from __future__ import annotations

from typing import Literal

from layerwise.sim.plan.errors import require_listed

Follows = Literal["hbm rate", "l2 rate", "sm rate", "sm time", "nothing"]

FOLLOWS: dict[str, Follows] = {
    "hbm_bytes_per_s": "hbm rate",
    "read_hbm_bytes_per_s": "hbm rate",
    "l2_bytes_per_s": "l2 rate",
    "read_l2_bytes_per_s": "l2 rate",
    "reduction_bytes_per_s": "l2 rate",
    "sm_bytes_per_s": "sm rate",
    "epilogue_bytes_per_s": "sm rate",
    # Spent on SMs inside a kernel, see `layerwise.sim.cost.forms`.
    "prologue_s": "sm time",
    "split_s": "sm time",
    "tile_s": "sm time",
    "step_s": "sm time",
    "block_s": "sm time",
    "row_s": "sm time",
    "seconds_per_logit": "sm time",
    # Shares of a peak, exponents, and times that no clock of the GPU's SMs or memory drives.
    "efficiency": "nothing",
    "split_efficiency": "nothing",
    "power": "nothing",
    "tail": "nothing",
    "solo": "nothing",
    "launch_s": "nothing",
    "miss_s": "nothing",
    "read_miss_s": "nothing",
    "read_launch_s": "nothing",
    "graph_gap_s": "nothing",
    "graph_launch_s": "nothing",
    "eager_issue_s": "nothing",
    "interleaved_s": "nothing",
    "interleaved_code_s": "nothing",
    "interleaved_hbm_s": "nothing",
    "interleaved_full_hit": "nothing",
    "interleaved_no_hit": "nothing",
    "l2_full_hit": "nothing",
    "l2_no_hit": "nothing",
    "set_aside_hbm_slowdown": "nothing",
    "op_speed_beside_message": "nothing",
    "message_speed_beside_hbm": "nothing",
    "message_num_sms": "nothing",
}


def followed_by(constant: str) -> Follows:
    """Return what a constant of a profile moves with; raise UnknownKindError for one not listed."""
    return require_listed(FOLLOWS, constant, "following.FOLLOWS")
