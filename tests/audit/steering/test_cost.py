from __future__ import annotations

import pytest

from audit.events import SilentObserver
from audit.records import FeatureId, Ranking, SweepPlan
from audit.scenario import Scenario
from audit.steering import generation
from audit.steering.cost import estimate
from audit.steering.plan import plan_sweep
from audit.steering.strengths import Scales
from audit.subject import Subject

UNRELATED = (FeatureId("clt", 0, 20), FeatureId("clt", 1, 21), FeatureId("clt", 0, 22))


@pytest.fixture
def plan(tiny_subject: Subject, ranking: Ranking, scenario: Scenario, measured: Scales) -> SweepPlan:
    doses = {"strengths": (0.5,), "samples": 2, "seed": 0}
    return plan_sweep(tiny_subject, ranking, scenario, unrelated=UNRELATED, scales=measured, observer=SilentObserver(), **doses)  # type: ignore[arg-type]


def test_what_a_sweep_reads_is_counted(tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales) -> None:
    cost = estimate(tiny_subject, plan, scenario, measured)
    whole = shared = 0.0
    for variant in plan.variants:
        for cell in plan.cells:
            n = len(tiny_subject.model.encode_chat(scenario.variant(variant, cell.prompt)))
            whole += n * plan.samples_per_variant
            if cell.treatment is not None:  # from the layer behind the first that it writes to, or that layer's own output
                shared += n * (3 - min(cell.treatment.layers)) / 3
        for kind in {cell.prompt for cell in plan.cells}:
            shared += len(tiny_subject.model.encode_chat(scenario.variant(variant, kind)))
    assert cost.prompt_tokens_unshared == whole
    assert cost.prompt_tokens == pytest.approx(shared, abs=1)
    assert cost.n_configurations == len(plan.cells) * len(plan.variants)
    assert cost.n_rollouts == plan.n_rollouts
    assert cost.generated_tokens == plan.n_rollouts * plan.max_new_tokens
    assert 0 < cost.memory_bytes < cost.free_bytes
    assert 0 < cost.seconds < 60
    assert (cost.engine, cost.engine_reason) == ("layerwise", "")


def test_without_an_adapter_every_rollout_reads_its_prompt(
    tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "lacking", lambda model: "none was made")
    cost = estimate(tiny_subject, plan, scenario, measured)
    assert cost.prompt_tokens == cost.prompt_tokens_unshared
    assert (cost.engine, cost.engine_reason) == ("transformers", "none was made")
    assert cost.memory_bytes > 0
