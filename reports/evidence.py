"""What one sees of a candidate without steering it, and the downstream targets that tell the look-alikes apart."""

from __future__ import annotations

from audit.records import Candidate, Connection, ConnectionFlag, Example, Finding, RankedFeature, TargetRole, TokenWeight
from reports.document import (
    CandidateRow,
    CandidatesSection,
    Drawing,
    FindingRow,
    FoundBy,
    ShadedExample,
    ShadedToken,
    TargetPanel,
    TargetRow,
    TargetsSection,
    WeightedToken,
)
from reports.material import AuditMaterial
from reports.sentences import candidate_claims, target_claims
from reports.wording import decimal, one_line, role_symbol, role_words, visible

EXAMPLES = 3
"""Top examples that a candidate shows."""
REACH = 14
"""Tokens that an example shows on each side of its peak."""
UNEMBEDS = 6
TARGETS = 12
"""Targets that a panel shows."""
LEVELS = 5
FLAGS = {
    ConnectionFlag.DENSE: "dense",
    ConnectionFlag.ANTIPODAL: "antipodal",
    ConnectionFlag.SMALL_V_LARGE_TWERA: "small V",
    ConnectionFlag.UNSUPPORTED: "few tokens",
    ConnectionFlag.NEVER_COACTIVE: "never together",
}


def candidates_section(material: AuditMaterial, findings: tuple[FindingRow, ...]) -> CandidatesSection:
    """The candidates in the order of the prediction, so that look-alikes stand under one another."""
    ranked = {str(each.feature): each for each in material.ranking.features}
    found = {str(each.feature): each for each in material.candidates.candidates}
    rows = tuple(_candidate_row(found[row.feature], row, ranked.get(row.feature)) for row in findings if row.feature in found)
    return CandidatesSection(
        concept=one_line(material.candidates.concept), named=material.named, claims=candidate_claims(material), rows=rows
    )


def _candidate_row(candidate: Candidate, finding: FindingRow, ranked: RankedFeature | None) -> CandidateRow:
    seen = candidate.descriptors
    return CandidateRow(
        finding=finding,
        label_source=one_line(seen.label_source),
        frequency=seen.frequency,
        max_activation=seen.max_activation,
        flags=tuple(one_line(flag) for flag in seen.flags),
        found_by=tuple(FoundBy(search=one_line(search), rank=rank) for search, rank in candidate.ranks),
        examples=tuple(shaded(example, seen.max_activation) for example in seen.top_examples[:EXAMPLES]),
        top_unembeds=weighted(seen.top_unembeds),
        bottom_unembeds=weighted(seen.bottom_unembeds),
        acting_score=ranked.acting_score if ranked else None,
    )


def shaded(example: Example, largest: float) -> ShadedExample:
    """The tokens around an example's peak, with the activation in fifths of the feature's largest."""
    first, last = max(0, example.peak - REACH), min(len(example.tokens), example.peak + REACH + 1)
    tokens = tuple(
        ShadedToken(
            text=visible(example.tokens[place]).replace("\n", "⏎"),
            activation=example.activations[place],
            level=_level(example.activations[place], largest),
            peak=place == example.peak,
        )
        for place in range(first, last)
    )
    return ShadedExample(tokens=tokens, cut_before=first > 0, cut_after=last < len(example.tokens))


def _level(activation: float, largest: float) -> int:
    """0 when silent; otherwise 1 to 5, so that the weakest firing is still seen."""
    if activation <= 0 or largest <= 0:
        return 0
    return min(LEVELS, 1 + int(LEVELS * activation / largest))


def weighted(tokens: tuple[TokenWeight, ...]) -> tuple[WeightedToken, ...]:
    """The strongest few, made safe."""
    return tuple(WeightedToken(token=one_line(each.token, 30), weight=each.weight) for each in tokens[:UNEMBEDS])


def targets_section(material: AuditMaterial, findings: tuple[FindingRow, ...]) -> TargetsSection:
    """The top of the prediction beside a look-alike."""
    panels = tuple(_panel(material, row, part) for row, part in _compared(material, findings))
    names = " and ".join(f"{panel.finding.feature} (acting score {decimal(panel.acting_score)})" for panel in panels)
    return TargetsSection(
        claims=target_claims(material, (panel.finding.feature for panel in panels)),
        drawing=Drawing(
            id="targets",
            caption="TWERA of the strongest downstream targets. ▲ the target fires on acting passages, ○ on discussing ones, "
            "· on neither; the number beside it is its role, from −1 to +1. Both panels share one scale. "
            "Look for long bars with ▲ on the left and with ○ on the right.",
            alternative=f"Bar chart of the signed connections of {names} to their downstream targets; the table below holds all values.",
        ),
        panels=panels,
    )


def _compared(material: AuditMaterial, findings: tuple[FindingRow, ...]) -> list[tuple[FindingRow, str]]:
    """First of the prediction, and the last one that was not shown to act: the plainest contrast.

    One that was tested and has an acting score is preferred to one that was not, or has none.
    """
    if not findings:
        return []
    others = [row for row in findings[1:] if row.verdict != Finding.CAUSAL.value]
    scored = {str(each.feature) for each in material.ranking.features if each.acting_score is not None}
    plain = [row for row in others if row.verdict == Finding.NOT_DETECTED.value and row.feature in scored]
    return [(findings[0], "first of the prediction"), *((row, "look-alike") for row in (plain or others)[-1:])]


def _panel(material: AuditMaterial, finding: FindingRow, part: str) -> TargetPanel:
    connections = next((each for each in material.connections.features if str(each.source) == finding.feature), None)
    ranked = next((each for each in material.ranking.features if str(each.feature) == finding.feature), None)
    roles = {each.target: each for each in ranked.targets} if ranked else {}
    targets = connections.targets if connections else ()
    motor = {each.feature: each.motor_share for each in material.connections.targets}
    return TargetPanel(
        finding=finding,
        part=part,
        acting_score=ranked.acting_score if ranked else None,
        rows=tuple(_target_row(each, roles.get(each.target), motor.get(each.target)) for each in targets[:TARGETS]),
        n_further=max(0, len(targets) - TARGETS),
        n_unsupported=connections.n_unsupported if connections else 0,
        support_cutoff=connections.support_cutoff if connections else 0,
        n_never_coactive=connections.n_never_coactive if connections else 0,
        attention=material.connections.attention is not None,
        scenario=material.connections.scenario is not None,
    )


def _target_row(connection: Connection, role: TargetRole | None, motor_share: float | None) -> TargetRow:
    value = role.role if role else None
    return TargetRow(
        target=str(connection.target),
        label=one_line(connection.target_label),
        unembeds=weighted(connection.target_unembeds),
        role=value,
        role_symbol=role_symbol(value),
        role_words=role_words(value),
        virtual_weight=connection.virtual_weight,
        era=connection.era,
        twera=connection.twera,
        through_attention=connection.through_attention,
        scenario_twera=connection.scenario_twera,
        n_coactive=connection.n_coactive,
        frequency=connection.target_frequency,
        motor_share=motor_share,
        flags=tuple(FLAGS[flag] for flag in connection.flags),
        n_acting_tokens=role.n_acting_tokens if role else 0,
        n_discussing_tokens=role.n_discussing_tokens if role else 0,
    )
