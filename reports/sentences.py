"""Every sentence of the report that carries a figure, section by section. Figures come from paths, never from here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from audit.records import ArmKind, CellResult, FeatureFinding, Finding
from reports.claims import Claim, Fact, claim, fact, where
from reports.material import AuditMaterial
from reports.wording import conversion, dose_form, other_units, unit_words

MAX_ALARMS = 3
"""Problems of a dictionary's health that are told one by one."""


def finding_path(finding: FeatureFinding) -> str:
    """Path of a candidate's finding."""
    return f"result.findings{where(feature=str(finding.feature))}"


def cell_path(cell: str) -> str:
    """Path of a cell's counts."""
    return f"result.cells{where(cell=cell)}"


def by_rank(findings: Iterable[FeatureFinding]) -> list[FeatureFinding]:
    """Findings in the order of the prediction."""
    return sorted(findings, key=lambda each: (each.rank, str(each.feature)))


def bound_source(finding: FeatureFinding) -> str | None:
    """Path of the upper bound of an effect that was not detected; None when nothing bounds it."""
    return f"{finding_path(finding)}.interval.high" if finding.interval is not None else None


def statement(material: AuditMaterial, finding: FeatureFinding) -> str:
    """A verdict as it is quoted, the bound included."""
    source = bound_source(finding) if finding.finding is Finding.NOT_DETECTED else None
    if source is None:
        return finding.finding.value if finding.finding is not Finding.NOT_DETECTED else "not detected (no bound)"
    return f"{finding.finding.value} (≤ {fact(material, source, 'percent').shown})"


def verdict_claims(material: AuditMaterial) -> tuple[Claim, ...]:
    """What an auditor quotes."""
    findings = by_rank(material.result.findings)
    causal = [_causal(material, each) for each in findings if each.finding is Finding.CAUSAL]
    none_causal = [] if causal else [_none_causal(material)]
    rest = [
        _listed(material, Finding.NOT_DETECTED, "Acting was not detected for {n} of {m} candidates: {each}."),
        _listed(material, Finding.INSUFFICIENT, "The evidence on {n} of {m} candidates is insufficient: {each}."),
        _unsteered(material),
    ]
    return (*_alarms(material), *causal, *none_causal, *(each for each in rest if each is not None), _foresight(material))


def _alarms(material: AuditMaterial) -> Iterator[Claim]:
    """What would have stopped the audit, had the auditor not accepted it."""
    problems = material.subject.health_problems
    for problem in problems[:MAX_ALARMS]:
        yield claim(
            f"alarm/{problem.id}",
            "⚠ The dictionary looks as if it were loaded wrong or belonged to another model, and this was accepted: {what}. "
            "Everything below depends on it.",
            what=fact(material, f"subject.health_problems{where(id=problem.id)}.text", "text"),
        )
    if len(problems) > MAX_ALARMS:
        n = fact(material, "count(subject.health_problems)", "count")
        yield claim("alarm/all", "⚠ In all, {n} such problems were accepted; the manifest has every layer's figures.", n=n)


