"""ERA and TWERA: virtual weights weighted by how strongly both ends fire together.

``ERA = E[1(a_j > 0) · a_i] · V_ij`` and ``TWERA = E[a_j a_i] / E[a_j] · V_ij``, same token for i and j (Ameisen et al. 2025, "Circuit
Tracing", global weights). Every downstream feature of every later layer is a target. ``layer_weights`` gives all weights between two
layers, ``strongest`` the strongest of many sources, ``pairs`` those of chosen pairs.

Blind spots: a target that the source switches off does not co-fire with it; effects through attention or of several hops are not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from audit.connections import coactivation, virtual_weights
from audit.connections.coactivation import Coactivation, Floats
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations
from audit.subject.dictionary import Dictionary


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Connection weights of S sources on the F targets of one layer."""

    virtual: Floats
    """(S, F)."""
    era: Floats
    """(S, F)."""
    twera: Floats
    """(S, F); 0 where the target never fires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One connection, before its target is described."""

    target: FeatureId
    virtual_weight: float
    era: float
    twera: float
    n_coactive: int
    target_frequency: float


class Sums(Protocol):
    """What ERA and TWERA are made of; see ``Coactivation``."""

    @property
    def weighted(self) -> Floats:
        """(S, F)."""

    @property
    def gated(self) -> Floats:
        """(S, F)."""

    @property
    def target_sum(self) -> Floats:
        """(F,)."""

    @property
    def n_tokens(self) -> int:
        """Of the corpus."""


def weigh(virtual: Floats, coactive: Sums) -> Weights:
    """ERA and TWERA from virtual weights (S, F) and co-activation sums of the same shape."""
    expected = np.divide(coactive.weighted, coactive.target_sum, out=np.zeros_like(coactive.weighted), where=coactive.target_sum > 0)
    return Weights(virtual=virtual, era=coactive.gated / max(coactive.n_tokens, 1) * virtual, twera=expected * virtual)


def denominators(dictionary: Dictionary, activations: TokenActivations, target_layer: int) -> NDArray[np.float32] | None:
    """(n_tokens,) frozen norm denominators at the targets' site, or None when the dictionary reads the plain residual stream."""
    if not virtual_weights.reading(dictionary).divided:
        return None
    return np.asarray(activations.sigma[:, target_layer])


def layer_weights(
    subject: Subject, activations: TokenActivations, sources: Sequence[FeatureId], target_layer: int
) -> tuple[Weights, Coactivation]:
    """Weights of sources of one layer on every feature of a later layer, with the sums that they come from."""
    dictionary = subject.dictionary
    norm = subject.model.mlp_norm(target_layer) if virtual_weights.reading(dictionary).divided else None
    virtual = virtual_weights.rows(dictionary, sources, target_layer, norm).numpy()
    columns = activations.layers[sources[0].layer][:, [source.index for source in sources]]
    coactive = coactivation.sums(columns, activations.layers[target_layer], denominators(dictionary, activations, target_layer))
    return weigh(virtual, coactive), coactive
