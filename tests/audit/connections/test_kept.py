"""Connections from statistics that were shipped without activations are those of the activations."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from audit.connections import connect
from audit.connections.kept import LABEL_SOURCE, connect_kept
from audit.corpus import Artefact, ScanPlan, open_activations, open_statistics, scan
from audit.errors import Interrupted, UsageError
from audit.events import SilentObserver
from audit.records import Connection, FeatureId
from audit.subject import Subject

SOURCES = (FeatureId("clt", 0, 3), FeatureId("clt", 1, 5), FeatureId("clt", 2, 0))
SEEN = {"target_label", "target_unembeds"}
"""What is said of a target, and not weighed."""


@pytest.fixture(scope="module")
def folder(tiny_subject: Subject, tiny_corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kept") / "statistics"
    scan(tiny_subject, tiny_corpus_path, made, plan=ScanPlan(candidates=SOURCES, shard_tokens=600), observer=SilentObserver())
    return made


@pytest.fixture
def artefact(folder: Path, tiny_subject: Subject) -> Artefact:
    return open_statistics(folder, tiny_subject)


def figures(connection: Connection) -> dict[str, object]:
    return {each.name: getattr(connection, each.name) for each in fields(connection) if each.name not in SEEN}


@pytest.mark.parametrize(("top", "support"), [(32, 1), (4, 20), (5, 300), (3, 10**6)])
def test_they_are_those_of_the_activations(tiny_subject: Subject, folder: Path, artefact: Artefact, top: int, support: int) -> None:
    found = connect_kept(tiny_subject, artefact, SOURCES, top=top, support=support, observer=SilentObserver())
    expected = connect(tiny_subject, SOURCES, open_activations(folder), top=top, support=support, observer=SilentObserver())
    assert found.n_tokens == expected.n_tokens
    for one, other in zip(found.features, expected.features, strict=True):
        for name in ("source", "n_targets", "n_unsupported", "n_never_coactive", "support_cutoff"):
            assert getattr(one, name) == getattr(other, name)
        for name in ("targets", "unsupported", "never_coactive"):
            lists = getattr(one, name), getattr(other, name)
            assert len(lists[0]) == len(lists[1])
            for mine, theirs in zip(*lists, strict=True):
                near = {key: pytest.approx(value, rel=1e-6) for key, value in figures(theirs).items() if isinstance(value, float)}
                assert figures(mine) == {**figures(theirs), **near}
    assert {each.feature for each in found.targets} == {
        edge.target for each in found.features for edge in (*each.targets, *each.unsupported, *each.never_coactive)
    }


def test_targets_are_labelled_by_the_tokens_of_their_examples(tiny_subject: Subject, artefact: Artefact) -> None:
    found = connect_kept(tiny_subject, artefact, SOURCES[:1], top=3, support=5, observer=SilentObserver())
    for each in found.targets:
        assert (each.label_source, each.motor_share) == (LABEL_SOURCE, None)
        assert each.label
        assert each.examples
        for example in each.examples:
            assert example.activations[example.peak] == max(example.activations) > 0
            assert example.tokens[example.peak].strip()[:60] in each.label


def test_a_candidate_whose_co_activations_were_not_kept_is_refused(tiny_subject: Subject, artefact: Artefact) -> None:
    with pytest.raises(UsageError, match="Those of clt/0/3, clt/1/5, clt/2/0 were kept"):
        connect_kept(tiny_subject, artefact, [FeatureId("clt", 0, 4)], observer=SilentObserver())
    with pytest.raises(UsageError, match="no clt/0/99"):
        connect_kept(tiny_subject, artefact, [FeatureId("clt", 0, 99)], observer=SilentObserver())


def test_it_can_be_stopped(tiny_subject: Subject, artefact: Artefact) -> None:
    class Stops(SilentObserver):
        def should_stop(self) -> bool:
            return True

    with pytest.raises(Interrupted):
        connect_kept(tiny_subject, artefact, SOURCES, observer=Stops())


def test_the_last_layer_feeds_nothing(tiny_subject: Subject, artefact: Artefact) -> None:
    [found] = connect_kept(tiny_subject, artefact, SOURCES[2:], observer=SilentObserver()).features
    assert found == replace(found, targets=(), n_targets=0, n_unsupported=0, unsupported=(), never_coactive=())
