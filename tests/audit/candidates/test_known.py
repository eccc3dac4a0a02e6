"""What others said of a feature is shown in place of what is computed, and searched beside it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from audit.candidates import describe, search
from audit.candidates.examples import LABEL_SOURCE
from audit.candidates.known import NOTHING, Known, open_known
from audit.connections import connect
from audit.errors import AuditError, SubjectError, UsageError
from audit.events import SilentObserver
from audit.labels import LabelStore
from audit.records import Example, FeatureId
from audit.records.labels import Label

FEATURE, OTHER = FeatureId("clt", 1, 4), FeatureId("clt", 1, 5)


def of(feature, text, **given):
    return Label(feature=feature, text=text, **{"source": "ours", **given})


@pytest.fixture
def known(tmp_path):
    """``known(label, …)``: a store of them."""

    def make(*labels):
        with LabelStore(tmp_path / "labels.db") as store:
            store.merge(labels)
        return Known(labels=LabelStore(tmp_path / "labels.db", readonly=True))

    return make


def published(*examples):
    """Published examples of ``FEATURE``, none of any other."""
    found = SimpleNamespace(examples=examples)
    return Known(published=SimpleNamespace(read=lambda feature: found if feature == FEATURE else None))


def example(word, quantile=None):
    return Example(tokens=(word,), activations=(1.0,), peak=0, quantile=quantile)


def test_the_label_with_the_highest_score_is_shown_whatever_its_scale(known):
    bad = of(FEATURE, "bad", source="a", score=-3.0)
    store = known(of(FEATURE, "none", source="z"), bad, of(FEATURE, "better", source="b", score=-2.0), of(OTHER, "other", score=9.0))
    assert store.label_of(FEATURE) == ("better", "b")
    assert known(of(FEATURE, "best", source="y", model="m", score=0.5)).label_of(FEATURE) == ("best", "y (m)")
    assert store.label_of(FeatureId("clt", 2, 0)) is None


def test_without_scores_the_first_source_is_shown(known):
    assert known(of(FEATURE, "second", source="b"), of(FEATURE, "first", source="a")).label_of(FEATURE) == ("first", "a")


def test_a_descriptor_says_where_its_label_is_from(tiny_subject, observed, known):
    store = known(of(FEATURE, "despair at work", model="m"))
    computed, found = describe(tiny_subject, observed, FEATURE), describe(tiny_subject, observed, FEATURE, store)
    assert (found.label, found.label_source) == ("despair at work", "ours (m)")
    assert computed.label_source == LABEL_SOURCE
    assert found.top_examples == computed.top_examples
    assert describe(tiny_subject, observed, OTHER, store) == describe(tiny_subject, observed, OTHER)


def test_published_examples_take_the_place_of_those_of_the_corpus(tiny_subject, observed):
    top, lower = [example(f"top {k}") for k in range(9)], [example("lower", 0.5)]
    found = describe(tiny_subject, observed, FEATURE, published(*top, *lower))
    assert found.top_examples == tuple(top[:8])
    assert found.quantile_examples == tuple(lower)
    assert describe(tiny_subject, observed, OTHER, published(*top)) == describe(tiny_subject, observed, OTHER)
    assert describe(tiny_subject, observed, FEATURE, published()) == describe(tiny_subject, observed, FEATURE)


def test_labels_are_a_search_of_their_own(tiny_subject, observed, contrast, scenario, known):
    store = known(
        of(OTHER, "xylophones"),
        of(OTHER, "a xylophone, a xylophone", source="again"),
        of(FEATURE, "one xylophone among many other words that say nothing"),
        of(FeatureId("clt", 0, 0), "piano"),
        of(FeatureId("plt", 1, 4), "xylophone"),
        of(FeatureId("clt", 2, 99), "xylophone"),
    )
    sides = {"acting": contrast[0], "discussing": contrast[1], "observer": SilentObserver()}
    found = search(tiny_subject, observed, scenario, concept="xylophone", known=store, **sides).candidates
    assert {each.feature: each.ranks for each in found} == {OTHER: (("labels", 1),), FEATURE: (("labels", 2),)}
    assert found[0].descriptors.label in ("xylophones", "a xylophone, a xylophone")


def test_the_limit_counts_distinct_features_among_those_that_may_be_found(known):
    others = [FeatureId("clt", 0, index) for index in range(40)]
    better = [of(feature, "xylophone", source=source) for feature in others for source in "abc"]
    worse = "one xylophone among many other words that say nothing"
    store = known(*better, of(FEATURE, worse), of(FEATURE, worse, source="again"), of(OTHER, f"{worse} at all"))
    assert store.search(["xylophone"], "clt", 2, among={FEATURE, OTHER}) == [FEATURE, OTHER]
    assert store.search(["xylophone"], "clt", 1, among=[OTHER, FEATURE]) == [FEATURE]
    assert store.search(["xylophone"], "clt", 41) == [*others, FEATURE]
    assert store.search(["xylophone"], "clt", 5, among=()) == store.search(["xylophone"], "plt", 5) == store.search([], "clt", 5) == []


def test_a_feature_that_fires_is_found_behind_many_that_never_do(tiny_subject, observed, contrast, scenario, known):
    dead = [of(FeatureId("clt", 2, 99 + index), "xylophone") for index in range(40)]
    store = known(*dead, of(FEATURE, "one xylophone among many other words that say nothing"))
    sides = {"acting": contrast[0], "discussing": contrast[1], "observer": SilentObserver()}
    found = search(tiny_subject, observed, scenario, concept="xylophone", known=store, **sides).candidates
    assert {each.feature: each.ranks for each in found} == {FEATURE: (("labels", 1),)}


def test_targets_have_the_labels_of_others(tiny_subject, observed, contrast, scenario, known):
    source = search(
        tiny_subject, observed, scenario, limit=100, acting=contrast[0], discussing=contrast[1], observer=SilentObserver()
    ).candidates
    first = [each.feature for each in source if each.feature.layer == 0][:1]
    plain = connect(tiny_subject, first, observed, support=1, observer=SilentObserver()).features[0].targets
    store = known(of(plain[2].target, "named"))
    shown = connect(tiny_subject, first, observed, support=1, known=store, observer=SilentObserver()).features[0].targets
    assert [edge.target for edge in shown] == [edge.target for edge in plain]
    assert [edge.target_label for edge in shown] == [edge.target_label if k != 2 else "named" for k, edge in enumerate(plain)]


def test_nothing_is_known_without_a_store_or_examples(tmp_path):
    for each in (open_known(None, tmp_path, "clt"), open_known(None, tmp_path / "sae.safetensors", "sae"), NOTHING):
        assert (each.labels, each.published) == (None, None)
        assert each.label_of(FEATURE) is each.examples_of(FEATURE) is None
        assert each.search(["word"], "clt", 5) == []


def test_a_store_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(AuditError):
        open_known(str(tmp_path / "absent.db"), tmp_path, "clt")
    assert not (tmp_path / "absent.db").exists()


def test_a_store_of_two_dictionaries_of_the_kind_is_refused(tmp_path):
    with LabelStore(tmp_path / "labels.db") as store:
        store.merge([of(FEATURE, "x", source="neuronpedia:m/1-a#oai"), of(OTHER, "x", source="neuronpedia:m/1-b#oai")])
    with pytest.raises(UsageError, match=r"m/1-a and of neuronpedia:m/1-b"):
        open_known(str(tmp_path / "labels.db"), tmp_path, "clt")
    assert open_known(str(tmp_path / "labels.db"), tmp_path, "plt").label_of(FEATURE) == ("x", "neuronpedia:m/1-a#oai")


def test_examples_are_looked_for_beside_the_weights(tmp_path):
    (tmp_path / "features").mkdir()
    with pytest.raises(SubjectError, match="No published examples"):
        open_known(None, tmp_path, "clt")
