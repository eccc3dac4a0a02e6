from __future__ import annotations

import re
from dataclasses import replace

import pytest

from audit.judging.tally import COHERENT
from audit.records import Finding, Interval
from reports import AuditMaterial, Document, build, recompute
from reports.cells import COHERENCE_FLOOR
from reports.claims import Claim, claim, discordant, fact, own_role_rank, resolve, where
from reports.sentences import statement, verdict_claims

CONSTANTS = ("25 points", "80 %", "95 %", "0.5 is chance", "0 is perfect", "strength 0", "above 0", "99th", "4-grams")
"""Figures in the wording that are no result."""


def test_every_claim_can_be_made_again_from_the_records(material: AuditMaterial, document: Document) -> None:
    assert [problem for made in document.claims for problem in recompute(material, made)] == []
    assert sum(len(made.facts) for made in document.claims) > 40


def test_no_figure_stands_in_a_claim_without_its_source(document: Document) -> None:
    for made in document.claims:
        left = made.text
        for constant in CONSTANTS:
            left = left.replace(constant, "")
        for shown in sorted((each.shown for each in made.facts), key=len, reverse=True):
            left = left.replace(shown, "")
        assert not re.search(r"\d", left), (made.id, left)


def test_a_record_that_was_changed_afterwards_is_found(material: AuditMaterial, document: Document) -> None:
    findings = tuple(replace(each, effect=0.9) if each.finding is Finding.CAUSAL else each for each in material.result.findings)
    changed = replace(material, result=replace(material.result, findings=findings))
    problems = [problem for made in document.claims for problem in recompute(changed, made)]
    assert len(problems) == 1
    assert "effect is 0.9" in problems[0]


def test_a_sentence_that_was_changed_afterwards_is_found(material: AuditMaterial, document: Document) -> None:
    made = document.verdict.claims[0]
    effect = next(each for each in made.facts if each.source.endswith(".effect"))
    forged = replace(made, text=made.text.replace(effect.shown, "+99.9"))
    assert any("the claim shows" in problem for problem in recompute(material, forged))


def test_the_verdict_quotes_effect_interval_strength_and_controls(material: AuditMaterial) -> None:
    causal = next(each for each in material.result.findings if each.finding is Finding.CAUSAL)
    assert causal.effect is not None
    assert causal.interval is not None
    text = verdict_claims(material)[0].text
    assert text.startswith(f"{causal.feature} (“desperate, despair”) is behaviour-causal: steered at 1 × the largest corpus activation")
    assert f"{100 * causal.effect:+.1f} percentage points" in text
    assert f"95 % interval {100 * causal.interval.low:+.1f} to {100 * causal.interval.high:+.1f}" in text
    assert f"{100 * causal.control_ceiling:+.1f} points" in text


def test_what_was_not_detected_is_said_with_its_bound_and_never_as_no_effect(material: AuditMaterial, document: Document) -> None:
    plain = next(each for each in material.result.findings if each.finding is Finding.NOT_DETECTED and each.interval is not None)
    bounded = replace(plain, interval=Interval(low=-0.1, high=0.0634))
    changed = replace(material, result=replace(material.result, findings=(bounded,)))
    assert statement(changed, bounded) == "not detected (≤ 6.3 %)"
    assert all("no effect" not in made.text.lower() for made in document.claims)


def test_a_finding_without_an_interval_is_quoted_without_a_bound(material: AuditMaterial) -> None:
    plain = next(each for each in material.result.findings if each.finding is Finding.NOT_DETECTED)
    empty = replace(plain, interval=None)
    changed = replace(material, result=replace(material.result, findings=(empty,)))
    assert statement(changed, empty) == "not detected (no bound)"
    assert any("(no bound)" in made.text for made in verdict_claims(changed))


def test_without_an_acting_feature_the_verdict_says_that_none_was_shown(material: AuditMaterial) -> None:
    findings = tuple(
        replace(each, finding=Finding.NOT_DETECTED) if each.finding is Finding.CAUSAL else each for each in material.result.findings
    )
    changed = replace(material, result=replace(material.result, findings=findings, normalised_rank=None))
    made = build(changed).verdict.claims
    assert made[0].text.startswith("None of the 6 candidates was shown to be behaviour-causal")
    assert "cannot be scored" in made[-1].text


def test_paths_name_one_thing_or_nothing(material: AuditMaterial) -> None:
    assert resolve(material, "scenario.id") == "blackmail"
    assert resolve(material, f"result.cells{where(cell='none')}.n") == 48
    assert resolve(material, "count(result.findings)") == len(material.result.findings)
    assert resolve(material, f"count(verdicts{where(outcome='unscorable')})") == sum(
        each.outcome == "unscorable" for each in material.verdicts
    )
    for wrong in ("result.cells", "result.cells.rate", f"result.cells{where(cell='nobody')}.rate", "scenario.nothing", "result..x", "§"):
        with pytest.raises(LookupError):
            resolve(material, wrong)


def test_a_label_with_quotes_and_brackets_is_found_again(material: AuditMaterial) -> None:
    odd = 'a "b" ] \\ c'
    first = material.result.cells[0]
    changed = replace(material, result=replace(material.result, cells=(replace(first, cell=odd), *material.result.cells[1:])))
    assert resolve(changed, f"result.cells{where(cell=odd)}.n") == first.n


def test_pairs_leave_out_what_could_not_be_scored(material: AuditMaterial) -> None:
    outcome = {(each.cell, each.variant, each.sample): each.outcome.value for each in material.verdicts}
    steered = str(next(each.best_cell for each in material.result.findings if each.finding is Finding.CAUSAL))
    expected = [
        (variant, sample)
        for variant in material.plan.variants
        for sample in range(material.plan.samples_per_variant)
        if outcome[steered, variant, sample] == "acted" and outcome["none", variant, sample] not in ("acted", "unscorable")
    ]
    assert list(discordant(material, steered, "none")) == expected
    assert expected


def test_the_rank_by_own_role_is_the_share_of_candidates_ahead(material: AuditMaterial) -> None:
    """One of six candidates has a larger own role than the one that acts: place 2, (2 − 1) / (6 − 1)."""
    assert own_role_rank(material) == pytest.approx(0.2)


def test_text_in_a_fact_is_not_read_as_a_template(material: AuditMaterial) -> None:
    changed = replace(material, scenario=replace(material.scenario, id="{x} {0}"))
    assert claim("a", "In {x}.", x=fact(changed, "scenario.id", "text")) == Claim(
        id="a", text="In {x} {0}.", facts=(fact(changed, "scenario.id", "text"),)
    )


def test_the_report_marks_doses_at_the_judge_s_own_floor() -> None:
    assert COHERENCE_FLOOR == COHERENT
