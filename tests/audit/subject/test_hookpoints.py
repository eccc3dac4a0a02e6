"""A hook point's name means the tensor that it says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from audit.errors import ExitCode, SubjectError
from audit.subject.hookpoints import NAMES, architecture_of, capture, first_tensor, resolve
from audit.subject.model import LanguageModel, open_model

IDS = torch.tensor([[1, 30, 31, 32, 33]])


def everything(model: LanguageModel) -> dict[tuple[int, str], torch.Tensor]:
    """All hook points of one forward pass."""
    with torch.inference_mode(), capture(model, [(layer, name) for layer in range(model.n_layers) for name in NAMES]) as found:
        model.forward(IDS)
    return found


def test_the_names_agree_with_each_other(tiny_model):
    found = everything(tiny_model)
    for layer in range(tiny_model.n_layers):
        block = tiny_model.layer(layer)
        middle = found[layer, "resid_mid"]
        rms = torch.rsqrt(middle.pow(2).mean(-1, keepdim=True) + 1e-5)
        assert torch.allclose(found[layer, "mlp_in_unweighted"], middle * rms, atol=1e-6)
        assert torch.allclose(found[layer, "mlp_in"], found[layer, "mlp_in_unweighted"] * tiny_model.mlp_norm_gain(layer), atol=1e-6)
        assert torch.equal(block.mlp(found[layer, "mlp_in"]), found[layer, "mlp_out"])
        assert torch.equal(middle + found[layer, "mlp_out"], found[layer, "resid_post"])


def test_a_layer_begins_where_the_one_before_ends(tiny_model):
    found = everything(tiny_model)
    assert torch.equal(found[0, "resid_pre"], tiny_model.hf.get_input_embeddings()(IDS))
    for layer in range(1, tiny_model.n_layers):
        assert torch.equal(found[layer, "resid_pre"], found[layer - 1, "resid_post"])


def test_recording_changes_nothing_and_leaves_no_hook(tiny_model):
    plain = tiny_model.forward(IDS)
    with capture(tiny_model, [(0, "mlp_out"), (1, "resid_pre")]):
        assert torch.equal(tiny_model.forward(IDS), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.hf.modules())


def test_hooks_are_removed_when_the_body_fails(tiny_model):
    with pytest.raises(ZeroDivisionError), capture(tiny_model, [(0, "mlp_out"), (0, "mlp_in")]):
        raise ZeroDivisionError
    with pytest.raises(SubjectError), capture(tiny_model, [(0, "mlp_out"), (99, "mlp_in")]):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_model.hf.modules())


@pytest.mark.parametrize("site", [(3, "mlp_in"), (-1, "mlp_in"), (0, "hook_mlp_in")])
def test_a_hook_point_that_does_not_exist_is_refused(tiny_model, site):
    with pytest.raises(SubjectError, match="resid_mid"):
        resolve(tiny_model, *site)


def test_an_unknown_architecture_is_refused_and_says_how_to_add_one(tmp_path, tiny_model):
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=20, n_positions=16)).save_pretrained(tmp_path)
    tiny_model.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SubjectError, match=r"'gpt2'.*known are: llama.*ARCHITECTURES") as caught:
        open_model(tmp_path)
    assert caught.value.exit_code is ExitCode.RUN_ERROR


def test_every_architecture_names_every_point():
    assert set(architecture_of("llama").points) == set(NAMES)


def test_hidden_states_are_found_in_a_tuple():
    tensor = torch.zeros(1)
    assert first_tensor((tensor, None)) is tensor
    with pytest.raises(TypeError):
        first_tensor(SimpleNamespace())
