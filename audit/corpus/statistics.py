"""What is known of every feature on some tokens, and how two such records become one.

Statistics are a commutative monoid: ``merge`` is associative and commutative, ``empty`` is neutral, and all arrays come out the same to the
last bit whatever the split and the order. Counts are integers, sums are those of ``fixed``, examples and documents have one order of their
own. The same shard twice would count its tokens twice, so it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from audit.corpus.documents import DocumentTable
from audit.corpus.examples import TopExamples
from audit.corpus.fixed import FixedSums, Floats
from audit.corpus.pairs import PairSums
from audit.errors import UsageError
from audit.records.names import FeatureId
from audit.records.statistics import StatisticsKey


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerSums:
    """The features of one layer, over all tokens."""

    n_firing: NDArray[np.int64]
    """(n_features,) tokens on which each fires."""
    total: FixedSums
    """(n_features,) sum of activations."""
    squares: FixedSums
    """(n_features,) sum of squared activations."""
    largest: NDArray[np.float32]
    """(n_features,) largest activation, 0 if it never fires."""
    examples: TopExamples

    @classmethod
    def zeros(cls, n_features: int) -> LayerSums:
        """Over no tokens."""
        return cls(
            n_firing=np.zeros(n_features, dtype=np.int64),
            total=FixedSums.zeros(n_features),
            squares=FixedSums.zeros(n_features),
            largest=np.zeros(n_features, dtype=np.float32),
            examples=TopExamples.none(),
        )

    def merged(self, other: LayerSums) -> LayerSums:
        """Over the tokens of both."""
        return LayerSums(
            n_firing=self.n_firing + other.n_firing,
            total=self.total.plus(other.total),
            squares=self.squares.plus(other.squares),
            largest=np.maximum(self.largest, other.largest),
            examples=self.examples.merged(other.examples),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """Everything that is kept of the tokens of some shards."""

    key: StatisticsKey
    layers: tuple[LayerSums, ...]
    """One a layer of the model."""
    pairs: PairSums
    """Of the key's candidates."""
    documents: DocumentTable
    """Those that an example is in."""
    n_tokens: int
    """Content tokens."""
    n_documents: int
    shards: tuple[str, ...]
    """Digests, sorted, each once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoactivationSums:
    """Sums over tokens for S candidates and the F features of one later layer: what ERA and TWERA are made of."""

    weighted: Floats
    """(S, F): sum of a_j · a_i, over sigma where the target reads divided."""
    gated: Floats
    """(S, F): sum of 1(a_j > 0) · a_i, over sigma likewise."""
    n_coactive: NDArray[np.int64]
    """(S, F): tokens on which both fire."""
    target_sum: Floats
    """(F,): sum of a_j."""
    n_firing: NDArray[np.int64]
    """(F,): tokens on which the target fires."""
    n_tokens: int


def empty(key: StatisticsKey) -> Statistics:
    """Statistics of no tokens: merged with others, they change nothing."""
    layers = tuple(LayerSums.zeros(width) for width in key.widths)
    none = DocumentTable.none()
    return Statistics(key=key, layers=layers, pairs=PairSums.none(), documents=none, n_tokens=0, n_documents=0, shards=())


def merge(one: Statistics, other: Statistics) -> Statistics:
    """Statistics over the tokens of both.

    Raises:
        UsageError: they do not belong to the same model, dictionary, template or candidates, or a shard is in both.
        SubjectError: a sum is too large to be kept.
    """
    refuse_other_key(one.key, other.key)
    refuse_same_shard(one.shards, other.shards)
    layers = tuple(mine.merged(theirs) for mine, theirs in zip(one.layers, other.layers, strict=True))
    return Statistics(
        key=one.key,
        layers=layers,
        pairs=one.pairs.merged(other.pairs),
        documents=one.documents.merged(other.documents).only([layer.examples.document for layer in layers]),
        n_tokens=one.n_tokens + other.n_tokens,
        n_documents=one.n_documents + other.n_documents,
        shards=tuple(sorted((*one.shards, *other.shards))),
    )


def refuse_other_key(one: StatisticsKey, other: StatisticsKey) -> None:
    """Make sure that two keys are the same.

    Raises:
        UsageError: they are not; says in what they differ.
    """
    differing = [field.name for field in fields(StatisticsKey) if getattr(one, field.name) != getattr(other, field.name)]
    if differing:
        shown = "; ".join(f"{name} {_short(getattr(one, name))} and {_short(getattr(other, name))}" for name in differing)
        raise UsageError(
            "These statistics cannot be merged",
            f"They belong to different subjects or candidates: {shown}.",
            "Merge statistics of one model, dictionary, template, dtype and list of candidates.",
        )


def refuse_same_shard(one: Sequence[str], other: Sequence[str]) -> None:
    """Make sure that no shard is counted twice.

    Raises:
        UsageError: one would be.
    """
    both = sorted(set(one) & set(other))
    if both:
        raise UsageError(
            "The same shard twice",
            f"{len(both)} of the shards are in both, the first is {both[0][:16]}: their tokens would count twice.",
            "Merge statistics of different texts.",
        )


def _short(value: object) -> str:
    if isinstance(value, tuple):
        value = ", ".join(map(str, value)) or "none"
    text = str(value)
    return f"'{text[:16]}…'" if len(text) > 40 else f"'{text}'"


def coactivation(statistics: Statistics, candidates: Sequence[FeatureId], layer: int) -> CoactivationSums:
    """Co-activation sums of some candidates with every feature of a later layer.

    Args:
        statistics: over some tokens.
        candidates: among those of its key.
        layer: of the targets, behind the layers of all of them.

    Raises:
        UsageError: statistics were not kept of such a pair.
    """
    width = statistics.key.widths[layer] if 0 <= layer < len(statistics.key.widths) else 0
    shape = (len(candidates), width)
    weighted, gated, n_coactive = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=np.int64)
    for row, candidate in enumerate(candidates):
        pairs = statistics.pairs.of(_place(statistics.key, candidate, layer), layer)
        weighted[row, pairs.index], gated[row, pairs.index] = pairs.weighted.values(), pairs.gated.values()
        n_coactive[row, pairs.index] = pairs.n_coactive
    of_layer = statistics.layers[layer]
    return CoactivationSums(
        weighted=weighted,
        gated=gated,
        n_coactive=n_coactive,
        target_sum=of_layer.total.values(),
        n_firing=of_layer.n_firing,
        n_tokens=statistics.n_tokens,
    )


def _place(key: StatisticsKey, candidate: FeatureId, layer: int) -> int:
    if candidate not in key.candidates or not candidate.layer < layer < len(key.widths):
        kept = f"Those of {', '.join(map(str, key.candidates))} were kept" if key.candidates else "None were kept"
        raise UsageError(
            "Co-activations of this feature were not kept",
            f"{kept}, with features of later layers; {candidate} with layer {layer} was asked for.",
            f"Build statistics with --candidates {candidate}, or without --drop-activations.",
        )
    return key.candidates.index(candidate)
