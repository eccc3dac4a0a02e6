"""Health is what its formulas say, and a dictionary that does not fit is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from audit.errors import SubjectError
from audit.records import LayerHealth
from audit.subject import health
from audit.subject.activations import content_batches, observe


def test_fvu_l0_and_dead_share_by_hand(tiny_subject):
    model, dictionary, documents = tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus[:20]
    found = health.measure(model, dictionary, documents)
    sites = [(layer, name) for layer in range(3) for name in ("mlp_in", "mlp_out")]
    (batch,) = content_batches(model, documents, sites)
    active = [dictionary.encode(layer, batch.values[layer, "mlp_in"]) for layer in range(3)]
    for layer in range(3):
        y = batch.values[layer, "mlp_out"]
        error = (y - dictionary.reconstruct(layer, active)).pow(2).sum() / (y - y.mean(0)).pow(2).sum()
        assert found[layer].fvu == pytest.approx(float(error), rel=1e-3)
        assert found[layer].l0 == pytest.approx(float((active[layer] > 0).sum(1).float().mean()))
        assert found[layer].dead_share == pytest.approx(float(((active[layer] > 0).sum(0) == 0).float().mean()))


def test_a_perfect_and_a_constant_dictionary(tiny_subject):
    dictionary = tiny_subject.dictionary
    sites = [(layer, "mlp_out") for layer in range(3)]
    (batch,) = content_batches(tiny_subject.model, tiny_subject.corpus[:20], sites)
    constant = replace(
        dictionary,
        W_dec=tuple(torch.zeros_like(matrix) for matrix in dictionary.W_dec),
        b_dec=tuple(batch.values[site].mean(0) for site in sites),
    )
    assert [layer.fvu for layer in health.measure(tiny_subject.model, constant, tiny_subject.corpus[:20])] == pytest.approx([1, 1, 1])


def test_the_wrong_hook_point_is_refused(tiny_subject):
    wrong = replace(tiny_subject.dictionary, input_hook="resid_mid", W_dec=tuple(5 * matrix for matrix in tiny_subject.dictionary.W_dec))
    with pytest.raises(SubjectError, match="FVU"):
        health.check(health.measure(tiny_subject.model, wrong, tiny_subject.corpus[:20]))


def test_dead_features_are_counted_on_the_whole_corpus(tiny_subject):
    observed = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus[:2])
    found = health.with_corpus_dead_share(tiny_subject.info.health, observed)
    for one, before in zip(found, tiny_subject.info.health, strict=True):
        assert one.dead_share == pytest.approx(float((observed.layers[one.layer].toarray() > 0).any(0).mean() * -1 + 1))
        assert replace(one, dead_share=before.dead_share) == before


def layer(**values):
    """One layer's health."""
    return LayerHealth(**({"layer": 0, "fvu": 0.1, "l0": 3.0, "dead_share": 0.0, "n_features": 10} | values))


def test_what_is_poor_is_said():
    assert health.check([layer()]) == ()
    assert health.check([layer(fvu=0.6), layer(layer=1, dead_share=0.7)]) == (
        "layer 0: 60% of the variance is left unexplained",
        "layer 1: 70% of the features never fire",
    )
    with pytest.raises(SubjectError):
        health.check([layer(fvu=float("nan"))])
