"""Does another weight put the features that act further up? On the bundled subject, whose features were steered (its evaluation.json).

    python benchmarks/ranking_weights.py

For each scenario the acting score is computed from each way of weighing connections, on the 32 strongest targets of that way. Printed and
written to ``benchmarks/results`` is the normalised rank of the feature that acted most (0 is first, 0.5 is chance).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from audit.bench import connections_of, prepare
from audit.events import SilentObserver
from audit.ranking.roles import target_roles
from audit.ranking.score import acting_score
from audit.records import AuditConfig, Connection, FeatureId, TargetRole
from audit.statistics import normalised_rank
from audit.subject.bundled import folder

RESULT = Path(__file__).parent / "results" / "ranking_weights.json"
WAYS = {
    "twera": ("targets", "twera"),
    "through_attention": ("by_attention", "through_attention"),
    "scenario": ("by_scenario", "scenario_twera"),
}
"""Way of weighing → list of targets, and weight on each."""
TOKENS, ROLLOUTS = 12_000, 64
LAST = -2.0
"""Score of a candidate that has none: below any."""


def score(listed: Sequence[Connection], weight: str, roles: dict[FeatureId, TargetRole]) -> float:
    """Acting score on some targets."""
    known = [roles[each.target].role for each in listed]
    role = np.array([np.nan if each is None else each for each in known], dtype=np.float64)
    found = acting_score(np.array([getattr(each, weight) for each in listed], dtype=np.float64), role).value
    return LAST if found is None else found


def ranks(family: str, acted: dict[FeatureId, float]) -> dict[str, float | None]:
    """Normalised rank of what acts most, by way of weighing and by the candidates' own role."""
    config = AuditConfig(scenario=family, through_attention=True, attention_tokens=TOKENS, scenario_rollouts=ROLLOUTS)
    bench = prepare(config, SilentObserver())
    found = connections_of(bench, list(acted), config, SilentObserver()).features
    targets = {each.target for one in found for name, _ in WAYS.values() for each in getattr(one, name)}
    roles = target_roles([*sorted(targets), *acted], bench.acting, bench.discussing)
    best = max(acted, key=lambda feature: acted[feature])
    scores = {way: {one.source: score(getattr(one, name), weight, roles) for one in found} for way, (name, weight) in WAYS.items()}
    scores["own"] = {feature: roles[feature].role or 0.0 for feature in acted}
    return {way: place(by_feature, best) for way, by_feature in scores.items()}


def place(scores: dict[FeatureId, float], best: FeatureId) -> float | None:
    """Of the best, by falling score; equal scores keep their order."""
    order = sorted(scores, key=lambda feature: -scores[feature])
    return normalised_rank(order.index(best) + 1, len(order))


def main() -> None:
    """All scenarios, and means over them."""
    evaluation = json.loads((folder() / "evaluation.json").read_text(encoding="utf-8"))
    by_family = {}
    for family in evaluation["families"]:
        acted = {FeatureId.parse(each["name"]): each["acted"]["rate"] for each in family["candidates"]}
        by_family[family["family"]] = ranks(family["family"], acted)
        sys.stderr.write(f"{family['family']} {by_family[family['family']]}\n")
    means = {way: round(float(np.mean([each[way] or 0.0 for each in by_family.values()])), 3) for way in (*WAYS, "own")}
    found = {"tokens": TOKENS, "rollouts": ROLLOUTS, "mean_normalised_rank": means, "by_scenario": by_family}
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
