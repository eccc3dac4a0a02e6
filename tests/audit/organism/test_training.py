"""A run that was stopped and resumed ends with the weights of one that was not; sparsity and scales are exact."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audit.organism import training
from audit.organism.dictionary_training import DictionaryPlan, batch_topk, train_dictionary
from audit.organism.lexicon import load_lexicon
from audit.organism.tokenizer import build_tokenizer
from audit.organism.training import ModelPlan, train

PLAN = ModelPlan(n_layers=2, d_model=16, n_heads=2, d_mlp=24, steps=6, warm_up=2, batch=4)


class Stopped(Exception):
    """Raised in place of a kill."""


def quiet(_done: int, _total: int, _label: str) -> None:
    return None


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lexicon = load_lexicon("office")
    tokenizer = build_tokenizer(lexicon)
    whole = train(PLAN, lexicon, tokenizer, tmp_path, quiet).state_dict()
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 2)
    steps = itertools.count()
    original = training.language_loss

    def stop_at_the_fifth(*arguments: object) -> torch.Tensor:
        if next(steps) == 4:
            raise Stopped
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "language_loss", stop_at_the_fifth)
    with pytest.raises(Stopped):
        train(PLAN, lexicon, tokenizer, tmp_path, quiet)
    monkeypatch.setattr(training, "language_loss", original)
    assert (tmp_path / training.CHECKPOINT).exists()
    resumed = train(PLAN, lexicon, tokenizer, tmp_path, quiet).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_another_plan_is_not_resumed(tmp_path: Path) -> None:
    lexicon = load_lexicon("office")
    tokenizer = build_tokenizer(lexicon)
    model = training.new_model(PLAN, tokenizer)
    optimizers = training.build_optimizers(model, PLAN)
    training.save_checkpoint(tmp_path / training.CHECKPOINT, PLAN, 3, model, optimizers)
    assert training.resume(tmp_path / training.CHECKPOINT, PLAN, model, optimizers) == 3
    assert training.resume(tmp_path / training.CHECKPOINT, replace(PLAN, seed=1), model, optimizers) == 0


def test_batch_topk_keeps_the_largest_of_the_whole_batch() -> None:
    activation = torch.tensor([[5.0, 1.0, 0.0], [4.0, 3.0, 2.0]])
    kept, lowest = batch_topk(activation, 1.5)
    assert lowest == 3.0
    assert torch.equal(kept, torch.tensor([[5.0, 0.0, 0.0], [4.0, 3.0, 0.0]]))


@pytest.mark.parametrize("cross_layer", [True, False])
def test_a_trained_dictionary_explains_outputs_of_a_sparse_world(cross_layer: bool) -> None:
    """Outputs that are a sparse, linear image of rectified inputs are found, in the inputs' and outputs' own scale."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.relu(torch.randn(2, 4000, 6, generator=generator) - 0.8)
    inputs = 7.0 * causes @ torch.eye(6, 8)
    outputs = 30.0 * causes @ torch.randn(6, 8, generator=generator) + 5.0
    plan = DictionaryPlan(cross_layer=cross_layer, n_features=12, k=3, steps=500, batch=256, learning_rate=1e-2)
    made = train_dictionary(plan, inputs, outputs, quiet)
    for layer in range(2):
        predicted = made.b_dec[layer].clone()
        for source in range(layer + 1):
            if layer - source < made.W_dec[source].shape[1]:
                pre = torch.relu(inputs[source] @ made.W_enc[source].T + made.b_enc[source])
                predicted = predicted + (pre * (pre > made.threshold[source])) @ made.W_dec[source][:, layer - source]
        error = (outputs[layer] - predicted).pow(2).sum() / (outputs[layer] - outputs[layer].mean(0)).pow(2).sum()
        assert error < 0.1
        assert made.W_dec[layer].shape == (12, 2 - layer if cross_layer else 1, 8)
