"""The atlas: every feature's strongest neighbours, as read from its folder."""

from __future__ import annotations

from dataclasses import dataclass

from audit.records.names import FeatureId


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasKey:
    """All that decides what an atlas holds."""

    kind: str
    """Of the dictionary: ``clt``, ``plt``, ``sae`` or ``vector``."""
    model_sha256: str
    dictionary_sha256: str
    corpus_sha256: str
    activations_sha256: str
    """Of the number of tokens on which each feature fires."""
    n_tokens: int
    """Content tokens of the corpus."""
    support: int
    """Fewest tokens on which two features must fire together."""
    top: int
    """Neighbours kept a feature, side and sign."""
    input_hook: str
    """Hook point that features read."""
    output_hook: str
    """Hook point that they write."""
    norm: str
    """How encoders see the residual stream: ``plain``, ``divided`` by the norm's denominator, or ``gained and divided``."""
    widths: tuple[int, ...]
    """Features of each layer of the model, 0 where there are none."""
    ulterior: str
    """Version that built it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasTotals:
    """What a folder holds."""

    folder: str
    key: AtlasKey
    n_features: int
    active: tuple[int, ...]
    """Features of each layer that fire on as many tokens as the cut-off asks or more: the others can have no supported neighbour."""
    n_pairs: int
    """Pairs of an earlier and a later layer."""
    n_pairs_done: int
    n_layers: int
    """Layers that have features."""
    n_layers_labelled: int
    """Of these, layers whose features have labels in the atlas."""
    n_bytes: int
    """Of all files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasNeighbour:
    """The other end of a connection; the earlier layer's feature is its source."""

    feature: FeatureId
    virtual_weight: float
    era: float
    twera: float
    n_coactive: int
    """Tokens on which both fire."""
    label: str = ""
    """What the other feature fires on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtlasNeighbours:
    """A feature's strongest connections, by TWERA, largest size first; ties by layer and index."""

    feature: FeatureId
    label: str
    """What it fires on; empty where the atlas has no labels."""
    positive_targets: tuple[AtlasNeighbour, ...]
    """Features of later layers that it feeds."""
    negative_targets: tuple[AtlasNeighbour, ...]
    positive_sources: tuple[AtlasNeighbour, ...]
    """Features of earlier layers that feed it."""
    negative_sources: tuple[AtlasNeighbour, ...]
    n_firing: int | None
    """Tokens on which it fires; None where the atlas is unfinished and has no table of its layer."""
    n_unsupported: int
    """Features of later layers that fire together with it, but on fewer tokens than the cut-off."""
    n_tokens: int
    """Of the corpus."""
    support_cutoff: int
    target_layers: tuple[int, ...]
    """Later layers that were looked at: all that have features, once the atlas is finished."""
    source_layers: tuple[int, ...]
    """Earlier layers that were looked at."""
    n_pairs: int
    """Pairs of an earlier and a later layer of the dictionary."""
    n_pairs_done: int
    """Fewer where the atlas is unfinished: its lists may then lack the strongest."""
