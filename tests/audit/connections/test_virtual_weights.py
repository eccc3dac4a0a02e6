"""V is a sum of decoders against an encoder row, and says what the encoder will really read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit.connections import virtual_weights
from audit.errors import SubjectError
from audit.records import FeatureId
from audit.subject.dictionary import Dictionary, Kind


def made(kind: Kind, *, seed: int, n_layers: int = 3, width: int = 5, d_model: int = 8, hook: str = "resid_mid") -> Dictionary:
    """Random weights of the shapes that the kind has on disk."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    layers = range(n_layers)
    return Dictionary(
        kind=kind,
        n_layers=n_layers,
        n_features=width,
        d_model=d_model,
        input_hook=hook,
        output_hook="mlp_out",
        sha256="0" * 64,
        path=Path("made"),
        W_enc=tuple(normal(width, d_model) for _ in layers),
        b_enc=tuple(normal(width) for _ in layers),
        threshold=None,
        W_dec=tuple(normal(width, n_layers - layer if kind == "clt" else 1, d_model) for layer in layers),
        b_dec=tuple(normal(d_model) for _ in layers),
    )


@given(st.sampled_from(["clt", "plt"]), st.integers(0, 2**31), st.integers(2, 4), st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_virtual_weight_equals_the_loop_over_layers(kind: Kind, seed: int, n_layers: int, width: int, d_model: int, gained: bool) -> None:
    dictionary = made(kind, seed=seed, n_layers=n_layers, width=width, d_model=d_model)
    gain = torch.rand(d_model, generator=torch.Generator().manual_seed(seed)) + 0.5 if gained else None
    for layer in range(n_layers - 1):
        source = FeatureId(kind, layer, seed % width)
        for target_layer in range(layer + 1, n_layers):
            found = virtual_weights.row(dictionary, source, target_layer, gain)
            for j in range(width):
                expected = 0.0
                for write in range(layer, target_layer if kind == "clt" else layer + 1):
                    for k in range(d_model):
                        encoder = float(dictionary.W_enc[target_layer][j, k]) * (1.0 if gain is None else float(gain[k]))
                        expected += float(dictionary.W_dec[layer][source.index, write - layer, k]) * encoder
                assert float(found[j]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_decoders_to_the_target_layer_and_later_do_not_count() -> None:
    dictionary = made("clt", seed=0)
    before = virtual_weights.row(dictionary, FeatureId("clt", 0, 2), 1)
    dictionary.W_dec[0][:, 1:] = 1e3
    torch.testing.assert_close(virtual_weights.row(dictionary, FeatureId("clt", 0, 2), 1), before, rtol=0, atol=0)


def test_rows_stack_single_rows_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = made("clt", seed=1)
    sources = [FeatureId("clt", 0, 4), FeatureId("clt", 0, 1)]
    singly = torch.stack([virtual_weights.row(dictionary, source, 2) for source in sources])
    monkeypatch.setattr(virtual_weights, "ENCODER_BLOCK", 2)
    torch.testing.assert_close(virtual_weights.rows(dictionary, sources, 2), singly)


@pytest.mark.parametrize("hook", ["resid_mid", "mlp_in", "mlp_in_unweighted"])
def test_adding_a_decoder_moves_the_pre_activation_by_the_virtual_weight(hook: str) -> None:
    """Physics: with sigma frozen, x + a·W_dec raises the target's pre-activation by a·V, by a·V/sigma behind a norm."""
    dictionary = made("plt", seed=2, hook=hook)
    how = virtual_weights.reading(dictionary)
    generator = torch.Generator().manual_seed(3)
    gain, stream, a = torch.rand(8, generator=generator) + 0.5, torch.randn(8, generator=generator), 1.7
    sigma = stream.square().mean().add(1e-6).sqrt()

    def pre_activation(x: torch.Tensor) -> torch.Tensor:
        seen = {"resid_mid": x, "mlp_in": gain * x / sigma, "mlp_in_unweighted": x / sigma}[hook]
        return dictionary.W_enc[2] @ seen + dictionary.b_enc[2]

    source = FeatureId("plt", 1, 3)
    moved = pre_activation(stream + a * dictionary.W_dec[1][3, 0]) - pre_activation(stream)
    virtual = virtual_weights.row(dictionary, source, 2, gain if how.gained else None)
    torch.testing.assert_close(moved.double(), a * virtual / (sigma.double() if how.divided else 1.0), rtol=1e-4, atol=1e-5)


def test_a_target_must_be_later() -> None:
    with pytest.raises(ValueError, match="no decoder before"):
        virtual_weights.row(made("clt", seed=0), FeatureId("clt", 1, 0), 1)


def test_an_unknown_site_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SubjectError, match="mlp_in"):
        virtual_weights.reading(made("plt", seed=0, hook="resid_post"))
