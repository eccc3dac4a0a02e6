from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.errors import SubjectError, UsageError
from audit.events import SilentObserver
from audit.records import FeatureId, Positions, StrengthUnit, Treatment
from audit.steering.generation import Request, generate
from audit.steering.hooks import compile_rows, steer
from audit.steering.strengths import Scales, direction_of
from audit.steering.treatments import additive, multiplicative
from audit.subject import Dictionary, Subject
from audit.subject.architecture import NAMES
from audit.subject.dictionary import LayerWeights
from audit.subject.hookpoints import Site, capture, resolve_write, rewrite

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


@pytest.mark.parametrize("positions", [Positions.GENERATED, Positions.PROMPT])
def test_positions_are_kept_apart(tiny_subject: Subject, prompt_ids: tuple[int, ...], measured: Scales, positions: Positions) -> None:
    model, ids = tiny_subject.model, torch.tensor([list(prompt_ids)])
    rows = compile_rows(model, tiny_subject.dictionary, [additive(tiny_subject.dictionary, "clt/0/7", 1, positions=positions)], measured)
    writes = positions is Positions.GENERATED
    with torch.inference_mode():
        plain, plain_token = model.forward(ids), model.forward(ids[:, :1])
        with steer(model, tiny_subject.dictionary, rows, first=1) as steering:
            over_prompt = model.forward(ids)
            steering.over_token(rows, torch.tensor([writes]))
            over_token = model.forward(ids[:, :1])
    assert rows.layers == (0, 1, 2)
    assert torch.equal(over_prompt, plain) == writes
    assert torch.equal(over_token, plain_token) == (not writes)


@pytest.mark.parametrize("skipped", [0, 5])
def test_spans_are_written_and_nothing_else(
    tiny_subject: Subject, prompt_ids: tuple[int, ...], measured: Scales, skipped: int
) -> None:
    """Of a pass over the whole prompt, or over its last tokens alone."""
    dictionary, n = tiny_subject.dictionary, len(prompt_ids)
    treatment = additive(dictionary, "clt/2/7", 1, positions=Positions.SPANS, spans=((0, 2), (6, 6), (n, n + 3), (-2, -1)))
    rows = compile_rows(tiny_subject.model, dictionary, [treatment], measured)
    vector = direction_of(dictionary, treatment, measured)[2]
    x = torch.randn(1, n, 16)
    with steer(tiny_subject.model, dictionary, rows, first=1) as steering:
        steering.over_prompt(rows, n)
        steering.counting = True
        new = steering.write(2, x[:, skipped:])
    expected = x.clone()
    for at in (1, 2, 6, n - 2, n - 1):
        expected[:, at] += vector
    assert torch.equal(new, expected[:, skipped:])
    assert steering.written == sum(at >= skipped for at in (1, 2, 6, n - 2, n - 1))
    reach = rows.reaches[0]
    assert reach is not None
    assert [reach.at(n + k, n) for k in range(6)] == [True, True, True, True, False, False]


def test_hooks_are_gone_afterwards_even_after_an_error(tiny_subject: Subject, measured: Scales, firing: FeatureId) -> None:
    rows = compile_rows(tiny_subject.model, tiny_subject.dictionary, mixed(tiny_subject, firing), measured)
    with pytest.raises(ZeroDivisionError), steer(tiny_subject.model, tiny_subject.dictionary, rows, first=1):
        raise ZeroDivisionError
    for layer in range(3):
        mlp = tiny_subject.model.layer(layer).get_submodule("mlp")
        assert not mlp._forward_hooks
        assert not mlp._forward_pre_hooks


WRITABLE = [name for name in NAMES if name not in ("mlp_in_unweighted", "mlp_out_raw")]
UNIT = Scales(residual_norm=(1.0,) * 3, max_activation=(np.zeros(0, np.float32), np.ones(24, np.float32), np.zeros(0, np.float32)))
"""A strength in ``max_activation`` is the activation itself."""
ALL_POINTS = [(layer, name) for layer in range(3) for name in NAMES]
MakeLayer = Callable[..., LayerWeights]
MakeDictionary = Callable[..., Dictionary]


