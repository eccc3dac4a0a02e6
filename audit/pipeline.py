"""``run_audit``: the steps, one call a line. Nothing else writes to the ledger.

Resuming is skipping what the ledger has: a step whose record is there is read back, a chunk that is there is not sampled again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from audit.candidates import describe, search
from audit.connections import connect
from audit.errors import Interrupted
from audit.events import AuditBegun, Observer, StepProgress, check_stop, timed
from audit.judging.tally import conclude, tally
from audit.judging.verdicts import judge
from audit.ledger import Ledger, Provenance, Resumption, collect, digest, dump
from audit.ranking import rank
from audit.records import (
    ArmKind,
    AuditConfig,
    AuditOutcome,
    AuditResult,
    Candidate,
    CandidateSet,
    Cell,
    CellResult,
    DownstreamConnections,
    FeatureId,
    Positions,
    PromptKind,
    Ranking,
    Rollout,
    StrengthUnit,
    SweepPlan,
    Verdict,
)
from audit.scenario import Scenario, list_scenarios, load_scenario, read_scenario
from audit.steering import preflight, sweep
from audit.steering.controls import choose_unrelated
from audit.steering.plan import DEFAULT_STRENGTHS, plan_sweep
from audit.steering.plan import estimate as estimate_sweep
from audit.steering.strengths import Scales, scales
from audit.steering.treatments import multiplicative, number
from audit.subject import Subject, TokenActivations, load_subject, observe, passages

Record = TypeVar("Record")

N_UNRELATED = 4
"""Learned control features of a sweep."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """What every step works on; it holds tensors, so it never leaves the process."""

    config: AuditConfig
    observer: Observer
    subject: Subject
    scenario: Scenario
    activations: TokenActivations
    """Of the corpus."""
    acting: TokenActivations
    discussing: TokenActivations
    others: tuple[TokenActivations, ...]
    """Of the contrast passages of the scenarios about other concepts in the subject's language."""
    other_digests: tuple[str, ...]
    """Of those scenarios."""
    scales: Scales


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditKey:
    """Everything that decides what an audit does; its digest is the audit's fingerprint."""

    ulterior: str
    revision: str | None
    """Two different sets of uncommitted changes on one commit look alike."""
    torch: str | None
    transformers: str | None
    threads: int
    """The order of a sum depends on it, and with it the last digit."""
    model_sha256: str
    dictionary_sha256: str
    corpus_sha256: str
    device: str
    scenario_digest: str
    other_digests: tuple[str, ...]
    concept: str | None
    seed: int
    samples: int
    strengths: tuple[float, ...]
    unit: StrengthUnit
    positions: Positions


def run_audit(config: AuditConfig, ledger: Ledger, observer: Observer, *, fresh: bool = False) -> AuditOutcome:
    """Audit a subject from its corpus to its verdicts.

    Args:
        config: what to audit.
        ledger: takes every record as soon as it is there.
        observer: told of everything; may stop the audit, which loses at most the chunk under way.
        fresh: start anew although an unfinished audit of the same configuration is there.

    Raises:
        AuditError: as the steps do.
        Interrupted: the observer asked to stop; the same call goes on from there.
    """
    bench = prepare(config, observer)
    audit, resumed = _begin(bench, ledger, fresh=fresh)
    try:
        result = _steps(bench, ledger, audit)
    except Interrupted as stop:
        done = ledger.header(audit)
        kept = f"{done.n_rollouts} of {done.n_planned} rollouts" if done.n_planned else "The finished steps"
        why = f"{kept} of {audit} are kept in {ledger.path}."
        raise Interrupted(stop.title, why, "Run the same command again to resume it.") from stop
    return AuditOutcome(audit=audit, resumed=resumed, result=result)


def _steps(bench: Bench, ledger: Ledger, audit: str) -> AuditResult:
    candidates = _once(ledger, audit, CandidateSet, lambda: find_candidates(bench))
    connections = _once(ledger, audit, DownstreamConnections, lambda: find_connections(bench, candidates))
    ranking = _once(ledger, audit, Ranking, lambda: predict(bench, connections))
    plan = _once(ledger, audit, SweepPlan, lambda: make_plan(bench, candidates, ranking))
    _check_steering(bench, ledger, audit, plan)
    rollouts = _sweep(bench, ledger, audit, plan)
    verdicts = _judge(bench, ledger, audit, plan, rollouts)
    return _once(ledger, audit, AuditResult, lambda: conclude(plan, verdicts, ranking))


