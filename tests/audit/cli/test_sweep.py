"""``ulterior sweep``: named features and treatments, recorded, resumed, planned and printed."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit import pipeline
from audit.cli.planning import dose_columns, duration, size
from audit.errors import Interrupted
from audit.ledger import Ledger
from audit.records import ArmKind, AuditResult, CandidateSet, Doses, Operation, Positions, Ranking, SweepPlan

Call = Callable[..., Any]
COUNTS = {"n", "n_scorable", "n_acted", "outcomes", "rate", "interval", "effect", "effect_interval", "coherent"}


@pytest.fixture
def given(small_scenario: Path, organism_dir: Path) -> list[object]:
    """Options of a small sweep."""
    options = ["--scenario", small_scenario, "--subject", organism_dir, "--samples", 1, "--strengths", "0.5"]
    return [*options, "--scenario-rollouts", 0, "--quiet"]


def only_audit(cls: type[Any]) -> Any:
    with Ledger(Path("ulterior.db"), readonly=True) as ledger:
        (header,) = ledger.audits()
        return ledger.get(header.audit, cls)


def test_a_sweep_of_one_feature_is_a_recorded_audit_with_controls(ulterior: Call, given: list[object]) -> None:
    said = ulterior("sweep", "clt/1/3", *given, "--json")
    assert said.code == 0
    document = json.loads(said.out)
    cells = {each["cell"]: each for each in document["cells"]}
    assert set(cells) == {cell.label for cell in only_audit(SweepPlan).cells}
    assert {"none", "zero", "clt/1/3 ×0.5", "flipped clt/1/3 ×0.5", "motive-free", "prompt-only"} < cells.keys()
    assert {each["arm"] for each in document["cells"]} == {arm.value for arm in ArmKind}
    assert all(each["n"] == 4 and each.keys() > COUNTS for each in document["cells"])
    assert cells["none"]["treatment"] is cells["none"]["doses"] is None
    assert cells["clt/1/3 ×0.5"]["treatment"] == "add 0.5 max_activation clt/1/3 @1-2 prompt"
    assert document["preflight"]["zero_dose_max_difference"] == 0
    assert document["resumed"] is False
    assert [str(each.descriptors.feature) for each in only_audit(CandidateSet).candidates] == ["clt/1/3"]
    assert only_audit(AuditResult).normalised_rank is None
    assert not Path("ulterior-reports").exists()
    assert json.loads(ulterior("ledger", "verify", "--json").out)[0]["intact"]


def test_features_are_taken_once_in_their_one_form(ulterior: Call, given: list[object]) -> None:
    assert ulterior("sweep", "clt/1/3", "clt/0/2", "clt/01/3", *given).code == 0
    assert sorted(str(each.feature) for each in only_audit(Ranking).features) == ["clt/0/2", "clt/1/3"]
    with Ledger(Path("ulterior.db"), readonly=True) as ledger:
        config = ledger.config(ledger.audits()[0].audit)
    assert config.features == ("clt/1/3", "clt/0/2")
    assert {"features", "strengths"} <= set(config.passed)
    assert not {"factors", "clamps", "ablate", "attention", "treatments"} & set(config.passed)


def test_what_is_done_to_activations_is_a_cell_of_each_feature(ulterior: Call, given: list[object]) -> None:
    more = ["--factor", "0,-1", "--clamp", "0,2", "--ablate", "--attention", "frozen", "--positions", "spans:1..60,-4..-1"]
    said = ulterior("sweep", "clt/0/2", "clt/1/3", *given, *more, "--json")
    assert said.code == 0, said.err
    treatments = {each["cell"]: each["treatment"] for each in json.loads(said.out)["cells"]}
    where = "@0-2 spans:1..60,-4..-1 frozen"
    assert treatments["clt/0/2 factor 0"] == f"multiply 0 factor clt/0/2 {where}"
    assert treatments["clt/0/2 factor -1"] == f"multiply -1 factor clt/0/2 {where}"
    assert treatments["clt/0/2 clamp 0"] == f"clamp 0 max_activation clt/0/2 {where}"
    assert treatments["clt/0/2 clamp 2"] == f"clamp 2 max_activation clt/0/2 {where}"
    assert treatments["clt/0/2 ablated"] == f"ablate clt/0/2 {where}"
    assert treatments["clt/1/3 ablated"] == "ablate clt/1/3 @1-2 spans:1..60,-4..-1 frozen"
    assert treatments["clt/0/2 ×0.5"] == f"add 0.5 max_activation clt/0/2 {where}"
    plan = only_audit(SweepPlan)
    further = [cell for cell in plan.cells if cell.treatment and cell.treatment.operation is not Operation.ADDITIVE]
    assert len(further) == 10
    assert {cell.arm for cell in further} == {ArmKind.CANDIDATE}
    assert {cell.treatment.positions for cell in plan.cells if cell.treatment} == {Positions.SPANS}


def test_a_treatment_names_its_feature_and_its_cell(ulterior: Call, given: list[object]) -> None:
    wanted = "clamp 3 absolute clt/1/3 @2 all frozen"
    said = ulterior("sweep", *given, "--treatment", wanted, "--treatment", "clamp 3.0 absolute clt/1/3 @2 all frozen", "--json")
    assert said.code == 0, said.err
    cells = {each["cell"]: each for each in json.loads(said.out)["cells"]}
    assert cells[wanted]["treatment"] == wanted
    assert [str(each.feature) for each in only_audit(Ranking).features] == ["clt/1/3"]
    assert cells["clt/1/3 ×0.5"]["treatment"] == "add 0.5 max_activation clt/1/3 @1-2 prompt"


def test_without_features_the_candidates_of_the_concept_search_are_swept(ulterior: Call, given: list[object]) -> None:
    searched = json.loads(ulterior("search", given[1], *given[2:4], "--quiet", "--json").out)["candidates"]
    assert ulterior("sweep", *given).code == 0
    assert [str(each.descriptors.feature) for each in only_audit(CandidateSet).candidates] == [
        each["descriptors"]["feature"] for each in searched
    ]


def test_the_same_command_goes_on_where_it_was_stopped(ulterior: Call, given: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["sweep", "clt/1/3", *given, "--ablate"]
    whole = json.loads(ulterior(*arguments, "--json", "--ledger", "whole.db").out)
    run = pipeline.sweep.run

    def stopped(*these: Any, **named: Any) -> Any:
        for number, found in enumerate(run(*these, **named)):
            yield found
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(pipeline.sweep, "run", stopped)
        said = ulterior(*arguments)
    assert said.code == 130
    assert "Run the same command again to resume it" in said.err
    with Ledger(Path("ulterior.db"), readonly=True) as ledger:
        (begun,) = ledger.audits()
    assert 0 < begun.n_rollouts < (begun.n_planned or 0)
    other = json.loads(ulterior(*arguments[:-1], "--clamp", "1", "--json").out)
    assert other["audit"] != begun.audit
    document = json.loads(ulterior(*arguments, "--json").out)
    assert (document["audit"], document["resumed"]) == (begun.audit, True)
    assert document["cells"] == whole["cells"]


@pytest.mark.parametrize(
    "option", [("--factor", "2"), ("--clamp", "1"), ("--positions", "spans:3"), ("--unit", "absolute"), ("--attention", "frozen")]
)
def test_every_option_of_a_sweep_is_part_of_the_audits_fingerprint(ulterior: Call, given: list[object], option: tuple[str, ...]) -> None:
    arguments = ["sweep", "clt/1/3", *given]

    def stopped(*these: Any, **named: Any) -> Any:
        raise Interrupted("Stopped", "The test asked to stop.", "Go on.")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "find_candidates", stopped)
        assert {ulterior(*arguments).code, ulterior(*arguments, *option).code, ulterior(*arguments, *option).code} == {130}
    with Ledger(Path("ulterior.db"), readonly=True) as ledger:
        assert len(ledger.audits()) == 2


def test_a_report_of_a_sweep_can_be_made(ulterior: Call, given: list[object]) -> None:
    said = ulterior("sweep", "clt/1/3", *given, "--ablate", "--clamp", "1", "--treatment", "add 2 absolute clt/1/3 @1-2 generated")
    command = re.search(r"^report +ulterior (report 2.*)$", said.out, re.MULTILINE)
    assert command, said.out
    made = ulterior(*command[1].split(), "--json")
    assert made.code == 0, made.err
    document = json.loads(made.out)
    assert [each["feature"] for each in document["candidates"]] == ["clt/1/3"]
    text = Path(document["report"]["md"]).read_text()
    assert "clt/1/3 ablated" in text
    assert "add 2 absolute clt/1/3 @1-2 generated" in text


def test_a_ledger_elsewhere_is_named_in_the_command_for_the_report(ulterior: Call, given: list[object]) -> None:
    said = ulterior("sweep", "clt/1/3", *given, "--ledger", "my own.db")
    assert re.search(r"^report +ulterior report \S+ --ledger 'my own.db'$", said.out, re.MULTILINE)


def test_the_table_has_every_cell_with_its_strength_in_every_unit(ulterior: Call, given: list[object]) -> None:
    said = ulterior("sweep", "clt/1/3", *given, "--ablate")
    lines = said.out.splitlines()
    assert re.split(r" {2,}", lines[0].strip()) == [
        "cell", "residual", "max_activation", "absolute", "kl", "acted", "rate", "95 % interval", "effect", "unscorable", "coherent",
    ]  # fmt: skip
    doses = {cell.label: dose_columns(cell.doses) for cell in only_audit(SweepPlan).cells}
    shown = {line.split("  ")[0]: re.split(r" {2,}", line.strip()) for line in lines[1 : len(doses) + 1]}
    assert shown.keys() == doses.keys()
    assert all(tuple(shown[name][1:5]) == tuple(value or "-" for value in values) for name, values in doses.items())
    assert any(value is not None for values in doses.values() for value in values)
    assert all(re.fullmatch(r"\d of \d", cells[5]) for cells in shown.values())


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_plan_says_what_it_costs_and_records_nothing(ulterior: Call, given: list[object], command: str) -> None:
    named = [given[1], *given[2:]] if command == "run" else ["clt/1/3", *given, "--ablate", "--clamp", "1"]
    document = json.loads(ulterior(command, *named, "--plan", "--json").out)
    cells, cost = document["cells"], document["cost"]
    assert document["n_rollouts"] == len(cells) * 4 == cost["n_rollouts"]
    assert [each["cell"] for each in cells] == [each["label"] for each in document["plan"]["cells"]]
    assert all(each["treatment"] is None or len(each["treatment"].split()) >= 4 for each in cells)
    assert 0 < cost["prompt_tokens"] <= cost["prompt_tokens_unshared"]
    assert cost["generated_tokens"] == document["n_rollouts"] * 8
    assert cost["seconds"] > 0
    assert cost["free_bytes"] > cost["memory_bytes"] > 0
    text = ulterior(command, *named, "--plan").out
    assert all(each["cell"] in text for each in cells)
    for name in ("configurations", "rollouts", "prompt tokens", "generated tokens", "memory", "engine", "time"):
        assert re.search(rf"^{name}  +\S", text, re.MULTILINE)
    assert f"{cost['generated_tokens']:,} at most" in text
    assert "without reuse" in text
    assert "Nothing was recorded." in text
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"), (130, "2 min 10 s"), (3599.6, "1 h"),
        (3600 + 89, "1 h 1 min"), (2 * 3600 + 3599, "3 h"), (86400 * 3 + 7200, "3 d 2 h"), (86399, "24 h"),
    ],
)  # fmt: skip
def test_a_duration_is_said_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [
        (0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (1_349_000_000, "1.3 GB"), (128_000_000_000, "128 GB"),
        (999_960_000, "1.0 GB"), (512_000_000, "512 MB"), (2 * 10**15, "2000 TB"),
    ],
)  # fmt: skip
def test_a_size_is_said_in_its_largest_unit(n_bytes: int, words: str) -> None:
    assert size(n_bytes) == words


def test_a_dose_without_meaning_is_left_blank() -> None:
    assert dose_columns(None) == (None,) * 4
    assert dose_columns(Doses(residual=0.123456, max_activation=-2.0, absolute=1234.5, kl=None)) == ("0.123", "-2", "1.23e+03", None)
