from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from audit.records import FeatureId, Positions, StrengthUnit, Treatment
from audit.steering.hooks import compile_rows, steer
from audit.steering.strengths import Scales, direction_of
from audit.steering.treatments import additive, multiplicative
from audit.subject import Subject
from audit.subject.hookpoints import Site, capture

EVERYWHERE = [(layer, name) for layer in range(3) for name in ("resid_pre", "resid_mid", "mlp_in", "mlp_out", "resid_post")]


@torch.inference_mode()
def steered(
    subject: Subject, treatments: Sequence[Treatment | None], ids: Sequence[int], measured: Scales
) -> tuple[Tensor, dict[Site, Tensor]]:
    """Logits over a prompt and what every hook point held, with one treatment a row."""
    rows = compile_rows(subject.model, subject.dictionary, treatments, measured)
    batch = torch.tensor([list(ids)]).expand(len(treatments), -1)
    with steer(subject.model, subject.dictionary, rows, first=1), capture(subject.model, EVERYWHERE) as found:
        return subject.model.forward(batch), dict(found)


def test_strength_zero_is_the_identity(tiny_subject: Subject, prompt_ids: tuple[int, ...], measured: Scales, firing: FeatureId) -> None:
    dictionary = tiny_subject.dictionary
    zero = [
        additive(dictionary, str(firing), 0),
        additive(dictionary, f"random/0@{firing}", 0, unit=StrengthUnit.MAX_ACTIVATION),
        multiplicative(dictionary, str(firing), 1),
    ]
    plain, _ = steered(tiny_subject, [None] * 3, prompt_ids, measured)
    with torch.inference_mode():
        assert torch.equal(plain, tiny_subject.model.forward(torch.tensor([list(prompt_ids)]).expand(3, -1)))
    assert torch.equal(steered(tiny_subject, zero, prompt_ids, measured)[0], plain)


def test_adding_is_exactly_old_plus_vector_and_nothing_before_it_changes(
    tiny_subject: Subject, prompt_ids: tuple[int, ...], measured: Scales
) -> None:
    treatment = additive(tiny_subject.dictionary, "clt/1/7", 0.5)
    vectors = direction_of(tiny_subject.dictionary, treatment, measured)
    _, old = steered(tiny_subject, [None], prompt_ids, measured)
    _, new = steered(tiny_subject, [treatment], prompt_ids, measured)
    for site in [(0, name) for name in ("resid_pre", "resid_mid", "mlp_in", "mlp_out", "resid_post")] + [(1, "resid_mid"), (1, "mlp_in")]:
        assert torch.equal(new[site], old[site])
    assert torch.equal(new[1, "mlp_out"][:, 1:], old[1, "mlp_out"][:, 1:] + vectors[1])
    assert torch.equal(new[1, "resid_post"][:, 1:], old[1, "resid_mid"][:, 1:] + (old[1, "mlp_out"][:, 1:] + vectors[1]))
    for site in EVERYWHERE:
        assert torch.equal(new[site][:, 0], old[site][:, 0])  # BOS


def test_a_cross_layer_feature_also_writes_later(tiny_subject: Subject, prompt_ids: tuple[int, ...], measured: Scales) -> None:
    dictionary = tiny_subject.dictionary
    _, only_source = steered(
        tiny_subject, [additive(dictionary, "clt/1/7", 1, unit=StrengthUnit.MAX_ACTIVATION, layers=(1,))], prompt_ids, measured
    )
    both = additive(dictionary, "clt/1/7", 1, unit=StrengthUnit.MAX_ACTIVATION)
    _, new = steered(tiny_subject, [both], prompt_ids, measured)
    vector = direction_of(dictionary, both, measured)[2]
    assert torch.equal(new[2, "resid_mid"], only_source[2, "resid_mid"])
    assert torch.equal(new[2, "mlp_out"][:, 1:], only_source[2, "mlp_out"][:, 1:] + vector)