def prepare(config: AuditConfig, observer: Observer) -> Bench:
    """Open the subject and its scenario, and read every feature's activations."""
    with timed(observer, "subject") as note:
        subject = load_subject(_path(config.subject), _path(config.dictionary), _path(config.corpus), observer=observer)
        info = subject.info
        scenario = find_scenario(config.scenario, info.language, _path(config.subject))
        note.summary = f"{info.name}, {info.n_layers} layers, {info.dictionary_kind} of {subject.dictionary.n_features} features each"
    with timed(observer, "corpus") as note:
        activations = observe(subject.model, subject.dictionary, subject.corpus, progress=_told(observer, "corpus"))
        contrast = scenario.contrast
        acting, discussing = (passages(subject.model, subject.dictionary, side) for side in (contrast.acting, contrast.discussing))
        apart = other_scenarios(scenario, _path(config.subject))
        others = tuple(passages(subject.model, subject.dictionary, (*each.contrast.acting, *each.contrast.discussing)) for each in apart)
        note.summary = f"{activations.n_tokens} tokens in {len(subject.corpus)} documents"
    return Bench(
        config=config,
        observer=observer,
        subject=subject,
        scenario=scenario,
        activations=activations,
        acting=acting,
        discussing=discussing,
        others=others,
        other_digests=tuple(each.digest for each in apart),
        scales=scales(subject, activations),
    )


def find_scenario(name: str, language: str, folder: Path | None) -> Scenario:
    """The scenario of that name in the subject's language; an organism in a language of its own brings its scenarios along."""
    shipped = language in {entry.language for entry in list_scenarios()}
    own = () if shipped or folder is None else (folder / "scenarios",)
    return load_scenario(name, language, own)


def other_scenarios(scenario: Scenario, folder: Path | None) -> list[Scenario]:
    """Scenarios in the same language about other concepts, shipped or brought along by the subject, by id."""
    own = () if folder is None else (folder / "scenarios",)
    found = {entry.id: entry for entry in list_scenarios(own) if entry.language == scenario.language and entry.concept != scenario.concept}
    return [read_scenario(entry.path) for _, entry in sorted(found.items())]


def find_candidates(bench: Bench) -> CandidateSet:
    """Concept → candidates."""
    with timed(bench.observer, "candidates") as note:
        found = search(
            bench.subject,
            bench.activations,
            bench.scenario,
            concept=bench.config.concept,
            acting=bench.acting,
            discussing=bench.discussing,
            others=bench.others,
            observer=bench.observer,
        )
        note.summary = f"{len(found.candidates)} candidates for '{found.concept}' among {found.n_searched} features"
    return found


def find_connections(bench: Bench, candidates: CandidateSet) -> DownstreamConnections:
    """Candidates → their downstream targets."""
    with timed(bench.observer, "connections") as note:
        found = connect(bench.subject, candidates, bench.activations, observer=bench.observer)
        note.summary = f"{sum(len(each.targets) for each in found.features)} targets on {found.n_tokens} tokens"
    return found


def predict(bench: Bench, connections: DownstreamConnections) -> Ranking:
    """Targets → prediction."""
    with timed(bench.observer, "ranking") as note:
        ranking = rank(
            bench.subject,
            connections,
            bench.activations,
            acting=bench.acting,
            discussing=bench.discussing,
            seed=bench.config.seed,
            observer=bench.observer,
        )
        acting = [str(each.feature) for each in ranking.features if each.predicted_acting]
        note.summary = f"predicted to act: {', '.join(acting) or 'none'}"
    return ranking


