from __future__ import annotations

import pytest
import torch
from torch import nn

from audit.steering import layerwise
from audit.steering.layerwise import Layerwise, lacking
from audit.subject import Subject
from audit.subject.architecture import architectures


def test_families_with_an_adapter_are_those_that_say_so() -> None:
    stepwise = {name for name, family in architectures().items() if family.stepwise}
    assert stepwise == {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma3"}


def test_what_is_lacking_is_said(tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_subject.model
    assert lacking(model) == ""
    monkeypatch.setattr(model.hf, "hf_device_map", {"model.layers.0": "cpu", "model.layers.1": "disk"}, raising=False)
    assert "several devices (cpu, disk)" in lacking(model)
    monkeypatch.delattr(model.hf, "hf_device_map")
    by_kind = {"full_attention": {"rope_type": "longrope"}, "sliding_attention": {"rope_type": "default"}}
    for parameters in ({"rope_type": "dynamic"}, by_kind):
        monkeypatch.setattr(model.hf.config, "rope_parameters", parameters)
        assert "depend on how long" in lacking(model)
    monkeypatch.setattr(model.hf.config, "rope_parameters", {"rope_type": "llama3"})
    assert lacking(model) == ""
    monkeypatch.setattr(layerwise, "architecture_of", lambda name: architectures()["gpt2"])
    assert "no adapter" in lacking(model)


@pytest.mark.parametrize("rows", [15, 16, 40])
def test_a_vocabulary_in_blocks_gives_the_logits_of_one_product(
    tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    runner, hidden = Layerwise(tiny_subject.model), torch.randn(rows, 16)
    whole = runner.logits(hidden)
    called: list[int] = []
    run = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: (called.append(1), run(self, x))[1])
    monkeypatch.setattr(layerwise, "_BLOCK", 100)
    torch.testing.assert_close(runner.logits(hidden), whole, atol=1e-5, rtol=0)
    assert bool(called) == (rows < 16)  # fewer rows are unembedded at once


def test_the_implementation_of_attention_is_put_back(tiny_subject: Subject) -> None:
    config = tiny_subject.model.hf.config
    before = config._attn_implementation
    with Layerwise(tiny_subject.model).attending():
        assert config._attn_implementation != before
    assert config._attn_implementation == before
    with pytest.raises(ZeroDivisionError), Layerwise(tiny_subject.model).attending():
        raise ZeroDivisionError
    assert config._attn_implementation == before
