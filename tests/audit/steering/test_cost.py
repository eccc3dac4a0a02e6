from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from audit.events import SilentObserver
from audit.records import FeatureId, PromptKind, Ranking, SweepPlan
from audit.scenario import Scenario
from audit.steering import cost, generation, sweep
from audit.steering.cost import estimate
from audit.steering.generation import Request
from audit.steering.plan import plan_sweep
from audit.steering.strengths import Scales
from audit.subject import Subject

UNRELATED = (FeatureId("clt", 0, 20), FeatureId("clt", 1, 21), FeatureId("clt", 0, 22))


@pytest.fixture
def plan(tiny_subject: Subject, ranking: Ranking, scenario: Scenario, measured: Scales) -> SweepPlan:
    doses = {"strengths": (0.5,), "samples": 2, "seed": 0}
    return plan_sweep(tiny_subject, ranking, scenario, unrelated=UNRELATED, scales=measured, observer=SilentObserver(), **doses)  # type: ignore[arg-type]


def test_what_a_sweep_reads_is_counted(tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales) -> None:
    found = estimate(tiny_subject, plan, scenario, measured)
    whole = shared = 0.0
    for variant in plan.variants:
        for cell in plan.cells:
            n = len(tiny_subject.model.encode_chat(scenario.variant(variant, cell.prompt)))
            whole += n * plan.samples_per_variant
            if cell.treatment is not None:  # from the layer behind the first that it writes to
                shared += n * (2 - min(cell.treatment.layers)) / 3
        for kind in {cell.prompt for cell in plan.cells}:
            shared += len(tiny_subject.model.encode_chat(scenario.variant(variant, kind)))
    assert found.prompt_tokens_unshared == whole
    assert found.prompt_tokens == pytest.approx(shared, abs=1)
    assert found.n_configurations == len(plan.cells) * len(plan.variants)
    assert found.n_rollouts == plan.n_rollouts
    assert found.generated_tokens == plan.n_rollouts * plan.max_new_tokens
    assert 0 < found.memory_bytes < found.free_bytes
    assert 0 < found.seconds < 60
    assert (found.engine, found.engine_reason) == ("layerwise", "")


def test_without_an_adapter_every_rollout_reads_its_prompt(
    tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "lacking", lambda model: "none was made")
    found = estimate(tiny_subject, plan, scenario, measured)
    assert found.prompt_tokens == found.prompt_tokens_unshared
    assert (found.engine, found.engine_reason) == ("transformers", "none was made")
    assert found.memory_bytes > 0


def test_seconds_are_those_of_a_rollout_times_all(
    tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "_timed", lambda *asked: 0.25)
    assert estimate(tiny_subject, plan, scenario, measured).seconds == 0.25 * plan.n_rollouts


def test_samples_that_are_kept_apart_are_of_one_configuration(
    tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "SAMPLES", 1)
    assert estimate(tiny_subject, plan, scenario, measured).n_configurations == len(plan.cells) * len(plan.variants)


def test_a_long_probe_is_not_run_to_its_end(
    tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    seconds = {1: 1.0, 2: 1.5}

    def slow(subject: Subject, request: Request, *rest: object, **options: object) -> Iterator[None]:
        asked.append(request.n_new)
        clock[0] += seconds[request.n_new]
        return iter(())

    clock = [0.0]
    monkeypatch.setattr(cost, "generate", slow)
    monkeypatch.setattr(cost, "PROBE_TOKENS", 2)
    monkeypatch.setattr(cost, "CHEAP_SECONDS", 3.0)
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    long = replace(plan, max_new_tokens=11)
    found = estimate(tiny_subject, long, scenario, measured)
    assert asked == [1, 1, 2]
    assert found.seconds == pytest.approx((1.0 + 10 * 0.5) * long.n_rollouts / n_probed(tiny_subject, long, scenario, measured))


def n_probed(subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales) -> int:
    """Rollouts of the probe: of the prompt with most of them, all, since they fit."""
    first = [chunk for chunk in sweep.chunks(plan, scenario) if chunk.variant == 0]
    return max(sum(chunk.n_rollouts for chunk in first if chunk.prompt is kind) for kind in PromptKind)
