"""``ulterior atlas`` builds, answers, and says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit.cli.atlas import show_neighbours
from audit.records import FeatureId

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Where the first test that needs an atlas puts it."""
    return [tmp_path_factory.mktemp("atlas") / "atlas"]


@pytest.fixture
def folder(built: list[Path], ulterior: Call, organism_dir: Path) -> Path:
    """An atlas of the tiny organism; not to be changed."""
    if not built[0].exists():
        said = ulterior("atlas", "build", "--out", built[0], "--subject", organism_dir, "--support", 5, "--quiet")
        assert said.code == 0, said.err
    return built[0]


def test_an_atlas_is_built_once_and_shown(ulterior: Call, organism_dir: Path) -> None:
    given = ("atlas", "build", "--out", "made", "--subject", organism_dir, "--support", 5, "--memory", "64MiB", "--json")
    said = ulterior(*given)
    totals = json.loads(said.out)
    assert (totals["n_features"], totals["n_pairs"], totals["n_pairs_done"]) == (72, 3, 3)
    assert totals["key"]["support"] == 5
    assert "atlas " in said.err
    before = {path.name: path.stat().st_mtime_ns for path in Path("made").glob("*.safetensors")}
    assert json.loads(ulterior(*given).out) == totals
    assert {path.name: path.stat().st_mtime_ns for path in Path("made").glob("*.safetensors")} == before
    assert json.loads(ulterior("atlas", "show", "made", "--json").out) == totals
    shown = ulterior("atlas", "show", "made").out
    assert "3 of 3 done" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_a_feature_has_the_edges_that_connections_find(ulterior: Call, folder: Path, tiny_subject: Any) -> None:
    from audit.connections.strongest import strongest_targets
    from audit.subject import observe

    feature = FeatureId("clt", 0, 3)
    activations = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus)
    [expected] = strongest_targets(tiny_subject, activations, [feature], top=1000, support=5)
    found = json.loads(ulterior("atlas", "show", folder, feature, "--json").out)
    assert found["n_unsupported"] == expected.n_unsupported
    listed = {each["feature"]: each for each in found["positive_targets"] + found["negative_targets"]}
    assert len(listed) == len([edge for edge in expected.edges if edge.twera]) > 5  # 32 a sign hold all of them
    for edge in expected.edges:
        each = listed[str(edge.target)]
        assert each["twera"] == pytest.approx(edge.twera, rel=1e-5)
        assert each["virtual_weight"] == pytest.approx(edge.virtual_weight, rel=1e-5)
        assert each["era"] == pytest.approx(edge.era, rel=1e-5)
        assert each["n_coactive"] == edge.n_coactive


def test_the_table_fits_and_is_as_long_as_asked(ulterior: Call, folder: Path) -> None:
    shown = ulterior("atlas", "show", folder, "clt/1/3", "--top", 2).out
    assert max(map(len, shown.splitlines())) <= 100
    assert "strongest targets, 2 of " in shown
    assert "strongest sources, 2 of " in shown
    assert shown.endswith("Targets of layers 2; sources of layers 0.\n")
    assert ulterior("atlas", "show", folder, "clt/0/3").out.endswith("Targets of layers 1 to 2.\n")
    last = ulterior("atlas", "show", folder, "clt/2/3").out
    assert last.endswith("Sources of layers 0 to 1.\n")
    assert "of the later features" not in last