@torch.inference_mode()
def everything(subject: Subject, treatments: Sequence[Treatment | None], ids: Sequence[int]) -> dict[Site, Tensor]:
    """Every hook point, and the logits as (3, "logits"), with one treatment a row."""
    rows = compile_rows(subject.model, subject.dictionary, treatments, UNIT)
    batch = torch.tensor([list(ids)]).expand(len(treatments), -1)
    with steer(subject.model, subject.dictionary, rows, first=1), capture(subject.model, ALL_POINTS) as found:
        logits = subject.model.forward(batch)
    return {**found, (3, "logits"): logits}


def one_layer(subject: Subject, layer: LayerWeights, dictionary_of: MakeDictionary, hook: str) -> Subject:
    """The subject with an SAE of layer 1 that reads and writes a hook point."""
    return replace(subject, dictionary=dictionary_of("sae", [None, layer, None], d_model=16, hooks=(hook, hook)))


@pytest.mark.parametrize("hook", WRITABLE)
def test_an_sae_changes_the_hook_point_that_it_names_by_exactly_the_vector(
    tiny_subject: Subject, prompt_ids: tuple[int, ...], layer_of: MakeLayer, dictionary_of: MakeDictionary, hook: str
) -> None:
    subject = one_layer(tiny_subject, layer_of(torch.randn(24, 16), torch.randn(24, 16)), dictionary_of, hook)
    vector = 0.5 * subject.dictionary.decoder(FeatureId("sae", 1, 7))[0]
    treatment = additive(subject.dictionary, "sae/1/7", 0.5, unit=StrengthUnit.MAX_ACTIVATION)
    old, new = (everything(subject, [each], prompt_ids) for each in (None, treatment))
    # resid_mid is a sum, into whose second term it is written.
    before = [old[1, "resid_pre"], old[1, "attn_out"] + vector] if hook == "resid_mid" else [old[1, hook], vector]
    assert torch.equal(new[1, hook][:, 1:], (before[0] + before[1])[:, 1:])
    for site, tensor in new.items():
        assert torch.equal(tensor[:, 0], old[site][:, 0])  # BOS
        passed = hook == "resid_mid" and site == (1, "attn_out")
        if not passed and (site[0] < 1 or (site[0] == 1 and NAMES.index(site[1]) < NAMES.index(hook) and site[1] != "mlp_out_raw")):
            assert torch.equal(tensor, old[site])
    assert float((new[3, "logits"] - old[3, "logits"]).abs().max()) > 1e-3


def test_what_an_sae_adds_before_attention_is_what_attention_reads(
    tiny_subject: Subject, prompt_ids: tuple[int, ...], layer_of: MakeLayer, dictionary_of: MakeDictionary
) -> None:
    """Both written into layer 1's input and into layer 0's output, a vector gives the same model."""
    layer = layer_of(torch.randn(24, 16), torch.randn(24, 16))
    before = one_layer(tiny_subject, layer, dictionary_of, "resid_pre")
    after = replace(before, dictionary=dictionary_of("sae", [layer, None, None], d_model=16, hooks=("resid_post", "resid_post")))
    treatment = additive(before.dictionary, "sae/1/7", 1, unit=StrengthUnit.RESIDUAL)
    one = everything(before, [treatment], prompt_ids)
    other = everything(after, [additive(after.dictionary, "sae/0/7", 1)], prompt_ids)
    assert torch.equal(one[3, "logits"], other[3, "logits"])


