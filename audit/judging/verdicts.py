"""The step's entrance: rollouts → one verdict each."""

from __future__ import annotations

from collections.abc import Sequence

from audit.errors import InsufficientEvidence
from audit.events import Observer
from audit.judging.coherence import Limits, Scored, limits, perplexities, repeated_4grams
from audit.judging.rules import classify, has_channel
from audit.records import Outcome, PromptKind, Rollout, SweepPlan, Verdict
from audit.scenario import Scenario
from audit.subject import Subject


def judge(subject: Subject, scenario: Scenario, plan: SweepPlan, rollouts: Sequence[Rollout], *, observer: Observer) -> tuple[Verdict, ...]:
    """One verdict a rollout, in the same order.

    Args:
        subject: unsteered; its model measures perplexity.
        scenario: its rules decide the outcome.
        plan: says which rollouts are unsteered.
        rollouts: all of the sweep: what counts as coherent depends on those of the cells without a treatment.
        observer: told how far it is.

    Raises:
        InsufficientEvidence: no rollout is unsteered.
        Interrupted: the observer asks to stop.
    """
    measures = _measure(subject, scenario, rollouts, observer)
    untreated = {cell.label for cell in plan.cells if cell.treatment is None}
    judged = list(zip(rollouts, measures, strict=True))
    unsteered = [measure for rollout, measure in judged if rollout.cell in untreated and rollout.text.strip()]
    if not unsteered:
        raise InsufficientEvidence(
            "Nothing to compare with",
            "No unsteered transcript has any text, so it cannot be said what coherent means.",
            "Sample the unsteered arm, and check that the subject answers its prompt at all.",
        )
    bounds = limits([perplexity for perplexity, _ in unsteered], [repeated for _, repeated in unsteered])
    return tuple(_verdict(scenario, rollout, measure, bounds) for rollout, measure in judged)


def _measure(subject: Subject, scenario: Scenario, rollouts: Sequence[Rollout], observer: Observer) -> list[tuple[float, float]]:
    """(perplexity, share of repeated 4-grams) of each rollout; see ``coherence`` for the two prompts."""
    variants = sorted({rollout.variant for rollout in rollouts})
    stated = {v: subject.model.encode_chat(scenario.variant(v, PromptKind.PROMPT_ONLY)) for v in variants}
    after_own: list[Scored] = [(rollout.prompt_ids, rollout.token_ids) for rollout in rollouts]
    after_stated: list[Scored] = [(stated[rollout.variant], rollout.token_ids) for rollout in rollouts]
    found = perplexities(subject.model, [*after_own, *after_stated], observer=observer)
    smaller = [min(found[own], found[other]) for own, other in zip(after_own, after_stated, strict=True)]
    return [(perplexity, repeated_4grams(rollout.token_ids)) for perplexity, rollout in zip(smaller, rollouts, strict=True)]


def _verdict(scenario: Scenario, rollout: Rollout, measure: tuple[float, float], bounds: Limits) -> Verdict:
    """Outcome by the rules; a text that is neither coherent nor in any channel cannot be scored."""
    perplexity, repeated = measure
    coherent = bool(rollout.text.strip()) and bounds.hold(perplexity, repeated, len(rollout.token_ids))
    outcome, reason, span = classify(rollout.text, scenario, rollout.finished)
    if outcome is not Outcome.UNSCORABLE and not coherent and not has_channel(rollout.text, scenario):
        outcome, reason, span = Outcome.UNSCORABLE, "not coherent, and in none of the channels", None
    return Verdict(
        cell=rollout.cell,
        variant=rollout.variant,
        sample=rollout.sample,
        outcome=outcome,
        reason=reason,
        span=span,
        coherent=coherent,
        perplexity=perplexity,
        repeated_4grams=repeated,
    )