def _causal(material: AuditMaterial, finding: FeatureFinding) -> Claim:
    path = finding_path(finding)
    facts = {
        "feature": fact(material, f"{path}.feature", "text"),
        "label": fact(material, f"candidates.candidates{where(feature=str(finding.feature))}.descriptors.label", "quoted"),
        "effect": fact(material, f"{path}.effect", "points"),
        "ceiling": fact(material, f"{path}.control_ceiling", "points"),
        "p": fact(material, f"{path}.p_adjusted", "probability"),
        "coherent": fact(material, f"{path}.coherent_share", "percent"),
        "rank": fact(material, f"{path}.rank", "count"),
        "n": fact(material, "count(result.findings)", "count"),
    }
    dose, interval = "", ""
    best = next((cell for cell in material.plan.cells if cell.label == finding.best_cell), None)
    if best is not None and best.treatment is not None:
        unit, planned = best.treatment.unit, f"plan.cells{where(label=best.label)}"
        facts["strength"] = fact(material, f"{planned}.treatment.strength", "dose")
        units = other_units(unit, best.doses)
        facts |= {each.value: fact(material, f"{planned}.doses.{each.value}", dose_form(each)) for each in units}
        dose = f"steered at {{strength}} {unit_words(unit)}{conversion(unit, best.doses)}, "
    if finding.interval is not None:
        facts |= {end: fact(material, f"{path}.interval.{end}", "points") for end in ("low", "high")}
        interval = "95 % interval {low} to {high}, "
    foreseen = "It was predicted to act" if finding.predicted_acting else "It was not predicted to act"
    return claim(
        f"causal/{finding.feature}",
        f"{{feature}} ({{label}}) is behaviour-causal: {dose}it changes the acting rate by {{effect}} percentage points "
        f"({interval}adjusted p {{p}}). The largest effect of any random or unrelated control of the same dose is {{ceiling}} points; "
        f"{{coherent}} of its transcripts are coherent. {foreseen} (place {{rank}} of {{n}}).",
        **facts,
    )


def _none_causal(material: AuditMaterial) -> Claim:
    return claim(
        "none-causal",
        "None of the {m} candidates was shown to be behaviour-causal; the bounds below say how large an effect could still be.",
        m=fact(material, "count(result.findings)", "count"),
    )


def _listed(material: AuditMaterial, kind: Finding, template: str) -> Claim | None:
    """One sentence over all candidates with that finding."""
    found = [each for each in by_rank(material.result.findings) if each.finding is kind]
    if not found:
        return None
    facts: dict[str, Fact] = {}
    parts = []
    for number, each in enumerate(found):
        facts[f"f{number}"] = fact(material, f"{finding_path(each)}.feature", "text")
        source = bound_source(each) if kind is Finding.NOT_DETECTED else None
        if source is not None:
            facts[f"b{number}"] = fact(material, source, "percent")
        bound = f" (≤ {{b{number}}})" if source is not None else " (no bound)" if kind is Finding.NOT_DETECTED else ""
        parts.append(f"{{f{number}}}{bound}")
    facts["n"] = fact(material, f"count(result.findings{where(finding=kind.value)})", "count")
    facts["m"] = fact(material, "count(result.findings)", "count")
    return claim(kind.value.replace(" ", "-"), template.replace("{each}", ", ".join(parts)), **facts)


_COUNTED = "{acted} of {scorable} scorable, 95 % interval {low} to {high}; {all} sampled"


def rate_facts(material: AuditMaterial, cell: CellResult) -> dict[str, Fact]:
    """Counts, rate and interval of a cell in which something could be scored, for a sentence."""
    path = cell_path(cell.cell)
    facts = {"acted": fact(material, f"{path}.n_acted", "count"), "scorable": fact(material, f"{path}.n_scorable", "count")}
    facts |= {"all": fact(material, f"{path}.n", "count"), "rate": fact(material, f"{path}.rate", "percent")}
    return facts | {end: fact(material, f"{path}.interval.{end}", "percent") for end in ("low", "high")}


def arm_cells(material: AuditMaterial, *arms: ArmKind) -> list[CellResult]:
    """Counts of the cells of some arms, in the plan's order."""
    labels = [cell.label for cell in material.plan.cells if cell.arm in arms]
    return [each for label in labels for each in material.result.cells if each.cell == label]


def _unsteered(material: AuditMaterial) -> Claim | None:
    cells = arm_cells(material, ArmKind.NONE)
    if not cells:
        return None
    if cells[0].interval is None:
        text = "Unsteered, none of the {all} transcripts could be scored."
        return claim("unsteered", text, all=fact(material, f"{cell_path(cells[0].cell)}.n", "count"))
    return claim(
        "unsteered", f"Unsteered, the subject acted in {{rate}} of its transcripts ({_COUNTED}).", **rate_facts(material, cells[0])
    )


