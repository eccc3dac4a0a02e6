"""Labels come back one by one, from files that may be cut short."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.atlas.labels import LONGEST, labels_name, read_label, write_labels
from audit.atlas.naming import name_features
from audit.candidates.examples import label
from audit.errors import Interrupted, UsageError
from audit.events import SilentObserver
from audit.records import FeatureId
from audit.subject import Subject, observe


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=12))
def test_every_text_comes_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("labels")
    write_labels(folder, 3, texts)
    assert [read_label(folder, 3, index) for index in range(len(texts))] == texts
    assert [path.name for path in folder.iterdir()] == ["labels-3.bin"]


def test_an_atlas_without_labels_has_empty_ones(tmp_path: Path) -> None:
    assert read_label(tmp_path, 0, 7) == ""


def test_a_text_of_any_length_is_kept_short(tmp_path: Path) -> None:
    write_labels(tmp_path, 0, ["x" * (2 * LONGEST), "next"])
    assert read_label(tmp_path, 0, 0) == "x" * LONGEST
    assert read_label(tmp_path, 0, 1) == "next"


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    write_labels(tmp_path, 0, ["some", "words"])
    path = tmp_path / labels_name(0)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match="labels-0"):
            read_label(tmp_path, 0, 1)


def test_a_number_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    write_labels(tmp_path, 0, ["some", "words"])
    path = tmp_path / labels_name(0)
    whole = bytearray(path.read_bytes())
    for place in range(8, 32):
        broken = whole.copy()
        broken[place] = 255
        path.write_bytes(broken)
        try:
            found = read_label(tmp_path, 0, 1)
        except UsageError:
            continue
        assert found in ("words", "")  # the number of another label


def test_features_are_named_by_what_they_fire_on_and_only_once(tiny_subject: Subject, tmp_path: Path) -> None:
    activations = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus)
    write_labels(tmp_path, 1, ["kept"] * 24)
    assert name_features(tiny_subject, activations, tmp_path, observer=SilentObserver()) == 2
    assert read_label(tmp_path, 1, 5) == "kept"
    for layer in (0, 2):
        for index in range(24):
            assert read_label(tmp_path, layer, index) == label(tiny_subject.model, activations, FeatureId("clt", layer, index))


def test_naming_can_be_stopped(tiny_subject: Subject, tmp_path: Path) -> None:
    class Stops(SilentObserver):
        def should_stop(self) -> bool:
            return True

    activations = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus[:2])
    with pytest.raises(Interrupted):
        name_features(tiny_subject, activations, tmp_path, observer=Stops())
    assert list(tmp_path.glob("labels-*")) == []
