"""Control directions: random ones of equal norm, and learned features that have nothing to do with the concept."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from audit.errors import InsufficientEvidence
from audit.records import FeatureId
from audit.subject import Subject, TokenActivations

NEAREST = 5
"""A control is drawn among this many of the best matches, so that another seed gives other controls."""
MIN_TOKENS = 20
"""A feature that fires on fewer corpus tokens is not matched: its frequency is not known well enough."""


def random_decoder(direction: str, decoder: Tensor) -> Tensor:
    """A random direction in the place of a feature's decoder.

    An independent Gaussian vector a layer, brought to the norm of that feature's decoder there.

    Args:
        direction: its full name, ``random/<seed>@<feature>``, which seeds the draw.
        decoder: (n_out, d_model) decoder of the feature.
    """
    seed = int.from_bytes(hashlib.sha256(direction.encode()).digest()[:8], "big") >> 1
    drawn = torch.randn(decoder.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(decoder.device)
    norms = decoder.double().norm(dim=-1, keepdim=True)
    rescaled: Tensor = (drawn * (norms / drawn.norm(dim=-1, keepdim=True))).to(decoder.dtype)
    return rescaled


def choose_unrelated(
    subject: Subject,
    activations: TokenActivations,
    candidates: Sequence[FeatureId],
    *,
    concept: Sequence[TokenActivations] = (),
    n: int = 3,
    seed: int,
) -> tuple[FeatureId, ...]:
    """Learned features unrelated to the concept, each matched to one candidate in frequency and decoder norm.

    The k-th control is matched to the k-th candidate: drawn among the nearest features of its layer in
    (log frequency, log decoder norm) that are no candidate, are not rare, and are on average no more active on
    the concept's passages than on the corpus. If a layer has none left, the other layers are taken.

    Args:
        subject: model and dictionary.
        activations: of the corpus.
        candidates: everything that concept search returned, most important first. The sweep writes the k-th control
            with the norm of the k-th candidate of its ranking: pass that order.
        concept: activations on the concept's passages (acting, discussing).
        n: how many.
        seed: of the draw among the nearest.

    Raises:
        InsufficientEvidence: fewer than n features qualify.
    """
    frequency, norm = _frequency(activations), _decoder_norm(subject)
    fit = _unrelated(activations, concept) & (frequency * activations.n_tokens >= MIN_TOKENS) & (norm > 0)
    for feature in candidates:
        fit[feature.layer, feature.index] = False
    if not candidates or int(fit.sum()) < n:
        raise InsufficientEvidence(
            "Too few control features",
            f"Only {int(fit.sum())} features have nothing to do with the concept and fire on {MIN_TOKENS} tokens or more; {n} are needed.",
            "Use a dictionary with more features or a larger corpus.",
        )
    draw = random.Random(f"unrelated/{seed}")
    place = np.stack([np.log(np.maximum(frequency, 1e-12)), np.log(np.maximum(norm, 1e-12))], axis=-1)
    chosen: list[FeatureId] = []
    for k in range(n):
        pick = draw.choice(_nearest(place, fit, candidates[k % len(candidates)]))
        fit[pick] = False
        chosen.append(FeatureId(subject.dictionary.kind, *pick))
    return tuple(chosen)


def _nearest(place: NDArray[np.float64], fit: NDArray[np.bool_], candidate: FeatureId) -> list[tuple[int, int]]:
    """Indices of the fit features nearest to a candidate, in its own layer while that has any."""
    distance = np.abs(place - place[candidate.layer, candidate.index]).sum(-1)
    distance[~fit] = np.inf
    if fit[candidate.layer].any():
        distance[np.arange(len(fit)) != candidate.layer] = np.inf
    order = np.argsort(distance, axis=None, kind="stable")[:NEAREST]
    width = distance.shape[1]
    return [(int(flat) // width, int(flat) % width) for flat in order if np.isfinite(distance.flat[flat])]


def _frequency(activations: TokenActivations) -> NDArray[np.float64]:
    """Share of tokens on which each feature fires, (n_layers, n_features)."""
    counts = np.stack([layer.getnnz(axis=0) for layer in activations.layers])
    return np.asarray(counts / max(activations.n_tokens, 1), dtype=np.float64)


def _decoder_norm(subject: Subject) -> NDArray[np.float64]:
    """Norm of each feature's decoder over all layers that it writes, (n_layers, n_features)."""
    norms = [weights.detach().double().flatten(1).norm(dim=1).cpu().numpy() for weights in subject.dictionary.W_dec]
    return np.asarray(np.stack(norms), dtype=np.float64)


def _unrelated(activations: TokenActivations, concept: Sequence[TokenActivations]) -> NDArray[np.bool_]:
    """Whether each feature is on average no more active on any set of passages than on the corpus, (n_layers, n_features)."""
    usual = np.stack([_mean(layer) for layer in activations.layers])
    fit = np.ones(usual.shape, dtype=np.bool_)
    for passages in concept:
        fit &= np.stack([_mean(layer) for layer in passages.layers]) <= usual
    return fit


def _mean(layer: csr_matrix) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.asarray(layer.sum(axis=0, dtype=np.float64)).reshape(-1)
    mean: NDArray[np.float64] = total / max(layer.shape[0], 1)
    return mean
