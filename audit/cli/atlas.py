"""``ulterior atlas``: the strongest connections of every feature of a dictionary, computed once, asked at any time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from audit.atlas.reading import Atlas
from audit.cli import output
from audit.cli.options import opening_options, output_options
from audit.cli.progress import watching
from audit.errors import ExitCode
from audit.events import Observer, StepProgress, check_stop, timed
from audit.plain import plain
from audit.records.atlas import AtlasNeighbours, AtlasTotals
from audit.records.names import FeatureId

if TYPE_CHECKING:
    from audit.subject import Opening, Subject, TokenActivations

EPILOG = """\b
Examples:
  ulterior atlas build --out atlas
  ulterior atlas build --out atlas --statistics bundled-statistics --memory 8GB
  ulterior atlas show atlas plt/0/34
"""
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
WIDTH = 100
"""Columns of text that a table takes."""
SHOWN = 10
"""Neighbours printed of each list."""


class Memory(click.ParamType[int]):
    """A number of bytes, such as ``4GB``."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it, and refuse what has no unit."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?([kmgt]i?b)", str(value).strip().lower())
        if found is None:
            self.fail(f"'{value}' is not a number with a unit, such as 4GB or 512MiB", param, ctx)
        return int(float(found[1]) * UNITS[found[2]])


@click.group(epilog=EPILOG)
def atlas() -> None:
    """Build and show an atlas of connections."""


@atlas.command()
@click.option("--out", metavar="FOLDER", type=click.Path(path_type=Path), required=True, help="Where it goes; finished if begun.")
@click.option("--subject", metavar="PATH|HUB-ID", help="Folder or hub id of the model. [default: the bundled one]")
@click.option("--dictionary", metavar="PATH|HUB-ID", help="Its dictionary: folder, file, hub id, or a bundled one's name.")
@click.option("--corpus", metavar="FILE", type=click.Path(path_type=Path), help='Text to observe: one {"text": ...} a line.')
@opening_options
@click.option("--statistics", metavar="FOLDER", type=click.Path(path_type=Path), help="Take activations from here, not from the corpus.")
@click.option("--top", metavar="N", type=click.IntRange(1, 1024), default=32, show_default=True, help="Neighbours kept a side and sign.")
@click.option("--support", metavar="N", type=click.IntRange(min=1), default=20, show_default=True, help="Tokens both must fire on.")
@click.option("--memory", type=Memory(), default="4GB", show_default=True, help="Beside the activations and the mapped weights.")
@output_options
def build(out: Path, top: int, support: int, memory: int, wants_json: bool, quiet: bool, **options: Any) -> ExitCode:
    """Compute the strongest targets and sources of every feature; the same call goes on where one stopped."""
    with watching(quiet=quiet) as observer:
        from audit.atlas.building import build as build_atlas
        from audit.atlas.naming import name_features
        from audit.atlas.progress import STEP
        from audit.subject import Opening

        opening = Opening(dtype=options["dtype"], device=options["device"], accept_health=options["accept_health"])
        subject, activations, corpus = _observed(options, opening, observer)
        with timed(observer, STEP) as note:
            totals = build_atlas(
                subject,
                activations,
                out,
                top=top,
                support=support,
                memory_bytes=memory,
                device=subject.model.device,
                corpus_sha256=corpus,
                observer=observer,
            )
            note.summary = f"{totals.n_features:,} features, {totals.n_pairs} pairs of layers"
        name_features(subject, activations, out, observer=observer)
    _say_totals(totals, wants_json)
    return ExitCode.DONE


@atlas.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("feature", required=False)
@click.option("--top", metavar="N", type=click.IntRange(min=1), default=SHOWN, show_default=True, help="Neighbours printed of each list.")
@output_options
def show(folder: Path, feature: str | None, top: int, wants_json: bool, quiet: bool) -> ExitCode:
    """Show the totals of FOLDER or, with FEATURE such as clt/2/81, its strongest targets and sources."""
    opened = Atlas.open(folder)
    if feature is None:
        _say_totals(opened.totals(), wants_json)
        return ExitCode.DONE
    found = opened.neighbours(FeatureId.parse(feature))
    if wants_json:
        output.as_json(output.as_plain(found))
    else:
        _say_neighbours(found, top)
    return ExitCode.DONE


def show_neighbours(folder: Path, features: Sequence[FeatureId], *, top: int, wants_json: bool) -> ExitCode:
    """Print what an atlas holds of some features.

    Args:
        folder: of the atlas.
        features: in the order in which they are printed.
        top: neighbours printed of each list; JSON has all.
        wants_json: print one document with all of them.

    Raises:
        UsageError: there is no atlas, it is damaged, or it has no such feature.
    """
    opened = Atlas.open(folder)
    found = [opened.neighbours(feature) for feature in features]
    if wants_json:
        output.as_json({"features": [output.as_plain(each) for each in found]})
        return ExitCode.DONE
    for number, each in enumerate(found):
        if number:
            output.say()
        _say_neighbours(each, top)
    return ExitCode.DONE


