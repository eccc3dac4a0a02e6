"""``ulterior statistics``: what every feature of a dictionary does on a text, computed once, merged and shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from audit.cli import diagnostics, output
from audit.cli.options import opening_options, output_options
from audit.cli.progress import watching
from audit.errors import ExitCode
from audit.events import timed
from audit.plain import plain
from audit.records.names import FeatureId
from audit.records.statistics import CorpusExample, FeatureStatistics, StatisticsManifest, StatisticsSummary

EPILOG = """\b
Examples:
  ulterior statistics build --out bundled-statistics
  ulterior statistics build --subject ./model --dictionary ./transcoders --corpus text.jsonl --out first --candidates plt/4/1093
  ulterior statistics merge first second --out both
  ulterior statistics show both plt/4/1093
"""


class Features(click.ParamType[tuple[FeatureId, ...]]):
    """Comma-separated features, such as ``clt/1/5,clt/2/7``."""

    name = "FEATURES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[FeatureId, ...]:
        """Read them; a wrong name is a ``UsageError`` of its own."""
        if isinstance(value, tuple):
            return value
        return tuple(FeatureId.parse(part.strip()) for part in str(value).split(",") if part.strip())


@click.group(epilog=EPILOG)
def statistics() -> None:
    """Build, merge and show statistics of features on a text."""


@statistics.command()
@click.option("--out", metavar="FOLDER", type=click.Path(path_type=Path), required=True, help="Where statistics go; resumed if begun.")
@click.option("--subject", metavar="PATH|HUB-ID", help="Folder or hub id of the model. [default: the bundled one]")
@click.option("--dictionary", metavar="PATH|HUB-ID", help="Its dictionary: folder, file, hub id, or a bundled one's name.")
@click.option("--corpus", metavar="FILE", type=click.Path(path_type=Path), help='.jsonl of {"text": ...}, or plain text.')
@opening_options
@click.option("--candidates", type=Features(), default=(), help="Whose co-activations are kept, such as clt/1/5,clt/2/7.")
@click.option("--shard-tokens", metavar="N", type=click.IntRange(min=1), help="Tokens after which a shard is written. [default: 16384]")
@click.option("--drop-activations", is_flag=True, help="Keep statistics only, not every activation.")
@output_options
def build(
    out: Path, subject: str | None, dictionary: str | None, corpus: Path | None, wants_json: bool, quiet: bool, **options: Any
) -> ExitCode:
    """Pass a text through the subject once; what is finished is kept, and the same call goes on from there."""
    with watching(quiet=quiet) as observer:
        from audit.corpus.opening import open_subject
        from audit.corpus.scanning import STEP, ScanPlan, scan
        from audit.corpus.shards import SHARD_TOKENS
        from audit.subject import Opening

        opening = Opening(dtype=options["dtype"], device=options["device"], accept_health=options["accept_health"])
        with timed(observer, "subject") as note:
            opened, text = open_subject(subject, dictionary, corpus, opening=opening, observer=observer)
            note.summary = opened.info.name
        plan = ScanPlan(
            candidates=options["candidates"],
            shard_tokens=options["shard_tokens"] or SHARD_TOKENS,
            keep_activations=not options["drop_activations"],
        )
        with timed(observer, STEP) as note:
            manifest = scan(opened, text, out, plan=plan, observer=observer)
            note.summary = _in_a_line(manifest)
    return _say_manifest(manifest, out, wants_json)


@statistics.command()
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...", type=click.Path(path_type=Path))
@click.option("--out", metavar="FOLDER", type=click.Path(path_type=Path), required=True, help="Where the merged statistics go.")
@output_options
def merge(folders: tuple[Path, ...], out: Path, wants_json: bool, quiet: bool) -> ExitCode:
    """Merge statistics of one subject on different texts; the same shard twice is refused.

    Activations are not merged: the result has statistics only.
    """
    from audit.corpus.artefact import merge_artefacts

    return _say_manifest(merge_artefacts(folders, out), out, wants_json)


@statistics.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("feature", required=False)
@click.option("--subject", metavar="PATH|HUB-ID", help="Whose tokenizer reads the examples. [default: the model they were made with]")
@output_options
def show(folder: Path, feature: str | None, subject: str | None, wants_json: bool, quiet: bool) -> ExitCode:
    """Show the totals of FOLDER or, with FEATURE such as clt/2/81, that feature and its strongest examples."""
    from audit.corpus.artefact import open_statistics
    from audit.corpus.showing import feature_of, refuse_unknown, summary_of

    wanted = None if feature is None else FeatureId.parse(feature)
    artefact = open_statistics(folder)
    if wanted is None:
        found: StatisticsSummary | FeatureStatistics = summary_of(artefact)
    else:
        refuse_unknown(artefact, wanted)  # before the tokenizer is looked for
        from audit.corpus.opening import codec_for

        codec = codec_for(artefact.manifest, subject)
        if codec is None and not quiet:
            diagnostics.line(
                f"the tokenizer of '{artefact.manifest.model_path}' is not at hand: examples are token ids; name it as --subject"
            )
        found = feature_of(artefact, wanted, None if codec is None else codec.token_texts)
    if wants_json:
        output.as_json(output.as_plain(found))
    elif isinstance(found, StatisticsSummary):
        _say_summary(found, folder)
    else:
        _say_feature(found)
    return ExitCode.DONE


def _in_a_line(manifest: StatisticsManifest) -> str:
    return _extent(manifest.n_tokens, manifest.n_documents, len(manifest.shards))


def _extent(n_tokens: int, n_documents: int, n_shards: int) -> str:
    return f"{_number(n_tokens, 'token')} of {_number(n_documents, 'document')} in {_number(n_shards, 'shard')}"


def _number(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _say_manifest(manifest: StatisticsManifest, out: Path, wants_json: bool) -> ExitCode:
    if wants_json:
        output.as_json(output.as_plain(manifest))
    else:
        output.say(f"{plain(str(out))}: {_in_a_line(manifest)}")
    return ExitCode.DONE


def _say_summary(found: StatisticsSummary, folder: Path) -> None:
    output.say(f"{plain(str(folder))}: {_extent(found.n_tokens, found.n_documents, found.n_shards)}")
    for corpus in found.corpora:
        output.say(f"text: {plain(corpus.name)}, SHA-256 {plain(corpus.sha256[:16])}")
    if found.candidates:
        output.say(f"co-activations of {plain(', '.join(map(str, found.candidates)))}")
    rows = [(each.layer, each.n_features, found.n_tokens, f"{each.l0:.2f}", f"{each.dead_share:.2%}") for each in found.layers]
    output.table(("layer", "features", "tokens", "L0", "dead"), rows)


def _say_feature(found: FeatureStatistics) -> None:
    rows = [
        ("fires on", f"{_number(found.n_firing, 'token')} ({found.frequency:.4%})"),
        ("mean where it fires", found.mean_activation),
        ("standard deviation where it fires", found.deviation),
        ("largest", found.max_activation),
    ]
    output.table((str(found.feature), ""), rows)
    output.say()
    if found.examples:
        shown = [(each.activation, each.document, each.position, _marked(each)) for each in found.examples]
        output.table(("peak", "document", "token", "example, <<peak>> marked"), shown)


def _marked(example: CorpusExample) -> str:
    spelled = example.tokens is not None
    parts = list(example.tokens if example.tokens is not None else map(str, example.token_ids))
    if example.peak < len(parts):
        parts[example.peak] = f"<<{parts[example.peak]}>>"
    return ("" if spelled else " ").join(parts)
