"""V is a sum of decoders against an encoder row, and says what the encoder will really read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit.connections import virtual_weights
from audit.errors import SubjectError
from audit.records import FeatureId
from audit.subject import matrix
from audit.subject.dictionary import Dictionary, Kind, LayerWeights
from audit.subject.matrix import Matrix
from audit.subject.norms import Kind as NormKind
from audit.subject.norms import Norm


def weights(W_enc: torch.Tensor, W_dec: torch.Tensor) -> LayerWeights:
    return LayerWeights(W_enc=Matrix(W_enc, "made"), b_enc=torch.zeros(len(W_enc)), W_dec=Matrix(W_dec, "made"))


def made(kind: Kind, *, seed: int, n_layers: int = 3, width: int = 5, d_model: int = 8, hook: str = "resid_mid") -> Dictionary:
    """Random weights of the shapes that the kind has on disk."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    layers = range(n_layers)
    return Dictionary(
        kind=kind,
        format="made",
        n_layers=n_layers,
        d_model=d_model,
        input_hook=hook,
        output_hook="mlp_out",
        sha256="0" * 64,
        path=Path("made"),
        files=(),
        layers=tuple(weights(normal(width, d_model), normal(width, n_layers - layer if kind == "clt" else 1, d_model)) for layer in layers),
        b_dec=tuple(normal(d_model) for _ in layers),
    )


def encoders(dictionary: Dictionary, layer: int) -> torch.Tensor:
    return dictionary.at(layer).W_enc.tensor


def decoders(dictionary: Dictionary, layer: int) -> torch.Tensor:
    return dictionary.at(layer).W_dec.tensor


