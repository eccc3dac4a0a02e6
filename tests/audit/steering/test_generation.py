from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.errors import Interrupted, SubjectError, UsageError
from audit.events import Event, SilentObserver
from audit.records import Attention, FeatureId, Positions, Treatment
from audit.steering import generation
from audit.steering.generation import Engine, Request, generate
from audit.steering.sampling import uniforms
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


Tokens = tuple[tuple[tuple[int, ...], ...], ...]


def sample(
    subject: Subject,
    measured: Scales,
    prompt_ids: tuple[int, ...],
    cells: tuple[Treatment | None, ...],
    drawn: NDArray[np.float64] = GREEDY,
    *,
    temperature: float = 0,
    ends: tuple[int, ...] = (),
    rows: int | None = None,
    engine: Engine | None = None,
) -> Tokens:
    """Configuration → sample → tokens."""
    request = Request(prompt_ids=prompt_ids, treatments=cells, uniforms=drawn, temperature=temperature, ends=ends, rows=rows)
    found = {
        (each.configuration, each.sample): each.token_ids
        for each in generate(subject, request, measured, observer=SilentObserver(), engine=engine)
    }
    assert len(found) == len(cells) * len(drawn)
    return tuple(tuple(found[configuration, k] for k in range(len(drawn))) for configuration in range(len(cells)))


@pytest.fixture(params=["layerwise", "transformers"])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.param
    return found


def test_a_mixed_batch_gives_the_tokens_of_each_treatment_alone(
    tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...], firing: FeatureId, engine: Engine
) -> None:
    cells = treatments(tiny_subject, firing)
    together = sample(tiny_subject, measured, prompt_ids, cells, engine=engine)
    assert together == tuple(sample(tiny_subject, measured, prompt_ids, (cell,), engine=engine)[0] for cell in cells)
    assert all(len(tokens) == 64 for (tokens,) in together)
    assert len(set(together)) == len(cells)  # every treatment does something


@pytest.mark.parametrize("positions", [Positions.PROMPT, Positions.GENERATED, Positions.ALL])
def test_tokens_are_those_of_transformers_with_a_plain_hook(
    tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...], positions: Positions, engine: Engine
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
    got = sample(tiny_subject, measured, prompt_ids, (treatment, None), engine=engine)
    assert got[0][0] == tuple(expected[0, len(prompt_ids) :].tolist())
    assert got[0] != got[1]


@pytest.mark.parametrize("rows", [None, 1, 3, 10])
def test_rows_that_end_leave_the_others_as_they_are(
    tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...], firing: FeatureId, engine: Engine, rows: int | None
) -> None:
    """Whether all rows are written at once, or further ones take the places of those that have ended."""
    cells = treatments(tiny_subject, firing)
    drawn = np.stack([uniforms(0, 0, k, 24) for k in range(4)])
    ends = tuple(range(0, 480, 10))
    endless = sample(tiny_subject, measured, prompt_ids, cells, drawn, temperature=1.0)
    ended = sample(tiny_subject, measured, prompt_ids, cells, drawn, temperature=1.0, ends=ends, rows=rows, engine=engine)
    lengths = set()
    for tokens, whole in zip(sum(ended, ()), sum(endless, ()), strict=True):
        stop = next((place + 1 for place, token in enumerate(whole) if token in ends), len(whole))
        assert tokens == whole[:stop]
        lengths.add(stop)
    assert len(lengths) > 4


def test_cells_share_their_random_numbers(tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...]) -> None:
    drawn = np.stack([uniforms(0, 0, k, 32) for k in range(3)])
    nothing = additive(tiny_subject.dictionary, "clt/0/7", 0)
    something = additive(tiny_subject.dictionary, "clt/0/7", 1)
    plain, zero, other = sample(tiny_subject, measured, prompt_ids, (None, nothing, something), drawn, temperature=1.0)
    assert plain == zero
    assert plain != other
    assert len(set(plain)) == 3


class StopsAfter:
    """Stops when asked for the n-th time."""

    def __init__(self, n: int) -> None:
        self.left = n

    def notify(self, event: Event) -> None:
        """Drop the event."""

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_stop_is_seen_between_forward_passes(
    tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...], engine: Engine
) -> None:
    request = Request(prompt_ids=prompt_ids, treatments=(None,), uniforms=GREEDY, temperature=0, ends=())
    watcher = StopsAfter(10)
    with pytest.raises(Interrupted):
        list(generate(tiny_subject, request, measured, observer=watcher, engine=engine))
    assert watcher.left == -1
    assert len(list(generate(tiny_subject, request, measured, observer=StopsAfter(68), engine=engine))) == 1


def test_between_answers_nobody_elses_forward_pass_is_steered(
    tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...], firing: FeatureId
) -> None:
    model, ids = tiny_subject.model, torch.tensor([list(prompt_ids)])
    drawn = np.stack([uniforms(0, 0, k, 24) for k in range(4)])
    cells = treatments(tiny_subject, firing)
    request = Request(prompt_ids=prompt_ids, treatments=cells, uniforms=drawn, temperature=1.0, ends=tuple(range(0, 480, 10)), rows=9)
    plain, seen = model.forward(ids), 0
    implementation = model.hf.config._attn_implementation
    for _ in generate(tiny_subject, request, measured, observer=SilentObserver()):
        assert model.hf.config._attn_implementation == implementation
        assert torch.equal(model.forward(ids), plain)
        seen += 1
    assert seen == len(cells) * 4
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def test_an_engine_that_the_model_cannot_take_is_refused(
    tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "lacking", lambda model: "no adapter")
    with pytest.raises(UsageError, match="no adapter"):
        sample(tiny_subject, measured, prompt_ids, (None,), engine="layerwise")
    frozen = additive(tiny_subject.dictionary, "clt/0/7", 1, attention=Attention.FROZEN)
    with pytest.raises(UsageError, match="frozen"):
        sample(tiny_subject, measured, prompt_ids, (frozen,))
    assert sample(tiny_subject, measured, prompt_ids, (None,))[0][0]


def test_a_prompt_without_room_for_the_answer_is_refused(tiny_subject: Subject, measured: Scales, prompt_ids: tuple[int, ...]) -> None:
    with pytest.raises(SubjectError, match="too long"):
        sample(tiny_subject, measured, prompt_ids, (None,), np.zeros((1, 257 - len(prompt_ids))))