def _observed(options: dict[str, Any], opening: Opening, observer: Observer) -> tuple[Subject, TokenActivations, str | None]:
    """Subject and activations, and what names their corpus where it is not the subject's own."""
    from audit.subject import load_subject, observe

    def told(done: int, total: int) -> None:
        check_stop(observer)
        observer.notify(StepProgress("corpus", done, total))

    named = (options["subject"], options["dictionary"], options["corpus"])
    if options["statistics"] is not None:
        return _from_statistics(options["statistics"], named, opening, observer)
    with timed(observer, "subject") as note:
        subject = load_subject(*named, opening=opening, observer=observer)
        note.summary = subject.info.name
    with timed(observer, "corpus") as note:
        activations = observe(subject.model, subject.dictionary, subject.corpus, progress=told)
        note.summary = f"{activations.n_tokens} tokens in {len(subject.corpus)} documents"
    return subject, activations, None


def _from_statistics(
    folder: Path, named: tuple[str | None, str | None, Path | None], opening: Opening, observer: Observer
) -> tuple[Subject, TokenActivations, str]:
    from audit.corpus import open_activations, open_statistics
    from audit.corpus.opening import open_subject

    open_statistics(folder)  # before the model is opened
    with timed(observer, "subject") as note:
        subject, _ = open_subject(*named, opening=opening, observer=observer)
        note.summary = subject.info.name
    with timed(observer, "corpus") as note:
        manifest = open_statistics(folder, subject).manifest
        activations = open_activations(folder)
        note.summary = f"{activations.n_tokens} tokens in {manifest.n_documents} documents, as they were kept"
    return subject, activations, manifest.shards_sha256


def _say_totals(totals: AtlasTotals, wants_json: bool) -> None:
    if wants_json:
        output.as_json(output.as_plain(totals))
        return
    key = totals.key
    rows = [
        ("features", f"{totals.n_features:,}, of which {sum(totals.active):,} fire on {key.support} tokens or more"),
        ("corpus", f"{key.n_tokens:,} tokens, {key.corpus_sha256[:16]}"),
        ("pairs of layers", f"{totals.n_pairs_done} of {totals.n_pairs} done"),
        ("kept", f"{key.top} a feature, side and sign, of pairs that fire together on {key.support} tokens or more"),
        ("model", key.model_sha256[:16]),
        ("dictionary", f"{key.kind}, {key.dictionary_sha256[:16]}"),
        ("on disk", f"{totals.n_bytes / 1e6:,.1f} MB"),
    ]
    output.table((totals.folder, ""), rows, width=WIDTH)
    if totals.n_pairs_done < totals.n_pairs:
        output.say("Not finished: the same `ulterior atlas build` goes on.")


def _say_neighbours(found: AtlasNeighbours, top: int) -> None:
    fires = f"fires on {found.n_firing:,} of {found.n_tokens:,} tokens"
    output.say(f"{found.feature}  {plain(found.label)}"[:WIDTH])
    output.say(f"{fires}, {found.n_unsupported:,} later features below {found.support_cutoff} tokens")
    lists = (
        ("strongest targets", found.positive_targets),
        ("most negative targets", found.negative_targets),
        ("strongest sources", found.positive_sources),
        ("most negative sources", found.negative_sources),
    )
    for title, neighbours in lists:
        if neighbours:
            rows = [
                (each.feature, f"{each.twera:+.3g}", f"{each.era:+.3g}", f"{each.virtual_weight:+.3g}", each.n_coactive, each.label)
                for each in neighbours[:top]
            ]
            heading = f"{title}, {len(rows)} of {len(neighbours)}"
            output.table(("feature", "TWERA", "ERA", "V", "support", "fires on"), rows, title=heading, width=WIDTH, cut="fires on")
    if not any(neighbours for _, neighbours in lists):
        output.say("No other feature fires together with it on enough tokens.")
    output.say(f"Targets of layers {_spans(found.target_layers)}; sources of layers {_spans(found.source_layers)}.")


def _spans(layers: Sequence[int]) -> str:
    """``1 to 4, 9`` of 1, 2, 3, 4, 9."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    stops = [layer for layer in layers if layer + 1 not in layers]
    runs = [str(start) if start == stop else f"{start} to {stop}" for start, stop in zip(starts, stops, strict=True)]
    return ", ".join(runs) or "none"
