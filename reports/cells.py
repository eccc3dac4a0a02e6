"""Cells of the sweep and findings of the audit, as rows of tables."""

from __future__ import annotations

from audit.records import ArmKind, Cell, CellResult, FeatureFinding, FeatureId, Outcome
from reports.document import CellRow, DoseSeries, FindingRow
from reports.material import AuditMaterial
from reports.sentences import by_rank, statement
from reports.wording import FINDING_SYMBOLS, arm_words, one_line, unit_short, unit_words

COHERENCE_FLOOR = 0.8
"""Share of coherent transcripts below which a dose says nothing: definitions, "Verdict"."""

SMALL_EFFECT = 0.25
"""Upper bound up to which an effect that was not detected settles a prediction."""


def cell_rows(material: AuditMaterial) -> tuple[CellRow, ...]:
    """Every cell that was counted, in the plan's order."""
    counted = {each.cell: each for each in material.result.cells}
    return tuple(cell_row(cell, counted[cell.label]) for cell in material.plan.cells if cell.label in counted)


def cell_row(cell: Cell, counted: CellResult) -> CellRow:
    """One cell: what was done beside what was counted."""
    treatment = cell.treatment
    return CellRow(
        cell=one_line(cell.label),
        arm=cell.arm.value,
        arm_words=arm_words(cell.arm),
        prompt=cell.prompt.value.replace("_", " "),
        direction=one_line(treatment.direction) if treatment else None,
        operation=treatment.operation.value if treatment else None,
        strength=treatment.strength if treatment else None,
        unit=unit_short(treatment.unit) if treatment else None,
        layers=treatment.layers if treatment else (),
        positions=treatment.positions.value if treatment else None,
        written_norm=cell.written_norm,
        n=counted.n,
        n_scorable=counted.n_scorable,
        n_acted=counted.n_acted,
        n_unscorable=counted.n - counted.n_scorable,
        outcomes=_outcomes(counted),
        rate=counted.rate,
        interval=counted.interval,
        coherent_share=counted.coherent_share,
        coherent=counted.coherent_share >= COHERENCE_FLOOR,
        effect=counted.effect,
        effect_interval=counted.effect_interval,
    )


def _outcomes(counted: CellResult) -> tuple[tuple[str, int], ...]:
    """Every outcome in one order, those that did not occur included."""
    found = dict(counted.outcomes)
    return tuple((each.value.replace("_", " "), found.get(each.value, 0)) for each in Outcome)


def finding_rows(material: AuditMaterial) -> tuple[FindingRow, ...]:
    """Findings in the order of the prediction."""
    return tuple(finding_row(material, each) for each in by_rank(material.result.findings))


def finding_row(material: AuditMaterial, finding: FeatureFinding) -> FindingRow:
    """One finding, with the treatment that it rests on."""
    treatment = next((cell.treatment for cell in material.plan.cells if cell.label == finding.best_cell), None)
    return FindingRow(
        feature=str(finding.feature),
        label=label(material, finding.feature),
        rank=finding.rank,
        predicted_acting=finding.predicted_acting,
        verdict=finding.finding.value,
        symbol=FINDING_SYMBOLS[finding.finding],
        statement=statement(material, finding),
        effect=finding.effect,
        interval=finding.interval,
        cell=one_line(finding.best_cell) if finding.best_cell else None,
        strength=treatment.strength if treatment else None,
        unit=unit_words(treatment.unit) if treatment else None,
        coherent_share=finding.coherent_share,
        p_value=finding.p_value,
        p_adjusted=finding.p_adjusted,
        control_ceiling=finding.control_ceiling,
    )


def label(material: AuditMaterial, feature: FeatureId) -> str:
    """A candidate's label, made safe."""
    return next((one_line(each.descriptors.label) for each in material.candidates.candidates if each.feature == feature), "")


def dose_series(material: AuditMaterial, rows: tuple[CellRow, ...]) -> tuple[DoseSeries, ...]:
    """Each candidate over its strengths; one series for each unit and operation that it was steered in."""
    series = []
    for finding in finding_rows(material):
        mine = [row for row in rows if row.arm == ArmKind.CANDIDATE.value and row.direction == finding.feature]
        for unit, operation in dict.fromkeys((row.unit, row.operation) for row in mine):
            doses = sorted((row for row in mine if (row.unit, row.operation) == (unit, operation)), key=lambda row: row.strength or 0.0)
            series.append(DoseSeries(finding=finding, unit=f"{unit}, {operation}", points=tuple(doses)))
    return tuple(series)