def _foresight(material: AuditMaterial) -> Claim:
    """How good the prediction was, beside the control that it has to beat."""
    if material.result.normalised_rank is None:
        return Claim(
            id="normalised-rank",
            text="No candidate was found to act (or there was one only), so that the prediction's order cannot be scored.",
        )
    facts = {"rank": fact(material, "result.normalised_rank", "figure")}
    facts["k"] = fact(material, f"count(result.findings{where(finding=Finding.CAUSAL.value)})", "count")
    facts["n"] = fact(material, "count(ranking.features)", "count")
    own = fact(material, "own_role_rank()", "figure")
    beside = "" if own.value is None else " Ordered by their own activation alone, without downstream connections, it would be {own}."
    return claim(
        "normalised-rank",
        "The normalised rank of what acts ({k} of {n} candidates) in the prediction is {rank}, where 0 is perfect and 0.5 is chance."
        + beside,
        **facts,
        **({"own": own} if own.value is not None else {}),
    )


def candidate_claims(material: AuditMaterial) -> tuple[Claim, ...]:
    """How many were found, among how many; or that they were named."""
    if material.named:
        text = "The caller named the features, {n} in all: none was searched for."
        return (claim("candidates", text, n=fact(material, "count(candidates.candidates)", "count")),)
    return (
        claim(
            "candidates",
            "Concept search for {concept} returned {n} of {searched} features.",
            concept=fact(material, "candidates.concept", "quoted"),
            n=fact(material, "count(candidates.candidates)", "count"),
            searched=fact(material, "candidates.n_searched", "count"),
        ),
    )


def target_claims(material: AuditMaterial, features: Iterable[str]) -> tuple[Claim, ...]:
    """Acting scores of the candidates whose targets are shown."""
    return tuple(_score(material, feature) for feature in features)


def _score(material: AuditMaterial, feature: str) -> Claim:
    path = f"ranking.features{where(feature=feature)}"
    facts = {"feature": fact(material, f"{path}.feature", "text"), "rank": fact(material, f"{path}.rank", "count")}
    ranked = next(each for each in material.ranking.features if str(each.feature) == feature)
    if ranked.acting_score is None:
        return claim(f"score/{feature}", "{feature} (place {rank}) has no acting score: none of its supported targets has a role.", **facts)
    facts |= {"score": fact(material, f"{path}.acting_score", "decimal"), "mass": fact(material, f"{path}.role_mass", "percent")}
    interval = ""
    if ranked.interval is not None:
        facts |= {end: fact(material, f"{path}.interval.{end}", "decimal") for end in ("low", "high")}
        interval = " (95 % bootstrap interval {low} to {high})"
    text = f"{{feature}} (place {{rank}}) has an acting score of {{score}}{interval}; targets with a role carry {{mass}} of its |TWERA|."
    return claim(f"score/{feature}", text, **facts)


def prediction_claims(material: AuditMaterial) -> tuple[Claim, ...]:
    """The order in which things entered the ledger, and why those are predicted that are."""
    basis = Claim(id="prediction-basis", text=material.ranking.basis)
    facts = {"time": fact(material, "prediction.time", "time"), "entry": fact(material, "prediction.sequence", "count")}
    if material.first_rollouts is None:
        return (claim("order", "The prediction entered the ledger at {time} as entry {entry}; no rollouts are recorded.", **facts), basis)
    facts |= {"later": fact(material, "first_rollouts.time", "time"), "next": fact(material, "first_rollouts.sequence", "count")}
    held = material.prediction.sequence < material.first_rollouts.sequence
    relation = "before" if held else "NOT before"
    text = f"The prediction entered the ledger at {{time}} as entry {{entry}}, {relation} the first rollouts ({{later}}, entry {{next}})."
    return (claim("order", text, **facts), basis, _foresight(material))


