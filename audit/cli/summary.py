"""What a finished audit says, from its ledger: as a document for programs (``reports/schema/run.schema.json``) and as tables."""

from __future__ import annotations

import shlex
from typing import Any

from audit.cli import output
from audit.cli.options import DEFAULT_LEDGER
from audit.cli.planning import DOSES, dose_columns, head
from audit.ledger import Ledger
from audit.plain import plain
from audit.records import (
    ArmKind,
    AuditOutcome,
    AuditResult,
    CandidateSet,
    Cell,
    CellResult,
    FeatureFinding,
    Interval,
    Preflight,
    Ranking,
    SweepPlan,
)
from reports import ReportFiles

KINDS = {
    "none": "none",
    "zero": "zero",
    "random": "random directions",
    "unrelated": "unrelated features",
    "sign_flipped": "sign flipped",
    "motive_free": "motive-free, steered",
    "motive-free": "motive-free",
    "prompt_only": "prompt-only",
    "prompt-only": "prompt-only",
}
"""By arm, or by label where a cell stands alone."""
CONTROLS = tuple(arm for arm in ArmKind if arm is not ArmKind.CANDIDATE)


def document(ledger: Ledger, audit: str, paths: ReportFiles) -> dict[str, Any]:
    """The JSON of ``ulterior run --json``."""
    result, scores = ledger.get(audit, AuditResult), _scores(ledger, audit)
    return {
        "audit": audit,
        "scenario": ledger.header(audit).scenario,
        "candidates": [_candidate(finding, scores[str(finding.feature)]) for finding in result.findings],
        "controls": [_control(arm, cell) for arm, cell in _controls(ledger, audit)],
        "normalised_rank": result.normalised_rank,
        "gate": {"decision": result.gate.value, "reason": result.gate_reason},
        "report": {"html": str(paths.html), "md": str(paths.markdown), "json": str(paths.json)},
    }


def show(ledger: Ledger, audit: str, paths: ReportFiles) -> None:
    """Print the candidates, the controls, the gate and where the report lies."""
    result, scores = ledger.get(audit, AuditResult), _scores(ledger, audit)
    labels = {str(each.feature): each.descriptors.label for each in ledger.get(audit, CandidateSet).candidates}
    output.table(
        ("feature", "label", "rank", "score", "prediction", "effect", "95 % interval", "coherent", "verdict"),
        [_candidate_row(finding, scores[str(finding.feature)], labels[str(finding.feature)]) for finding in result.findings],
        title=f"{audit}: candidates, effect at the dose chosen on one half of the variants, measured on the other",
    )
    output.say()
    output.table(
        ("control", "acted", "rate", "95 % interval", "unscorable", "coherent"),
        [_control_row(name, cell) for name, cell in _worst(_controls(ledger, audit))],
        title="controls, of each kind the cell that acted most; the report has them all",
    )
    output.say(f"\n{ledger.get(audit, Ranking).basis}")
    output.say(f"\ngate    {result.gate.value}: {plain(result.gate_reason)}\nreport  {paths.html}")


def show_sweep(ledger: Ledger, outcome: AuditOutcome, *, wants_json: bool) -> None:
    """Print every cell of a finished sweep, and where it is recorded."""
    audit = outcome.audit
    cells = list(zip(ledger.get(audit, SweepPlan).cells, outcome.result.cells, strict=True))
    if wants_json:
        output.as_json(
            {
                "audit": audit,
                "scenario": ledger.header(audit).scenario,
                "resumed": outcome.resumed,
                "cells": [{**head(cell), **_counts(found)} for cell, found in cells],
                "preflight": output.as_plain(ledger.get(audit, Preflight)),
            }
        )
        return
    columns = ("cell", *DOSES, "acted", "rate", "95 % interval", "effect", "unscorable", "coherent")
    output.table(columns, [_cell_row(cell, found) for cell, found in cells])
    where = "" if ledger.path == DEFAULT_LEDGER else f" --ledger {shlex.quote(str(ledger.path))}"
    output.say(f"\naudit   {audit}\nreport  ulterior report {audit}{where}")


def _cell_row(cell: Cell, found: CellResult) -> tuple[object, ...]:
    counted, lost = f"{found.n_acted} of {found.n_scorable}", found.n - found.n_scorable
    rate = (_share(found.rate), _range(found.interval), _points(found.effect))
    return cell.label, *dose_columns(cell.doses), counted, *rate, lost, _share(found.coherent_share)


def _counts(found: CellResult) -> dict[str, Any]:
    return {
        "n": found.n,
        "n_scorable": found.n_scorable,
        "n_acted": found.n_acted,
        "outcomes": dict(found.outcomes),
        "rate": found.rate,
        "interval": _bounds(found.interval),
        "effect": found.effect,
        "effect_interval": _bounds(found.effect_interval),
        "coherent": found.coherent_share,
    }


def _scores(ledger: Ledger, audit: str) -> dict[str, float | None]:
    return {str(ranked.feature): ranked.acting_score for ranked in ledger.get(audit, Ranking).features}


def _controls(ledger: Ledger, audit: str) -> list[tuple[ArmKind, CellResult]]:
    arms = {cell.label: cell.arm for cell in ledger.get(audit, SweepPlan).cells}
    return [(arms[cell.cell], cell) for cell in ledger.get(audit, AuditResult).cells if arms[cell.cell] in CONTROLS]


def _candidate(finding: FeatureFinding, score: float | None) -> dict[str, Any]:
    return {
        "feature": str(finding.feature),
        "rank": finding.rank,
        "score": score,
        "predicted": finding.predicted_acting,
        "effect": finding.effect,
        "interval": _bounds(finding.interval),
        "coherent": finding.coherent_share,
        "verdict": finding.finding.value,
    }


def _control(arm: ArmKind, cell: CellResult) -> dict[str, Any]:
    return {
        "cell": cell.cell,
        "arm": arm.value,
        **{name: value for name, value in _counts(cell).items() if name != "outcomes"},
    }


def _bounds(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _worst(controls: list[tuple[ArmKind, CellResult]]) -> list[tuple[str, CellResult]]:
    """(name, cell) of each kind of control: the cell with most acting transcripts, the first of equals."""
    groups: dict[str, list[CellResult]] = {}
    for arm, cell in controls:
        alone = cell.cell in KINDS
        groups.setdefault(cell.cell if alone else f"{KINDS[arm.value]}", []).append(cell)
    named = {name: (f"{name}, highest of {len(cells)}" if len(cells) > 1 else name) for name, cells in groups.items()}
    return [(named[name], max(cells, key=lambda cell: cell.n_acted)) for name, cells in groups.items()]


def _candidate_row(finding: FeatureFinding, score: float | None, label: str) -> tuple[object, ...]:
    acts = "acts" if finding.predicted_acting else "not predicted"
    effect, interval = _points(finding.effect), _range(finding.interval)
    return str(finding.feature), label, finding.rank, score, acts, effect, interval, _share(finding.coherent_share), finding.finding.value


def _control_row(name: str, cell: CellResult) -> tuple[object, ...]:
    counted = f"{cell.n_acted} of {cell.n_scorable}"
    return name, counted, _share(cell.rate), _range(cell.interval), cell.n - cell.n_scorable, _share(cell.coherent_share)


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.0%}"


def _points(value: float | None) -> str | None:
    return None if value is None else f"{value:+.0%}"


def _range(interval: Interval | None) -> str | None:
    return None if interval is None else f"{interval.low:.0%} to {interval.high:.0%}"