@pytest.mark.parametrize("hook", ["mlp_in_unweighted"])
def test_where_nothing_can_be_added_nothing_is_steered(
    tiny_subject: Subject, layer_of: MakeLayer, dictionary_of: MakeDictionary, hook: str
) -> None:
    subject = one_layer(tiny_subject, layer_of(torch.randn(24, 16), torch.randn(24, 16)), dictionary_of, hook)
    rows = compile_rows(subject.model, subject.dictionary, [additive(subject.dictionary, "sae/1/7", 0.5)], UNIT)
    with pytest.raises(SubjectError, match="Cannot steer here"), steer(subject.model, subject.dictionary, rows, first=1):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.hf.modules())


def relu(pre: list[float], limit: list[float]) -> list[float]:
    return [max(value, 0.0) for value in pre]


def jumprelu(pre: list[float], limit: list[float]) -> list[float]:
    return [value if value > own else 0.0 for value, own in zip(pre, limit, strict=True)]


def topk(pre: list[float], limit: list[float]) -> list[float]:
    return [max(value, 0.0) for value in signed_topk(pre, limit)]


def signed_topk(pre: list[float], limit: list[float]) -> list[float]:
    largest = sorted(range(len(pre)), key=lambda f: -pre[f])[:20]
    return [value if f in largest else 0.0 for f, value in enumerate(pre)]


KINDS: dict[str, tuple[Callable[[list[float], list[float]], list[float]], dict[str, Any]]] = {
    "relu": (relu, {}),
    "jumprelu": (jumprelu, {"threshold": torch.linspace(0.0, 2.0, 24)}),
    "topk": (topk, {"k": 20}),
    "signed topk": (signed_topk, {"k": 20, "signed": True}),
}
"""20 of 24 are kept, so that some of those are below zero."""


def activations_by_hand(weights: LayerWeights, kind: str, x: Tensor) -> Tensor:
    """(tokens, n_features), one token and one coordinate at a time, of x (tokens, d_in)."""
    rule, found = KINDS[kind][0], []
    limit = [0.0] * 24 if weights.threshold is None else weights.threshold.tolist()
    encoder, centre = weights.W_enc.tensor.double(), torch.zeros(x.shape[-1]) if weights.centre is None else weights.centre
    for token in x:
        pre = [float(((token - centre).double() * encoder[f]).sum() + weights.b_enc[f]) for f in range(24)]
        found.append(rule(pre, limit))
    return torch.tensor(found)


@pytest.fixture(params=[(kind, centred) for kind in KINDS for centred in (False, True)], ids=lambda case: f"{case[0]}, {case[1]}")
def gated(request: pytest.FixtureRequest, layer_of: MakeLayer) -> tuple[str, LayerWeights]:
    """A kind of activation, and features of it, with or without a centre."""
    kind, centred = request.param
    centre = 0.5 * torch.randn(16) if centred else None
    weights = layer_of(torch.randn(24, 16), torch.randn(24, 16), 0.3 * torch.randn(24), centre=centre, **KINDS[kind][1])
    return kind, weights


@pytest.mark.parametrize("hook", WRITABLE)
def test_a_factor_adds_what_the_activation_by_hand_says(
    tiny_subject: Subject,
    prompt_ids: tuple[int, ...],
    dictionary_of: MakeDictionary,
    gated: tuple[str, LayerWeights],
    hook: str,
) -> None:
    kind, weights = gated
    subject, model = one_layer(tiny_subject, weights, dictionary_of, hook), tiny_subject.model
    old = everything(subject, [None], prompt_ids)
    by_hand = activations_by_hand(weights, kind, old[1, hook][0])
    by_hand[0] = 0  # BOS
    mostly = int((by_hand != 0).sum(0).clamp(max=len(prompt_ids) - 2).argmax())
    below = int(by_hand.min(0).values.argmin())
    assert (float(by_hand.min()) < 0) == (kind == "signed topk")
    for index, factor in ((mostly, 0.0), (mostly, 3.0), (below, -1.0)):
        added = (factor - 1.0) * by_hand[:, index, None] * weights.W_dec.tensor[index, 0]
        handle = rewrite(resolve_write(model, 1, hook), lambda x, added=added: x + added)  # type: ignore[misc]
        with torch.inference_mode():
            expected = model.forward(torch.tensor([list(prompt_ids)]))
        handle.remove()
        new = everything(subject, [multiplicative(subject.dictionary, f"sae/1/{index}", factor)], prompt_ids)
        torch.testing.assert_close(new[3, "logits"], expected, atol=2e-4, rtol=0)
        if float(added.abs().max()) > 0.1:
            assert float((expected - old[3, "logits"]).abs().max()) > 1e-2
    assert 0 < int((by_hand[:, mostly] != 0).sum()) < len(prompt_ids)


