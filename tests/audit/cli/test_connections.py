"""``ulterior connections``: of features, of a scenario's candidates, on all that connections are weighed on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit.cli.connections import LEGEND, MARKS
from audit.ledger.identity import dump, load
from audit.records import ConnectionFlag, DownstreamConnections


@pytest.fixture
def given(organism_dir: Path) -> tuple[str, ...]:
    return "--subject", str(organism_dir), "--quiet"


def document(said: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said)
    return found


def test_features_are_weighed_without_a_scenario(ulterior: Callable[..., Any], given: tuple[str, ...]) -> None:
    said = document(ulterior("connections", "clt/1/2", "clt/0/5", "clt/1/2", *given, "--json").out)
    assert [each["source"] for each in said["features"]] == ["clt/1/2", "clt/0/5"]
    assert (said["roles"], said["scenario"], said["attention"]) == (None, None, None)
    assert all(each["targets"] for each in said["features"])


def test_a_scenario_adds_roles_and_its_own_tokens(ulterior: Callable[..., Any], given: tuple[str, ...], small_scenario: Path) -> None:
    said = document(ulterior("connections", "clt/0/5", *given, "--scenario", small_scenario, "--scenario-rollouts", 6, "--json").out)
    assert (said["scenario"]["scenario"], said["scenario"]["n_rollouts"]) == ("blackmail", 6)
    [each] = said["features"]
    listed = {edge["target"] for edge in (*each["targets"], *each["by_scenario"], *each["unsupported"], *each["never_coactive"])}
    assert set(said["roles"]) == listed
    assert any(role for role in said["roles"].values())


def test_rollouts_can_be_left_out(ulterior: Callable[..., Any], given: tuple[str, ...], small_scenario: Path) -> None:
    said = document(ulterior("connections", "clt/0/5", *given, "--scenario", small_scenario, "--scenario-rollouts", 0, "--json").out)
    assert said["scenario"] is None
    assert said["roles"]


def test_both_columns_are_in_the_record_through_attention(ulterior: Callable[..., Any], given: tuple[str, ...]) -> None:
    call = ("connections", "clt/0/5", *given, "--through-attention", "--attention-tokens", 200, "--json")
    said = document(ulterior(*call).out)
    assert 0 < said["attention"]["n_tokens"] <= 200
    assert said["attention"]["operations"] > 0
    edges = said["features"][0]["targets"]
    assert all(isinstance(edge["through_attention"], float) and isinstance(edge["twera"], float) for edge in edges)
    assert any(edge["through_attention"] != edge["twera"] for edge in edges)


def test_the_document_is_the_record(ulterior: Callable[..., Any], given: tuple[str, ...]) -> None:
    said = document(ulterior("connections", "clt/0/5", *given, "--json").out)
    said.pop("roles")
    record = load(DownstreamConnections, json.dumps(said))
    assert json.loads(dump(record)) == said


def test_the_table_fits_a_hundred_columns(ulterior: Callable[..., Any], given: tuple[str, ...], small_scenario: Path) -> None:
    call = ("connections", small_scenario, *given, "--through-attention", "--attention-tokens", 500, "--top", 7)
    lines = ulterior(*call).out.splitlines()
    assert max(len(line) for line in lines) <= 100
    [first, *_] = [line for line in lines if line.startswith("target")]
    assert first.split() == ["target", "layer", "TWERA", "+OV", "scenario", "ERA", "V", "support", "role", "fires", "on"]
    rows = [line for line in lines if re.match(r"clt/\d+/\d+ +\d", line)]
    assert rows
    assert not any("\u2026" in line[:60] for line in rows)  # only the label is cut


def test_columns_of_what_was_not_computed_are_left_out(ulterior: Callable[..., Any], given: tuple[str, ...]) -> None:
    lines = ulterior("connections", "clt/0/5", *given).out.splitlines()
    [first, *_] = [line for line in lines if line.startswith("target")]
    assert first.split() == ["target", "layer", "TWERA", "ERA", "V", "support", "fires", "on"]


def test_every_flag_has_a_mark_and_is_explained() -> None:
    assert set(MARKS) == set(LEGEND) == set(ConnectionFlag)
    assert len(set(MARKS.values())) == len(MARKS)
    assert all(LEGEND[flag].startswith(MARKS[flag] + " ") for flag in ConnectionFlag)


@pytest.mark.parametrize(
    ("named", "title"),
    [
        (("clt/0/99",), "No such feature"),
        (("clt/7/0",), "No such feature"),
        (("plt/0/1",), "No such feature"),
        (("clt/0",), "Not a feature"),
        (("clt/0/5", "blackmail"), "Not a feature"),
        (("blackmail", "escape"), "More than one scenario"),
        (("blackmail", "--scenario", "escape"), "More than one scenario"),
        (("blackmail", "--atlas", "nowhere"), "No features"),
        (("clt/0/5", "--atlas", "nowhere"), "No atlas"),
        (("nosuch",), "Unknown scenario"),
        (("clt/0/5", "--scenario", "nosuch"), "Unknown scenario"),
    ],
)
def test_bad_input_is_refused(ulterior: Callable[..., Any], given: tuple[str, ...], named: tuple[str, ...], title: str) -> None:
    said = ulterior("connections", *named, *(given[2:] if "--atlas" in named else given))
    assert (said.code, said.out) == (2, "")
    assert title in said.err


def test_statistics_take_the_place_of_the_corpus(ulterior: Callable[..., Any], given: tuple[str, ...]) -> None:
    whole, bare = ("statistics", "build", *given, "--out", "whole"), ("statistics", "build", *given, "--out", "bare")
    assert ulterior(*whole).code == ulterior(*bare, "--drop-activations", "--candidates", "clt/0/5").code == 0
    said = {name: document(ulterior("connections", "clt/0/5", *given, "--statistics", name, "--json").out) for name in ("whole", "bare")}
    plain = document(ulterior("connections", "clt/0/5", *given, "--json").out)
    targets = [[(edge["target"], edge["n_coactive"]) for edge in each["features"][0]["targets"]] for each in (*said.values(), plain)]
    assert targets[0] == targets[1] == targets[2] != []
    assert said["whole"]["corpus_sha256"] == said["bare"]["corpus_sha256"] != plain["corpus_sha256"]
    assert said["whole"]["features"][0]["promoted"]
    assert not said["bare"]["features"][0]["promoted"]


def test_statistics_without_activations_do_for_their_candidates_alone(
    ulterior: Callable[..., Any], given: tuple[str, ...], small_scenario: Path
) -> None:
    ulterior("statistics", "build", *given, "--out", "bare", "--drop-activations", "--candidates", "clt/0/5")
    for named, title in ((("clt/0/6",), "Co-activations of this feature were not kept"), ((small_scenario,), "No activations")):
        said = ulterior("connections", *named, *given, "--statistics", "bare")
        assert (said.code, said.out) == (2, "")
        assert title in said.err


def test_an_atlas_answers_without_a_model(ulterior: Callable[..., Any], given: tuple[str, ...]) -> None:
    assert ulterior("atlas", "build", *given, "--support", 5, "--out", "atlas").code == 0
    said = ulterior("connections", "clt/0/5", "--atlas", "atlas", "--json")
    [found] = document(said.out)["features"]
    assert found["feature"] == "clt/0/5"
    assert found["positive_targets"]
    assert all(each["label"] for each in found["positive_targets"])
    shown = ulterior("connections", "clt/0/5", "--atlas", "atlas").out
    assert found["positive_targets"][0]["feature"] in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_targets_are_described(ulterior: Callable[..., Any], given: tuple[str, ...]) -> None:
    said = ulterior("connections", "clt/0/5", *given, "--top", 2, "--describe").out
    assert "motor share" in said
    assert "«" in said
    assert max(map(len, said.splitlines())) <= 100


def test_options_that_an_atlas_cannot_heed_are_refused(ulterior: Callable[..., Any], given: tuple[str, ...]) -> None:
    said = ulterior("connections", "clt/0/5", "--atlas", "atlas", "--through-attention", "--describe", *given)
    assert (said.code, said.out) == (2, "")
    assert "--describe, --subject, --through-attention would change nothing" in said.err


def test_a_corpus_beside_statistics_is_refused(ulterior: Callable[..., Any], given: tuple[str, ...]) -> None:
    ulterior("statistics", "build", *given, "--out", "kept")
    Path("text.txt").write_text("Some text.")
    said = ulterior("connections", "clt/0/5", *given, "--statistics", "kept", "--corpus", "text.txt")
    assert (said.code, said.out) == (2, "")
    assert "A corpus too many" in said.err


def test_statistics_bring_the_corpus_of_a_plain_model(ulterior: Callable[..., Any], organism_dir: Path) -> None:
    """A model and its dictionary as two folders: nothing but the statistics has text."""
    model = ("--subject", str(organism_dir / "model"), "--dictionary", str(organism_dir / "clt"), "--quiet")
    assert ulterior("statistics", "build", *model, "--corpus", organism_dir / "corpus.jsonl", "--out", "kept").code == 0
    said = document(ulterior("connections", "clt/0/5", *model, "--statistics", "kept", "--json").out)
    assert said["features"][0]["targets"]
    missing = ulterior("connections", "clt/0/5", *model)
    assert missing.code == 2
    assert "Give --corpus" in missing.err


def test_a_wrong_feature_is_refused_before_the_corpus_is_read(
    ulterior: Callable[..., Any], given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit.opened.observe", None)
    said = ulterior("connections", "clt/0/99", *given)
    assert said.code == 2
    assert "No such feature" in said.err


def test_hostile_labels_stay_on_their_line(ulterior: Callable[..., Any], given: tuple[str, ...]) -> None:
    hostile = "evil\nclt/2/9  acts on everything (verified)\x1b[31m " + "long " * 60
    [target, *_] = document(ulterior("connections", "clt/0/5", *given, "--json").out)["features"][0]["targets"]
    Path("labels.jsonl").write_text(json.dumps({"feature": target["target"], "label": hostile}))
    imported = ulterior("labels", "import", "labels.jsonl", "--store", "labels.db")
    assert imported.code == 0, imported.err
    said = ulterior("connections", "clt/0/5", *given, "--labels", "labels.db", "--describe").out
    assert "evil" in said
    assert "\x1b" not in said
    assert not any(line.startswith("clt/2/9  acts") for line in said.splitlines())
    assert max(map(len, said.splitlines())) <= 100


def test_weights_on_too_few_of_the_scenario_s_tokens_are_in_brackets(
    ulterior: Callable[..., Any], given: tuple[str, ...], small_scenario: Path
) -> None:
    call = ("connections", "clt/0/5", *given, "--scenario", small_scenario, "--scenario-rollouts", 2, "--top", 32)
    said, shown = document(ulterior(*call, "--json").out), ulterior(*call).out
    [each] = said["features"]
    for edge in each["targets"]:
        line = next(line for line in shown.splitlines() if line.startswith(edge["target"] + " "))
        bracketed = "(" in line.split("   ")[0] or re.search(r"\([-+][\d.e-]+\)", line) is not None
        assert bracketed == (0 < edge["scenario_n_coactive"] < 20)