@given(st.sampled_from(["clt", "plt"]), st.integers(0, 2**31), st.integers(2, 4), st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_virtual_weight_equals_the_loop_over_layers(kind: Kind, seed: int, n_layers: int, width: int, d_model: int, gained: bool) -> None:
    dictionary = made(kind, seed=seed, n_layers=n_layers, width=width, d_model=d_model, hook="mlp_in" if gained else "resid_mid")
    gain = torch.rand(d_model, generator=torch.Generator().manual_seed(seed)) + 0.5 if gained else None
    norm = None if gain is None else Norm(kind="rms", eps=1e-6, gain=gain)
    for layer in range(n_layers - 1):
        source = FeatureId(kind, layer, seed % width)
        for target_layer in range(layer + 1, n_layers):
            found = virtual_weights.row(dictionary, source, target_layer, norm)
            for j in range(width):
                expected = 0.0
                for write in range(layer, target_layer if kind == "clt" else layer + 1):
                    for k in range(d_model):
                        encoder = float(encoders(dictionary, target_layer)[j, k]) * (1.0 if gain is None else float(gain[k]))
                        expected += float(decoders(dictionary, layer)[source.index, write - layer, k]) * encoder
                assert float(found[j]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@given(st.sampled_from(["clt", "plt"]), st.sampled_from(["mlp_in", "mlp_in_unweighted"]), st.integers(0, 2**31), st.integers(1, 9))
def test_a_layer_norm_takes_the_mean_out_of_what_was_written(kind: Kind, hook: str, seed: int, d_model: int) -> None:
    dictionary = made(kind, seed=seed, d_model=d_model, hook=hook)
    gain = torch.rand(d_model, generator=torch.Generator().manual_seed(seed)) + 0.5
    source = FeatureId(kind, 0, seed % 5)
    found = virtual_weights.row(dictionary, source, 2, Norm(kind="layer", eps=1e-6, gain=gain))
    for j in range(5):
        expected = 0.0
        for write in range(2 if kind == "clt" else 1):
            decoder = [float(value) for value in decoders(dictionary, 0)[source.index, write]]
            mean = sum(decoder) / d_model
            for k in range(d_model):
                expected += (decoder[k] - mean) * (float(gain[k]) if hook == "mlp_in" else 1.0) * float(encoders(dictionary, 2)[j, k])
        assert float(found[j]) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_decoders_to_the_target_layer_and_later_do_not_count() -> None:
    dictionary = made("clt", seed=0)
    before = virtual_weights.row(dictionary, FeatureId("clt", 0, 2), 1)
    decoders(dictionary, 0)[:, 1:] = 1e3
    torch.testing.assert_close(virtual_weights.row(dictionary, FeatureId("clt", 0, 2), 1), before, rtol=0, atol=0)


def test_rows_stack_single_rows_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = made("clt", seed=1)
    sources = [FeatureId("clt", 0, 4), FeatureId("clt", 0, 1)]
    singly = torch.stack([virtual_weights.row(dictionary, source, 2) for source in sources])
    monkeypatch.setattr(matrix, "BLOCK_ELEMENTS", 2 * 8)
    assert len(list(dictionary.at(2).W_enc.blocks())) == 3
    torch.testing.assert_close(virtual_weights.rows(dictionary, sources, 2), singly)


@pytest.mark.parametrize("hook", ["resid_pre", "resid_mid", "resid_post", "mlp_in", "mlp_in_unweighted"])
@pytest.mark.parametrize("kind", ["rms", "rms_plus_one", "layer"])
def test_adding_a_decoder_moves_the_pre_activation_by_the_virtual_weight(hook: str, kind: NormKind) -> None:
    """Physics: with sigma frozen, x + a·W_dec raises the target's pre-activation by a·V, by a·V/sigma behind a norm."""
    dictionary = made("plt", seed=2, hook=hook)
    how = virtual_weights.reading(dictionary)
    generator = torch.Generator().manual_seed(3)
    gain, stream, a = torch.rand(8, generator=generator) + 0.5, torch.randn(8, generator=generator), 1.7

    def centred(x: torch.Tensor) -> torch.Tensor:
        return x - x.mean() if kind == "layer" else x

    sigma = centred(stream).square().mean().add(1e-6).sqrt()

    def pre_activation(x: torch.Tensor) -> torch.Tensor:
        seen = {"mlp_in": gain * centred(x) / sigma, "mlp_in_unweighted": centred(x) / sigma}.get(hook, x)
        return encoders(dictionary, 2) @ seen + dictionary.at(2).b_enc

    source = FeatureId("plt", 1, 3)
    moved = pre_activation(stream + a * decoders(dictionary, 1)[3, 0]) - pre_activation(stream)
    virtual = virtual_weights.row(dictionary, source, 2, Norm(kind=kind, eps=1e-6, gain=gain) if how.divided else None)
    torch.testing.assert_close(moved.double(), a * virtual / (sigma.double() if how.divided else 1.0), rtol=1e-4, atol=1e-5)


def test_a_target_must_be_later() -> None:
    with pytest.raises(ValueError, match="no decoder before"):
        virtual_weights.row(made("clt", seed=0), FeatureId("clt", 1, 0), 1)


@pytest.mark.parametrize("hook", ["attn_z", "attn_out", "mlp_out", "mlp_out_raw"])
def test_an_unknown_site_is_refused_with_the_known_ones(hook: str) -> None:
    with pytest.raises(SubjectError, match=rf"'{hook}'.*mlp_in"):
        virtual_weights.reading(made("plt", seed=0, hook=hook))


@pytest.mark.parametrize("hook", ["attn_z", "mlp_in", "mlp_in_unweighted", "mlp_out_raw"])
def test_what_does_not_arrive_in_the_stream_as_it_is_has_no_virtual_weight(hook: str) -> None:
    with pytest.raises(SubjectError, match=rf"writes '{hook}'.*writes one of resid_pre"):
        virtual_weights.reading(replace(made("plt", seed=0), output_hook=hook))


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_a_cross_layer_dictionary_that_reads_behind_what_it_writes_is_refused(kind: Kind) -> None:
    """Its features also write to the target's own layer before it is read, which the sum over earlier layers leaves out."""
    dictionary = replace(made(kind, seed=0), input_hook="resid_post", output_hook="mlp_out")
    if kind == "clt":
        with pytest.raises(SubjectError, match="resid_post"):
            virtual_weights.reading(dictionary)
    else:
        assert virtual_weights.reading(dictionary) == virtual_weights.READINGS["resid_post"]


@given(st.sampled_from(["clt", "plt"]), st.integers(0, 2**31), st.integers(1, 5))
def test_running_sums_are_what_each_source_has_written(kind: Kind, seed: int, n_layers: int) -> None:
    dictionary = made(kind, seed=seed, n_layers=n_layers)
    sources = [FeatureId(kind, layer, index) for index in (3, 0) for layer in reversed(range(n_layers))]
    running = virtual_weights.Written(dictionary=dictionary, sources=sources)
    for target_layer in range(0, n_layers, 2):  # a layer without features is passed over
        summed = running.before(target_layer)
        for source, found in zip(sources, summed, strict=True):
            expected = virtual_weights.written(dictionary, source, target_layer) if source.layer < target_layer else torch.zeros(8).double()
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_no_decoder_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary, rows = made("clt", seed=0, n_layers=4), Matrix.rows
    read: list[tuple[str, int, int]] = []

    def counted(self: Matrix, index: list[int], *, out: int) -> torch.Tensor:
        read.extend((self.where, each, out) for each in index)
        return rows(self, index, out=out)

    monkeypatch.setattr(Matrix, "rows", counted)
    running = virtual_weights.Written(dictionary=dictionary, sources=[FeatureId("clt", 0, 1), FeatureId("clt", 0, 4)])
    for target_layer in (1, 2, 3, 3):
        running.before(target_layer)
    assert sorted(read) == [("made", index, out) for index in (1, 4) for out in range(3)]
    with pytest.raises(ValueError, match="were added already"):
        running.before(2)


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_panels_are_the_virtual_weights_whatever_the_blocks(seed: int, d_model: int, block: int, panel: int, scaled: bool) -> None:
    """Within the stated bound on rounding; a panel may be narrower than the layer, a block narrower than the panel."""
    generator = torch.Generator().manual_seed(seed)
    encoders = torch.randn(11, d_model, generator=generator).bfloat16()
    scale = torch.rand(11, generator=generator) + 0.5 if scaled else None
    W_enc, directions = Matrix(encoders, "made", scale), torch.randn(3, d_model, generator=generator).double()
    wide = W_enc.rows(slice(None)).double()
    exact = directions @ wide.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(virtual_weights, "BLOCK_ELEMENTS", block)
        patch.setattr(virtual_weights, "PANEL_ELEMENTS", panel)
        found = [make() for make in virtual_weights.panels(W_enc, directions)]
        owner, index = np.array([2, 0, 2, 1]), np.array([10, 0, 3, 3])
        one_by_one = virtual_weights.pairs(W_enc, directions, owner, index)
    assert [each.start for each in found] == np.cumsum([0, *(len(each.encoder_norm) for each in found)])[:-1].tolist()
    virtual = np.concatenate([each.virtual for each in found], axis=1)
    norms = np.concatenate([each.encoder_norm for each in found])
    np.testing.assert_allclose(norms, wide.norm(dim=1), rtol=1e-5)
    assert (np.abs(virtual - exact.numpy()) <= found[0].rounding[:, None] * norms).all()
    np.testing.assert_allclose(one_by_one, exact[owner, index], rtol=1e-6, atol=1e-9)


def test_an_encoder_that_is_not_finite_is_refused() -> None:
    encoders = torch.ones(5, 2)
    encoders[3, 1] = float("inf")
    [make] = virtual_weights.panels(Matrix(encoders, "made"), torch.zeros(1, 2).double())
    with pytest.raises(SubjectError, match="made holds numbers that are not finite"):
        make()


def test_norms_are_remembered_by_the_matrix_that_they_are_of() -> None:
    encoders = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    W_enc, directions = Matrix(encoders, "made"), torch.ones(2, 4).double()
    [make] = virtual_weights.panels(W_enc, directions)
    first, second = make(), make()
    np.testing.assert_allclose(first.encoder_norm, encoders.norm(dim=1).numpy(), rtol=1e-6)
    assert np.shares_memory(first.encoder_norm, second.encoder_norm)
    [make] = virtual_weights.panels(replace(W_enc, tensor=2 * encoders), directions)
    np.testing.assert_allclose(make().encoder_norm, 2 * first.encoder_norm, rtol=1e-6)