@torch.inference_mode()
def test_factor_zero_is_the_explicit_ablation(
    tiny_subject: Subject, prompt_ids: tuple[int, ...], measured: Scales, firing: FeatureId
) -> None:
    model, dictionary = tiny_subject.model, tiny_subject.dictionary
    ids, found = torch.tensor([list(prompt_ids)]), {}

    def remember(module: object, args: tuple[Tensor, ...]) -> None:
        found["a"] = dictionary.encode(firing.layer, args[0])[..., firing.index]
        found["a"][:, 0] = 0

    handles = [model.layer(firing.layer).get_submodule("mlp").register_forward_pre_hook(remember)]
    for layer, vector in zip(dictionary.written_layers(firing), dictionary.decoder(firing), strict=True):
        hook = model.layer(layer).get_submodule("mlp").register_forward_hook
        handles.append(hook(lambda module, args, output, vector=vector: output - found["a"][..., None] * vector))
    expected = model.forward(ids)
    for handle in handles:
        handle.remove()
    assert float(found["a"].max()) > 0
    got, _ = steered(tiny_subject, [multiplicative(dictionary, str(firing), 0)], prompt_ids, measured)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert float((got - model.forward(ids)).abs().max()) > 1e-3


def test_a_silent_feature_is_not_multiplied(tiny_plt_subject: Subject, prompt_ids: tuple[int, ...], measured: Scales) -> None:
    dictionary, model = tiny_plt_subject.dictionary, tiny_plt_subject.model
    with torch.inference_mode(), capture(model, [(1, "mlp_in")]) as found:
        model.forward(torch.tensor([list(prompt_ids)]))
        active = (dictionary.encode(1, found[1, "mlp_in"])[0, 1:] != 0).any(0)
    silent = int((~active).nonzero()[0])
    plain, _ = steered(tiny_plt_subject, [None], prompt_ids, measured)
    assert torch.equal(steered(tiny_plt_subject, [multiplicative(dictionary, f"plt/1/{silent}", 9)], prompt_ids, measured)[0], plain)


def mixed(subject: Subject, firing: FeatureId) -> list[Treatment | None]:
    dictionary = subject.dictionary
    return [
        None,
        additive(dictionary, str(firing), 0.5),
        additive(dictionary, "clt/1/7", -1, unit=StrengthUnit.MAX_ACTIVATION, positions=Positions.PROMPT),
        additive(dictionary, "clt/2/7", 1, positions=Positions.GENERATED),
        additive(dictionary, "random/4@clt/0/9", 0.7, layers=(0, 2)),
        multiplicative(dictionary, str(firing), 0),
        multiplicative(dictionary, "clt/1/3", -3, positions=Positions.GENERATED),
        multiplicative(dictionary, "clt/0/5", 4, layers=(1, 2)),
    ]


def test_a_mixed_batch_equals_each_treatment_alone(
    tiny_subject: Subject, prompt_ids: tuple[int, ...], measured: Scales, firing: FeatureId
) -> None:
    treatments = mixed(tiny_subject, firing)
    together, _ = steered(tiny_subject, treatments, prompt_ids, measured)
    for row, treatment in enumerate(treatments):
        alone, _ = steered(tiny_subject, [treatment], prompt_ids, measured)
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("phase", "positions"), [("prompt", Positions.GENERATED), ("generated", Positions.PROMPT)])
def test_positions_are_kept_apart(
    tiny_subject: Subject, prompt_ids: tuple[int, ...], measured: Scales, phase: str, positions: Positions
) -> None:
    model, ids = tiny_subject.model, torch.tensor([list(prompt_ids)])
    rows = compile_rows(model, tiny_subject.dictionary, [additive(tiny_subject.dictionary, "clt/0/7", 1, positions=positions)], measured)
    with torch.inference_mode(), steer(model, tiny_subject.dictionary, rows, first=1) as steering:
        plain = steering.rows.layers == (0, 1, 2)
        steering.phase = "prompt" if phase == "prompt" else "generated"
        untouched = model.forward(ids)
        steering.phase = "generated" if phase == "prompt" else "prompt"
        touched = model.forward(ids)
    with torch.inference_mode():
        assert plain
        assert torch.equal(untouched, model.forward(ids))
        assert not torch.equal(touched, untouched)


def test_hooks_are_gone_afterwards_even_after_an_error(tiny_subject: Subject, measured: Scales, firing: FeatureId) -> None:
    rows = compile_rows(tiny_subject.model, tiny_subject.dictionary, mixed(tiny_subject, firing), measured)
    with pytest.raises(ZeroDivisionError), steer(tiny_subject.model, tiny_subject.dictionary, rows, first=1):
        raise ZeroDivisionError
    for layer in range(3):
        mlp = tiny_subject.model.layer(layer).get_submodule("mlp")
        assert not mlp._forward_hooks
        assert not mlp._forward_pre_hooks