def dose_claims(material: AuditMaterial) -> tuple[Claim, ...]:
    """What was run, and how far the controls reach."""
    facts = {"cells": fact(material, "count(plan.cells)", "count"), "variants": fact(material, "count(plan.variants)", "count")}
    facts |= {"samples": fact(material, "plan.samples_per_variant", "count"), "all": fact(material, "plan.n_rollouts", "count")}
    ran = claim("sweep", "{cells} cells of {variants} prompt variants × {samples} samples each: {all} rollouts planned.", **facts)
    controls = arm_cells(material, ArmKind.RANDOM, ArmKind.UNRELATED)
    highest = max((each for each in controls if each.interval is not None), key=lambda each: each.rate or 0.0, default=None)
    if highest is None:
        return (ran,)
    text = "No random or unrelated control acted in more than {rate} of its scorable transcripts "
    return (ran, claim("control-ceiling", text + f"({_COUNTED}).", **rate_facts(material, highest)))


def pair_claim(material: AuditMaterial, steered: str, unsteered: str) -> Claim:
    """How typical the pair of transcripts is."""
    facts = {
        "pairs": fact(material, _pairs(steered, unsteered), "count"),
        "reverse": fact(material, _pairs(unsteered, steered), "count"),
        "n": fact(material, f"{cell_path(steered)}.n", "count"),
    }
    text = "Of {n} pairs with the same variant and sample, {pairs} acted steered and not unsteered, {reverse} the other way round. "
    return claim("pairs", text + "Shown is the first of the former in the order of variants; where there is none, the first pair.", **facts)


def _pairs(first: str, second: str) -> str:
    return f"pairs({json.dumps(first, ensure_ascii=False)}, {json.dumps(second, ensure_ascii=False)})"


def control_claims(material: AuditMaterial) -> tuple[Claim, ...]:
    """The pre-flight, and what could not be scored."""
    preflight = claim(
        "preflight",
        "Before the sweep: strength 0 changed the logits by at most {zero}, every treatment changed some logit by at least {full}, "
        "and each hook fired {fired} times a token.",
        zero=fact(material, "preflight.zero_dose_max_difference", "figure"),
        full=fact(material, "preflight.full_dose_min_difference", "figure"),
        fired=fact(material, "preflight.firings_per_token", "figure"),
    )
    unscorable = claim(
        "unscorable",
        "{n} of {all} transcripts could not be scored; they are in no rate and are never counted as safe.",
        n=fact(material, f"count(verdicts{where(outcome='unscorable')})", "count"),
        all=fact(material, "count(verdicts)", "count"),
    )
    return (preflight, _engine(material), unscorable, *_stopped(material))


def _engine(material: AuditMaterial) -> Claim:
    """How rollouts were decoded, and how far that is from a plain forward pass."""
    found, facts = material.preflight, dict[str, Fact]()
    text = "Rollouts were decoded layer by layer: what treatments share of a prompt was computed once."
    if found.engine != "layerwise":
        text = "Rollouts were decoded in forward passes of transformers."
        if found.engine_reason:
            facts["reason"] = fact(material, "preflight.engine_reason", "text")
            text = "Rollouts were decoded in forward passes of transformers, as the model cannot be run layer by layer: {reason}."
    if found.engine_max_difference is not None:
        facts["difference"] = fact(material, "preflight.engine_max_difference", "figure")
        text += " With the same treatments, logits differ from those of transformers' own forward pass by at most {difference}."
    return claim("engine", text, **facts)


def _stopped(material: AuditMaterial) -> tuple[Claim, ...]:
    """How many answers a stop text ended, where there are any."""
    if not any(each.stopped_by for each in material.rollouts):
        return ()
    text = "{n} of {all} answers ended at a stop text of the scenario; they are not cut off, and what would have followed is not known."
    return (claim("stopped", text, n=fact(material, "stopped()", "count"), all=fact(material, "count(rollouts)", "count")),)
