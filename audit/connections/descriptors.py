"""What one sees of downstream features, so that a list of targets can be read: label, frequency, examples, unembeds, motor share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from audit.candidates.examples import LABEL_SOURCE, label, top_examples
from audit.candidates.known import Known
from audit.candidates.unembeds import token_weights
from audit.connections.motor import Share, motor_shares
from audit.connections.output_tokens import ELEMENTS, arriving
from audit.events import Observer, StepProgress, check_stop
from audit.records import FeatureId, TokenWeight
from audit.records.connections import TargetDescriptors
from audit.subject import Subject
from audit.subject.activations import TokenActivations

STEP = "target descriptions"
N_UNEMBEDS = 8
"""Tokens shown on each side."""
Extremes = tuple[tuple[TokenWeight, ...], tuple[TokenWeight, ...]]


def describe_targets(
    subject: Subject,
    activations: TokenActivations,
    features: Sequence[FeatureId],
    known: Known,
    *,
    observer: Observer,
    n_examples: int = 3,
) -> tuple[TargetDescriptors, ...]:
    """Describe every feature once.

    Args:
        subject: model and dictionary.
        activations: of the subject's own corpus, which the examples are cut from.
        features: in any order; one that comes twice is described once.
        known: labels and examples of others, which are shown in place of computed ones.
        observer: told how far it is; may stop.
        n_examples: examples a feature, at most.

    Returns:
        one a feature, by layer and index.

    Raises:
        UsageError: the dictionary has no such feature.
        Interrupted: the observer asked to stop.
    """
    chosen = sorted(set(features))
    shares = motor_shares(subject, activations, chosen, observer=observer)
    found = []
    for feature, sides in zip(chosen, unembeds(subject, chosen), strict=True):
        found.append(_described(subject, activations, feature, (sides, shares[feature]), (known, n_examples)))
        observer.notify(StepProgress(STEP, len(found), len(chosen), str(feature)))
        check_stop(observer)
    return tuple(found)


def _described(
    subject: Subject, activations: TokenActivations, feature: FeatureId, output: tuple[Extremes, Share], shown: tuple[Known, int]
) -> TargetDescriptors:
    ((top, bottom), (share, n_tokens)), (known, n_examples) = output, shown
    text, source = known.label_of(feature) or (label(subject.model, activations, feature), LABEL_SOURCE)
    published = known.examples_of(feature)
    return TargetDescriptors(
        feature=feature,
        label=text,
        label_source=source,
        frequency=len(activations.column(feature.layer, feature.index)[0]) / max(activations.n_tokens, 1),
        examples=top_examples(subject, activations, feature, n_examples) if published is None else published[0][:n_examples],
        top_unembeds=top,
        bottom_unembeds=bottom,
        motor_share=share,
        motor_tokens=n_tokens,
    )


def unembeds(subject: Subject, features: Sequence[FeatureId], n: int = N_UNEMBEDS) -> Iterator[Extremes]:
    """``audit.candidates.unembeds.extremes`` of each feature in order, many of them in one product with the unembedding."""
    step = max(1, ELEMENTS // subject.model.vocabulary)
    for part in (features[start : start + step] for start in range(0, len(features), step)):
        written = arriving(subject, part)
        if written is None:
            yield from [((), ())] * len(part)
            continue
        logits = subject.model.unembed_direction(written.to(torch.float32))
        for row in logits.cpu():
            yield token_weights(subject.model, row, n, largest=True), token_weights(subject.model, row, n, largest=False)
