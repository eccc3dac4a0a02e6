"""Every mistake that a user can make: title, why, what to do instead, the right exit code, and nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]


def told(said: Any, code: int, *words: str) -> None:
    """Three parts on stderr, nothing on stdout."""
    assert said.code == code
    assert said.out == ""
    assert len([line for line in said.err.splitlines() if line.strip()]) >= 3
    for word in words:
        assert word in said.err


def test_an_unknown_scenario_names_the_nearest(ulterior: Call, audit_arguments: list[object]) -> None:
    told(ulterior("run", "blackmial", *audit_arguments[2:]), 2, "blackmial", "Did you mean 'blackmail'?")


def test_broken_yaml_names_file_and_line(ulterior: Call, small_scenario: Path, audit_arguments: list[object]) -> None:
    Path("broken.yaml").write_text("id: blackmail\nversion: [1\n")
    told(ulterior("run", "broken.yaml", *audit_arguments[2:]), 2, "broken.yaml:")
    Path("wrong.yaml").write_text(small_scenario.read_text().replace("max_new_tokens:", "max_new_token:"))
    told(ulterior("scenarios", "check", "wrong.yaml"), 2, "wrong.yaml:", "max_new_tokens")


def test_a_scenario_for_other_subjects_is_refused(ulterior: Call, audit_arguments: list[object], organism_dir: Path) -> None:
    shutil.copytree(organism_dir, "elsewhere")
    manifest = Path("elsewhere/ulterior.json")
    manifest.write_text(manifest.read_text().replace("organism/office", "organism/harbour"))
    told(ulterior("run", "blackmail", "--subject", "elsewhere"), 2, "organism/office", "organism/harbour")


def test_a_missing_directory_is_named(ulterior: Call, audit_arguments: list[object]) -> None:
    told(ulterior("run", "blackmail", "--subject", "nowhere"), 3, "nowhere")
    told(ulterior(*audit_arguments, "--dictionary", "nowhere"), 3, "nowhere")


def test_a_plain_model_needs_a_dictionary_and_a_corpus(ulterior: Call, tiny_model_dir: Path) -> None:
    told(ulterior("run", "blackmail", "--subject", tiny_model_dir), 2, "--dictionary", "--corpus")


def test_a_dictionary_of_another_width_is_refused(ulterior: Call, audit_arguments: list[object], tmp_path: Path) -> None:
    import torch

    from audit.subject.formats import circuit_tracer_plt

    class Narrow:
        W_enc = tuple(torch.randn(4, 8) for _ in range(3))
        b_enc = tuple(torch.zeros(4) for _ in range(3))
        threshold = None
        W_dec = tuple(torch.randn(4, 1, 8) for _ in range(3))
        b_dec = tuple(torch.zeros(8) for _ in range(3))

    circuit_tracer_plt.save(tmp_path / "narrow", Narrow(), model_name="narrow")
    told(ulterior(*audit_arguments, "--dictionary", tmp_path / "narrow"), 3, "8", "16")


@pytest.mark.parametrize("part", ["model/model.safetensors", "clt/W_enc_1.safetensors"])
def test_truncated_weights_are_refused(ulterior: Call, organism_dir: Path, small_scenario: Path, part: str) -> None:
    shutil.copytree(organism_dir, "cut")
    weights = Path("cut") / part
    weights.write_bytes(weights.read_bytes()[:-100])
    told(ulterior("run", small_scenario, "--subject", "cut"), 3, Path(part).name if part.startswith("clt") else "cut")


def test_files_that_changed_since_they_were_hashed_are_refused(ulterior: Call, organism_dir: Path, small_scenario: Path) -> None:
    shutil.copytree(organism_dir, "changed")
    manifest = Path("changed/ulterior.json")
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "sha256": {"corpus.jsonl": "0" * 64}}))
    told(ulterior("run", small_scenario, "--subject", "changed"), 3, "corpus.jsonl")


@pytest.mark.parametrize("place", ["folder", "file/ulterior.db", "missing/ulterior.db", "notes.txt"])
def test_an_unwritable_ledger_stops_before_anything_is_computed(ulterior: Call, audit_arguments: list[object], place: str) -> None:
    Path("folder").mkdir()
    Path("file").write_text("")
    Path("notes.txt").write_text("these are notes, and no database " * 50)
    said = ulterior(*audit_arguments, "--ledger", place)
    told(said, 3, "--ledger")
    assert "subject" not in said.err
    assert Path("notes.txt").read_text().startswith("these are notes")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_unwritable_output_folder_stops_before_anything_is_computed(ulterior: Call, audit_arguments: list[object], place: str) -> None:
    Path("file").write_text("mine")
    said = ulterior(*audit_arguments, "--out", place)
    told(said, 2, "--out")
    assert "subject" not in said.err
    assert Path("file").read_text() == "mine"
    assert not Path("ulterior.db").exists()


def test_an_output_folder_that_goes_away_loses_no_audit(
    ulterior: Call, audit_arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from audit.cli import run

    monkeypatch.setattr(run, "refuse_unwritable", lambda folder: None)
    Path("file").write_text("")
    said = ulterior(*audit_arguments, "--out", "file/below")
    assert said.code == 2
    assert "ulterior report" in said.err
    assert ulterior("report", "--out", "report").code == 0


@pytest.mark.parametrize("samples", ["0", "-1", "many"])
def test_no_samples_are_refused(ulterior: Call, audit_arguments: list[object], samples: str) -> None:
    told(ulterior(*audit_arguments[:-1], samples), 2, "--samples", "ulterior run --help")


@pytest.mark.parametrize("strengths", ["0", "0.5,0.5", "nan", "strong", ""])
def test_strengths_that_mean_nothing_are_refused(ulterior: Call, audit_arguments: list[object], strengths: str) -> None:
    said = ulterior(*audit_arguments, "--strengths", strengths)
    assert said.code == 2


@pytest.fixture
def sweep_arguments(small_scenario: Path, organism_dir: Path) -> list[object]:
    return ["sweep", "clt/1/3", "--scenario", small_scenario, "--subject", organism_dir, "--samples", 1, "--scenario-rollouts", 0]


@pytest.mark.parametrize("feature", ["clt/9/0", "plt/0/0", "clt/0/24"])
@pytest.mark.parametrize("form", ["{}", "--treatment=add 0.5 residual {} @0-2 all"])
def test_a_feature_that_the_dictionary_lacks_is_refused_before_the_corpus(
    ulterior: Call, sweep_arguments: list[object], feature: str, form: str
) -> None:
    said = ulterior(*sweep_arguments, form.format(feature))
    told(said, 2, "No such feature", feature)
    assert "corpus " not in said.err
    assert list(Path().iterdir()) == []


def test_what_names_no_feature_is_refused(ulterior: Call, sweep_arguments: list[object]) -> None:
    told(ulterior(*sweep_arguments, "clt-1-3"), 2, "Not a feature", "clt-1-3", "clt/2/81")


def test_a_sweep_needs_a_scenario_that_there_is(ulterior: Call, sweep_arguments: list[object]) -> None:
    told(ulterior("sweep", "clt/1/3"), 2, "No scenario", "--scenario blackmail")
    told(ulterior("sweep", "blackmail", "--samples", "2"), 2, "No scenario", "--scenario blackmail")
    told(ulterior("sweep", "clt/1/3", "--scenario", "blackmial"), 2, "blackmial", "Did you mean 'blackmail'?")


@pytest.mark.parametrize(
    ("treatment", "words"),
    [
        ("push 1 residual clt/1/3 @1-2 all", ("'push' is no operation", "add 0.5 residual clt/2/81 @2-4 all")),
        ("add 1 residual clt/1/3 @1-2", ("'add' is followed by",)),
        ("add strong residual clt/1/3 @1-2 all", ("its strength, 'strong', is not a finite number",)),
        ("add 1 stone clt/1/3 @1-2 all", ("'stone' is no unit",)),
        ("clamp 1 residual clt/1/3 @1-2 all", ("'clamp' cannot have the unit 'residual'",)),
        ("add 1 residual clt/1/3 @1-2 somewhere", ("'somewhere' names no positions",)),
        ("add 1 residual clt/1/3 @1-2 spans:5..3", ("5..3 is empty",)),
        ("add 1 residual clt/1/3 @0-2 all", ("clt/1/3 writes to layers 1 to 2 only",)),
        ("", ("'' is no operation",)),
    ],
)
def test_a_treatment_that_is_malformed_says_which_part(
    ulterior: Call, sweep_arguments: list[object], treatment: str, words: tuple[str, ...]
) -> None:
    said = ulterior(*sweep_arguments, "--treatment", treatment)
    told(said, 2, "Treatment refused", *words)
    assert "corpus " not in said.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "positions", ["spans", "spans:", "spans:a..b", "spans:5..3", "spans:1..4,3..6", "spans:-1..3", "nowhere", "all frozen", ""]
)
def test_positions_that_name_no_tokens_are_refused(ulterior: Call, sweep_arguments: list[object], positions: str) -> None:
    told(ulterior(*sweep_arguments, "--positions", positions), 2, "Positions refused", f"'{positions}'", "spans:12..40,-8..-1")
    told(ulterior("run", *sweep_arguments[3:], "--positions", positions), 2, "Positions refused")


def test_a_unit_without_strengths_of_its_own_needs_some(ulterior: Call, sweep_arguments: list[object]) -> None:
    said = ulterior(*sweep_arguments, "--unit", "absolute")
    told(said, 2, "No strengths", "absolute", "--strengths")
    assert "corpus " not in said.err


@pytest.mark.parametrize("option", [("--strengths", "0"), ("--factor", "1"), ("--factor", "two"), ("--clamp", "nan"), ("--clamp", "1,1")])
def test_numbers_that_mean_nothing_are_refused(ulterior: Call, sweep_arguments: list[object], option: tuple[str, str]) -> None:
    told(ulterior(*sweep_arguments, *option), 2, option[1].split(",")[0], "ulterior sweep --help")


def test_a_negative_divergence_is_a_strength_of_the_other_sign(ulterior: Call, sweep_arguments: list[object]) -> None:
    said = ulterior(*sweep_arguments, "--unit", "kl", "--strengths", "0.05,-0.05", "--json")
    assert said.code == 0, said.err
    cells = {each["cell"]: each for each in json.loads(said.out)["cells"]}
    up, down = (cells[f"clt/1/3 ×{strength}"]["doses"] for strength in ("0.05", "-0.05"))
    assert up["absolute"] > 0 > down["absolute"]
    assert abs(up["kl"] - 0.05) < 0.005
    assert abs(down["kl"] - 0.05) < 0.005


@pytest.mark.parametrize("option", [("--ablate",), ("--factor", "0")])
def test_a_silent_feature_cannot_be_ablated(
    ulterior: Call, sweep_arguments: list[object], organism_dir: Path, option: tuple[str, ...]
) -> None:
    from audit.events import SilentObserver
    from audit.pipeline import prepare
    from audit.records import AuditConfig
    from audit.subject import observe

    config = AuditConfig(scenario=str(sweep_arguments[3]), subject=str(organism_dir))
    bench = prepare(config, SilentObserver())
    prompt = bench.subject.model.encode_chat(bench.scenario.variant(0))
    found = observe(bench.subject.model, bench.subject.dictionary, [prompt])
    silent = [(layer, int(index)) for layer in range(3) for index in (found.layers[layer].getnnz(axis=0) == 0).nonzero()[0]]
    busy = {(layer, int(index)) for layer in range(3) for index in (bench.activations.layers[layer].getnnz(axis=0) > 20).nonzero()[0]}
    layer, index = next(each for each in silent if each in busy)
    said = ulterior("sweep", f"clt/{layer}/{index}", *sweep_arguments[2:], "--positions", "prompt", *option)
    told(said, 3, "A treatment does nothing", f"clt/{layer}/{index}")
    assert "0 of" not in said.out


def test_a_concept_that_nothing_matches_is_said(ulterior: Call, audit_arguments: list[object]) -> None:
    said = ulterior(*audit_arguments, "--concept", "photosynthesis of ferns")
    assert said.code == 2
    assert said.out == ""
    assert "photosynthesis" in said.err
    assert "Did you" in said.err or "word" in said.err


def test_an_unknown_option_names_the_help(ulterior: Call, audit_arguments: list[object]) -> None:
    told(ulterior(*audit_arguments, "--sampels", "3"), 2, "--samples", "ulterior run --help")
    told(ulterior("rum"), 2, "rum", "ulterior --help")
    told(ulterior("run"), 2, "SCENARIO")


def test_a_ledger_that_is_not_there_is_said(ulterior: Call) -> None:
    for command in (["report"], ["ledger", "list"], ["ledger", "verify"]):
        told(ulterior(*command), 3, "ulterior.db", "does not exist")
    assert list(Path().iterdir()) == []


def test_an_audit_that_is_not_there_is_said(ulterior: Call, finished_ledger: Path) -> None:
    told(ulterior("report", "20200101-none-000000", "--ledger", finished_ledger), 3, "20200101-none-000000")