def make_plan(bench: Bench, candidates: CandidateSet, ranking: Ranking) -> SweepPlan:
    """Prediction → every cell of the sweep."""
    # In the ranking's order, because the sweep pairs controls with candidates by place.
    features = dict.fromkeys([*(each.feature for each in ranking.features), *(each.feature for each in candidates.candidates)])
    with timed(bench.observer, "plan") as note:
        unrelated = choose_unrelated(
            bench.subject,
            bench.activations,
            list(features),
            concept=(bench.acting, bench.discussing),
            n=N_UNRELATED,
            seed=bench.config.seed,
        )
        plan = plan_sweep(
            bench.subject,
            ranking,
            bench.scenario,
            strengths=strengths_of(bench),
            unit=unit_of(bench),
            positions=positions_of(bench),
            samples=bench.config.samples,
            seed=bench.config.seed,
            unrelated=unrelated,
            scales=bench.scales,
            observer=bench.observer,
        )
        note.summary = f"{len(plan.cells)} cells, {plan.n_rollouts} rollouts"
    return plan


def unit_of(bench: Bench) -> StrengthUnit:
    """The caller's unit, else the scenario's."""
    return StrengthUnit(bench.config.unit or bench.scenario.sweep.unit)


def positions_of(bench: Bench) -> Positions:
    """The caller's positions, else the scenario's."""
    return Positions(bench.config.positions or bench.scenario.sweep.positions)


def strengths_of(bench: Bench) -> tuple[float, ...]:
    """The caller's strengths; else the scenario's, if they are in the unit that is used; else the unit's own."""
    if bench.config.strengths:
        return bench.config.strengths
    return bench.scenario.sweep.strengths if unit_of(bench) == bench.scenario.sweep.unit else DEFAULT_STRENGTHS[unit_of(bench)]


def explore(bench: Bench, chosen: Sequence[FeatureId], factors: Sequence[float] = ()) -> tuple[CellResult, ...]:
    """Steer the chosen candidates (all, when none is chosen) beside the controls, and count; nothing is recorded.

    Args:
        bench: what is steered.
        chosen: features of the dictionary.
        factors: by which their activations are multiplied too, beside the additive doses.

    Raises:
        UsageError: the dictionary has no such feature.
        PreflightError: a treatment does nothing, such as multiplying a feature that is silent on the prompt.
    """
    candidates = find_candidates(bench)
    if chosen:
        candidates = _chosen(bench, candidates, chosen)
    plan = make_plan(bench, candidates, predict(bench, find_connections(bench, candidates)))
    plan = replace(plan, cells=(*plan.cells, *_multiplied(bench, candidates, factors)))
    preflight.check(bench.subject, plan, bench.scenario, bench.scales, observer=bench.observer)
    with timed(bench.observer, "steering") as note:
        chunks = sweep.run(bench.subject, plan, bench.scenario, bench.scales, done=frozenset(), observer=bench.observer)
        rollouts = tuple(rollout for _, chunk in chunks for rollout in chunk)
        note.summary = f"{len(rollouts)} rollouts"
    with timed(bench.observer, "judging"):
        return tally(plan, judge(bench.subject, bench.scenario, plan, rollouts, observer=bench.observer))


def _multiplied(bench: Bench, candidates: CandidateSet, factors: Sequence[float]) -> Iterator[Cell]:
    """Cells that multiply the candidates' own activations."""
    for candidate in candidates.candidates:
        for factor in factors:
            name = str(candidate.feature)
            treatment = multiplicative(bench.subject.dictionary, name, factor, positions=positions_of(bench))
            label = f"{name} factor {number(factor)}"
            yield Cell(arm=ArmKind.CANDIDATE, prompt=PromptKind.SCENARIO, treatment=treatment, label=label)


def _chosen(bench: Bench, candidates: CandidateSet, chosen: Sequence[FeatureId]) -> CandidateSet:
    """The chosen features in place of those that search found."""
    known = {each.feature: each for each in candidates.candidates}
    for feature in chosen:
        bench.subject.dictionary.check(feature)
    found = (known.get(feature) or _unsearched(bench, feature) for feature in dict.fromkeys(chosen))
    return replace(candidates, candidates=tuple(found))


def _unsearched(bench: Bench, feature: FeatureId) -> Candidate:
    return Candidate(descriptors=describe(bench.subject, bench.activations, feature), fused_score=0.0, ranks=())