def test_an_unfinished_atlas_says_so_first(ulterior: Call, folder: Path) -> None:
    shutil.copytree(folder, "copy")
    path = Path("copy/manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "done": [[0, 1]]}))
    for table in Path("copy").glob("*.safetensors"):
        table.unlink()
    Path("copy/labels-1.bin").unlink()
    first = "Not finished: 1 of 3 pairs of layers; the same `ulterior atlas build` goes on.\n"
    totals = ulterior("atlas", "show", "copy")
    assert totals.out.startswith(first)
    assert "of 2 of 3 layers; the same build adds them" in totals.out
    said = ulterior("atlas", "show", "copy", "clt/1/3")
    assert said.code == 0
    assert said.out == f"{first}clt/1/3\n"
    found = json.loads(ulterior("atlas", "show", "copy", "clt/1/3", "--json").out)
    assert (found["n_pairs_done"], found["n_pairs"], found["n_firing"]) == (1, 3, None)
    assert ulterior("connections", "clt/1/3", "clt/1/4", "--atlas", "copy").out.count(first) == 1


def test_labels_of_a_store_take_the_place_of_computed_ones(ulterior: Call, organism_dir: Path) -> None:
    Path("labels.csv").write_text("feature,label,source\nclt/1/3,threats to someone,ours\n")
    assert ulterior("labels", "import", "labels.csv", "--store", "labels.db", "--quiet").code == 0
    given = ("atlas", "build", "--out", "made", "--subject", organism_dir, "--support", 5, "--labels")
    assert ulterior(*given, "nowhere.db").code != 0
    assert not Path("made").exists()
    said = ulterior(*given, "labels.db")
    assert said.code == 0, said.err
    assert "of 3 layers; 0 had theirs, which stay" in said.err
    found, other = (json.loads(ulterior("atlas", "show", "made", name, "--json").out)["label"] for name in ("clt/1/3", "clt/1/4"))
    assert found == "threats to someone"
    assert other not in ("", found)


def test_features_are_shown_for_connections(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = [FeatureId("clt", 1, 3), FeatureId("clt", 2, 0)]
    show_neighbours(folder, features, top=1, wants_json=True)
    found = json.loads(capsys.readouterr().out)["features"]
    assert [each["feature"] for each in found] == ["clt/1/3", "clt/2/0"]
    assert len(found[0]["positive_sources"]) > 1
    assert found[1]["positive_targets"] == []
    show_neighbours(folder, features, top=1, wants_json=False)
    assert capsys.readouterr().out.count("fires on ") == 2


def test_activations_of_statistics_give_the_same_neighbours(ulterior: Call, folder: Path, organism_dir: Path) -> None:
    made = ulterior("statistics", "build", "--out", "kept", "--subject", organism_dir, "--quiet")
    assert made.code == 0, made.err
    given = ("atlas", "build", "--subject", organism_dir, "--support", 5, "--statistics", "kept", "--quiet", "--out")
    assert ulterior(*given, "other").code == 0
    for feature in ("clt/0/3", "clt/1/7", "clt/2/5"):
        one, two = (json.loads(ulterior("atlas", "show", place, feature, "--json").out) for place in (folder, "other"))
        for name in ("positive_targets", "negative_targets", "positive_sources", "negative_sources"):
            assert [each["feature"] for each in one[name]] == [each["feature"] for each in two[name]]
            assert [each["twera"] for each in one[name]] == pytest.approx([each["twera"] for each in two[name]], rel=1e-5)
    shutil.copytree(folder, "copy")
    said = ulterior(*given, "copy")
    assert said.code == 2
    assert "another atlas" in said.err
    assert "corpus_sha256" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "nowhere"], "There is no directory 'nowhere'"),
        (["show", "."], "cannot be read"),
        (["show", "{folder}", "clt/3/0"], "has no clt/3/0"),
        (["show", "{folder}", "plt/0/0"], "has no plt/0/0"),
        (["show", "{folder}", "clt0"], "does not name a feature"),
        (["build", "--out", "a", "--memory", "4"], "not a number with a unit"),
        (["build", "--out", "a", "--memory", "-4GB"], "not a number with a unit"),
        (["build", "--out", "a", "--memory", "nanGB"], "not a number with a unit"),
        (["build", "--out", "a", "--top", "0"], "0 is not in the range"),
        (["build", "--out", "a", "--support", "0"], "0 is not in the range"),
        (["build"], "Missing option '--out'"),
        (["build", "--out", "a", "--subject", "{subject}", "--memory", "20KB"], "The memory budget is too small"),
        (["build", "--out", "a", "--subject", "{subject}", "--statistics", "nowhere"], "'nowhere' has no manifest.json"),
        (["build", "--out", "{folder}", "--subject", "{subject}", "--support", "6"], "support is 5, now 6"),
        (["build", "--out", "{folder}", "--subject", "{subject}", "--dictionary", "plt", "--support", "5"], "kind is clt, now plt"),
    ],
)
def test_bad_input_is_refused(ulterior: Call, folder: Path, organism_dir: Path, arguments: list[str], words: str) -> None:
    said = ulterior("atlas", *(each.format(folder=folder, subject=organism_dir) for each in arguments))
    assert said.code == 2
    assert words in " ".join(said.err.split())
    assert not Path("a").exists()


def test_a_damaged_atlas_is_refused(ulterior: Call, folder: Path, organism_dir: Path) -> None:
    shutil.copytree(folder, "copy")
    path = Path("copy/source-0.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    for arguments in (("show", "copy", "clt/0/0"), ("build", "--out", "copy", "--subject", organism_dir, "--support", 5)):
        said = ulterior("atlas", *arguments)
        assert said.code == 2
        assert "source-0.safetensors" in said.err
        assert "bytes long" in said.err
