"""Three searches, fused; a concept that nothing matches is refused with words that would."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.candidates import describe, search
from audit.candidates.search import fuse
from audit.errors import ExitCode, Interrupted, UsageError
from audit.events import SilentObserver
from audit.records import FeatureId
from audit.scenario import Passage
from audit.subject.activations import observe, passages

QUIET = SilentObserver()
LISTS = st.lists(st.integers(0, 20), unique=True, max_size=8).map(lambda indices: [FeatureId("clt", 0, index) for index in indices])


@pytest.fixture
def find(tiny_subject, observed, scenario, contrast):
    """``search`` on the tiny subject."""
    acting, discussing = contrast

    def run(**options):
        known = {"acting": acting, "discussing": discussing, "observer": QUIET}
        return search(options.pop("subject", tiny_subject), options.pop("activations", observed), scenario, **(known | options))

    return run


def test_candidates_come_best_first_with_their_reasons(find):
    found = find(limit=6)
    scores = [candidate.fused_score for candidate in found.candidates]
    assert len(scores) == 6
    assert scores == sorted(scores, reverse=True)
    for candidate in found.candidates:
        assert candidate.fused_score == pytest.approx(sum(1 / (60 + rank) for _, rank in candidate.ranks))
        assert {name for name, _ in candidate.ranks} <= {"text", "contrast", "unembeds"}
        assert candidate.descriptors.top_examples


def test_the_scenarios_own_concept_is_the_default(find, scenario):
    assert find() == find(concept=scenario.concept)
    assert find().concept == scenario.concept
    assert any(name == "contrast" for candidate in find().candidates for name, _ in candidate.ranks)


def test_other_words_are_not_read_on_the_scenarios_passages(find):
    found = find(concept="the deadline")
    assert found.concept == "the deadline"
    assert found.candidates
    assert all(name != "contrast" for candidate in found.candidates for name, _ in candidate.ranks)


def test_features_that_hardly_fire_are_left_out_and_counted(find, tiny_subject, observed):
    thin = replace(observed, layers=(observed.layers[0], observed.layers[1] * 0, observed.layers[2]))
    thin.layers[1].eliminate_zeros()
    found = find(activations=thin, limit=100)
    assert (found.n_searched, found.n_excluded) == (72, 24 + int((observed.counts(0) < 20).sum() + (observed.counts(2) < 20).sum()))
    assert all(candidate.feature.layer != 1 for candidate in found.candidates)


@pytest.mark.parametrize("concept", ["xylophone", '"; DROP TABLE feature; --', "\x00", "???", ""])
def test_a_concept_that_nothing_matches_is_refused(find, concept):
    with pytest.raises(UsageError) as caught:
        find(concept=concept)
    assert caught.value.title == "Nothing matches the concept"
    assert caught.value.exit_code is ExitCode.USAGE


def test_near_words_are_offered(find):
    with pytest.raises(UsageError, match="deadline"):
        find(concept="deadlnie")


def test_the_same_twice(find):
    assert find() == find()


def test_the_user_may_stop(find):
    class Stopping(SilentObserver):
        def should_stop(self) -> bool:
            return True

    with pytest.raises(Interrupted):
        find(observer=Stopping())


@given(first=LISTS, second=LISTS)
def test_fusion_does_not_depend_on_the_searches_order(first, second):
    assert dict(fuse({"a": first, "b": second})) == pytest.approx(dict(fuse({"b": second, "a": first})))
    assert {feature for feature, _ in fuse({"a": first, "b": second})} == set(first) | set(second)


@given(ranked=LISTS)
def test_fusing_one_search_keeps_its_order(ranked):
    assert [feature for feature, _ in fuse({"a": ranked})] == ranked


def test_found_by_two_searches_beats_found_by_one():
    a, b, c = (FeatureId("clt", 0, index) for index in range(3))
    assert [feature for feature, _ in fuse({"text": [a, c], "unembeds": [b, c]})] == [c, a, b]


def test_activations_are_left_as_they_were(find, observed):
    before = [layer.copy() for layer in observed.layers]
    find()
    assert all(np.array_equal(old.toarray(), new.toarray()) for old, new in zip(before, observed.layers, strict=True))


@pytest.mark.parametrize("name", ["tiny_sae_subject", "tiny_vector_subject"])
def test_layers_without_features_are_searched_for_nothing(request, scenario, name):
    """An SAE of one layer of three, and directions of two: every search runs, and only what is there is found and counted."""
    subject = request.getfixturevalue(name)
    own = observe(subject.model, subject.dictionary, subject.corpus)
    sides = [passages(subject.model, subject.dictionary, [Passage(text=text)]) for text in ("I stop now. My deadline nears.", "The man")]
    found = search(subject, own, scenario, limit=100, acting=sides[0], discussing=sides[1], others=(sides[1],), observer=QUIET)
    frequent = {feature for feature in subject.dictionary.features() if own.counts(feature.layer)[feature.index] >= 20}
    assert found.candidates
    assert {candidate.feature for candidate in found.candidates} <= frequent
    assert (found.n_searched, found.n_excluded) == (subject.dictionary.n_features, subject.dictionary.n_features - len(frequent))
    for candidate in found.candidates:
        assert candidate.descriptors == describe(subject, own, candidate.feature)
        assert candidate.descriptors.decoder_norm == pytest.approx(float(subject.dictionary.decoder(candidate.feature).norm()))
    assert {name for candidate in found.candidates for name, _ in candidate.ranks} >= {"contrast"}
