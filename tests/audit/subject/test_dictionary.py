"""Dictionaries go through their files unchanged and compute what their formulas say."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from audit.errors import ExitCode, SubjectError, UsageError
from audit.records import FeatureId
from audit.subject.formats import circuit_tracer_clt, circuit_tracer_plt, open_dictionary

L, F, D = 3, 24, 16


@pytest.fixture
def copy(tiny_clt_dir, tmp_path):
    """A cross-layer transcoder's folder that may be damaged."""
    return shutil.copytree(tiny_clt_dir, tmp_path / "clt")


def rewrite(folder, **changes):
    """Change keys of config.yaml; None removes one."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))


def test_a_clt_comes_back_as_it_was_saved(tiny_clt_dir, tiny_clt_weights):
    found = open_dictionary(tiny_clt_dir, D)
    assert (found.kind, found.n_layers, found.n_features, found.d_model) == ("clt", L, F, D)
    assert (found.input_hook, found.output_hook) == ("mlp_in", "mlp_out")
    for name in ("W_enc", "b_enc", "threshold", "W_dec", "b_dec"):
        for saved, opened in zip(getattr(tiny_clt_weights, name), getattr(found, name), strict=True):
            assert torch.equal(saved, opened)


def test_the_files_are_named_as_circuit_tracer_names_them(tiny_clt_dir, tiny_plt_dir):
    assert set(load_file(tiny_clt_dir / "W_enc_1.safetensors")) == {"W_enc_1", "b_enc_1", "b_dec_1", "threshold_1"}
    assert load_file(tiny_clt_dir / "W_dec_1.safetensors")["W_dec_1"].shape == (F, L - 1, D)
    assert set(load_file(tiny_plt_dir / "layer_2.safetensors")) == {"W_enc", "W_dec", "b_enc", "b_dec", "activation_function.threshold"}
    assert yaml.safe_load((tiny_clt_dir / "config.yaml").read_text()) == {
        "model_kind": "cross_layer_transcoder",
        "model_name": "tiny",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
    }


def test_without_a_threshold_it_is_relu(tmp_path, tiny_clt_weights):
    for kind, form in (("clt", circuit_tracer_clt), ("plt", circuit_tracer_plt)):
        form.save(tmp_path / kind, replace(tiny_clt_weights, threshold=None), model_name="tiny")
        found = open_dictionary(tmp_path / kind, D)
        x = torch.randn(5, D)
        assert found.threshold is None
        assert torch.allclose(found.encode(1, x), torch.relu(x @ found.W_enc[1].T + found.b_enc[1]), atol=1e-6)


def test_jumprelu_is_strict(tiny_clt_dir):
    found = open_dictionary(tiny_clt_dir, D)
    exact = replace(found, W_enc=(torch.eye(D),) * L, b_enc=(torch.zeros(D),) * L, threshold=(torch.full((D,), 0.5),) * L)
    x = torch.tensor([0.5, 0.5000001, 0.4, -1.0, 2.0] + [0.0] * (D - 5))
    assert exact.encode(0, x).tolist()[:5] == pytest.approx([0.0, 0.5000001, 0.0, 0.0, 2.0])


@given(seed=st.integers(0, 2**31), layer=st.integers(0, L - 1))
def test_reconstruction_is_the_sum_over_earlier_layers(tiny_clt_dir, tiny_plt_dir, seed, layer):
    generator = torch.Generator().manual_seed(seed)
    active = [torch.rand(4, F, generator=generator) for _ in range(L)]
    clt, plt = open_dictionary(tiny_clt_dir, D), open_dictionary(tiny_plt_dir, D)
    by_hand = clt.b_dec[layer].clone().expand(4, D).clone()
    for source in range(layer + 1):
        for feature in range(F):
            by_hand += active[source][:, feature, None] * clt.decoder(FeatureId("clt", source, feature))[layer - source]
    assert torch.allclose(clt.reconstruct(layer, active), by_hand, atol=1e-4)
    assert torch.allclose(plt.reconstruct(layer, active), active[layer] @ plt.W_dec[layer][:, 0] + plt.b_dec[layer], atol=1e-5)


def test_written_layers(tiny_clt_dir, tiny_plt_dir):
    assert open_dictionary(tiny_clt_dir, D).written_layers(FeatureId("clt", 1, 0)) == (1, 2)
    assert open_dictionary(tiny_plt_dir, D).written_layers(FeatureId("plt", 1, 0)) == (1,)


def test_features_are_listed_once_each(tiny_plt_dir):
    features = list(open_dictionary(tiny_plt_dir, D).features())
    assert len(set(features)) == len(features) == L * F


@pytest.mark.parametrize("name", ["plt/0/0", "clt/3/0", "clt/0/24"])
def test_a_feature_that_is_not_there_is_refused(tiny_clt_dir, name):
    with pytest.raises(UsageError, match="clt/2/23"):
        open_dictionary(tiny_clt_dir, D).decoder(FeatureId.parse(name))


def test_the_digest_is_of_the_content(tiny_clt_dir, copy):
    assert open_dictionary(copy, D).sha256 == open_dictionary(tiny_clt_dir, D).sha256
    tensors = load_file(copy / "W_dec_0.safetensors")
    tensors["W_dec_0"][0, 0, 0] += 1
    save_file(tensors, copy / "W_dec_0.safetensors")
    assert open_dictionary(copy, D).sha256 != open_dictionary(tiny_clt_dir, D).sha256


def refused(folder, match, d_model=D):
    """Opening fails as a run error that says what happened and what to do."""
    with pytest.raises(SubjectError, match=match) as caught:
        open_dictionary(folder, d_model)
    assert caught.value.exit_code is ExitCode.RUN_ERROR
    assert caught.value.instead


def test_a_missing_directory_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "no directory")


def test_a_folder_of_something_else_is_refused(tmp_path):
    refused(tmp_path, r"no config\.yaml")


def test_the_wrong_width_is_refused(tiny_clt_dir):
    refused(tiny_clt_dir, "width 16.*width 128", d_model=128)


@pytest.mark.parametrize("name", ["W_enc_1.safetensors", "W_dec_0.safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 300, -8])
def test_truncated_weights_are_refused(copy, name, keep):
    (copy / name).write_bytes((copy / name).read_bytes()[:keep])
    refused(copy, "damaged")


def test_a_missing_layer_is_refused(copy):
    (copy / "W_enc_1.safetensors").unlink()
    refused(copy, r"no W_enc_1\.safetensors")


def test_a_missing_decoder_is_refused(copy):
    (copy / "W_dec_2.safetensors").unlink()
    refused(copy, "missing or damaged")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_kind": "sae"}, "'sae'"),
        ({"feature_input_hook": "hook_mlp_in"}, "feature_input_hook: hook_mlp_in"),
        ({"feature_output_hook": None}, "feature_output_hook: None"),
        ({"activation": "topk", "k": 8}, "activation"),
        ({"transcoders": ["a"]}, "transcoders"),
    ],
)
def test_a_configuration_that_would_be_computed_wrongly_is_refused(copy, changes, match):
    rewrite(copy, **changes)
    refused(copy, match)


@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00"])
def test_a_broken_configuration_is_refused(copy, text):
    (copy / "config.yaml").write_text(text)
    refused(copy, "broken")


def change(path, **tensors):
    """Put tensors into a file; None removes one."""
    kept = load_file(path) | tensors
    save_file({key: value.contiguous() for key, value in kept.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"W_enc_0": torch.zeros(D, F)}, "shape"),
        ({"b_enc_0": None}, "b_enc_0"),
        ({"b_enc_0": torch.full((F,), float("nan"))}, "not finite"),
        ({"W_skip_0": torch.zeros(D, D)}, "W_skip_0"),
        ({"threshold_0": None}, "threshold"),
    ],
)
def test_wrong_tensors_are_refused(copy, tensors, match):
    change(copy / "W_enc_0.safetensors", **tensors)
    refused(copy, match)


def test_a_skip_connection_is_refused_rather_than_dropped(tiny_plt_dir, tmp_path):
    folder = shutil.copytree(tiny_plt_dir, tmp_path / "plt")
    change(folder / "layer_1.safetensors", W_skip=torch.zeros(D, D))
    refused(folder, "W_skip")


def test_layers_of_different_width_are_refused(tmp_path):
    def layer(n):
        return torch.zeros(n, D), torch.zeros(n), torch.zeros(n, 1, D), torch.zeros(D)

    parts = zip(*(layer(n) for n in (4, 5)), strict=True)
    weights = SimpleNamespace(**dict(zip(("W_enc", "b_enc", "W_dec", "b_dec"), parts, strict=True)), threshold=None)
    circuit_tracer_plt.save(tmp_path, weights, model_name="odd")
    refused(tmp_path, "differ in width")
