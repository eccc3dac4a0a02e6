from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from audit.errors import Interrupted, SubjectError
from audit.events import Event, SilentObserver
from audit.records import FeatureId, Positions, Treatment
from audit.steering import generation
from audit.steering.generation import Batch, choose, generate, uniforms
from audit.steering.strengths import Scales, direction_of
from audit.steering.treatments import additive, multiplicative
from audit.subject import Subject

GREEDY = np.zeros((1, 64))


def treatments(subject: Subject, firing: FeatureId) -> tuple[Treatment | None, ...]:
    dictionary = subject.dictionary
    return (
        None,
        additive(dictionary, str(firing), 0.5),
        additive(dictionary, "clt/1/7", -0.8, positions=Positions.PROMPT),
        additive(dictionary, "clt/2/7", 1, positions=Positions.GENERATED),
        additive(dictionary, "random/4@clt/0/9", 0.7),
        multiplicative(dictionary, str(firing), -1),
        multiplicative(dictionary, "clt/0/5", 4, layers=(1, 2)),
    )


def sample(
    subject: Subject,
    measured: Scales,
    prompt_ids: tuple[int, ...],
    cells: tuple[Treatment | None, ...],
    drawn: NDArray[np.float64] = GREEDY,
    temperature: float = 0,
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    batch = Batch(prompt_ids=prompt_ids, treatments=cells, uniforms=drawn, temperature=temperature)
    return generate(subject, batch, measured, observer=SilentObserver())


@pytest.fixture
def _endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "end_ids", lambda model: ())


@pytest.mark.usefixtures("_endless")
def test_a_mixed_batch_gives_the_tokens_of_each_treatment_alone(
    tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...], firing: FeatureId
) -> None:
    cells = treatments(tiny_subject, firing)
    together = sample(tiny_subject, measured, prompt_ids, cells)
    assert together == tuple(sample(tiny_subject, measured, prompt_ids, (cell,))[0] for cell in cells)
    assert all(len(tokens) == 64 for (tokens,) in together)
    assert len(set(together)) == len(cells)  # every treatment does something


@pytest.mark.usefixtures("_endless")
@pytest.mark.parametrize("positions", Positions)
def test_tokens_are_those_of_transformers_with_a_plain_hook(
    tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...], positions: Positions
) -> None:
    model = tiny_subject.model
    treatment = additive(tiny_subject.dictionary, "clt/0/7", 0.6, positions=positions)
    handles = []
    for layer, vector in direction_of(tiny_subject.dictionary, treatment, measured).items():

        def add(module: object, args: object, output: Tensor, vector: Tensor = vector) -> Tensor:
            changed = output.clone()
            if output.shape[1] > 1 and positions is not Positions.GENERATED:
                changed[:, 1:] += vector
            elif output.shape[1] == 1 and positions is not Positions.PROMPT:
                changed += vector
            return changed

        handles.append(model.layer(layer).get_submodule("mlp").register_forward_hook(add))
    ids = torch.tensor([list(prompt_ids)])
    no_end = 10**6  # so that it goes on for 64 tokens without being forbidden any
    options = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": no_end, "pad_token_id": 0}
    expected = model.hf.generate(ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    got = sample(tiny_subject, measured, prompt_ids, (treatment, None))
    assert got[0][0] == tuple(expected[0, len(prompt_ids) :].tolist())
    assert got[0] != got[1]


def test_rows_that_end_leave_the_others_as_they_are(
    tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...], firing: FeatureId, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = treatments(tiny_subject, firing)
    drawn = np.stack([uniforms(0, 0, k, 24) for k in range(4)])
    monkeypatch.setattr(generation, "end_ids", lambda model: ())
    endless = sample(tiny_subject, measured, prompt_ids, cells, drawn, 1.0)
    ends = set(range(0, 480, 10))
    monkeypatch.setattr(generation, "end_ids", lambda model: tuple(ends))
    ended = sample(tiny_subject, measured, prompt_ids, cells, drawn, 1.0)
    lengths = set()
    for tokens, whole in zip(sum(ended, ()), sum(endless, ()), strict=True):
        stop = next((place + 1 for place, token in enumerate(whole) if token in ends), len(whole))
        assert tokens == whole[:stop]
        lengths.add(stop)
    assert len(lengths) > 4


@pytest.mark.usefixtures("_endless")
def test_cells_share_their_random_numbers(tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...]) -> None:
    drawn = np.stack([uniforms(0, 0, k, 32) for k in range(3)])
    nothing = additive(tiny_subject.dictionary, "clt/0/7", 0)
    something = additive(tiny_subject.dictionary, "clt/0/7", 1)
    plain, zero, other = sample(tiny_subject, measured, prompt_ids, (None, nothing, something), drawn, 1.0)
    assert plain == zero
    assert plain != other
    assert len(set(plain)) == 3


def test_uniforms_depend_on_seed_variant_and_sample_alone() -> None:
    assert np.array_equal(uniforms(1, 2, 3, 10), uniforms(1, 2, 3, 40)[:10])
    keys = [(seed, variant, sample) for seed in range(3) for variant in range(3) for sample in range(3)]
    assert len({float(uniforms(*key, 1)[0]) for key in keys}) == len(keys)
    many = np.concatenate([uniforms(0, 0, sample, 100) for sample in range(200)])
    assert 0 <= many.min() < many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.01)


@given(
    st.lists(st.floats(-30, 30) | st.just(-np.inf), min_size=2, max_size=12).filter(lambda found: max(found) > -np.inf),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.2, 3),
)
def test_choose_inverts_the_cumulated_distribution(logits: list[float], uniform: float, temperature: float) -> None:
    scaled = torch.tensor(logits, dtype=torch.float32).double() / temperature
    weights = torch.softmax(scaled, 0).tolist()
    total, expected = 0.0, None
    for token, weight in enumerate(weights):
        total += weight
        if expected is None and total > uniform * sum(weights):
            expected = token
    got = int(choose(torch.tensor([logits]), torch.tensor([uniform], dtype=torch.float64), temperature)[0])
    near = sum(weights[: max(got, expected or 0)]) - uniform
    assert got == expected or abs(near) < 1e-12
    assert weights[got] > 0 or abs(near) < 1e-12


def test_temperature_zero_takes_the_likeliest() -> None:
    assert choose(torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 5.0]]), torch.zeros(2, dtype=torch.float64), 0).tolist() == [1, 0]


class StopsAfter:
    """Stops when asked for the n-th time."""

    def __init__(self, n: int) -> None:
        self.left = n

    def notify(self, event: Event) -> None:
        """Drop the event."""

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.usefixtures("_endless")
def test_a_stop_is_seen_between_forward_passes(tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...]) -> None:
    batch = Batch(prompt_ids=prompt_ids, treatments=(None,), uniforms=GREEDY, temperature=0)
    watcher = StopsAfter(10)
    with pytest.raises(Interrupted):
        generate(tiny_subject, batch, measured, observer=watcher)
    assert watcher.left == -1
    generate(tiny_subject, batch, measured, observer=StopsAfter(64))


def test_a_prompt_without_room_for_the_answer_is_refused(tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...]) -> None:
    with pytest.raises(SubjectError, match="too long"):
        sample(tiny_subject, measured, prompt_ids, (None,), np.zeros((1, 257 - len(prompt_ids))))
