from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from audit import pipeline
from audit.ledger import Ledger
from audit.records import ArmKind, Gate, Rollout, SweepPlan
from reports import build, material_from_ledger

SCHEMA = json.loads((files("reports") / "schema" / "run.schema.json").read_text())


def test_the_document_is_what_its_schema_says(ulterior: Callable[..., Any], audit_arguments: list[object]) -> None:
    said = ulterior(*audit_arguments, "--json", "--out", "report")
    document = json.loads(said.out)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert [each["rank"] for each in document["candidates"]] == list(range(1, len(document["candidates"]) + 1))
    assert {each["arm"] for each in document["controls"]} == {arm.value for arm in ArmKind} - {"candidate"}
    for path in document["report"].values():
        assert Path(path).stat().st_size > 1000


def test_a_line_is_said_for_every_step_as_it_ends(ulterior: Callable[..., Any], audit_arguments: list[object]) -> None:
    said = ulterior(*audit_arguments)
    steps = ["subject", "corpus", "candidates", "scenario", "connections", "ranking", "plan", "preflight", "steering", "judging", "report"]
    assert re.findall(r"^(\w+) +[0-9.]+ s  ", said.err, re.MULTILINE) == steps
    assert "gate    " in said.out
    assert "ulterior-reports/" in said.out
    assert Path("ulterior.db").is_file()


def test_quiet_says_nothing_on_the_way(ulterior: Callable[..., Any], audit_arguments: list[object]) -> None:
    said = ulterior(*audit_arguments, "--quiet")
    assert said.err == ""
    assert "candidates" in said.out


@pytest.mark.parametrize(("gate", "code"), [(Gate.PASS, 0), (Gate.FAIL, 1), (Gate.INSUFFICIENT, 4)])
def test_the_gate_is_the_exit_code(
    ulterior: Callable[..., Any], audit_arguments: list[object], monkeypatch: pytest.MonkeyPatch, gate: Gate, code: int
) -> None:
    decide = pipeline.conclude
    monkeypatch.setattr(pipeline, "conclude", lambda *given: replace(decide(*given), gate=gate))
    said = ulterior(*audit_arguments, "--json", "--quiet")
    assert said.code == code
    assert json.loads(said.out)["gate"]["decision"] == gate


def test_a_plan_is_printed_and_nothing_is_recorded(ulterior: Callable[..., Any], audit_arguments: list[object]) -> None:
    said = ulterior(*audit_arguments, "--plan", "--json", "--quiet")
    plan = json.loads(said.out)
    assert said.code == 0
    assert plan["n_rollouts"] == len(plan["plan"]["cells"]) * 4
    assert plan["seconds"] == round(plan["cost"]["seconds"], 1)
    assert list(Path().iterdir()) == []
    text = ulterior(*audit_arguments, "--plan", "--quiet").out
    assert re.search(rf"^rollouts +{plan['n_rollouts']}, \d+ rows? at a time$", text, re.MULTILINE)
    assert re.split(r" {2,}", text.splitlines()[0]) == ["cell", "arm", "prompt", "residual", "max_activation", "absolute", "kl", "rollouts"]


def test_what_was_passed_is_recorded_as_passed(ulterior: Callable[..., Any], audit_arguments: list[object]) -> None:
    ulterior(*audit_arguments, "--quiet", "--strengths", "0.25,0.75", "--seed", 3)
    with Ledger(Path("ulterior.db"), readonly=True) as ledger:
        (header,) = ledger.audits()
        config, plan = ledger.config(header.audit), ledger.get(header.audit, SweepPlan)
    assert config.passed == ("samples", "scenario", "seed", "strengths", "subject")
    assert (config.seed, config.strengths) == (3, (0.25, 0.75))
    # An unrelated feature's strength is the one at which it writes its candidate's norm.
    own = [cell.treatment for cell in plan.cells if cell.treatment and cell.arm is not ArmKind.UNRELATED]
    assert {abs(treatment.strength) for treatment in own} == {0.0, 0.25, 0.75}


def test_a_hostile_transcript_reaches_no_terminal(
    ulterior: Callable[..., Any], audit_arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J[/bold][link=x]\u202eevil\r"
    run = pipeline.sweep.run

    def spoiled(*given: Any, **named: Any) -> Any:
        for chunk, rollouts in run(*given, **named):
            spoilt: tuple[Rollout, ...] = tuple(replace(rollout, text=hostile) for rollout in rollouts)
            yield chunk, spoilt

    monkeypatch.setattr(pipeline.sweep, "run", spoiled)
    said = ulterior(*audit_arguments)
    assert not set("\x1b\x07\r\u202e") & set(said.out + said.err)
    (html,) = Path("ulterior-reports").glob("*.html")
    assert not set("\x1b\x07\u202e") & set(html.read_text())


def test_the_report_can_be_made_again_without_a_model(ulterior: Callable[..., Any], finished_ledger: Path) -> None:
    said = ulterior("report", "--ledger", finished_ledger, "--out", "again", "--json")
    assert said.code == 0
    document = json.loads(said.out)
    jsonschema.validate(document, SCHEMA, cls=jsonschema.Draft202012Validator)
    with Ledger(finished_ledger, readonly=True) as ledger:
        made = build(material_from_ledger(ledger, document["audit"]))
    assert made.audit == document["audit"]
    first = Path(document["report"]["html"]).read_text()
    ulterior("report", document["audit"], "--ledger", finished_ledger, "--out", "again")
    assert Path(document["report"]["html"]).read_text() == first


def test_a_stop_after_the_last_verdict_leaves_only_the_report_to_write(
    ulterior: Callable[..., Any], audit_arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = pipeline.conclude

    def conclude(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return decide(*given)

    monkeypatch.setattr(pipeline, "conclude", conclude)
    said = ulterior(*audit_arguments)
    assert said.code == 130
    assert "ulterior report 2" in said.err
    assert ulterior("report").code == 0
