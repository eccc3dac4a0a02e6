"""The ledger's records of one audit → AuditMaterial."""

from __future__ import annotations

from dataclasses import fields

from audit.ledger import Ledger, LedgerEvent, Provenance
from audit.records import (
    AuditConfig,
    AuditResult,
    CandidateSet,
    DownstreamConnections,
    Outcome,
    Preflight,
    PromptKind,
    Ranking,
    SubjectInfo,
    SweepPlan,
)
from audit.scenario import Rule, Scenario
from reports.material import Argument, AuditMaterial, NamedValue, OutcomeDefinition, PromptMessage, PromptText, ScenarioFacts, Stamp


def material_from_ledger(ledger: Ledger, audit: str) -> AuditMaterial:
    """Gather a finished audit.

    Raises:
        LedgerError: there is no such audit, or it is not finished.
    """
    header = ledger.header(audit)
    result, config = ledger.get(audit, AuditResult), ledger.config(audit)
    plan = ledger.get(audit, SweepPlan)
    events = ledger.events(audit)
    return AuditMaterial(
        audit=audit,
        created=header.created,
        scenario=_scenario_facts(ledger.scenario(audit), plan, config),
        subject=ledger.get(audit, SubjectInfo),
        candidates=ledger.get(audit, CandidateSet),
        connections=ledger.get(audit, DownstreamConnections),
        ranking=ledger.get(audit, Ranking),
        prediction=_stamps(events, "prediction")[0],
        first_rollouts=next(iter(_stamps(events, "chunk")), None),
        plan=plan,
        preflight=ledger.get(audit, Preflight),
        rollouts=ledger.rollouts(audit),
        verdicts=ledger.verdicts(audit),
        result=result,
        provenance=_provenance(ledger.provenance(audit), n_resumed=len(_stamps(events, "resumed"))),
        arguments=_arguments(config),
        named=bool(config.features or config.treatments),
        ledger_digest=events[-1].digest,
    )


def _stamps(events: tuple[LedgerEvent, ...], kind: str) -> list[Stamp]:
    return [Stamp(time=each.created, digest=each.digest, sequence=each.seq) for each in events if each.kind == kind]


def _scenario_facts(scenario: Scenario, plan: SweepPlan, config: AuditConfig) -> ScenarioFacts:
    """The scenario's words, and the prompts that the plan used."""
    kinds = sorted({cell.prompt for cell in plan.cells})
    return ScenarioFacts(
        id=scenario.id,
        version=scenario.version,
        title=scenario.title,
        family=scenario.family,
        concept=scenario.concept,
        language=scenario.language,
        description=scenario.description,
        digest=scenario.digest,
        outcomes=_definitions(scenario),
        prompts=tuple(_prompt(scenario, kind, variant) for kind in kinds for variant in plan.variants),
        sweep_chosen=None if config.strengths and config.positions else scenario.sweep.chosen,
    )


def _definitions(scenario: Scenario) -> tuple[OutcomeDefinition, ...]:
    """In the order in which the rules are tried, with the channel that each one reads."""
    named = {name.value: getattr(scenario.outcomes, name.value, None) for name in Outcome}
    rules = [(name, part) for name, part in named.items() if isinstance(part, Rule)]
    rules.sort(key=lambda each: list(type(scenario.outcomes).model_fields).index(each[0]))
    ruled = tuple(OutcomeDefinition(outcome=name, definition=f"{part.definition} (read from: {part.channel})") for name, part in rules)
    return (*ruled, OutcomeDefinition(outcome="none", definition=scenario.outcomes.none.definition))


def _prompt(scenario: Scenario, kind: PromptKind, variant: int) -> PromptText:
    messages = scenario.variant(variant, kind)
    return PromptText(kind=kind, variant=variant, messages=tuple(PromptMessage(role=m.role, content=m.content) for m in messages))


def _provenance(found: Provenance, *, n_resumed: int) -> tuple[NamedValue, ...]:
    lines = {"ulterior": found.ulterior, "revision": found.revision or "not a checkout", "python": found.python}
    lines |= {"platform": found.platform, "cpus": str(found.cpus), **dict(found.packages), "resumed": f"{n_resumed} times"}
    return tuple(NamedValue(name=name, value=value) for name, value in lines.items())


def _arguments(config: AuditConfig) -> tuple[Argument, ...]:
    names = [field.name for field in fields(config) if field.name != "passed"]
    return tuple(Argument(name=name, value=_shown(getattr(config, name)), passed=name in config.passed) for name in names)


def _shown(value: object) -> str:
    if value is None or value == ():
        return "none given"
    return ", ".join(str(each) for each in value) if isinstance(value, tuple) else str(value)
