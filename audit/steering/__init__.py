"""Ranking → Rollouts: the sweep that puts the prediction to the test, with its controls."""

from audit.steering.controls import choose_unrelated
from audit.steering.cost import estimate
from audit.steering.plan import DEFAULT_STRENGTHS, plan_sweep
from audit.steering.preflight import check as check_preflight
from audit.steering.strengths import Scales, direction_of, scales, to_unit, written_norm
from audit.steering.sweep import Chunk, chunks, run
from audit.steering.treatments import additive, digest, multiplicative, parse, render

__all__ = [
    "DEFAULT_STRENGTHS",
    "Chunk",
    "Scales",
    "additive",
    "check_preflight",
    "choose_unrelated",
    "chunks",
    "digest",
    "direction_of",
    "estimate",
    "multiplicative",
    "parse",
    "plan_sweep",
    "render",
    "run",
    "scales",
    "to_unit",
    "written_norm",
]