def estimate(bench: Bench, plan: SweepPlan) -> float:
    """Seconds that the sweep will take here, from a timed probe whose text is dropped."""
    with timed(bench.observer, "estimate") as note:
        seconds = estimate_sweep(bench.subject, plan, bench.scenario, bench.scales, observer=bench.observer)
        note.summary = f"{seconds:.0f} s"
    return seconds


def _begin(bench: Bench, ledger: Ledger, *, fresh: bool) -> tuple[str, bool]:
    """A new audit, or the newest unfinished one of the same fingerprint."""
    provenance = collect()
    fingerprint = _fingerprint(bench, provenance)
    found = None if fresh else ledger.unfinished(fingerprint)
    audit = found or ledger.begin(bench.config, bench.scenario, fingerprint, provenance)
    header = ledger.header(audit)
    if found:
        ledger.append(audit, Resumption(n_rollouts=header.n_rollouts, provenance=provenance))
    else:
        ledger.append(audit, bench.subject.info)
    bench.observer.notify(AuditBegun(audit, bool(found), header.n_rollouts, header.n_planned))
    return audit, bool(found)


def _fingerprint(bench: Bench, provenance: Provenance) -> str:
    info, config, packages = bench.subject.info, bench.config, dict(provenance.packages)
    key = AuditKey(
        ulterior=provenance.ulterior,
        revision=provenance.revision,
        torch=packages.get("torch"),
        transformers=packages.get("transformers"),
        threads=torch.get_num_threads(),
        model_sha256=info.model_sha256,
        dictionary_sha256=info.dictionary_sha256,
        corpus_sha256=info.corpus_sha256,
        device=info.device,
        scenario_digest=bench.scenario.digest,
        other_digests=bench.other_digests,
        concept=config.concept,
        seed=config.seed,
        samples=config.samples,
        strengths=strengths_of(bench),
        unit=unit_of(bench),
        positions=positions_of(bench),
    )
    return digest(dump(key))


def _once(ledger: Ledger, audit: str, cls: type[Record], make: Callable[[], Record]) -> Record:
    """The step's record from the ledger, or made now and appended."""
    record = ledger.find(audit, cls)
    if record is None:
        record = make()
        ledger.append(audit, record)
    return record


def _check_steering(bench: Bench, ledger: Ledger, audit: str, plan: SweepPlan) -> None:
    """Checked by every process that steers, recorded once."""
    with timed(bench.observer, "preflight") as note:
        found = preflight.check(bench.subject, plan, bench.scenario, bench.scales, observer=bench.observer)
        note.summary = "a zero dose changes nothing, every other dose does"
    _once(ledger, audit, type(found), lambda: found)


def _sweep(bench: Bench, ledger: Ledger, audit: str, plan: SweepPlan) -> tuple[Rollout, ...]:
    """Append chunk after chunk, then read all rollouts back in the order of the plan."""
    done = ledger.chunks(audit)
    n_done = ledger.header(audit).n_rollouts
    with timed(bench.observer, "steering") as note:
        for chunk, rollouts in sweep.run(bench.subject, plan, bench.scenario, bench.scales, done=done, observer=bench.observer):
            ledger.append_chunk(audit, chunk, rollouts)
            check_stop(bench.observer)
        note.summary = f"{plan.n_rollouts} rollouts" + (f", {n_done} of them were there already" if n_done else "")
    return ledger.rollouts(audit)


def _judge(bench: Bench, ledger: Ledger, audit: str, plan: SweepPlan, rollouts: tuple[Rollout, ...]) -> tuple[Verdict, ...]:
    verdicts = ledger.verdicts(audit)
    if not verdicts:
        with timed(bench.observer, "judging") as note:
            verdicts = judge(bench.subject, bench.scenario, plan, rollouts, observer=bench.observer)
            note.summary = f"{len(verdicts)} verdicts, {sum(each.coherent for each in verdicts)} coherent"
        ledger.append_verdicts(audit, verdicts)
    return verdicts


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _told(observer: Observer, step: str) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        check_stop(observer)
        observer.notify(StepProgress(step, done, total))

    return tell