def test_gates_of_all_kinds_are_kept_apart_by_row(
    tiny_subject: Subject, prompt_ids: tuple[int, ...], dictionary_of: MakeDictionary, gated: tuple[str, LayerWeights]
) -> None:
    subject = one_layer(tiny_subject, gated[1], dictionary_of, "resid_mid")
    treatments: list[Treatment | None] = [
        multiplicative(subject.dictionary, "sae/1/0", -2),
        None,
        multiplicative(subject.dictionary, "sae/1/23", 4),
        additive(subject.dictionary, "sae/1/0", 0.5),
        multiplicative(subject.dictionary, "sae/1/0", 0, positions=Positions.GENERATED),
        multiplicative(subject.dictionary, "sae/1/5", 1),
    ]
    together = everything(subject, treatments, prompt_ids)[3, "logits"]
    for row, treatment in enumerate(treatments):
        alone = everything(subject, [treatment], prompt_ids)[3, "logits"]
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=0)
    for row in (4, 5):
        torch.testing.assert_close(together[row], together[1], atol=0, rtol=0)


@pytest.mark.parametrize("hook", ["resid_pre", "resid_mid", "resid_post"])
def test_a_factor_acts_on_every_generated_token_as_on_the_prompt(
    tiny_subject: Subject, prompt_ids: tuple[int, ...], dictionary_of: MakeDictionary, gated: tuple[str, LayerWeights], hook: str
) -> None:
    """With a cache and several samples a row, against whole passes over the text so far."""
    subject = one_layer(tiny_subject, gated[1], dictionary_of, hook)
    treatments = [multiplicative(subject.dictionary, f"sae/1/{index}", 4) for index in (3, 11)]
    request, changed = Request(prompt_ids=prompt_ids, treatments=tuple(treatments), uniforms=np.zeros((2, 5)), temperature=0), []
    found = {(each.configuration, each.sample): each.token_ids for each in generate(subject, request, UNIT, observer=SilentObserver())}
    for configuration, treatment in enumerate(treatments):
        tokens = found[configuration, 0]
        assert tokens == found[configuration, 1]
        for done, token in enumerate(tokens):
            text = (*prompt_ids, *tokens[:done])
            logits, plain = (everything(subject, [each], text)[3, "logits"][0, -1] for each in (treatment, None))
            assert float(logits.max() - logits[token]) < 1e-3
            changed.append(float((logits - plain).abs().max()))
    assert max(changed) > 1e-2


@pytest.mark.parametrize(("read", "written"), [("resid_post", "mlp_out"), ("resid_mid", "attn_out"), ("mlp_in", "resid_mid")])
def test_a_feature_is_not_multiplied_where_what_it_reads_is_computed_from_what_it_writes(
    tiny_subject: Subject, layer_of: MakeLayer, dictionary_of: MakeDictionary, read: str, written: str
) -> None:
    layer = layer_of(torch.randn(24, 16), torch.randn(24, 16))
    dictionary = dictionary_of("plt", [None, layer, None], d_model=16, hooks=(read, written))
    with pytest.raises(UsageError, match=f"reads '{read}', which the model computes from '{written}'"):
        compile_rows(tiny_subject.model, dictionary, [multiplicative(dictionary, "plt/1/7", 0)], UNIT)
    assert compile_rows(tiny_subject.model, dictionary, [additive(dictionary, "plt/1/7", 1)], UNIT).layers == (1,)
