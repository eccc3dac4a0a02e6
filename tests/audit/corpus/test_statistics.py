"""Statistics equal their definition, and are a commutative monoid to the last bit."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from audit.connections import coactivation as reference
from audit.connections import virtual_weights
from audit.corpus.counting import count, reads_divided
from audit.corpus.examples import N_EXAMPLES, document_id
from audit.corpus.statistics import coactivation, empty, merge
from audit.errors import SubjectError, UsageError
from audit.records import FeatureId
from audit.subject.activations import TokenActivations

SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, ties=st.booleans())
@settings(max_examples=40)
def test_counts_sums_and_largest_are_those_of_the_dense_matrix(make, counted, seed, ties):
    made = make(seed, ties=ties)
    found = counted(made.key, made.documents)
    assert found.n_tokens == sum(len(each.ids) - 1 for each in made.documents)
    assert found.n_documents == len(made.documents)
    for layer, width in enumerate(made.key.widths):
        dense = np.concatenate([np.zeros((0, width)), *(each.layers[layer].astype(np.float64) for each in made.documents)])
        assert found.layers[layer].n_firing.tolist() == (dense > 0).sum(0).tolist()
        assert found.layers[layer].largest.tolist() == dense.max(0, initial=0).tolist()
        for place in range(width):
            assert found.layers[layer].total.values()[place] == pytest.approx(math.fsum(dense[:, place]), rel=1e-12, abs=1e-10)
            squares = math.fsum(dense[:, place] ** 2)
            assert found.layers[layer].squares.values()[place] == pytest.approx(squares, rel=1e-12, abs=1e-10)


def best_of(documents, layer, feature):
    """The strongest examples by the plainest way."""
    best = {}
    for each in documents:
        for place, value in enumerate(each.layers[layer][:, feature].tolist()):
            if value > 0:
                row = (-value, document_id(each.ids), place + 1)
                best[row[1]] = min(best.get(row[1], row), row)
    return [(-value, document, position) for value, document, position in sorted(best.values())[:N_EXAMPLES]]


@given(seed=SEEDS, ties=st.booleans())
@settings(max_examples=40)
def test_examples_are_the_strongest_one_a_document(make, counted, seed, ties):
    made = make(seed, n_documents=25, ties=ties)
    found = counted(made.key, made.documents)
    wanted = set()
    for layer, width in enumerate(made.key.widths):
        for feature in range(width):
            examples = found.layers[layer].examples.of(feature)
            rows = list(zip(examples.activation.tolist(), examples.document.tolist(), examples.position.tolist(), strict=True))
            assert rows == best_of(made.documents, layer, feature)
            wanted |= {row[1] for row in rows}
    assert found.documents.id.tolist() == sorted(wanted)
    by_id = {document_id(each.ids): list(each.ids) for each in made.documents}
    assert all(found.documents.tokens_of(document).tolist() == by_id[document] for document in wanted)


@given(seed=SEEDS, ties=st.booleans(), data=st.data())
@settings(max_examples=60)
def test_neither_split_nor_order_nor_grouping_changes_a_bit(make, counted, same, seed, ties, data):
    made = make(seed, n_documents=16, ties=ties)
    order = data.draw(st.permutations(range(len(made.documents))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(order) - 1), max_size=6)))
    parts = [[made.documents[at] for at in order[low:high]] for low, high in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    shards = [replace(counted(made.key, part), shards=(f"{place:064d}",)) for place, part in enumerate(parts)]
    whole = counted(made.key, made.documents)
    forward = reduce(merge, shards, empty(made.key))
    same(whole, forward, but_shards=True)
    shuffled = data.draw(st.permutations(shards))
    while len(shuffled) > 1:  # grouped at random
        at = data.draw(st.integers(0, len(shuffled) - 2))
        shuffled[at : at + 2] = [merge(shuffled[at], shuffled[at + 1])]
    same(forward, shuffled[0])


@given(seed=SEEDS)
@settings(max_examples=10)
def test_nothing_is_neutral(make, counted, same, seed):
    made = make(seed)
    one = counted(made.key, made.documents)
    same(merge(one, empty(made.key)), one)
    same(merge(empty(made.key), one), one)


def test_a_document_that_is_there_twice_counts_twice_and_is_one_example(make, counted):
    made = make(3, n_documents=6)
    once, twice = counted(made.key, made.documents), counted(made.key, made.documents * 2)
    assert twice.n_tokens == 2 * once.n_tokens
    assert twice.layers[2].n_firing.tolist() == (2 * once.layers[2].n_firing).tolist()
    assert twice.layers[2].examples.document.tolist() == once.layers[2].examples.document.tolist()


def test_the_same_shard_is_refused(make, counted):
    made = make(1)
    one, other = counted(made.key, made.documents[:6]), counted(made.key, made.documents[6:])
    both = merge(one, other)
    for again in (one, other, both):
        with pytest.raises(UsageError, match=f"1 of the shards|2 of the shards.*{min(again.shards)[:16]}"):
            merge(both, again)
    assert set(both.shards) == {*one.shards, *other.shards}


@pytest.mark.parametrize("name", ["model_sha256", "dictionary_sha256", "template_sha256", "dtype", "candidates", "divided"])
def test_another_key_is_refused(make, counted, name):
    made = make(1)
    other = {"candidates": (), "divided": False}.get(name, "d" * 64)
    changed = replace(made.key, **{name: other})
    with pytest.raises(UsageError, match=f"cannot be merged: .*: {name} ") as found:
        merge(counted(made.key, made.documents[:6]), counted(changed, made.documents[6:]))
    assert found.value.exit_code == 2


@given(seed=SEEDS, ties=st.booleans(), divided=st.booleans(), cut=st.integers(0, 12))
@settings(max_examples=40)
def test_coactivations_are_those_of_the_activations(make, counted, activations_of, seed, ties, divided, cut):
    made = make(seed, ties=ties, divided=divided)
    found = merge(counted(made.key, made.documents[:cut]), counted(made.key, made.documents[cut:]))
    tokens = activations_of(made.documents, made.key.widths)
    for sources, layer in (((0, (1, 4)), 2), ((0, (4,)), 3), ((2, (6,)), 3), ((0, (1,)), 1)):
        sigma = tokens.sigma[:, layer] if divided else None
        wanted = reference.sums(tokens.layers[sources[0]][:, list(sources[1])], tokens.layers[layer], sigma)
        given = coactivation(found, [FeatureId("clt", sources[0], index) for index in sources[1]], layer)
        for name in ("weighted", "gated", "target_sum"):
            assert getattr(given, name).dtype == getattr(wanted, name).dtype
            np.testing.assert_allclose(getattr(given, name), getattr(wanted, name), rtol=1e-9, atol=1e-9)
        for name in ("n_coactive", "n_firing"):
            assert getattr(given, name).dtype == getattr(wanted, name).dtype
            np.testing.assert_array_equal(getattr(given, name), getattr(wanted, name))
        assert given.n_tokens == wanted.n_tokens


@pytest.mark.parametrize(("candidate", "layer"), [(("clt", 0, 2), 2), (("clt", 2, 6), 2), (("clt", 0, 1), 4), (("plt", 0, 1), 2)])
def test_coactivations_that_were_not_kept_are_refused(make, counted, candidate, layer):
    made = make(1)
    with pytest.raises(
        UsageError, match="Co-activations of this feature were not kept: Those of clt/0/1, clt/0/4, clt/2/6 were kept, .*--candidates"
    ):
        coactivation(counted(made.key, made.documents), [FeatureId(*candidate)], layer)


def test_where_no_coactivations_were_kept_it_is_said(make, counted):
    made = make(1)
    bare = counted(replace(made.key, candidates=()), made.documents)
    with pytest.raises(UsageError, match="None were kept, .* --candidates clt/0/1, or without --drop-activations"):
        coactivation(bare, [FeatureId("clt", 0, 1)], 2)


def test_stored_zeros_do_not_count(key_for):
    matrix = sparse.csr_matrix((np.array([0.0, 2.0], np.float32), ([0, 1], [0, 1])), shape=(2, 3))
    tokens = TokenActivations(
        token_ids=np.array([4, 5], np.int32),
        document=np.zeros(2, np.int32),
        position=np.array([1, 2], np.int32),
        layers=(matrix, matrix),
        sigma=np.ones((2, 3), np.float32),
    )
    found = count(tokens, [(1, 4, 5)], key_for((3, 3), [FeatureId("clt", 0, 0), FeatureId("clt", 0, 1)]), "s")
    assert found.layers[0].n_firing.tolist() == [0, 1, 0]
    assert found.layers[0].examples.feature.tolist() == [1]
    assert (found.pairs.candidate.tolist(), found.pairs.index.tolist(), found.pairs.n_coactive.tolist()) == ([1], [1], [1])


@pytest.mark.parametrize("hook", sorted(virtual_weights.READINGS))
def test_dictionaries_read_divided_where_virtual_weights_say_so(hook):
    assert reads_divided(hook) == virtual_weights.READINGS[hook].divided


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_an_activation_that_is_no_number_is_refused(make, counted, value):
    made = make(1)
    spoiled = [each for each in made.documents if len(each.ids) > 1]
    spoiled[0].layers[0][0, 0] = value
    with pytest.raises(SubjectError, match="not a finite number"):
        counted(made.key, spoiled)
