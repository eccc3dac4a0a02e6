"""Builds the atlas: every feature's strongest targets and sources by TWERA, pair of layers by pair of layers.

A pair of layers is cut into tiles (``tiles``). Of a tile, the virtual weights of all pairs of features are one float32 product; how they
fire together comes from sparse products in float64 (``cells``). TWERA is known from these up to a bound on the rounding of the product;
what may be among the strongest within that bound (``sifting``) is computed again in float64 and offered to both tables (``table``). No
other pair is kept. What is found therefore depends neither on the tiles nor on the order of the pairs.

Both tables of a pair are replaced one after the other, and each names what is merged into it: a build that was killed between the two
does the pair again and merges it into the second alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from audit.atlas import cells, layout, manifest, tiles
from audit.atlas.claiming import claimed, unwritable
from audit.atlas.manifest import Manifest, Pair
from audit.atlas.pair import Into, LayerPair
from audit.atlas.progress import Pace
from audit.atlas.reading import Atlas
from audit.atlas.sums import Sums
from audit.atlas.table import Table
from audit.atlas.work import Work
from audit.connections import virtual_weights
from audit.errors import UsageError
from audit.events import Observer, check_stop
from audit.records.atlas import AtlasKey, AtlasTotals
from audit.subject import Subject
from audit.subject.activations import TokenActivations

MEMORY = 4 * 10**9
"""Bytes that a build allocates at most unless it is told otherwise."""
CPU = torch.device("cpu")
_SIDES: tuple[layout.Side, layout.Side] = ("source", "target")


def build(
    subject: Subject,
    activations: TokenActivations,
    folder: Path,
    *,
    top: int = 32,
    support: int = 20,
    memory_bytes: int = MEMORY,
    device: torch.device = CPU,
    corpus_sha256: str | None = None,
    observer: Observer,
) -> AtlasTotals:
    """Build an atlas, or finish one that was begun.

    Args:
        subject: model and dictionary.
        activations: of a corpus; its content tokens are what the expectations run over.
        folder: that takes the atlas; made if it is not there.
        top: neighbours kept a feature, side and sign, by size of TWERA; ties by layer and index.
        support: fewest tokens, at least 1, on which two features must fire together.
        memory_bytes: what is allocated at most beside the activations, the mapped weights and what the process held before.
        device: that multiplies.
        corpus_sha256: of the corpus; the subject's own by default.
        observer: told of every pair of layers; may stop between tiles, and all finished pairs are kept.

    Raises:
        UsageError: the folder holds another atlas, a damaged one or something else, another process builds in it, or the memory does
            not hold one tile.
        SubjectError: the dictionary reads a site without a virtual weight.
        AuditError: the folder cannot be written.
        Interrupted: the observer asked to stop.
    """
    if top < 1 or support < 1:
        raise ValueError(f"top {top} and support {support} must be at least 1")
    firing = tuple(_n_firing(layer) for layer in activations.layers)
    key = _key(subject, activations, firing, (top, support, corpus_sha256))
    work = Work(
        subject=subject,
        activations=activations,
        folder=folder,
        key=key,
        digest=manifest.digest(key),
        firing=firing,
        memory_bytes=memory_bytes,
        device=device,
        observer=observer,
    )
    tiles.refuse_too_small([work.load(pair) for pair in manifest.all_pairs(key.widths)], memory_bytes)
    try:
        _refuse_taken(work)  # before anything is written into a folder of something else
        with claimed(folder):
            _run(work)
    except OSError as error:
        raise unwritable(folder, error) from error
    return Atlas.open(folder).totals()


def _key(
    subject: Subject, activations: TokenActivations, firing: Sequence[NDArray[np.int64]], given: tuple[int, int, str | None]
) -> AtlasKey:
    dictionary, info, (top, support, corpus) = subject.dictionary, subject.info, given
    seen = virtual_weights.reading(dictionary)
    return AtlasKey(
        kind=dictionary.kind,
        model_sha256=info.model_sha256,
        dictionary_sha256=info.dictionary_sha256,
        corpus_sha256=info.corpus_sha256 if corpus is None else corpus,
        activations_sha256=hashlib.sha256(b"".join(counts.astype("<i8").tobytes() for counts in firing)).hexdigest(),
        n_tokens=activations.n_tokens,
        support=support,
        top=top,
        input_hook=dictionary.input_hook,
        output_hook=dictionary.output_hook,
        norm="gained and divided" if seen.gained else "divided" if seen.divided else "plain",
        widths=dictionary.widths,
        ulterior=_version(),
    )


def _version() -> str:
    try:
        return version("ulterior")
    except PackageNotFoundError:
        return "not installed"


def _n_firing(layer: sparse.csr_matrix) -> NDArray[np.int64]:
    """Tokens on which each feature fires, (n_features,)."""
    fires = layer.indices if bool(layer.data.all()) else layer.indices[layer.data != 0]
    return np.bincount(fires, minlength=layer.shape[1]).astype(np.int64)


def _run(work: Work) -> None:
    """Do every pair that is not done."""
    merged = _begun(work)
    pairs = manifest.all_pairs(work.key.widths)
    done = [pair for pair in pairs if pair[1] in merged["source", pair[0]] and pair[0] in merged["target", pair[1]]]
    _note(work, done)
    pace = Pace(observer=work.observer, work={pair: work.n_active(pair[0]) * work.n_active(pair[1]) for pair in pairs}, done=done)
    for layer in sorted({pair[0] for pair in pairs}):
        left = [pair[1] for pair in pairs if pair[0] == layer and pair not in done]
        if left:
            _one_layer(work, layer, left, pace)


def _begun(work: Work) -> dict[tuple[layout.Side, int], frozenset[int]]:
    """What is merged into each table; an atlas is begun where there is none."""
    if not _refuse_taken(work):
        _note(work, [])
    return {(side, layer): _merged(work, side, layer) for side in _SIDES for layer, width in enumerate(work.key.widths) if width}


def _refuse_taken(work: Work) -> bool:
    """Whether the folder holds the atlas that is to be built; refuses one that holds something else."""
    if work.folder.exists() and not work.folder.is_dir():
        raise UsageError("No folder for the atlas", f"'{work.folder}' is a file.", "Give another --out.")
    if not (work.folder / manifest.NAME).exists():
        return False
    manifest.refuse_other(work.folder, manifest.read(work.folder).key, work.key)
    return True


def _merged(work: Work, side: layout.Side, layer: int) -> frozenset[int]:
    path = work.folder / layout.table_name(side, layer)
    if not path.exists():
        Table.empty(work.firing[layer], work.key.top).save(work.folder, side, layer, work.digest)
    with path.open("rb") as stream:
        header = layout.read_header(stream.fileno(), path, work.key.widths[layer], work.key.top)
    if header.key != work.digest:
        raise layout.damaged(path, "it belongs to another atlas than the manifest beside it")
    return header.merged


def _note(work: Work, done: Sequence[Pair]) -> None:
    active = tuple(work.n_active(layer) for layer in range(len(work.key.widths)))
    manifest.write(work.folder, Manifest(key=work.key, active=active, done=tuple(sorted(done))))


def _one_layer(work: Work, layer: int, left: Sequence[int], pace: Pace) -> None:
    """A layer's features as sources: sums of their decoders grow from target layer to target layer."""
    table, earlier = work.table("source", layer), cells.by_feature(work.activations.layers[layer])
    sums = Sums(dictionary=work.subject.dictionary, layer=layer)
    for target in left:
        check_stop(work.observer)
        pace.begin((layer, target))
        other = work.table("target", target)
        into = Into(sources=None if target in table.merged else table, targets=None if layer in other.merged else other)
        LayerPair.of(work, (layer, target), earlier, sums, into).run()
        _save(work, (layer, target), into)
        pace.end((layer, target))
        _note(work, pace.done)


def _save(work: Work, pair: Pair, into: Into) -> None:
    """Replace the tables of a pair. Each says what is merged into it: a crash between the two loses nothing and doubles nothing."""
    if into.sources is not None:
        into.sources.merged |= {pair[1]}
        into.sources.save(work.folder, "source", pair[0], work.digest)
    if into.targets is not None:
        into.targets.merged |= {pair[0]}
        into.targets.save(work.folder, "target", pair[1], work.digest)
