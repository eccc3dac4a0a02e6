"""Unsteered rollouts are those of a sweep's unsteered arm, spread over the variants."""

from __future__ import annotations

import numpy as np
import pytest

from audit.errors import Interrupted
from audit.events import Event, SilentObserver, StepProgress
from audit.scenario import Scenario
from audit.steering.generation import Request, generate
from audit.steering.sampling import uniforms
from audit.steering.strengths import Scales
from audit.steering.unsteered import unsteered
from audit.subject import Subject


@pytest.mark.parametrize(("n_rollouts", "samples"), [(1, [0]), (2, [0, 0]), (5, [0, 1, 0, 1, 0]), (6, [0, 1] * 3)])
def test_rollouts_are_spread_over_the_variants(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, n_rollouts: int, samples: list[int]
) -> None:
    found = unsteered(tiny_subject, scenario, measured, n_rollouts=n_rollouts, seed=3, observer=SilentObserver())
    assert [each.sample for each in found] == samples
    prompts = [tiny_subject.model.encode_chat(scenario.variant(variant)) for variant in range(min(n_rollouts, 3))]
    assert list(dict.fromkeys(each.prompt_ids for each in found)) == prompts


def test_they_are_the_sweeps_own(tiny_subject: Subject, scenario: Scenario, measured: Scales) -> None:
    found = unsteered(tiny_subject, scenario, measured, n_rollouts=6, seed=3, observer=SilentObserver())
    prompt_ids = tiny_subject.model.encode_chat(scenario.variant(2))
    drawn = np.stack([uniforms(3, 2, sample, scenario.max_new_tokens) for sample in range(2)])
    request = Request(prompt_ids=prompt_ids, treatments=(None,), uniforms=drawn, temperature=1.0)
    expected = {each.sample: each.token_ids for each in generate(tiny_subject, request, measured, observer=SilentObserver())}
    assert [each.token_ids for each in found[4:]] == [expected[0], expected[1]]


def test_another_seed_writes_something_else(tiny_subject: Subject, scenario: Scenario, measured: Scales) -> None:
    one, other = (unsteered(tiny_subject, scenario, measured, n_rollouts=3, seed=seed, observer=SilentObserver()) for seed in (0, 1))
    assert [each.prompt_ids for each in one] == [each.prompt_ids for each in other]
    assert one != other


def test_it_can_be_stopped_and_tells_how_far_it_is(tiny_subject: Subject, scenario: Scenario, measured: Scales) -> None:
    class Stops(SilentObserver):
        def __init__(self) -> None:
            self.seen: list[Event] = []

        def notify(self, event: Event) -> None:
            self.seen.append(event)

        def should_stop(self) -> bool:
            return len(self.seen) == 2

    observer = Stops()
    with pytest.raises(Interrupted):
        unsteered(tiny_subject, scenario, measured, n_rollouts=6, seed=0, observer=observer)
    assert observer.seen == [StepProgress("scenario", done, 6, "unsteered rollouts") for done in (0, 2)]


def test_a_stop_text_ends_them_as_it_ends_a_sweeps(tiny_subject: Subject, scenario: Scenario, measured: Scales) -> None:
    model = tiny_subject.model
    free = unsteered(tiny_subject, scenario, measured, n_rollouts=6, seed=3, observer=SilentObserver())
    stop = next(word for each in free for word in model.decode(each.token_ids).split()[:2] if word.isalpha())
    stopping = scenario.model_copy(update={"stop": (stop,)})
    stopped = unsteered(tiny_subject, stopping, measured, n_rollouts=6, seed=3, observer=SilentObserver())
    assert sum(len(each.token_ids) for each in stopped) < sum(len(each.token_ids) for each in free)
    for one, other in zip(free, stopped, strict=True):
        assert one.token_ids[: len(other.token_ids)] == other.token_ids
        assert stop not in model.decode(other.token_ids[:-1])
