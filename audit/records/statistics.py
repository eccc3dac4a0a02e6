"""Statistics of a dictionary on a corpus: what they belong to, and what is shown of them."""

from __future__ import annotations

from dataclasses import dataclass

from audit.records.names import FeatureId


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsKey:
    """What statistics belong to; only those with the same key are merged."""

    model_sha256: str
    dictionary_sha256: str
    template_sha256: str
    """Of the tokenizer's files, the chat template and the special tokens."""
    dtype: str
    """Of the model's weights: another one gives other activations."""
    kind: str
    """Of the dictionary."""
    widths: tuple[int, ...]
    """Features of each layer of the model."""
    divided: bool
    """Whether co-activations have the source's activation over the norm denominator at the target."""
    candidates: tuple[FeatureId, ...] = ()
    """Whose co-activations are kept; in order, each once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard of a corpus."""

    sha256: str
    """Of the model, the dictionary, the template and the token ids."""
    n_tokens: int
    """Content tokens."""
    n_documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSource:
    """A file that statistics were computed on."""

    name: str
    """Of the file, without folders."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsManifest:
    """``manifest.json`` of a statistics artefact."""

    format_version: int
    ulterior_version: str
    subject: str
    """Name of the subject."""
    model_path: str
    """As the subject was named: a folder, a hub id, or a part of the bundled subject."""
    dictionary_path: str
    key: StatisticsKey
    input_hook: str
    output_hook: str
    corpora: tuple[CorpusSource, ...]
    """Each once, by digest."""
    shards_sha256: str
    """Of the sorted digests of the shards, one a line: names the tokens that were counted, whatever files they came from."""
    n_tokens: int
    """Content tokens."""
    n_documents: int
    shards: tuple[ShardEntry, ...]
    """In the order of the corpus; by digest after a merge."""
    statistics_sha256: str
    """Of ``statistics.safetensors``."""
    has_activations: bool
    """Whether the shard files were made with every activation in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatistics:
    """One layer of a dictionary on a corpus."""

    layer: int
    n_features: int
    l0: float
    """Mean number of active features a token."""
    dead_share: float
    """Share of features that never fired, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsSummary:
    """Totals of statistics."""

    n_tokens: int
    n_documents: int
    n_shards: int
    corpora: tuple[CorpusSource, ...]
    shards_sha256: str
    candidates: tuple[FeatureId, ...]
    layers: tuple[LayerStatistics, ...]
    """Those that have features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusExample:
    """A document around the token on which a feature fires most in it."""

    activation: float
    document: str
    """Its id, 16 hexadecimal digits: the beginning of the digest of its token ids."""
    position: int
    """Of the token in the document."""
    token_ids: tuple[int, ...]
    """Of the stretch that is shown."""
    peak: int
    """Index in ``token_ids``."""
    tokens: tuple[str, ...] | None = None
    """One string a token; None where the tokenizer is not at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureStatistics:
    """One feature on a corpus."""

    feature: FeatureId
    n_firing: int
    """Tokens on which it fires."""
    frequency: float
    """Share of all tokens, 0 to 1."""
    mean_activation: float | None
    """Over the tokens on which it fires; None if it never does."""
    deviation: float | None
    """Standard deviation over those tokens, dividing by their number."""
    max_activation: float
    examples: tuple[CorpusExample, ...]
    """Strongest first."""
