from __future__ import annotations

from dataclasses import replace

import pytest

from audit.errors import Interrupted
from audit.events import Event, SilentObserver, StepProgress
from audit.records import FeatureId, Ranking, Rollout, SweepPlan
from audit.scenario import Scenario
from audit.steering import sweep
from audit.steering.plan import plan_sweep
from audit.steering.strengths import Scales
from audit.steering.sweep import chunks, run
from audit.subject import Subject

UNRELATED = (FeatureId("clt", 0, 20), FeatureId("clt", 1, 21), FeatureId("clt", 0, 22))


@pytest.fixture
def plan(tiny_subject: Subject, ranking: Ranking, scenario: Scenario, measured: Scales) -> SweepPlan:
    return plan_sweep(
        tiny_subject,
        ranking,
        scenario,
        strengths=(0.5,),
        samples=3,
        seed=7,
        unrelated=UNRELATED,
        scales=measured,
        observer=SilentObserver(),
    )


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "CHUNK", 12)


def key(rollout: Rollout) -> tuple[str, int, int]:
    return rollout.cell, rollout.variant, rollout.sample


@pytest.mark.parametrize(("rows", "samples"), [(12, 3), (192, 3), (2, 3), (192, 1), (5, 11)])
def test_chunks_hold_every_rollout_once(
    plan: SweepPlan, scenario: Scenario, monkeypatch: pytest.MonkeyPatch, rows: int, samples: int
) -> None:
    monkeypatch.setattr(sweep, "CHUNK", rows)
    plan = replace(plan, samples_per_variant=samples)
    found = chunks(plan, scenario)
    assert [chunk.index for chunk in found] == list(range(len(found)))
    held = [(cell.label, chunk.variant, sample) for chunk in found for cell in chunk.cells for sample in chunk.samples]
    assert len(held) == len(set(held)) == plan.n_rollouts
    assert max(chunk.n_rollouts for chunk in found) <= max(rows, samples)
    assert all(cell.prompt is chunk.prompt for chunk in found for cell in chunk.cells)


@pytest.mark.usefixtures("_small_chunks")
def test_a_resumed_run_gives_the_same_rollouts(tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales) -> None:
    whole = dict(run(tiny_subject, plan, scenario, measured, observer=SilentObserver()))
    assert sum(len(rollouts) for rollouts in whole.values()) == plan.n_rollouts
    done = frozenset(index for index in whole if index % 3 != 1)
    rest = dict(run(tiny_subject, plan, scenario, measured, done=done, observer=SilentObserver()))
    assert set(rest) == set(whole) - done
    assert all(rest[index] == whole[index] for index in rest)


@pytest.mark.usefixtures("_small_chunks")
def test_sampling_does_not_depend_on_the_order_of_cells(
    tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales
) -> None:
    def tokens(order: SweepPlan) -> dict[tuple[str, int, int], tuple[int, ...]]:
        found = run(tiny_subject, order, scenario, measured, observer=SilentObserver())
        return {key(rollout): rollout.token_ids for _, rollouts in found for rollout in rollouts}

    assert tokens(plan) == tokens(replace(plan, cells=plan.cells[::-1]))


def test_rollouts_say_what_was_read_and_written(tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales) -> None:
    model = tiny_subject.model
    prompts = {cell.label: cell.prompt for cell in plan.cells}
    rollouts = [rollout for _, found in run(tiny_subject, plan, scenario, measured, observer=SilentObserver()) for rollout in found]
    assert len({key(rollout) for rollout in rollouts}) == plan.n_rollouts
    for rollout in rollouts:
        assert rollout.prompt_ids == model.encode_chat(scenario.variant(rollout.variant, prompts[rollout.cell]))
        assert rollout.text == model.decode(rollout.token_ids)
        assert 1 <= len(rollout.token_ids) <= plan.max_new_tokens
        assert rollout.finished == (rollout.token_ids[-1] == model.tokenizer.eos_token_id)


def test_the_zero_arm_equals_the_unsteered_one(tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales) -> None:
    found = {
        key(rollout): rollout.token_ids
        for _, rollouts in run(tiny_subject, plan, scenario, measured, observer=SilentObserver())
        for rollout in rollouts
    }
    for variant in plan.variants:
        for sample in range(plan.samples_per_variant):
            assert found["zero", variant, sample] == found["none", variant, sample]


class Watcher:
    """Notes progress; stops when so many rollouts are done."""

    def __init__(self, until: int) -> None:
        self.until = until
        self.done: list[int] = []

    def notify(self, event: Event) -> None:
        assert isinstance(event, StepProgress)
        self.done.append(event.done)

    def should_stop(self) -> bool:
        return bool(self.done) and self.done[-1] >= self.until


@pytest.mark.usefixtures("_small_chunks")
def test_an_interrupted_run_keeps_what_was_finished(tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales) -> None:
    watcher = Watcher(until=20)
    kept: dict[int, tuple[Rollout, ...]] = {}
    running = run(tiny_subject, plan, scenario, measured, observer=watcher)
    with pytest.raises(Interrupted):
        kept.update(running)
    assert plan.n_rollouts > watcher.done[-1] >= 20
    assert 0 < sum(len(rollouts) for rollouts in kept.values()) <= watcher.done[-1]
    rest = dict(run(tiny_subject, plan, scenario, measured, done=frozenset(kept), observer=SilentObserver()))
    assert sorted(kept.keys() | rest.keys()) == [chunk.index for chunk in chunks(plan, scenario)]
    assert not kept.keys() & rest.keys()


def test_progress_is_told_and_ends_with_everything(tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales) -> None:
    watcher = Watcher(until=10**9)
    done = frozenset({0})
    before = sum(chunk.n_rollouts for chunk in chunks(plan, scenario) if chunk.index in done)
    for _ in run(tiny_subject, plan, scenario, measured, done=done, observer=watcher):
        pass
    assert watcher.done[0] > before
    assert watcher.done == sorted(watcher.done)
    assert watcher.done[-1] == plan.n_rollouts
    assert len(watcher.done) > len(plan.variants)


def test_a_stop_text_ends_a_rollout_and_is_named(tiny_subject: Subject, plan: SweepPlan, scenario: Scenario, measured: Scales) -> None:
    free = [each for _, found in run(tiny_subject, plan, scenario, measured, observer=SilentObserver()) for each in found]
    words = [word for each in free for word in each.text.split()[1:3]]
    stop = max(set(words), key=words.count)
    stopping = scenario.model_copy(update={"stop": (stop,)})
    stopped = [each for _, found in run(tiny_subject, plan, stopping, measured, observer=SilentObserver()) for each in found]
    ended = 0
    for one, other in zip(sorted(free, key=key), sorted(stopped, key=key), strict=True):
        assert one.token_ids[: len(other.token_ids)] == other.token_ids
        assert stop not in tiny_subject.model.decode(other.token_ids[:-1])
        assert (stop in one.text) == bool(other.stopped_by)
        if other.stopped_by:
            ended += 1
            assert other.stopped_by == stop
            assert other.finished
    assert ended > 0
